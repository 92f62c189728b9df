"""Combine backward: gradients of expert rows and weights from the tokens'.

With g the gradient of y[t] = sum over s of w[t, s] v[r(t, s)]:

    dv[r(t, s)] = w[t, s] g[t]          0 for a row that no slot points to
    dw[t, s]    = v[r(t, s)] . g[t]     0 for an empty slot

A row belongs to one slot at most, so each token writes its own rows and no
two programs write to the same place. There are no atomics, and every run gives
the same bits.

Bytes: g and v read once, dv written once, 12 per slot. They are fewer where
one of the two gradients is not wanted: a frozen gate needs no v, and frozen
experts need no dv. Rows that no slot points to (because a gate left slots
empty) must not hold garbage. Where there are many rows, a byte marks each row
that is written, and a second kernel fills the rows without a mark, because
writing all of dv twice would take half as long again. Where there are few
rows, filling dv beforehand costs less than the second kernel.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from lab.kernels._wanted import like
from lab.kernels.declaration import Compile, Cost, Declaration, Example
from lab.kernels.operator import operator
from lab.kernels.runtime import cdiv, next_power_of_2

BOTH = True, True  # gradients wanted
# numbers that can be filled with zeros in the time of one launch
FEW = 2**22


class CombineGradients(NamedTuple):
    expert_rows: Tensor  # [R, H]
    weights: Tensor  # [T, S]


def combine_backward(
    expert_rows: Tensor,
    rows: Tensor,
    weights: Tensor,
    grad: Tensor,
    wanted: Sequence[bool] = BOTH,
) -> CombineGradients:
    """Gradients of expert_rows [R, H] and weights [T, S] from grad [T, H].

    ``rows`` [T, S] gives the row of each slot, -1 for an empty slot; no two
    slots may have the same row. A gradient that is not ``wanted`` (in the
    order of the result) is empty. O(T S H).
    """
    if rows.shape != weights.shape:
        raise ValueError(
            f"rows {tuple(rows.shape)} and weights {tuple(weights.shape)}"
            " must both be [tokens, slots]"
        )
    if grad.shape != (rows.shape[0], expert_rows.shape[1]):
        raise ValueError(
            f"grad has shape {tuple(grad.shape)}; the combined tokens have"
            f" {(len(rows), expert_rows.shape[1])}"
        )
    return CombineGradients(
        *_combine_backward(expert_rows, rows, weights, grad, wanted)
    )


def combine_backward_reference(
    expert_rows: Tensor,
    rows: Tensor,
    weights: Tensor,
    grad: Tensor,
    wanted: Sequence[bool] = BOTH,
) -> CombineGradients:
    """Both formulas in plain PyTorch, over the filled slots."""
    rows_wanted, weights_wanted = wanted
    grad_rows, grad_weights = like((expert_rows, weights), wanted)
    wide = torch.promote_types(expert_rows.dtype, weights.dtype)
    R, S = len(expert_rows), rows.shape[1]
    filled = (rows >= 0) & (rows < R)
    slot = filled.flatten().nonzero()[:, 0]
    row = rows.flatten().index_select(0, slot).long()
    # in the order of the rows: only integers change places, no vectors
    slot = slot.new_full((R,), -1).index_copy_(0, row, slot)
    used, v = None, expert_rows
    if len(row) < R:
        used = (slot >= 0).nonzero()[:, 0]
        slot, v = slot.index_select(0, used), v.index_select(0, used)

    g = grad.index_select(0, slot // S).to(wide)
    if weights_wanted:
        dw = (v.to(wide) * g).sum(1).to(weights.dtype)
        grad_weights.zero_().view(-1).index_copy_(0, slot, dw)
    if rows_wanted:
        w = weights.flatten().index_select(0, slot).to(wide)
        dv = g.mul_(w[:, None]).to(grad_rows.dtype)
        if used is None:
            grad_rows = dv
        else:
            grad_rows.zero_().index_copy_(0, used, dv)
    return CombineGradients(grad_rows, grad_weights)


@triton.jit
def combine_backward_kernel(
    expert_rows_ptr, rows_ptr, weights_ptr, grad_ptr,
    grad_rows_ptr, grad_weights_ptr, written_ptr,
    T, S, H, R,
    ROWS: tl.constexpr, WEIGHTS: tl.constexpr, MARK: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    t = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    slots = tl.arange(0, BLOCK_S)
    if MARK:
        every = rows_ptr + t[:, None] * S + slots[None, :]
        exists = (t[:, None] < T) & (slots[None, :] < S)
        own = tl.load(every, mask=exists, other=-1)
        tl.store(written_ptr + own, 1, mask=(own >= 0) & (own < R))
    grad_weights = tl.zeros([BLOCK_T, BLOCK_S], tl.float32)
    for start in range(0, H, BLOCK_H):
        h = start + tl.arange(0, BLOCK_H)
        inside = (t[:, None] < T) & (h[None, :] < H)
        grad = tl.load(
            grad_ptr + t[:, None] * H + h[None, :], mask=inside, other=0.0
        ).to(tl.float32)
        for s in range(0, S):
            row = tl.load(rows_ptr + t * S + s, mask=t < T, other=-1)
            filled = (row >= 0) & (row < R)
            at = row.to(tl.int64)[:, None] * H + h[None, :]
            inside = filled[:, None] & (h[None, :] < H)
            if WEIGHTS:
                value = tl.load(expert_rows_ptr + at, mask=inside, other=0.0)
                part = tl.sum(value.to(tl.float32) * grad, 1)
                here = slots[None, :] == s
                grad_weights += tl.where(here, part[:, None], 0.0)
            if ROWS:
                weight = tl.load(
                    weights_ptr + t * S + s, mask=filled, other=0.0
                )
                pull = weight.to(tl.float32)[:, None] * grad
                tl.store(
                    grad_rows_ptr + at,
                    pull.to(grad_rows_ptr.dtype.element_ty),
                    mask=inside,
                )
    if WEIGHTS:
        tl.store(
            grad_weights_ptr + t[:, None] * S + slots[None, :],
            grad_weights.to(grad_weights_ptr.dtype.element_ty),
            mask=(t[:, None] < T) & (slots[None, :] < S),
        )


@triton.jit
def fill_unwritten_kernel(
    rows_ptr, written_ptr, R, H,
    BLOCK_R: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    """Write zeros to every row that has no mark."""
    r = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    empty = tl.load(written_ptr + r, mask=r < R, other=1) == 0
    if tl.max(empty.to(tl.int32), 0) == 0:
        return
    at = r.to(tl.int64)[:, None] * H
    for start in range(0, H, BLOCK_H):
        h = start + tl.arange(0, BLOCK_H)[None, :]
        zeros = tl.zeros([BLOCK_R, BLOCK_H], rows_ptr.dtype.element_ty)
        tl.store(rows_ptr + at + h, zeros, mask=empty[:, None] & (h < H))


def combine_backward_triton(
    expert_rows: Tensor,
    rows: Tensor,
    weights: Tensor,
    grad: Tensor,
    wanted: Sequence[bool] = BOTH,
) -> CombineGradients:
    """Launch the kernel; one program handles the slots of a few tokens.

    With many rows, a second kernel fills those that no slot points to.
    """
    return _pull_back(expert_rows, rows, weights, grad, wanted, fill=True)


def combine_backward_unfilled(
    expert_rows: Tensor,
    rows: Tensor,
    weights: Tensor,
    grad: Tensor,
    wanted: Sequence[bool],
) -> CombineGradients:
    """The same, but rows that no slot points to are left uninitialised, for a
    caller that does not read them. On a GPU only."""
    return _pull_back(expert_rows, rows, weights, grad, wanted, fill=False)


def _pull_back(expert_rows, rows, weights, grad, wanted, fill):
    T, S = rows.shape
    R, H = expert_rows.shape
    grad_rows, grad_weights = like((expert_rows, weights), wanted)
    rows_wanted, weights_wanted = wanted
    fill = fill and rows_wanted
    mark = fill and grad_rows.numel() > FEW
    written = rows.new_zeros(R, dtype=torch.uint8) if mark else rows
    if fill and not mark:
        grad_rows.zero_()
    block_s = next_power_of_2(S)
    block_h = min(1024, next_power_of_2(H))
    block_t = max(1, 1024 // max(block_h, block_s))
    if T and any(wanted):
        combine_backward_kernel[(cdiv(T, block_t),)](
            expert_rows.contiguous(), rows.contiguous(),
            weights.contiguous(), grad.contiguous(), grad_rows, grad_weights,
            written, T, S, H, R,
            ROWS=rows_wanted, WEIGHTS=weights_wanted, MARK=mark,
            BLOCK_T=block_t, BLOCK_S=block_s, BLOCK_H=block_h, num_warps=4,
        )  # fmt: skip
    if mark:
        fill_unwritten_kernel[(cdiv(R, 64),)](
            grad_rows, written, R, H, BLOCK_R=64, BLOCK_H=128, num_warps=4
        )
    return CombineGradients(grad_rows, grad_weights)


def _shapes(expert_rows, rows, weights, grad, wanted):
    return like((expert_rows, weights), wanted)


_combine_backward = operator(
    "combine_backward(Tensor expert_rows, Tensor rows, Tensor weights, "
    "Tensor grad, bool[] wanted) -> (Tensor, Tensor)",
    cpu=combine_backward_reference,
    cuda=combine_backward_triton,
    shapes=_shapes,
)


def _inputs(seed, device, dtype, T, S, H, rest=0, empty=0.0, wanted=BOTH):
    """Slots that point to distinct rows at random, and ``rest`` more rows."""
    generator = torch.Generator().manual_seed(seed)
    R = T * S + rest
    rows = torch.randperm(R, generator=generator)[: T * S].view(T, S)
    dropped = torch.rand(T, S, generator=generator) < empty
    rows = rows.masked_fill(dropped, -1)
    expert_rows = torch.randn(R, H, generator=generator)
    # a row that no slot points to must not matter
    unused = torch.ones(R, dtype=torch.bool)
    unused[rows[rows >= 0]] = False
    expert_rows[unused] = float("nan")
    weights = torch.rand(T, S, generator=generator).masked_fill(dropped, 0.0)
    grad = torch.randn(T, H, generator=generator)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    return {
        "expert_rows": expert_rows.to(device, dtype),
        "rows": rows.to(device, torch.int32),
        "weights": weights.to(device, wide),
        "grad": grad.to(device, dtype),
        "wanted": wanted,
    }


def _cost(expert_rows, rows, weights, grad, wanted=BOTH) -> Cost:
    R, H = expert_rows.shape
    T, S = rows.shape
    kept = int((rows >= 0).sum())
    of_rows, of_weights = wanted
    moved = (of_weights * kept + of_rows * R + T) * H
    slots = 4 + 4 * of_rows + 4 * of_weights
    return Cost(
        moved * expert_rows.element_size() + slots * T * S,
        (of_rows + 2 * of_weights) * kept * H,
    )


def _example(name, T, S, H, rest=0, empty=0.0, wanted=BOTH, **kind):
    sizes = {"T": T, "S": S, "H": H, "rest": rest, "empty": empty}
    return Example(name, sizes | {"wanted": wanted}, **kind)


DECLARATION = Declaration(
    name="combine_backward",
    operation=combine_backward,
    reference=combine_backward_reference,
    triton=combine_backward_triton,
    inputs=_inputs,
    # one rounding of the result: half a unit in the last place of fp16
    tolerance={torch.float32: 1e-5, torch.float16: 1e-3},
    examples=(
        _example("top 2", 129, 2, 48),
        _example("wide", 9, 3, 1100, rest=4, empty=0.3),
        _example("top-p, S = E", 33, 16, 20, empty=0.8),
        _example("frozen gate", 9, 3, 40, rest=4, wanted=(True, False)),
        _example("frozen experts", 9, 3, 40, rest=4, wanted=(False, True)),
        _example("one token", 1, 1, 5, degenerate=True),
        _example("all empty", 7, 2, 8, empty=1.0, degenerate=True),
        _example("no token", 0, 2, 8, degenerate=True),
        _example("large", 32768, 8, 2048, large=True),
    ),
    cost=_cost,
    compiles=(
        *(Compile(
            f"H2048 {dtype}{only}",
            combine_backward_kernel,
            signature={
                "expert_rows_ptr": f"*{dtype}", "rows_ptr": "*i32",
                "weights_ptr": "*fp32", "grad_ptr": f"*{dtype}",
                "grad_rows_ptr": f"*{dtype}", "grad_weights_ptr": "*fp32",
                "written_ptr": "*i32" if only == " weights" else "*u8",
                "T": "i32", "S": "i32", "H": "i32:16", "R": "i32",
            },
            constants={
                "ROWS": only != " weights", "WEIGHTS": only != " rows",
                "MARK": only != " weights",
                "BLOCK_T": 1, "BLOCK_S": 8, "BLOCK_H": 1024,
            },
        )
        for dtype, only in (
            ("fp32", ""), ("fp16", ""),
            ("fp32", " rows"), ("fp32", " weights"),
        )),
        Compile(
            "fill fp16",
            fill_unwritten_kernel,
            signature={
                "rows_ptr": "*fp16", "written_ptr": "*u8", "R": "i32",
                "H": "i32:16",
            },
            constants={"BLOCK_R": 64, "BLOCK_H": 128},
        ),
    ),
)  # fmt: skip
