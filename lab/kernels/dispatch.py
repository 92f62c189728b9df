"""Dispatch: sort the kept (token, expert) pairs by expert, stably.

A gate returns T S slots; slot s of token t is pair t S + s, and a slot with
-1 has no expert. Dispatch lists the kept pairs expert by expert, and within an
expert in the order of the tokens:

    load_e    = number of pairs that chose e
    offset_e  = load_0 + ... + load_{e-1};  rows offset_e .. offset_{e+1} - 1
                of the sorted order belong to expert e
    row_p     = offset_e + #{q < p : q chose e}     for a pair p that chose e

Dropped pairs are removed before anything is counted, so they take no row: a
slot given to a null expert costs no work. Nothing of size T E is built, and
the same input gives the same rows on every run.

On a GPU every pair has a key that sorts by expert, then by pair: e n + q for
pair q of n that chose e. No two keys are equal, so the place of a pair in the
sorted order is the number of smaller keys, found by comparing it with every
other. These are n^2 comparisons, but none waits for another, and up to about
4000 pairs they are the whole sort, in one launch.

With more pairs, blocks of 128 are sorted that way, and three kernels run:

    count   count_{e,b} = number of pairs of block b that chose e
    scan    before_{e,b} = count_{e,0} + ... + count_{e,b-1}, and load_e
    place   row_p = place of p in its block b
                    - (count_{0,b} + ... + count_{e-1,b})  of lower experts
                    + offset_e + before_{e,b}

Bytes: 4 read and 8 written per pair, 8 per expert. In blocks, a pair is read
twice, and the counts add E/8 bytes of traffic per pair; they occupy E/16 bytes
per pair while the kernels run.

Source: the counting sort; the three stages are those of the routing kernels
of MegaBlocks (Gale et al. 2023) and SonicMoE (Guo et al. 2025), here without
atomic counters, which would give a different order on each run. Sorting by
the number of smaller keys is the enumeration sort.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from lab.kernels.declaration import Compile, Cost, Declaration, Example
from lab.kernels.operator import operator
from lab.kernels.runtime import cdiv, next_power_of_2

MOST_EXPERTS = 2**15 - 1  # the reference sorts 16-bit integers
BLOCK = 128  # pairs that one program counts and places, if there are many
SHARE = 16  # pairs that one program places, if there are few
STEP = 1024  # pairs that it compares them with at a time


class Dispatch(NamedTuple):
    """The rows sorted by expert, and the way back to the slots."""

    load: Tensor  # [E] int32, rows of each expert
    offsets: Tensor  # [E+1] int32, where each expert's rows begin
    pairs: Tensor  # [T*S] int32, the pair t*S+s in each row, -1 past the end
    rows: Tensor  # [T, S] int32, the row of each slot, -1 for an empty one


def dispatch(experts: Tensor, num_experts: int) -> Dispatch:
    """Sort the kept slots of experts [T, S] by expert, stably.

    A slot holds an expert, 0 to ``num_experts`` - 1, or -1 for none. Other
    values are refused on a CPU and count as none on a GPU, where a check
    would stall it. O(T S) on a GPU for a fixed number of experts.
    """
    if experts.ndim != 2 or experts.dtype != torch.int32:
        raise ValueError(
            f"experts are {experts.dtype} of shape {tuple(experts.shape)};"
            " dispatch needs int32 [tokens, slots], as a gate returns them"
        )
    if not 1 <= num_experts <= MOST_EXPERTS:
        raise ValueError(
            f"num_experts={num_experts} is not within 1 to {MOST_EXPERTS}"
        )
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
    chosen, pairs = chosen.sort(stable=True)
    each = torch.arange(
        num_experts + 1, dtype=torch.int16, device=experts.device
    )
    # where an expert first occurs, and where the empty slots begin
    offsets = torch.searchsorted(chosen, each, out_int32=True)

    kept = int(offsets[-1])
    row = torch.arange(T * S, dtype=torch.int32, device=experts.device)
    row[kept:] = -1
    rows = torch.empty_like(row).scatter_(0, pairs, row).view(T, S)
    pairs = pairs.int()
    pairs[kept:] = -1
    return Dispatch(offsets.diff(), offsets, pairs, rows)


@triton.jit
def load_experts(experts_ptr, pair, pairs, E):
    """The expert of each pair; E for an empty slot and past the end."""
    expert = tl.load(experts_ptr + pair, mask=pair < pairs, other=-1)
    return tl.where((expert >= 0) & (expert < E), expert, E)


@triton.jit
def count_experts(expert, E, BINS: tl.constexpr):
    """How often each expert occurs in ``expert``: [BINS]."""
    return tl.histogram(tl.where(expert < E, expert, 0), BINS, expert < E)


@triton.jit
def smaller(keys, key):
    """How many of keys [N] are smaller than each key [M]: [M].

    The sign of a difference, -1 or 0, takes fewer instructions than a
    comparison.
    """
    return -tl.sum((keys[:, None] - key[None, :]) >> 31, 0)


@triton.jit
def dispatch_count_kernel(
    experts_ptr, counts_ptr, pairs, columns, E,
    BLOCK: tl.constexpr, BINS: tl.constexpr,
):  # fmt: skip
    """How often each expert occurs in this block: counts [E, columns]."""
    block = tl.program_id(0).to(tl.int64)
    pair = block * BLOCK + tl.arange(0, BLOCK)
    count = count_experts(load_experts(experts_ptr, pair, pairs, E), E, BINS)
    e = tl.arange(0, BINS)
    tl.store(counts_ptr + e.to(tl.int64) * columns + block, count, mask=e < E)


@triton.jit
def dispatch_scan_kernel(
    counts_ptr, before_ptr, load_ptr, columns, BLOCK: tl.constexpr
):  # fmt: skip
    """Running totals of one expert's counts: before [E, columns]."""
    expert = tl.program_id(0).to(tl.int64)
    total = tl.zeros([], tl.int32)
    for start in range(0, columns, BLOCK):
        column = start + tl.arange(0, BLOCK)
        at = expert * columns + column
        count = tl.load(counts_ptr + at, mask=column < columns, other=0)
        before = total + tl.cumsum(count, 0) - count
        tl.store(before_ptr + at, before, mask=column < columns)
        total += tl.sum(count, 0)
    tl.store(load_ptr + expert, total)


