"""Dispatch: sort the kept (token, expert) pairs by expert, stably.

A gate leaves T S slots; slot s of token t is pair t S + s, and -1 in it means
that no expert was taken. Dispatch lists the kept pairs expert by expert, and
within an expert in the order of the tokens:

    load_e    = number of pairs that chose e
    offset_e  = load_0 + ... + load_{e-1};  rows offset_e .. offset_{e+1} - 1
                of the sorted order belong to expert e
    row_p     = offset_e + #{q < p : q chose e}     for a pair p that chose e

Dropped pairs are gone before anything is counted, so they cost no row: a null
expert saves its work. Nothing of size T E is built, nothing is sorted on the
GPU, and the same input gives the same rows on every run.

On the GPU three kernels run: each program counts its block of pairs; one
program turns the counts, listed expert by expert, into a running total, which
is the first row of each expert in each block; each program numbers its pairs.
Few pairs, those of some 30 tokens, go through one program that does all.

Bytes: 4 read and 8 written per pair, 8 per expert. The two passes over the
pairs and their block counts make it about twice that.

Source: the counting sort; the three stages are those of the routing kernels
of MegaBlocks (Gale et al. 2023) and SonicMoE (Guo et al. 2025), here without
atomic counters, which would give another order on each run.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

from lab.kernels.declaration import Compile, Cost, Declaration, Example
from lab.kernels.operator import operator
from lab.kernels.runtime import cdiv, next_power_of_2

BLOCK = 1024  # pairs that one program counts and places
SMALL_BLOCK = 256  # where they are not MANY, so that more programs share them
MANY = 16384


class Dispatch(NamedTuple):
    """Who computes what: rows sorted by expert, and the way back."""

    load: Tensor  # [E] int32, rows of each expert
    offsets: Tensor  # [E+1] int32, where each expert's rows begin
    pairs: Tensor  # [T*S] int32, the pair t*S+s in each row, -1 past the end
    rows: Tensor  # [T, S] int32, the row of each slot, -1 for an empty one


def dispatch(experts: Tensor, num_experts: int) -> Dispatch:
    """Sort the kept slots of experts [T, S] by expert, stably.

    A slot holds an expert, 0 to ``num_experts`` - 1, or -1 for none. Other
    values are refused on a CPU and count as none on a GPU, where looking
    would stall it. O(T S) on a GPU for a fixed number of experts.
    """
    if experts.ndim != 2 or experts.dtype != torch.int32:
        raise ValueError(
            f"experts are {experts.dtype} of shape {tuple(experts.shape)};"
            " dispatch needs int32 [tokens, slots], as a gate returns them"
        )
    if not 1 <= num_experts <= 32767:
        raise ValueError(f"num_experts={num_experts} is not within 1 to 32767")
    if experts.device.type == "cpu" and experts.numel():
        low, high = (int(x) for x in experts.aminmax())
        if low < -1 or high >= num_experts:
            raise ValueError(
                f"experts run from {low} to {high}; use 0 to"
                f" {num_experts - 1}, and -1 for an empty slot"
            )
    return Dispatch(*_dispatch(experts, num_experts))


def dispatch_reference(experts: Tensor, num_experts: int) -> Dispatch:
    """The sort in plain PyTorch: one stable sort of 16-bit expert ids."""
    T, S = experts.shape
    # empty slots sort behind the last expert, as if they had chosen E
    chosen = experts.flatten()
    chosen = chosen.masked_fill(chosen < 0, num_experts).to(torch.int16)
    pairs = chosen.sort(stable=True).indices
    load = chosen.bincount(minlength=num_experts + 1)[:num_experts].int()
    offsets = F.pad(load.cumsum(0, dtype=torch.int32), (1, 0))

    kept = int(offsets[-1])
    row = torch.arange(T * S, dtype=torch.int32, device=experts.device)
    row[kept:] = -1
    rows = torch.empty_like(row).scatter_(0, pairs, row).view(T, S)
    pairs = pairs.int()
    pairs[kept:] = -1
    return Dispatch(load, offsets, pairs, rows)


@triton.jit
def count_experts(experts_ptr, pair, pairs, E, BINS: tl.constexpr):
    """How often each expert occurs among these pairs: [BINS]."""
    expert = tl.load(experts_ptr + pair, mask=pair < pairs, other=-1)
    taken = (expert >= 0) & (expert < E)
    return tl.histogram(tl.where(taken, expert, 0), BINS, mask=taken)


@triton.jit
def dispatch_count_kernel(
    experts_ptr, counts_ptr, pairs, blocks, E,
    BLOCK: tl.constexpr, BINS: tl.constexpr,
):  # fmt: skip
    """How often each expert occurs in this block: counts [E, blocks]."""
    block = tl.program_id(0).to(tl.int64)
    pair = block * BLOCK + tl.arange(0, BLOCK)
    count = count_experts(experts_ptr, pair, pairs, E, BINS)
    e = tl.arange(0, BINS)
    tl.store(counts_ptr + e * blocks + block, count, mask=e < E)


@triton.jit
def dispatch_scan_kernel(
    counts_ptr, offsets_ptr, entries, blocks, E, BLOCK: tl.constexpr
):  # fmt: skip
    """Counts become running totals, in place; every expert's first one is
    where its rows begin. One program, as the total is passed along."""
    total = tl.zeros([], tl.int32)
    for start in range(0, entries, BLOCK):
        at = start + tl.arange(0, BLOCK)
        count = tl.load(counts_ptr + at, mask=at < entries, other=0)
        before = total + tl.cumsum(count, 0) - count
        tl.store(counts_ptr + at, before, mask=at < entries)
        first = (at < entries) & (at % blocks == 0)
        tl.store(offsets_ptr + at // blocks, before, mask=first)
        total += tl.sum(count, 0)
    tl.store(offsets_ptr + E, total)


@triton.jit
def number_pairs(
    experts_ptr, pairs_ptr, rows_ptr, first, pairs, free, kept, E,
    BLOCK: tl.constexpr, STEP: tl.constexpr, BINS: tl.constexpr,
):  # fmt: skip
    """Number the pairs from ``first`` on: next free row of their expert."""
    e = tl.arange(0, BINS)
    for start in range(0, tl.minimum(BLOCK, pairs - first), STEP):
        pair = first + start + tl.arange(0, STEP)
        expert = tl.load(experts_ptr + pair, mask=pair < pairs, other=-1)
        taken = (expert >= 0) & (expert < E)
        # [STEP, BINS]: 1 where the pair chose the expert
        chose = (expert[:, None] == e[None, :]).to(tl.int32)
        next_row = free[None, :] + tl.cumsum(chose, 0) - 1
        row = tl.sum(chose * next_row, 1)
        free += tl.sum(chose, 0)
        tl.store(rows_ptr + pair, tl.where(taken, row, -1), mask=pair < pairs)
        tl.store(pairs_ptr + row, pair.to(tl.int32), mask=taken)
        # past the end, a row holds no pair
        empty = (pair >= kept) & (pair < pairs)
        tl.store(pairs_ptr + pair, tl.full([STEP], -1, tl.int32), mask=empty)


@triton.jit
def dispatch_place_kernel(
    experts_ptr, first_ptr, offsets_ptr, load_ptr, pairs_ptr, rows_ptr,
    pairs, blocks, E,
    BLOCK: tl.constexpr, STEP: tl.constexpr, BINS: tl.constexpr,
):  # fmt: skip
    """Number the pairs of this block, from its first free rows on."""
    block = tl.program_id(0).to(tl.int64)
    e = tl.arange(0, BINS)
    free = tl.load(first_ptr + e * blocks + block, mask=e < E, other=0)
    kept = tl.load(offsets_ptr + E)
    number_pairs(
        experts_ptr, pairs_ptr, rows_ptr, block * BLOCK, pairs, free, kept, E,
        BLOCK, STEP, BINS,
    )  # fmt: skip
    if block == 0:
        begin = tl.load(offsets_ptr + e, mask=e < E, other=0)
        end = tl.load(offsets_ptr + e + 1, mask=e < E, other=0)
        tl.store(load_ptr + e, end - begin, mask=e < E)


@triton.jit
def dispatch_few_kernel(
    experts_ptr, offsets_ptr, load_ptr, pairs_ptr, rows_ptr, pairs, E,
    BLOCK: tl.constexpr, STEP: tl.constexpr, BINS: tl.constexpr,
):  # fmt: skip
    """Count, add up and number in one program, for one block at most."""
    pair = tl.arange(0, BLOCK)
    load = count_experts(experts_ptr, pair, pairs, E, BINS)
    before = tl.cumsum(load, 0) - load
    kept = tl.sum(load, 0)
    e = tl.arange(0, BINS)
    tl.store(load_ptr + e, load, mask=e < E)
    tl.store(offsets_ptr + e, before, mask=e < E)
    tl.store(offsets_ptr + E, kept)
    number_pairs(
        experts_ptr, pairs_ptr, rows_ptr, 0, pairs, before, kept, E,
        BLOCK, STEP, BINS,
    )  # fmt: skip


def dispatch_triton(experts: Tensor, num_experts: int) -> Dispatch:
    """Launch three kernels, or one; no number travels to the host."""
    experts, E = experts.contiguous(), num_experts
    P = experts.numel()
    load, offsets = experts.new_empty(E), experts.new_empty(E + 1)
    pairs, rows = experts.new_empty(P), torch.empty_like(experts)
    bins = lanes(E)
    if P <= few(E):
        dispatch_few_kernel[(1,)](
            experts, offsets, load, pairs, rows, P, E,
            BLOCK=BLOCK, STEP=step(bins), BINS=bins, num_warps=4,
        )  # fmt: skip
        return Dispatch(load, offsets, pairs, rows)
    block = SMALL_BLOCK if P <= MANY else BLOCK
    blocks = cdiv(P, block)
    counts = experts.new_empty(E, blocks)
    dispatch_count_kernel[(blocks,)](
        experts, counts, P, blocks, E, BLOCK=block, BINS=bins, num_warps=4
    )
    dispatch_scan_kernel[(1,)](
        counts, offsets, counts.numel(), blocks, E, BLOCK=4096, num_warps=8
    )
    dispatch_place_kernel[(blocks,)](
        experts, counts, offsets, load, pairs, rows, P, blocks, E,
        BLOCK=block, STEP=step(bins, block), BINS=bins, num_warps=4,
    )  # fmt: skip
    return Dispatch(load, offsets, pairs, rows)


def lanes(num_experts: int) -> int:
    """Lanes that hold one number per expert, at least a warp's half."""
    return max(16, next_power_of_2(num_experts))


