"""The Triton side of `multi_lora`: shrink to the rank, expand, gradients.

Adapters stand side by side in groups; a group fills one matrix product, say
with eight adapters of rank 16. A tile of tokens is multiplied with a whole
group, whichever adapters its tokens chose. Of the product that shrinks, each
token's chosen rows are kept, times their weights, and the rest is set to 0
(``spread``, [T, columns]). The product that expands and the gradients are then
plain matrix products. They multiply more than was asked for, but read the
tokens only once per group, and it is memory that takes the time. With several
groups, those that no token of a tile chose are left out.

Nothing is sorted, no two programs write to one place, and no number travels
to the host. Matrices have any strides, so that the backward pass can run the
same kernels on transposed ones. ``spread`` has T N r numbers of the tokens'
dtype, with N rounded up to whole groups and r to a power of 2.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from lab.kernels import runtime
from lab.kernels._multi_lora_tiles import (
    STAGES,
    Blocks,
    blocks,
    stages_of_sum,
    turned,
    warps,
)
from lab.kernels._three_parts import add_product, is_whole, splits

RESIDENT = 2  # programs that a multiprocessor holds at once
LEAST = 4  # tiles of tokens that are added up before they are stored


@triton.jit
def group_of(expert, N, BLOCK_E: tl.constexpr):
    """The group of an adapter; the first group clears the empty slots."""
    return tl.where((expert >= 0) & (expert < N), expert, 0) // BLOCK_E


@triton.jit
def slots_in(
    group, experts_ptr, T, S, N,
    BLOCK_T: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """How many slots of each of T tokens belong to the group."""
    t = tl.arange(0, BLOCK_T)
    count = tl.zeros([BLOCK_T], tl.int32)
    for s in range(0, S):
        expert = tl.load(experts_ptr + t * S + s, mask=t < T, other=-1)
        mine = (t < T) & (group_of(expert, N, BLOCK_E) == group)
        count += mine.to(tl.int32)
    return count


@triton.jit
def lines(
    ptr, group, N, r, stride_e, stride_r,
    BLOCK_E: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """Where the matrices of a group begin, rank by rank, and which exist."""
    line = tl.arange(0, BLOCK_E * BLOCK_R)
    e, rank = group * BLOCK_E + line // BLOCK_R, line % BLOCK_R
    at = ptr + e.to(tl.int64) * stride_e + rank * stride_r
    return at, (e < N) & (rank < r)


@triton.jit
def multi_lora_shrink_kernel(
    tokens_ptr, experts_ptr, weights_ptr, down_ptr, hidden_ptr, spread_ptr,
    T, S, N, n, r, stride_e, stride_r, stride_n,
    BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_E: tl.constexpr,
    BLOCK_R: tl.constexpr, SPLIT: tl.constexpr, MANY: tl.constexpr,
    KEEP: tl.constexpr,
):  # fmt: skip
    """hidden[t, s] = down[e] tokens[t] for the adapter e of slot s, and
    spread[t, e] the sum of weight times hidden over the slots of e.

    hidden is stored if KEEP.
    """
    groups = tl.cdiv(N, BLOCK_E)
    group = tl.program_id(0) % groups
    # offsets from the tile's first token need no 64 bits
    before = (tl.program_id(0) // groups).to(tl.int64) * BLOCK_T
    tokens_ptr += before * n
    experts_ptr += before * S
    weights_ptr += before * S
    hidden_ptr += before * S * r
    spread_ptr += (before * groups + group) * (BLOCK_E * BLOCK_R)
    T = (T - before).to(tl.int32)
    t = tl.arange(0, BLOCK_T)
    count = slots_in(group, experts_ptr, T, S, N, BLOCK_T, BLOCK_E)
    # a lone group is read everywhere, so it is never left out
    if not MANY or tl.sum(count, 0) > 0:
        row = tokens_ptr + t * n
        line, real = lines(
            down_ptr, group, N, r, stride_e, stride_r, BLOCK_E, BLOCK_R
        )
        product = tl.zeros([BLOCK_T, BLOCK_E * BLOCK_R], tl.float32)
        for start in range(0, n, BLOCK_N):
            k = start + tl.arange(0, BLOCK_N)
            x = tl.load(
                row[:, None] + k[None, :],
                mask=(count[:, None] > 0) & (k[None, :] < n), other=0.0,
            )  # fmt: skip
            a = tl.load(
                line[None, :] + k[:, None] * stride_n,
                mask=(k[:, None] < n) & real[None, :], other=0.0,
            )  # fmt: skip
            product = add_product(x, a, product, SPLIT)
        product = tl.reshape(product, [BLOCK_T, BLOCK_E, BLOCK_R])
        e = group * BLOCK_E + tl.arange(0, BLOCK_E)
        if KEEP:
            rank = tl.arange(0, BLOCK_R)
            for s in range(0, S):
                expert = tl.load(experts_ptr + t * S + s, mask=t < T, other=-1)
                mine = (expert[:, None] == e[None, :]) & (e < N)[None, :]
                # one adapter's row, or only zeros in an empty slot
                h = tl.sum(tl.where(mine[:, :, None], product, 0.0), 1)
                here = (t < T) & (group_of(expert, N, BLOCK_E) == group)
                tl.store(
                    hidden_ptr + (t * S + s)[:, None] * r + rank[None, :], h,
                    mask=here[:, None] & (rank < r)[None, :],
                )  # fmt: skip
        weight = tl.zeros([BLOCK_T, BLOCK_E], tl.float32)
        chosen = tl.zeros([BLOCK_T, BLOCK_E], tl.int32)
        for s in range(0, S):
            expert = tl.load(experts_ptr + t * S + s, mask=t < T, other=-1)
            w = tl.load(weights_ptr + t * S + s, mask=t < T, other=0.0)
            mine = (expert[:, None] == e[None, :]) & (e < N)[None, :]
            weight += tl.where(mine, w.to(tl.float32)[:, None], 0.0)
            chosen += mine.to(tl.int32)
        # an adapter not chosen may give NaN, which times 0 would stay NaN
        g = tl.where(
            (chosen > 0)[:, :, None], weight[:, :, None] * product, 0.0
        )
        g = tl.reshape(g, [BLOCK_T, BLOCK_E * BLOCK_R])
        column = tl.arange(0, BLOCK_E * BLOCK_R)
        at = t[:, None] * groups * (BLOCK_E * BLOCK_R) + column[None, :]
        tl.store(
            spread_ptr + at, g.to(spread_ptr.dtype.element_ty),
            mask=(t < T)[:, None],
        )  # fmt: skip


@triton.jit
def multi_lora_expand_kernel(
    spread_ptr, experts_ptr, up_ptr, out_ptr,
    T, S, N, m, r, stride_e, stride_m, stride_r,
    BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_E: tl.constexpr,
    BLOCK_R: tl.constexpr, SPLIT: tl.constexpr, MANY: tl.constexpr,
):  # fmt: skip
    """out[t] = sum over the adapters of up[e] spread[t, e]."""
    groups = tl.cdiv(N, BLOCK_E)
    before = tl.program_id(0).to(tl.int64) * BLOCK_T
    spread_ptr += before * groups * (BLOCK_E * BLOCK_R)
    experts_ptr += before * S
    out_ptr += before * m
    T = (T - before).to(tl.int32)
    t = tl.arange(0, BLOCK_T)
    column = tl.arange(0, BLOCK_E * BLOCK_R)
    at = t[:, None] * groups * (BLOCK_E * BLOCK_R) + column[None, :]
    count = slots_in(0, experts_ptr, T, S, N, BLOCK_T, BLOCK_E)
    # the first group's rows are used for all columns of the result
    g = tl.load(spread_ptr + at, mask=count[:, None] > 0, other=0.0)
    line, real = lines(up_ptr, 0, N, r, stride_e, stride_r, BLOCK_E, BLOCK_R)
    step = tl.num_programs(1) * BLOCK_N
    for start in range(tl.program_id(1) * BLOCK_N, m, step):
        j = start + tl.arange(0, BLOCK_N)
        b = tl.load(
            line[:, None] + j[None, :] * stride_m,
            mask=real[:, None] & (j < m)[None, :], other=0.0,
        )  # fmt: skip
        y = tl.zeros([BLOCK_T, BLOCK_N], tl.float32)
        y = add_product(g, b, y, SPLIT)
        if MANY:
            for group in range(1, groups):
                count = slots_in(group, experts_ptr, T, S, N, BLOCK_T, BLOCK_E)
                if tl.sum(count, 0) > 0:
                    other = tl.load(
                        spread_ptr + at + group * (BLOCK_E * BLOCK_R),
                        mask=count[:, None] > 0, other=0.0,
                    )  # fmt: skip
                    more, real_more = lines(
                        up_ptr, group, N, r, stride_e, stride_r,
                        BLOCK_E, BLOCK_R,
                    )  # fmt: skip
                    b = tl.load(
                        more[:, None] + j[None, :] * stride_m,
                        mask=real_more[:, None] & (j < m)[None, :], other=0.0,
                    )  # fmt: skip
                    y = add_product(other, b, y, SPLIT)
        tl.store(
            out_ptr + t[:, None] * m + j[None, :],
            y.to(out_ptr.dtype.element_ty),
            mask=(t[:, None] < T) & (j[None, :] < m),
        )


@triton.jit
def multi_lora_outer_kernel(
    spread_ptr, experts_ptr, rows_ptr, sums_ptr,
    T, N, n, r, per,
    S: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_E: tl.constexpr, BLOCK_R: tl.constexpr, SPLIT: tl.constexpr,
    MANY: tl.constexpr,
):  # fmt: skip
    """sums[part, e] = sum over the part's tokens of spread[t, e] rows[t].

    A part is ``per`` consecutive tokens.
    """
    k = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    group = tl.program_id(1)
    part = tl.program_id(2).to(tl.int64)
    groups = tl.cdiv(N, BLOCK_E)
    width = groups * (BLOCK_E * BLOCK_R)
    column = group * (BLOCK_E * BLOCK_R) + tl.arange(0, BLOCK_E * BLOCK_R)
    t = tl.arange(0, BLOCK_T)
    spread_ptr += part * per * width
    experts_ptr += part * per * S
    rows_ptr += part * per * n
    T = (T - part * per).to(tl.int32)
    total = tl.zeros([BLOCK_E * BLOCK_R, BLOCK_N], tl.float32)
    for _ in range(0, per, BLOCK_T):
        count = tl.zeros([BLOCK_T], tl.int32)
        # unrolled: an inner loop would keep Triton from loading a step ahead
        for s in tl.static_range(S):
            e = tl.load(experts_ptr + t * S + s, mask=t < T, other=-1)
            mine = (e >= 0) & (e < N) & (e // BLOCK_E == group)
            count += mine.to(tl.int32)
        if not MANY or tl.sum(count, 0) > 0:
            g = tl.load(
                spread_ptr + t[:, None] * width + column[None, :],
                mask=(t < T)[:, None], other=0.0,
            )  # fmt: skip
            # a token without an adapter may be NaN
            x = tl.load(
                rows_ptr + t[:, None] * n + k[None, :],
                mask=(count > 0)[:, None] & (k < n)[None, :], other=0.0,
            )  # fmt: skip
            total = add_product(tl.trans(g), x, total, SPLIT)
        spread_ptr += BLOCK_T * width
        experts_ptr += BLOCK_T * S
        rows_ptr += BLOCK_T * n
        T -= BLOCK_T
    line, real = lines(
        sums_ptr + part * N * r * n, group, N, r, r * n, n, BLOCK_E, BLOCK_R
    )
    tl.store(
        line[:, None] + k[None, :], total,
        mask=real[:, None] & (k < n)[None, :],
    )  # fmt: skip


def for_lanes(adapters: Tensor) -> Tensor:
    """The adapters, with their second dimension contiguous where lanes would
    otherwise wait six times as long as they work (see `is_whole`)."""
    return adapters.mT.contiguous().mT if is_whole(adapters) else adapters


def tile(x: Tensor, N: int, rank: int) -> tuple[Blocks, bool]:
    """What is worked on at a time, and whether fp32 goes in three parts."""
    split = splits(x.dtype, runtime.target(x))
    return blocks(N, rank, x.dtype, split), split


def shrink(
    tokens: Tensor, experts: Tensor, weights: Tensor, down: Tensor,
    keep: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """down[e] tokens[t] for each slot, [T, S, r] fp32 (0 in an empty slot;
    an empty tensor unless ``keep``), and spread, [T, columns]."""
    T, S = experts.shape
    N, r, n = down.shape
    down = for_lanes(down)
    block, split = tile(tokens, N, r)
    groups = runtime.cdiv(N, block.BLOCK_E)
    hidden = tokens.new_empty((T, S, r) if keep else 0, dtype=torch.float32)
    spread = tokens.new_empty(T, groups * block.BLOCK_E * block.BLOCK_R)
    if T:
        multi_lora_shrink_kernel[(runtime.cdiv(T, block.BLOCK_T) * groups,)](
            tokens.contiguous(), experts.contiguous(), weights.contiguous(),
            down, hidden, spread, T, S, N, n, r, *down.stride(),
            **block._asdict(), SPLIT=split, MANY=groups > 1, KEEP=keep,
            num_warps=warps(split, n, r), num_stages=STAGES,
        )  # fmt: skip
    return hidden, spread


def expand(spread: Tensor, experts: Tensor, up: Tensor) -> Tensor:
    """The sum of up[e] spread[t, e] over the adapters, [T, m]."""
    T, S = experts.shape
    N, m, r = up.shape
    up = for_lanes(up)
    out = up.new_empty(T, m)
    block, split = tile(up, N, r)
    if out.numel():
        tiles = runtime.cdiv(T, block.BLOCK_T)
        # where there are few tokens, several programs share the columns
        programs = max(1, RESIDENT * runtime.multiprocessors(up) // tiles)
        programs = min(programs, runtime.cdiv(m, block.BLOCK_N))
        multi_lora_expand_kernel[tiles, programs](
            spread, experts.contiguous(), up, out,
            T, S, N, m, r, *up.stride(), **block._asdict(),
            SPLIT=split, MANY=N > block.BLOCK_E,
            num_warps=warps(split, m, r), num_stages=STAGES,
        )  # fmt: skip
    return out


def outer(spread: Tensor, experts: Tensor, rows: Tensor, out: Tensor) -> None:
    """Fill out [N, r, n], of any strides, with the sum of spread[t, e] times
    ``rows`` [T, n]: first within parts of the tokens, then over the parts."""
    T, S = experts.shape
    N, r, n = out.shape
    block, split = tile(out, N, r)
    block = turned(block)
    tiles = runtime.cdiv(T, block.BLOCK_T)
    grid = runtime.cdiv(n, block.BLOCK_N), runtime.cdiv(N, block.BLOCK_E)
    programs = RESIDENT * runtime.multiprocessors(out)
    parts = max(1, programs // (grid[0] * grid[1]))
    per = max(LEAST, runtime.cdiv(tiles, parts))
    parts = runtime.cdiv(tiles, per)
    sums = out.new_empty(parts, N, r, n, dtype=torch.float32)
    if sums.numel():
        multi_lora_outer_kernel[*grid, parts](
            spread, experts.contiguous(), rows.contiguous(), sums,
            T, N, n, r, per * block.BLOCK_T, S=S, **block._asdict(),
            SPLIT=split, MANY=N > block.BLOCK_E,
            num_warps=warps(split, n, r), num_stages=stages_of_sum(split),
        )  # fmt: skip
    out.copy_(sums.sum(dim=0))