@triton.jit
def dispatch_place_kernel(
    experts_ptr, before_ptr, load_ptr, offsets_ptr, pairs_ptr, rows_ptr,
    pairs, columns, E,
    BLOCK: tl.constexpr, BINS: tl.constexpr,
):  # fmt: skip
    """Sort this block's pairs and shift those of each expert to its rows."""
    block = tl.program_id(0).to(tl.int64)
    place = tl.arange(0, BLOCK)
    pair = block * BLOCK + place
    expert = load_experts(experts_ptr, pair, pairs, E)
    key = expert * BLOCK + place

    e = tl.arange(0, BINS)
    load = tl.load(load_ptr + e, mask=e < E, other=0)
    at = before_ptr + e.to(tl.int64) * columns + block
    before = tl.load(at, mask=e < E, other=0)
    count = tl.load(at + 1, mask=e < E, other=0) - before
    # the pairs of the experts below e, in all blocks but this one
    others = tl.cumsum(load - count, 0) - (load - count)

    taken = expert < E
    shift = tl.gather(others + before, tl.where(taken, expert, 0), 0)
    row = smaller(key, key) + shift
    tl.store(rows_ptr + pair, tl.where(taken, row, -1), mask=pair < pairs)
    tl.store(pairs_ptr + row, pair.to(tl.int32), mask=taken)
    # past the end, a row holds no pair
    kept = tl.sum(load, 0)
    empty = (pair >= kept) & (pair < pairs)
    tl.store(pairs_ptr + pair, tl.full([BLOCK], -1, tl.int32), mask=empty)
    if block == 0:
        tl.store(offsets_ptr + e, tl.cumsum(load, 0) - load, mask=e < E)
        tl.store(offsets_ptr + E, kept)


@triton.jit
def dispatch_few_kernel(
    experts_ptr, load_ptr, offsets_ptr, pairs_ptr, rows_ptr, pairs, E,
    SHARE: tl.constexpr, STEP: tl.constexpr, BINS: tl.constexpr,
):  # fmt: skip
    """Each program places its share of the pairs; the last one counts all."""
    share = tl.program_id(0)
    if share < tl.num_programs(0) - 1:
        pair = share * SHARE + tl.arange(0, SHARE)
        expert = load_experts(experts_ptr, pair, pairs, E)
        row = tl.zeros([SHARE], tl.int32)
        for start in range(0, pairs, STEP):
            other = start + tl.arange(0, STEP)
            its_expert = load_experts(experts_ptr, other, pairs, E)
            row += smaller(its_expert * pairs + other, expert * pairs + pair)
        # empty slots come last, one in each row past the end
        found, taken = pair < pairs, expert < E
        tl.store(rows_ptr + pair, tl.where(taken, row, -1), mask=found)
        tl.store(pairs_ptr + row, tl.where(taken, pair, -1), mask=found)
    else:
        load = tl.zeros([BINS], tl.int32)
        for start in range(0, pairs, STEP):
            other = start + tl.arange(0, STEP)
            its_expert = load_experts(experts_ptr, other, pairs, E)
            load += count_experts(its_expert, E, BINS)
        e = tl.arange(0, BINS)
        tl.store(load_ptr + e, load, mask=e < E)
        tl.store(offsets_ptr + e, tl.cumsum(load, 0) - load, mask=e < E)
        tl.store(offsets_ptr + E, tl.sum(load, 0))