def step(bins: int, block: int = BLOCK) -> int:
    """Pairs that are numbered at a time: 4096 entries of `number_pairs` keep
    the registers of 4 warps from spilling."""
    return max(1, min(block, 4096 // bins))


def few(num_experts: int) -> int:
    """The most pairs that one program numbers in 8 steps; launching two more
    kernels would take longer."""
    return min(BLOCK, 8 * step(lanes(num_experts)))


def _shapes(experts, num_experts):
    return (
        experts.new_empty(num_experts),
        experts.new_empty(num_experts + 1),
        experts.new_empty(experts.numel()),
        torch.empty_like(experts, memory_format=torch.contiguous_format),
    )


_dispatch = operator(
    "dispatch(Tensor experts, SymInt num_experts)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    cpu=dispatch_reference,
    cuda=dispatch_triton,
    shapes=_shapes,
)


def _inputs(seed, device, dtype, T, E, S, empty=0.0, only=None):
    """Distinct experts per token, as a gate gives them; ``only`` one."""
    generator = torch.Generator().manual_seed(seed)
    experts = torch.rand(T, E, generator=generator).argsort(dim=1)[:, :S]
    if only is not None:
        experts = torch.full((T, S), only)
    dropped = torch.rand(T, S, generator=generator) < empty
    experts = experts.masked_fill(dropped, -1).to(device, torch.int32)
    return {"experts": experts, "num_experts": E}


def _cost(experts, num_experts) -> Cost:
    return Cost(12 * experts.numel() + 8 * num_experts, 0)


def _example(name, T, E, S, empty=0.0, only=None, **kind):
    sizes = {"T": T, "E": E, "S": S, "empty": empty, "only": only}
    return Example(name, sizes, **kind)


_POINTERS = {"experts_ptr": "*i32", "counts_ptr": "*i32"}
_SIZES = {"pairs": "i32", "blocks": "i32", "E": "i32"}

DECLARATION = Declaration(
    name="dispatch",
    operation=dispatch,
    reference=dispatch_reference,
    triton=dispatch_triton,
    inputs=_inputs,
    exact=("load", "offsets", "pairs", "rows"),
    examples=(
        _example("top 2 of 8", 1000, 8, 2),
        _example("half empty", 517, 12, 5, empty=0.5),
        _example("top-p, S = E", 129, 16, 16, empty=0.8),
        _example("decode", 37, 128, 8),
        _example("one token", 1, 7, 3, degenerate=True),
        _example("one expert", 9, 1, 1, degenerate=True),
        _example("k = E", 33, 5, 5, degenerate=True),
        _example("all to the last", 700, 6, 2, only=5, degenerate=True),
        _example("all empty", 40, 4, 2, empty=1.0, degenerate=True),
        _example("no token", 0, 8, 2, degenerate=True),
        _example("large", 32768, 128, 8, large=True),
        _example("large top-p", 32768, 64, 64, empty=0.95, large=True),
    ),
    cost=_cost,
    compiles=(
        Compile(
            "count E64",
            dispatch_count_kernel,
            signature=_POINTERS | _SIZES,
            constants={"BLOCK": BLOCK, "BINS": 64},
        ),
        Compile(
            "scan",
            dispatch_scan_kernel,
            signature={
                "counts_ptr": "*i32", "offsets_ptr": "*i32",
                "entries": "i32", "blocks": "i32", "E": "i32",
            },
            constants={"BLOCK": 4096},
            num_warps=8,
        ),
        *(
            Compile(
                f"place E{E}",
                dispatch_place_kernel,
                signature={
                    "experts_ptr": "*i32", "first_ptr": "*i32",
                    "offsets_ptr": "*i32", "load_ptr": "*i32",
                    "pairs_ptr": "*i32", "rows_ptr": "*i32",
                } | _SIZES,
                constants={
                    "BLOCK": block, "STEP": step(E, block), "BINS": E,
                },
            )
            for E, block in (
                (16, BLOCK), (64, BLOCK), (256, BLOCK), (128, SMALL_BLOCK),
            )
        ),
        *(
            Compile(
                f"few E{E}",
                dispatch_few_kernel,
                signature={
                    "experts_ptr": "*i32", "offsets_ptr": "*i32",
                    "load_ptr": "*i32", "pairs_ptr": "*i32",
                    "rows_ptr": "*i32", "pairs": "i32", "E": "i32",
                },
                constants={"BLOCK": BLOCK, "STEP": step(E), "BINS": E},
            )
            for E in (16, 128)
        ),
    ),
)  # fmt: skip
