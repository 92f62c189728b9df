"""Symmetric KL divergence of two predictions, row by row, in one sweep.

With p = softmax(a) and q = softmax(b) over the V logits of a row:

    L = 1/2 [KL(p || q) + KL(q || p)] = 1/2 sum over v of (p - q)(a - b)

Both log-partition constants cancel in the second form, so no logarithm of a
small probability is ever taken. One sweep keeps, for a and for b, the running
maximum, the sum of exponentials and the sum of exponentials times (a - b),
and rescales them when a maximum rises. The backward pass needs four numbers
per row, kept in ``statistics``: both log-sum-exps and the means of a - b under
p and under q, relative to the row's first difference.

Bytes per row: 2 V elements and 1 byte read, 20 bytes written; the chain of two
softmaxes, two logarithms, difference, product and sum moves 10 to 14 V
elements.

Source: Zuo et al. 2022, "Taming Sparsely Activated Transformer with
Stochastic Experts"; the authors' ``symmetric_KL_loss`` sums it over all rows.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from lab.kernels.declaration import Compile, Cost, Declaration, Example
from lab.kernels.operator import operator
from lab.kernels.runtime import may_look
from lab.kernels.sym_kl_backward import sym_kl_backward


class _Parts(NamedTuple):
    loss: Tensor  # [T]
    statistics: Tensor  # [T, 4]


def sym_kl(a: Tensor, b: Tensor, mask: Tensor) -> Tensor:
    """The divergence [T] of the logits a and b [T, V], 0 where not ``mask``.

    ``mask`` [T] is True for the rows that count. The result is fp32 (float64
    for float64 logits) and differentiable in a and b. On a CPU a logit that is
    not finite is refused; on a GPU, where a check would stall it, its row
    becomes NaN. The first symbol's difference is subtracted from all others,
    so a constant between a and b does not matter. But if only one of them has
    a mask value such as -1e9 on that symbol, all others lose their digits.
    """
    if a.ndim != 2 or a.shape != b.shape or a.dtype != b.dtype:
        raise ValueError(
            f"logits {tuple(a.shape)} {a.dtype} and {tuple(b.shape)}"
            f" {b.dtype} are not two predictions; give both as [T, V]"
        )
    if a.shape[1] < 1:
        raise ValueError("V=0 symbols make no prediction; use 1 or more")
    if mask.shape != a.shape[:1] or mask.dtype != torch.bool:
        raise ValueError(
            f"mask {tuple(mask.shape)} {mask.dtype} does not fit; give a"
            f" boolean for each of the {len(a)} rows"
        )
    if may_look(a):
        for name, logits in (("a", a), ("b", b)):
            bad = int((~torch.isfinite(logits)).sum())
            if bad:
                raise ValueError(
                    f"{name} has {bad} NaN or infinite logits; only finite"
                    " ones can be compared"
                )
    return _sym_kl(a, b, mask)[0]


def sym_kl_reference(a: Tensor, b: Tensor, mask: Tensor) -> Tensor:
    """Both divergences in plain PyTorch, from log-softmax."""
    wide = a.dtype == torch.float64
    log_p = (a if wide else a.float()).log_softmax(dim=1)
    log_q = (b if wide else b.float()).log_softmax(dim=1)
    p, q = log_p.exp(), log_q.exp()
    forward = (p * (log_p - log_q)).sum(dim=1)
    backward = (q * (log_q - log_p)).sum(dim=1)
    return torch.where(mask, (forward + backward) / 2, 0.0)


@triton.jit
def sym_kl_kernel(
    a_ptr,
    b_ptr,
    mask_ptr,
    loss_ptr,
    statistics_ptr,
    T,
    V,
    BLOCK_T: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    t = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    is_row = t < T
    # a constant between the two would swallow the digits of a - b
    first_a = tl.load(a_ptr + t * V, mask=is_row, other=0.0).to(tl.float32)
    first_b = tl.load(b_ptr + t * V, mask=is_row, other=0.0).to(tl.float32)
    shift = first_a - first_b
    top_a, top_b = first_a, first_b
    sum_a = tl.zeros([BLOCK_T], tl.float32)
    sum_b = tl.zeros([BLOCK_T], tl.float32)
    mean_a = tl.zeros([BLOCK_T], tl.float32)
    mean_b = tl.zeros([BLOCK_T], tl.float32)

    for start in range(0, V, BLOCK_V):
        v = start + tl.arange(0, BLOCK_V)
        is_symbol = v[None, :] < V
        inside = is_row[:, None] & is_symbol
        at = t[:, None] * V + v[None, :]
        # [BLOCK_T, BLOCK_V]
        a = tl.load(a_ptr + at, mask=inside, other=0.0).to(tl.float32)
        b = tl.load(b_ptr + at, mask=inside, other=0.0).to(tl.float32)
        gap = a - b - shift[:, None]
        a = tl.where(is_symbol, a, float("-inf"))
        b = tl.where(is_symbol, b, float("-inf"))
        new_a = tl.maximum(top_a, tl.max(a, 1))
        new_b = tl.maximum(top_b, tl.max(b, 1))
        exp_a = tl.exp(a - new_a[:, None])
        exp_b = tl.exp(b - new_b[:, None])
        keep_a, keep_b = tl.exp(top_a - new_a), tl.exp(top_b - new_b)
        sum_a = sum_a * keep_a + tl.sum(exp_a, 1)
        sum_b = sum_b * keep_b + tl.sum(exp_b, 1)
        mean_a = mean_a * keep_a + tl.sum(exp_a * gap, 1)
        mean_b = mean_b * keep_b + tl.sum(exp_b * gap, 1)
        top_a, top_b = new_a, new_b

    mean_a, mean_b = mean_a / sum_a, mean_b / sum_b
    counts = tl.load(mask_ptr + t, mask=is_row, other=0) != 0
    loss = tl.where(counts, 0.5 * (mean_a - mean_b), 0.0)
    tl.store(loss_ptr + t, loss, mask=is_row)
    at = statistics_ptr + t * 4
    tl.store(at, top_a + tl.log(sum_a), mask=is_row)
    tl.store(at + 1, top_b + tl.log(sum_b), mask=is_row)
    tl.store(at + 2, mean_a, mask=is_row)
    tl.store(at + 3, mean_b, mask=is_row)


def blocks(V: int) -> tuple[int, int, int]:
    """Rows and symbols of one program's tile, and its warps.

    Warps are few and tiles wide: each of a tile's six sums crosses warps.
    """
    block_v = min(2048, triton.next_power_of_2(V))
    # eight rows of 128 would spill on an H100
    return max(1, min(64, 512 // block_v)), block_v, 2 if V > 1024 else 1


def sym_kl_triton(a: Tensor, b: Tensor, mask: Tensor) -> Tensor:
    """Launch the kernel; one program sweeps a few whole rows."""
    return _launch(a, b, mask).loss


def _launch(a: Tensor, b: Tensor, mask: Tensor) -> _Parts:
    T, V = a.shape
    loss = a.new_empty(T, dtype=torch.float32)
    statistics = a.new_empty((T, 4), dtype=torch.float32)
    block_t, block_v, warps = blocks(V)
    if T:
        sym_kl_kernel[(triton.cdiv(T, block_t),)](
            a.contiguous(), b.contiguous(), mask.contiguous(),
            loss, statistics, T, V,
            BLOCK_T=block_t, BLOCK_V=block_v,
            num_warps=warps,
        )  # fmt: skip
    return _Parts(loss, statistics)


def _by_torch(a, b, mask):
    wide = a.dtype == torch.float64
    a, b = (x if wide else x.float() for x in (a, b))
    gap = a - b - (a - b)[:, :1]
    statistics = torch.stack(
        [
            a.logsumexp(dim=1),
            b.logsumexp(dim=1),
            (a.softmax(dim=1) * gap).sum(dim=1),
            (b.softmax(dim=1) * gap).sum(dim=1),
        ],
        dim=1,
    )
    return sym_kl_reference(a, b, mask), statistics


def _shapes(a, b, mask):
    wide = a.dtype == torch.float64
    dtype = torch.float64 if wide else torch.float32
    return a.new_empty(len(a), dtype=dtype), a.new_empty(
        (len(a), 4), dtype=dtype
    )


def _remember(ctx, inputs, output):
    a, b, mask = inputs
    _, statistics = output
    ctx.mark_non_differentiable(statistics)
    ctx.save_for_backward(a, b, mask, statistics)


def _backward(ctx, grad_loss, _):
    a, b, mask, statistics = ctx.saved_tensors
    return *sym_kl_backward(a, b, mask, statistics, grad_loss), None


_sym_kl = operator(
    "sym_kl(Tensor a, Tensor b, Tensor mask) -> (Tensor, Tensor)",
    cpu=_by_torch,
    cuda=_launch,
    shapes=_shapes,
    backward=_backward,
    remember=_remember,
)


def _inputs(seed, device, dtype, T, V, spread=1.0, masked=True, equal=False):
    generator = torch.Generator().manual_seed(seed)

    def logits():
        z = torch.randn(T, V, generator=generator, dtype=torch.float64)
        return (spread * z).to(device, dtype)

    a = logits()
    b = a.clone() if equal else logits()
    mask = torch.rand(T, generator=generator) < 0.8
    if not masked:
        mask = torch.zeros(T, dtype=torch.bool)
    return {"a": a, "b": b, "mask": mask.to(device)}


def _cost(a, b, mask) -> Cost:
    T, V = a.shape
    return Cost(2 * T * V * a.element_size() + 21 * T, 14 * T * V)


def _compile(V: int, dtype: str) -> Compile:
    block_t, block_v, warps = blocks(V)
    return Compile(
        f"V{V} {dtype}",
        sym_kl_kernel,
        signature={
            "a_ptr": f"*{dtype}", "b_ptr": f"*{dtype}", "mask_ptr": "*i1",
            "loss_ptr": "*fp32", "statistics_ptr": "*fp32",
            "T": "i32", "V": "i32:16" if V % 16 == 0 else "i32",
        },
        constants={"BLOCK_T": block_t, "BLOCK_V": block_v},
        num_warps=warps,
    )  # fmt: skip


DECLARATION = Declaration(
    name="sym_kl",
    operation=sym_kl,
    reference=sym_kl_reference,
    triton=sym_kl_triton,
    inputs=_inputs,
    differentiable=("a", "b"),
    # all sums are in fp32 whatever the dtype of the logits
    tolerance={
        torch.float32: 1e-5, torch.float16: 1e-5, torch.bfloat16: 1e-5,
    },
    examples=(
        Example("97 symbols", {"T": 257, "V": 97}),
        Example("two blocks", {"T": 5, "V": 1025}),
        Example("sharp", {"T": 33, "V": 64, "spread": 8.0}),
        Example("one symbol", {"T": 3, "V": 1}, degenerate=True),
        Example("no row", {"T": 0, "V": 8}, degenerate=True),
        Example(
            "all padding", {"T": 9, "V": 7, "masked": False}, degenerate=True
        ),
        Example("equal", {"T": 9, "V": 33, "equal": True}, degenerate=True),
        Example("large", {"T": 4096, "V": 32768}, large=True),
    ),
    cost=_cost,
    compiles=(
        _compile(97, "fp32"), _compile(32768, "fp32"), _compile(32768, "fp16"),
    ),
)  # fmt: skip