def dispatch_triton(experts: Tensor, num_experts: int) -> Dispatch:
    """Launch three kernels, or one for few pairs; the host reads no number."""
    experts, E = experts.contiguous(), num_experts
    P = experts.numel()
    load, offsets = experts.new_empty(E), experts.new_empty(E + 1)
    pairs, rows = experts.new_empty(P), torch.empty_like(experts)
    bins = lanes(E)
    if P <= few(E):
        dispatch_few_kernel[(cdiv(P, SHARE) + 1,)](
            experts, load, offsets, pairs, rows, P, E,
            SHARE=SHARE, STEP=STEP, BINS=bins, num_warps=4,
        )  # fmt: skip
        return Dispatch(load, offsets, pairs, rows)
    blocks = cdiv(P, BLOCK)
    # at least one column more than blocks, where nothing is counted: a block's
    # count is the difference between its column of ``before`` and the next.
    # Rows of 16 n numbers are read 4 at a time
    columns = 16 * cdiv(blocks + 1, 16)
    counts, before = (experts.new_empty(E, columns) for _ in range(2))
    dispatch_count_kernel[(columns,)](
        experts, counts, P, columns, E, BLOCK=BLOCK, BINS=bins, num_warps=4
    )
    dispatch_scan_kernel[(E,)](
        counts, before, load, columns,
        BLOCK=1024 if columns <= 1024 else 4096, num_warps=4,
    )  # fmt: skip
    dispatch_place_kernel[(blocks,)](
        experts, before, load, offsets, pairs, rows, P, columns, E,
        BLOCK=BLOCK, BINS=bins, num_warps=4,
    )  # fmt: skip
    return Dispatch(load, offsets, pairs, rows)


def lanes(num_experts: int) -> int:
    """Lanes that hold one number per expert, at least half a warp."""
    return max(16, next_power_of_2(num_experts))


def few(num_experts: int) -> int:
    """The most pairs that one launch sorts.

    The comparisons grow with the square of the pairs, and the counting, which
    one program does, with the number of experts.
    """
    return min(4096, 2**20 // lanes(num_experts))


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
    """Distinct experts per token, as a gate gives them, or ``only`` one."""
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


_PAIRS = {"experts_ptr": "*i32", "pairs": "i32"}
_SIZES = {"columns": "i32:16", "E": "i32"}
_RESULTS = {
    "load_ptr": "*i32", "offsets_ptr": "*i32",
    "pairs_ptr": "*i32", "rows_ptr": "*i32",
}  # fmt: skip

DECLARATION = Declaration(
    name="dispatch",
    operation=dispatch,
    reference=dispatch_reference,
    triton=dispatch_triton,
    inputs=_inputs,
    exact=("load", "offsets", "pairs", "rows"),
    examples=(
        _example("top 2 of 8", 300, 8, 2),
        _example("half empty", 117, 12, 5, empty=0.5),
        _example("in blocks", 1027, 12, 5, empty=0.5),
        _example("in blocks, 300 experts", 301, 300, 8),
        _example("top-p, S = E", 39, 16, 16, empty=0.8),
        _example("decode", 37, 128, 8),
        _example("one token", 1, 7, 3, degenerate=True),
        _example("one expert", 9, 1, 1, degenerate=True),
        _example("k = E", 33, 5, 5, degenerate=True),
        _example("all to the last", 270, 6, 2, only=5, degenerate=True),
        _example("blocks of one", 2100, 6, 2, only=5, degenerate=True),
        _example("empty blocks", 2100, 4, 2, empty=1.0, degenerate=True),
        _example("all empty", 40, 4, 2, empty=1.0, degenerate=True),
        _example("no token", 0, 8, 2, degenerate=True),
        _example("large", 32768, 128, 8, large=True),
        _example("large top-p", 32768, 64, 64, empty=0.95, large=True),
    ),
    cost=_cost,
    compiles=(
        *(
            Compile(
                f"count E{E}",
                dispatch_count_kernel,
                signature=_PAIRS | {"counts_ptr": "*i32"} | _SIZES,
                constants={"BLOCK": BLOCK, "BINS": E},
            )
            for E in (16, 128)
        ),
        *(
            Compile(
                f"scan {block}",
                dispatch_scan_kernel,
                signature={
                    "counts_ptr": "*i32", "before_ptr": "*i32",
                    "load_ptr": "*i32", "columns": "i32:16",
                },
                constants={"BLOCK": block},
            )
            for block in (1024, 4096)
        ),
        *(
            Compile(
                f"place E{E}",
                dispatch_place_kernel,
                signature=_PAIRS | _RESULTS | {"before_ptr": "*i32"} | _SIZES,
                constants={"BLOCK": BLOCK, "BINS": E},
            )
            for E in (16, 128, 1024)
        ),
        *(
            Compile(
                f"few E{E}",
                dispatch_few_kernel,
                signature=_PAIRS | _RESULTS | {"E": "i32"},
                constants={"SHARE": SHARE, "STEP": STEP, "BINS": E},
            )
            for E in (16, 128, 1024)
        ),
    ),
)  # fmt: skip
