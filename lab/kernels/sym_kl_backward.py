"""Backward of `sym_kl`: gradients of both logits from the divergence's.

With p = softmax(a), q = softmax(b), d = a - b, and m_p, m_q the means of d
under p and under q:

    dL/da_j = 1/2 [ p_j (d_j - m_p) + p_j - q_j]
    dL/db_j = 1/2 [-q_j (d_j - m_q) + q_j - p_j]

Both predictions get a gradient; neither is held fixed. The forward pass kept
both log-sum-exps and both means, so each logit is read once and its gradient
is written once.

Bytes: 2 V elements and 21 read, 2 V elements written per row.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from lab.kernels.declaration import Compile, Cost, Declaration, Example
from lab.kernels.operator import operator


class SymKLGradient(NamedTuple):
    """The gradients of both predictions."""

    a: Tensor  # [T, V]
    b: Tensor  # [T, V]


def sym_kl_backward(
    a: Tensor, b: Tensor, mask: Tensor, statistics: Tensor, grad_loss: Tensor
) -> SymKLGradient:
    """Gradients of the logits a, b [T, V] from that of the loss [T].

    ``mask`` [T] says which rows count; the others get 0. ``statistics``
    [T, 4] is what the forward pass kept (`sym_kl`).
    """
    if grad_loss.shape != a.shape[:1] or statistics.shape != (len(a), 4):
        raise ValueError(
            f"statistics {tuple(statistics.shape)} and grad_loss"
            f" {tuple(grad_loss.shape)} do not fit {len(a)} rows;"
            " use those of the forward pass, [T, 4] and [T]"
        )
    return SymKLGradient(*_sym_kl_backward(a, b, mask, statistics, grad_loss))


def sym_kl_backward_reference(
    a: Tensor, b: Tensor, mask: Tensor, statistics: Tensor, grad_loss: Tensor
) -> SymKLGradient:
    """The two formulas in plain PyTorch."""
    wide = a.to(statistics.dtype), b.to(statistics.dtype)
    log_sum_a, log_sum_b, mean_a, mean_b = statistics[:, :, None].unbind(1)
    p = (wide[0] - log_sum_a).exp()
    q = (wide[1] - log_sum_b).exp()
    gap = wide[0] - wide[1]
    gap = gap - gap[:, :1]
    counts, pull = mask[:, None], grad_loss[:, None] / 2
    grad_a = torch.where(counts, pull * (p * (gap - mean_a) + p - q), 0.0)
    grad_b = torch.where(counts, pull * (q - p - q * (gap - mean_b)), 0.0)
    return SymKLGradient(
        grad_a.to(a.dtype).contiguous(), grad_b.to(b.dtype).contiguous()
    )


@triton.jit
def sym_kl_backward_kernel(
    a_ptr,
    b_ptr,
    mask_ptr,
    statistics_ptr,
    grad_loss_ptr,
    grad_a_ptr,
    grad_b_ptr,
    T,
    V,
    BLOCK_T: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    t = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    v = tl.program_id(1) * BLOCK_V + tl.arange(0, BLOCK_V)
    is_row = t < T
    inside = is_row[:, None] & (v[None, :] < V)
    at = t[:, None] * V + v[None, :]
    a = tl.load(a_ptr + at, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(b_ptr + at, mask=inside, other=0.0).to(tl.float32)
    first_a = tl.load(a_ptr + t * V, mask=is_row, other=0.0).to(tl.float32)
    first_b = tl.load(b_ptr + t * V, mask=is_row, other=0.0).to(tl.float32)
    row_ptr = statistics_ptr + t * 4
    log_sum_a = tl.load(row_ptr, mask=is_row, other=0.0).to(tl.float32)
    log_sum_b = tl.load(row_ptr + 1, mask=is_row, other=0.0).to(tl.float32)
    mean_a = tl.load(row_ptr + 2, mask=is_row, other=0.0).to(tl.float32)
    mean_b = tl.load(row_ptr + 3, mask=is_row, other=0.0).to(tl.float32)
    counts = tl.load(mask_ptr + t, mask=is_row, other=0) != 0
    pull = tl.load(grad_loss_ptr + t, mask=is_row, other=0.0).to(tl.float32)
    pull, counts = 0.5 * pull[:, None], counts[:, None]

    p = tl.exp(a - log_sum_a[:, None])
    q = tl.exp(b - log_sum_b[:, None])
    gap = a - b - (first_a - first_b)[:, None]
    grad_a = pull * (p * (gap - mean_a[:, None]) + p - q)
    grad_b = pull * (q - p - q * (gap - mean_b[:, None]))
    tl.store(grad_a_ptr + at, tl.where(counts, grad_a, 0.0), mask=inside)
    tl.store(grad_b_ptr + at, tl.where(counts, grad_b, 0.0), mask=inside)


def blocks(V: int) -> tuple[int, int]:
    """Rows and symbols of one program's tile: 1024 of each prediction."""
    block_v = min(1024, triton.next_power_of_2(V))
    return max(1, min(128, 1024 // block_v)), block_v


def sym_kl_backward_triton(
    a: Tensor, b: Tensor, mask: Tensor, statistics: Tensor, grad_loss: Tensor
) -> SymKLGradient:
    """Launch the kernel; the programs tile rows and symbols."""
    T, V = a.shape
    a, b = a.contiguous(), b.contiguous()
    grad_a, grad_b = torch.empty_like(a), torch.empty_like(b)
    block_t, block_v = blocks(V)
    if T:
        grid = triton.cdiv(T, block_t), triton.cdiv(V, block_v)
        sym_kl_backward_kernel[grid](
            a, b, mask.contiguous(), statistics.contiguous(),
            grad_loss.contiguous(), grad_a, grad_b, T, V,
            BLOCK_T=block_t, BLOCK_V=block_v,
            num_warps=4,
        )  # fmt: skip
    return SymKLGradient(grad_a, grad_b)


def _shapes(a, b, mask, statistics, grad_loss):
    return a.new_empty(a.shape), b.new_empty(b.shape)


_sym_kl_backward = operator(
    "sym_kl_backward(Tensor a, Tensor b, Tensor mask, Tensor statistics, "
    "Tensor grad_loss) -> (Tensor, Tensor)",
    cpu=sym_kl_backward_reference,
    cuda=sym_kl_backward_triton,
    shapes=_shapes,
)


def _inputs(seed, device, dtype, T, V, spread=1.0):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    a = (spread * draw(T, V)).to(dtype).double()
    b = (spread * draw(T, V)).to(dtype).double()
    gap = a - b - (a - b)[:, :1]
    statistics = torch.stack(
        [
            a.logsumexp(1),
            b.logsumexp(1),
            (a.softmax(1) * gap).sum(1),
            (b.softmax(1) * gap).sum(1),
        ],
        dim=1,
    )
    # the kernel gets its statistics and grad_loss in fp32 at least
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    return {
        "a": a.to(device, dtype),
        "b": b.to(device, dtype),
        "mask": (torch.rand(T, generator=generator) < 0.8).to(device),
        "statistics": statistics.to(device, wide),
        "grad_loss": draw(T).to(device, wide),
    }


def _cost(a, b, mask, statistics, grad_loss) -> Cost:
    T, V = a.shape
    return Cost(4 * T * V * a.element_size() + 21 * T, 14 * T * V)


def _compile(V: int, dtype: str) -> Compile:
    block_t, block_v = blocks(V)
    logits = ("a_ptr", "b_ptr", "grad_a_ptr", "grad_b_ptr")
    return Compile(
        f"V{V} {dtype}",
        sym_kl_backward_kernel,
        signature={
            "mask_ptr": "*i1", "statistics_ptr": "*fp32",
            "grad_loss_ptr": "*fp32",
            **{name: f"*{dtype}" for name in logits},
            "T": "i32", "V": "i32:16" if V % 16 == 0 else "i32",
        },
        constants={"BLOCK_T": block_t, "BLOCK_V": block_v},
    )  # fmt: skip


DECLARATION = Declaration(
    name="sym_kl_backward",
    operation=sym_kl_backward,
    reference=sym_kl_backward_reference,
    triton=sym_kl_backward_triton,
    inputs=_inputs,
    # the gradient is rounded once to the dtype of the logits; the interpreter
    # cuts bfloat16 off after 8 bits instead, which may cost a 128th
    tolerance={
        torch.float32: 1e-5, torch.float16: 6e-4, torch.bfloat16: 8e-3,
    },
    examples=(
        Example("97 symbols", {"T": 257, "V": 97}),
        Example("two blocks", {"T": 5, "V": 1025}),
        Example("sharp", {"T": 33, "V": 64, "spread": 8.0}),
        Example("one symbol", {"T": 3, "V": 1}, degenerate=True),
        Example("no row", {"T": 0, "V": 8}, degenerate=True),
        Example("large", {"T": 4096, "V": 32768}, large=True),
    ),
    cost=_cost,
    compiles=(
        _compile(97, "fp32"), _compile(32768, "fp32"), _compile(32768, "fp16"),
    ),
)  # fmt: skip
