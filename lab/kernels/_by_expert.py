"""Rows sorted by expert times each expert's own matrix, in plain PyTorch.

The loop over slices shows what happens. PyTorch's grouped product computes the
same bits on a CPU in about half the time, without the loop's copies, but it
came late (2.10), lacks float64 (which gradcheck needs) and needs rows of a
multiple of 16 bytes. A GPU uses the loop: it runs this code only in float64 or
where Triton does not reach its matrix units, and there a grouped product is
not faster.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

GROUPED = torch.float32, torch.float16, torch.bfloat16


def products(x: Tensor, offsets: Tensor, matrices: Tensor) -> Tensor:
    """Rows x [R, K] times their expert's matrix of [E, K, N]: [R, N].

    ``offsets`` [E+1] says where each expert's rows begin; its last entry is R.
    """
    if _suits(x, matrices):
        return F.grouped_mm(x, matrices, offs=offsets[1:])
    slices = zip(_cut(x, offsets), matrices.unbind(), strict=True)
    return torch.cat([a @ w for a, w in slices])


def sums_of_products(x: Tensor, dy: Tensor, offsets: Tensor) -> Tensor:
    """The sum of x_r^T dy_r over the rows of each expert, [E, K, N]."""
    if _suits(x, dy):
        return F.grouped_mm(x.T, dy, offs=offsets[1:])
    slices = zip(_cut(x, offsets), _cut(dy, offsets), strict=True)
    return torch.stack([a.T @ b for a, b in slices])


def _cut(x, offsets):
    return x.split(offsets.diff().tolist())


def _suits(*operands):
    """Whether the grouped product accepts these operands."""
    return hasattr(F, "grouped_mm") and all(
        a.device.type == "cpu" and a.dtype in GROUPED and _in_whole_rows(a)
        for a in operands
    )


def _in_whole_rows(a):
    """Whether rows or columns are contiguous, a multiple of 16 bytes apart."""
    *outer, near, far = a.stride()
    width = a.shape[-2]
    if far == 1:
        near, far, width = far, near, a.shape[-1]
    return (
        near == 1
        and far >= width
        and all(s and s * a.element_size() % 16 == 0 for s in (*outer, far))
    )
