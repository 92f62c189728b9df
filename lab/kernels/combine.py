"""Combine: each token sums its experts' rows, weighted by the gate.

    y[t] = sum over the filled slots s of w[t, s] v[r(t, s)]

``rows`` [T, S] from `dispatch` gives each slot its row r of the expert outputs
v, or -1 if the slot is empty. A token without experts gets 0. Each program
sums the rows of its own tokens in fp32, in the order of the slots: scattering
from the rows instead would need atomics and give different bits on each run.

Bytes: the kept rows read once, T rows of H written once, 8 per slot. FLOPs:
2 H per kept row, so the operation is bound by memory everywhere.

Source: the gather-sum of SonicMoE (Guo et al. 2025); `embedding_bag` is
PyTorch's name for the same sum.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

from lab.kernels._wanted import or_none, wanted
from lab.kernels.combine_backward import combine_backward
from lab.kernels.declaration import Compile, Cost, Declaration, Example
from lab.kernels.operator import operator
from lab.kernels.runtime import cdiv, next_power_of_2


def combine(expert_rows: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
    """Sum each token's expert_rows [R, H], weighted by the gate: [T, H].

    ``rows`` and ``weights`` are [T, S]. Sums are in fp32 (float64 for
    float64); the result has the dtype of ``expert_rows``. Differentiable in
    ``expert_rows`` and ``weights``. Slots must not share a row: their
    gradients would overwrite each other. O(T S H).
    """
    if expert_rows.ndim != 2:
        raise ValueError(
            f"expert_rows have shape {tuple(expert_rows.shape)};"
            " combine needs [rows, width]"
        )
    if rows.ndim != 2 or rows.shape != weights.shape:
        raise ValueError(
            f"rows {tuple(rows.shape)} and weights {tuple(weights.shape)}"
            " must both be [tokens, slots]"
        )
    return _combine(expert_rows, rows, weights)


def combine_reference(
    expert_rows: Tensor, rows: Tensor, weights: Tensor
) -> Tensor:
    """The sum in plain PyTorch: each token is a bag of its rows."""
    # a row that was not computed counts as an empty slot
    filled = (rows >= 0) & (rows < len(expert_rows))
    wide = torch.promote_types(expert_rows.dtype, weights.dtype)
    values, weights = expert_rows.to(wide), weights.to(wide)
    # 13 times faster than gather, multiply and sum
    if rows.numel() and filled.all():
        y = F.embedding_bag(
            rows, values, mode="sum", per_sample_weights=weights
        )
    else:
        slot = filled.flatten().nonzero()[:, 0]
        y = F.embedding_bag(
            rows.flatten().index_select(0, slot),
            values,
            F.pad(filled.sum(dim=1).cumsum(0), (1, 0)).int(),
            mode="sum",
            per_sample_weights=weights.flatten().index_select(0, slot),
            include_last_offset=True,
        )
    return y.to(expert_rows.dtype)


@triton.jit
def combine_kernel(
    expert_rows_ptr, rows_ptr, weights_ptr, out_ptr,
    T, S, H, R,
    WEIGHTED: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    t = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    h = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    total = tl.zeros([BLOCK_T, BLOCK_H], tl.float32)
    for s in range(0, S):
        row = tl.load(rows_ptr + t * S + s, mask=t < T, other=-1)
        # a row that was not computed counts as an empty slot
        filled = (row >= 0) & (row < R)
        value = tl.load(
            expert_rows_ptr + row.to(tl.int64)[:, None] * H + h[None, :],
            mask=filled[:, None] & (h[None, :] < H),
            other=0.0,
        ).to(tl.float32)
        if WEIGHTED:
            weight = tl.load(weights_ptr + t * S + s, mask=filled, other=0.0)
            value = weight.to(tl.float32)[:, None] * value
        total += value
    tl.store(
        out_ptr + t[:, None] * H + h[None, :],
        total.to(out_ptr.dtype.element_ty),
        mask=(t[:, None] < T) & (h[None, :] < H),
    )


def combine_triton(
    expert_rows: Tensor, rows: Tensor, weights: Tensor
) -> Tensor:
    """Launch the kernel; one program sums a few tokens' rows."""
    return _sum_rows(expert_rows, rows, weights)


def sum_rows(expert_rows: Tensor, rows: Tensor) -> Tensor:
    """The sum of each token's rows, unweighted; on a GPU only."""
    return _sum_rows(expert_rows, rows, None)


def _sum_rows(expert_rows, rows, weights):
    T, S = rows.shape
    R, H = expert_rows.shape
    out = expert_rows.new_empty(T, H)
    block_h = min(1024, next_power_of_2(H))
    block_t = max(1, 1024 // block_h)
    if out.numel():
        grid = (cdiv(T, block_t), cdiv(H, block_h))
        combine_kernel[grid](
            expert_rows.contiguous(), rows.contiguous(),
            rows if weights is None else weights.contiguous(), out,
            T, S, H, R,
            WEIGHTED=weights is not None, BLOCK_T=block_t, BLOCK_H=block_h,
            num_warps=4,
        )  # fmt: skip
    return out


def _shapes(expert_rows, rows, weights):
    return expert_rows.new_empty(rows.shape[0], expert_rows.shape[1])


def _remember(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _backward(ctx, grad):
    needed = wanted(ctx, 0, 2)
    found = combine_backward(*ctx.saved_tensors, grad.contiguous(), needed)
    grad_rows, grad_weights = or_none(found, needed)
    return grad_rows, None, grad_weights


_combine = operator(
    "combine(Tensor expert_rows, Tensor rows, Tensor weights) -> Tensor",
    cpu=combine_reference,
    cuda=combine_triton,
    shapes=_shapes,
    backward=_backward,
    remember=_remember,
)


def sorted_slots(seed, T, E, S, empty):
    """Rows [T, S] as `dispatch` gives them, and how many there are."""
    generator = torch.Generator().manual_seed(seed)
    experts = torch.rand(T, E, generator=generator).argsort(dim=1)[:, :S]
    dropped = torch.rand(T, S, generator=generator) < empty
    order = experts.masked_fill(dropped, E).flatten().argsort(stable=True)
    row = torch.arange(T * S)
    rows = torch.empty_like(row).scatter_(0, order, row).view(T, S)
    kept = T * S - int(dropped.sum())
    return rows.masked_fill(dropped, -1).to(torch.int32), kept


def _inputs(seed, device, dtype, T, E, S, H, empty=0.0):
    rows, kept = sorted_slots(seed, T, E, S, empty)
    generator = torch.Generator().manual_seed(seed)
    expert_rows = torch.randn(T * S, H, generator=generator)
    # what lies past the end must not matter
    expert_rows[kept:] = float("nan")
    weights = torch.rand(T, S, generator=generator, dtype=torch.float64)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    return {
        "expert_rows": expert_rows.to(device, dtype),
        "rows": rows.to(device),
        "weights": weights.masked_fill(rows < 0, 0.0).to(device, wide),
    }


def _cost(expert_rows, rows, weights) -> Cost:
    T, S = rows.shape
    H, width = expert_rows.shape[1], expert_rows.element_size()
    kept = int((rows >= 0).sum())
    return Cost((kept + T) * H * width + 8 * T * S, 2 * kept * H)


def _example(name, T, E, S, H, empty=0.0, **kind):
    sizes = {"T": T, "E": E, "S": S, "H": H, "empty": empty}
    return Example(name, sizes, **kind)


DECLARATION = Declaration(
    name="combine",
    operation=combine,
    reference=combine_reference,
    triton=combine_triton,
    inputs=_inputs,
    differentiable=("expert_rows", "weights"),
    # one rounding of the result: half a unit in the last place of fp16
    tolerance={torch.float32: 1e-5, torch.float16: 1e-3},
    examples=(
        _example("top 2 of 8", 129, 8, 2, 48),
        _example("wide", 9, 12, 3, 1100, empty=0.3),
        _example("top-p, S = E", 33, 16, 16, 20, empty=0.8),
        _example("one token", 1, 4, 1, 5, degenerate=True),
        _example("all empty", 7, 4, 2, 8, empty=1.0, degenerate=True),
        _example("no token", 0, 4, 2, 8, degenerate=True),
        _example("large", 32768, 128, 8, 2048, large=True),
    ),
    cost=_cost,
    compiles=tuple(
        Compile(
            f"H2048 {dtype}",
            combine_kernel,
            signature={
                "expert_rows_ptr": f"*{dtype}", "rows_ptr": "*i32",
                "weights_ptr": "*fp32", "out_ptr": f"*{dtype}",
                "T": "i32", "S": "i32", "H": "i32:16", "R": "i32",
            },
            constants={"WEIGHTED": True, "BLOCK_T": 1, "BLOCK_H": 1024},
        )
        for dtype in ("fp32", "fp16")
    ),
)  # fmt: skip
