"""Nearest neighbours vote: which category a prompt belongs to, and how sure.

Queries q [N, D] are compared with a memory m [R, D] whose rows have labels
y [R] among C categories. With rows of length 1 the product is the cosine:

    s[n, r]       = q[n] . m[r]
    neighbours[n] = the k rows with the largest s[n, r], the largest first
    votes[n, c]   = how many of these k rows have y = c
    unsure[n]     = - sum over c of p log p / log C,   p = votes[n, c] / k

The entropy is 0 if all neighbours agree, and 1 if every category has as many
votes as any other. Ties in s go to the lowest row.

The matrix of N x R similarities never reaches memory. A program takes a tile
of queries through a part of the memory, tile by tile, and keeps k rows for
each query, in no order. A tile brings news where its largest similarity is
above the lowest of those kept: then the one replaces the other, until no query
has news. In a random order row r is news with a chance of k / r, so later
tiles mostly cost one comparison. A second kernel takes each query's rows from
all parts, k times the best one, and lets it vote.

Bytes: b (N D + R D) read (b bytes a number) and 4 R for the labels, and 4 N
(k + C + 1) written. FLOPs: 2 N R D. Every tile of queries reads the memory
again, from the cache. In fp32 the matrix units multiply three bf16 parts of
each number where they are fast enough for that (`_three_parts`).

Source: Jain et al. 2024, Composition of Experts: a router that classifies the
prompt by category. That neighbours vote on it is our reading.
"""

import math
from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from lab.kernels import runtime
from lab.kernels._expert_tiles import EACH_TARGET
from lab.kernels._three_parts import add_product, splits
from lab.kernels.declaration import (
    KINDS,
    Compile,
    Cost,
    Declaration,
    Example,
    targets_by_tile,
)
from lab.kernels.operator import operator
from lab.kernels.runtime import cdiv, may_look, next_power_of_2

MOST_NEIGHBOURS, MOST_CATEGORIES = 64, 128
MOST_PARTS = 16  # of the memory, for few queries
WARPS = 8  # with four, the tile and the kept rows would not fit
HIGHEST = torch.finfo(torch.float32).max
NOBODY = 2**31 - 1  # a row that is after all others


class Votes(NamedTuple):
    """The neighbours of each query, and what they say of it."""

    neighbours: Tensor  # [N, k] int32, the most similar row first
    votes: Tensor  # [N, C] int32
    unsure: Tensor  # [N], entropy of the votes, 0 to 1


def knn_vote(
    queries: Tensor, memory: Tensor, labels: Tensor, k: int, categories: int
) -> Votes:
    """Let the k nearest rows of the memory [R, D] vote on queries [N, D].

    ``labels`` [R] int32 are below ``categories``. The entropy is fp32 (float64
    if the queries are) and has no gradient. On a CPU, NaN, infinity and
    unknown labels are refused; on a GPU, where a check would stall it, a
    similarity that is not finite counts as the lowest number, and an unknown
    label as a vote for nobody. O(N R D).
    """
    if queries.ndim != 2 or queries.shape[1] < 1:
        raise ValueError(
            f"queries of shape {tuple(queries.shape)} resemble nothing; give"
            " [queries, width] with a width of at least 1"
        )
    D = queries.shape[1]
    if memory.ndim != 2 or memory.shape[1] != D or not len(memory):
        raise ValueError(
            f"a memory of shape {tuple(memory.shape)} does not fit queries of"
            f" width {D}; it needs [rows, {D}] with at least one row"
        )
    if queries.dtype != memory.dtype or not queries.is_floating_point():
        raise TypeError(
            f"queries are {queries.dtype} and the memory {memory.dtype}; use"
            " the same floating type for both"
        )
    R = len(memory)
    if labels.shape != (R,) or labels.dtype != torch.int32:
        raise ValueError(
            f"labels {tuple(labels.shape)} {labels.dtype} do not fit; give an"
            f" int32 for each of the {R} rows"
        )
    if not 1 <= k <= min(R, MOST_NEIGHBOURS):
        raise ValueError(
            f"k={k} neighbours are not within 1 to {min(R, MOST_NEIGHBOURS)};"
            f" the memory has {R} rows, and at most {MOST_NEIGHBOURS} vote"
        )
    if not 1 <= categories <= MOST_CATEGORIES:
        raise ValueError(
            f"categories={categories} is not within 1 to {MOST_CATEGORIES}"
        )
    if may_look(queries):
        _look(queries, memory, labels, categories)
    return Votes(*_knn_vote(queries, memory, labels, k, categories))


def _look(queries, memory, labels, categories):
    """Raise an error at a number that no vote can rest on."""
    for name, values in (("queries", queries), ("memory", memory)):
        if not values.isfinite().all():
            raise ValueError(
                f"NaN or infinite values in the {name}; use finite numbers"
            )
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= categories:
        raise ValueError(
            f"labels reach from {low} to {high}; with {categories} categories"
            f" they must be within 0 to {categories - 1}"
        )


def knn_vote_reference(
    queries: Tensor, memory: Tensor, labels: Tensor, k: int, categories: int
) -> Votes:
    """The vote in plain PyTorch, by a stable sort of all similarities."""
    wide = queries if queries.dtype == torch.float64 else queries.float()
    similar = wide @ memory.to(wide.dtype).T  # [N, R]
    order = similar.argsort(dim=1, descending=True, stable=True)
    near = order[:, :k]
    votes, unsure = tally(labels[near], categories, wide.dtype)
    neighbours = near.to(torch.int32, memory_format=torch.contiguous_format)
    return Votes(neighbours, votes, unsure)


def tally(
    labels: Tensor, categories: int, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """Votes [N, C] and entropy [N] from the neighbours' labels [N, k]."""
    every = torch.arange(categories, device=labels.device, dtype=labels.dtype)
    votes = (labels[:, :, None] == every).sum(dim=1, dtype=torch.int32)
    share = votes.to(dtype) / labels.shape[1]
    most = math.log(categories) if categories > 1 else 1.0
    # not a minus in front: it would make -0 of 0
    return votes, (0 - torch.xlogy(share, share).sum(dim=1)) / most


@triton.jit
def knn_part_kernel(
    queries_ptr,
    memory_ptr,
    similar_ptr,
    rows_ptr,
    N,
    R,
    D,
    k,
    rows_each,
    HIGHEST: tl.constexpr,
    SPLIT: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    n = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    part = tl.program_id(1)
    # past the end, repeat the last query; its results are not stored
    query = tl.minimum(n, N - 1)[:, None]
    place = tl.arange(0, BLOCK_K)[None, :]
    # k empty places, each with a row of its own; the others never get free
    none = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    kept = tl.where(place < k, float("-inf"), float("inf")) + none
    kept_row = R + place + tl.zeros([BLOCK_N, BLOCK_K], tl.int32)
    start = (part.to(tl.int64) * rows_each).to(tl.int32)
    end = start + tl.minimum(rows_each, R - start)
    for first in range(start, end, BLOCK_R):
        r = first + tl.arange(0, BLOCK_R)[None, :]
        is_row = r < end
        row = tl.minimum(r, R - 1).to(tl.int64)
        similar = tl.zeros([BLOCK_N, BLOCK_R], tl.float32)
        for step in range(0, D, BLOCK_D):
            d = step + tl.arange(0, BLOCK_D)
            q = tl.load(
                queries_ptr + query * D + d[None, :],
                mask=d[None, :] < D,
                other=0.0,
            )
            # the memory's tile is read turned: [BLOCK_D, BLOCK_R]
            m = tl.load(
                memory_ptr + row * D + d[:, None],
                mask=is_row & (d[:, None] < D),
                other=0.0,
            )
            similar = add_product(q, m, similar, SPLIT)
        similar = tl.where(tl.abs(similar) <= HIGHEST, similar, -HIGHEST)
        similar = tl.where(is_row, similar, float("-inf"))

        top, low = tl.max(similar, 1), tl.min(kept, 1)
        while tl.max((top > low).to(tl.int32), 0) > 0:
            # in comes the first row of the most similar,
            at_top = similar == top[:, None]
            new_row = tl.min(tl.where(at_top, r, R), 1)[:, None]
            # out goes the last row of the least similar
            at_low = kept == low[:, None]
            old_row = tl.max(tl.where(at_low, kept_row, -1), 1)[:, None]
            goes = (at_low & (kept_row == old_row)) & (top > low)[:, None]
            kept = tl.where(goes, top[:, None], kept)
            kept_row = tl.where(goes, new_row, kept_row)
            similar = tl.where(r == new_row, float("-inf"), similar)
            top, low = tl.max(similar, 1), tl.min(kept, 1)

    at = (n[:, None] * tl.num_programs(1) + part) * k + place
    there = (n[:, None] < N) & (place < k)
    tl.store(similar_ptr + at, kept, mask=there)
    tl.store(rows_ptr + at, kept_row, mask=there)


@triton.jit
def knn_merge_kernel(
    similar_ptr,
    rows_ptr,
    labels_ptr,
    neighbours_ptr,
    votes_ptr,
    unsure_ptr,
    N,
    R,
    k,
    C,
    held,
    most,
    NOBODY: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    n = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    here = n < N
    p = tl.arange(0, BLOCK_P)[None, :]
    at = n[:, None] * held + p
    there = here[:, None] & (p < held)
    similar = tl.load(similar_ptr + at, mask=there, other=float("-inf"))
    row = tl.load(rows_ptr + at, mask=there, other=NOBODY)
    c = tl.arange(0, BLOCK_C)[None, :]
    votes = tl.zeros([BLOCK_N, BLOCK_C], tl.int32)
    for place in range(k):
        at_top = similar == tl.max(similar, 1)[:, None]
        nearest = tl.min(tl.where(at_top, row, NOBODY), 1)
        tl.store(neighbours_ptr + n * k + place, nearest, mask=here)
        is_row = here & (nearest < R)
        label = tl.load(labels_ptr + nearest, mask=is_row, other=-1)
        votes += ((c == label[:, None]) & (c < C)).to(tl.int32)
        similar = tl.where(row == nearest[:, None], float("-inf"), similar)

    share = votes.to(tl.float32) / k
    # an absent category would give 0 log 0
    log = tl.log(tl.where(votes > 0, share, 1.0))
    tl.store(unsure_ptr + n, (0.0 - tl.sum(share * log, 1)) / most, mask=here)
    at = votes_ptr + n[:, None] * C + c
    tl.store(at, votes, mask=here[:, None] & (c < C))


def blocks(k: int, dtype: torch.dtype, target: str) -> dict:
    """Queries, rows, width and kept rows of a program's tile.

    Similarities and kept rows are in registers at once, so many neighbours
    leave room for a smaller tile of the memory.
    """
    return {
        "SPLIT": splits(dtype, target),
        "BLOCK_N": 64,
        "BLOCK_R": 64 if k <= 32 else 32,
        "BLOCK_D": 64 if dtype.itemsize == 2 else 16,
        "BLOCK_K": next_power_of_2(k),
    }


def part(N: int, R: int, tile: dict, multiprocessors: int) -> int:
    """Rows of the memory that one program goes through, some tiles.

    Every multiprocessor gets two programs, if the queries do not suffice by
    cutting the memory.
    """
    wanted = cdiv(2 * multiprocessors, max(1, cdiv(N, tile["BLOCK_N"])))
    count = max(1, min(wanted, MOST_PARTS, R // tile["BLOCK_R"]))
    return cdiv(cdiv(R, count), tile["BLOCK_R"]) * tile["BLOCK_R"]


def merge_blocks(held: int, C: int) -> dict:
    """Queries, candidates and categories of a program of the merge."""
    block_p, block_c = next_power_of_2(held), next_power_of_2(C)
    return {
        "BLOCK_N": max(1, min(16, 2048 // max(block_p, block_c))),
        "BLOCK_P": block_p,
        "BLOCK_C": block_c,
    }


def knn_vote_triton(
    queries: Tensor, memory: Tensor, labels: Tensor, k: int, categories: int
) -> Votes:
    """Launch both kernels; a program of the first has a part of the memory."""
    (N, D), R, C = queries.shape, len(memory), categories
    device = queries.device
    tile = blocks(k, queries.dtype, runtime.target(queries))
    rows_each = part(N, R, tile, runtime.multiprocessors(queries))
    count = cdiv(R, rows_each)
    similar = torch.empty((N, count, k), dtype=torch.float32, device=device)
    rows = similar.new_empty((N, count, k), dtype=torch.int32)
    neighbours = similar.new_empty((N, k), dtype=torch.int32)
    votes = similar.new_empty((N, C), dtype=torch.int32)
    unsure = similar.new_empty(N)
    if N:
        knn_part_kernel[(cdiv(N, tile["BLOCK_N"]), count)](
            queries.contiguous(), memory.contiguous(), similar, rows,
            N, R, D, k, rows_each,
            HIGHEST=HIGHEST, **tile, num_warps=WARPS, num_stages=2,
        )  # fmt: skip
        merge = merge_blocks(count * k, C)
        knn_merge_kernel[(cdiv(N, merge["BLOCK_N"]),)](
            similar, rows, labels.contiguous(), neighbours, votes, unsure,
            N, R, k, C, count * k, math.log(C) if C > 1 else 1.0,
            NOBODY=NOBODY, **merge, num_warps=4,
        )  # fmt: skip
    return Votes(neighbours, votes, unsure)


def _on_gpu(queries, *others):
    # on a T4 a product in Triton would be slower than PyTorch's
    on_gpu = runtime.triton_has_tensor_cores(queries)
    vote = knn_vote_triton if on_gpu else knn_vote_reference
    return vote(queries, *others)


def _shapes(queries, memory, labels, k, categories):
    N = len(queries)
    wide = queries.dtype == torch.float64
    return (
        queries.new_empty((N, k), dtype=torch.int32),
        queries.new_empty((N, categories), dtype=torch.int32),
        queries.new_empty(N, dtype=torch.float64 if wide else torch.float32),
    )


_knn_vote = operator(
    "knn_vote(Tensor queries, Tensor memory, Tensor labels, SymInt k,"
    " SymInt categories) -> (Tensor, Tensor, Tensor)",
    cpu=knn_vote_reference,
    cuda=_on_gpu,
    shapes=_shapes,
)


def _inputs(seed, device, dtype, N, R, D, k, C, rising=False, equal=False):
    generator = torch.Generator().manual_seed(seed)

    def on_grid(*shape):
        # sums of products of such fractions are exact in fp32, so a tie is a
        # true tie, and the order of adding changes no neighbour
        whole = torch.randint(-8, 9, shape, generator=generator)
        return (whole / 8).to(device, dtype)

    queries, memory = on_grid(N, D), on_grid(R, D)
    if rising:  # every row is nearer than all before it: always news
        queries[:], memory[:] = 0, 0
        queries[:, 0], memory[:, 0] = 1, torch.arange(R) / 8
    if equal:
        memory[:] = memory[:1].clone()
    labels = torch.randint(C, (R,), generator=generator)
    return {
        "queries": queries, "memory": memory,
        "labels": labels.to(device, torch.int32), "k": k, "categories": C,
    }  # fmt: skip


def _cost(queries, memory, labels, k, categories) -> Cost:
    (N, D), R = queries.shape, len(memory)
    read = queries.element_size() * (N + R) * D + 4 * R
    return Cost(read + 4 * N * (k + categories + 1), 2 * N * R * D)


def _compiled(D: int, k: int, dtype: torch.dtype) -> Iterator[Compile]:
    """What is launched for these sizes, one for each tile."""
    kind = KINDS[dtype]
    size = "i32:16" if D % 16 == 0 else "i32"
    choose = partial(blocks, k, dtype)
    for tile, targets in targets_by_tile(choose, EACH_TARGET):
        yield Compile(
            f"D{D} k{k} {kind}" + (" split" if tile["SPLIT"] else ""),
            knn_part_kernel,
            signature={
                "queries_ptr": f"*{kind}", "memory_ptr": f"*{kind}",
                "similar_ptr": "*fp32", "rows_ptr": "*i32", "N": "i32",
                "R": "i32", "D": size, "k": "i32", "rows_each": "i32:16",
            },
            constants={"HIGHEST": HIGHEST} | tile,
            num_warps=WARPS,
            targets=targets,
            matrix_units=dtype.itemsize == 2 or tile["SPLIT"],
        )  # fmt: skip


def _compiled_merge(count: int, k: int, C: int) -> Compile:
    return Compile(
        f"merge {count} x k{k} C{C}",
        knn_merge_kernel,
        signature={
            "similar_ptr": "*fp32", "rows_ptr": "*i32", "labels_ptr": "*i32",
            "neighbours_ptr": "*i32", "votes_ptr": "*i32",
            "unsure_ptr": "*fp32", "N": "i32", "R": "i32", "k": "i32",
            "C": "i32", "held": "i32", "most": "fp32",
        },
        constants={"NOBODY": NOBODY} | merge_blocks(count * k, C),
    )  # fmt: skip


DECLARATION = Declaration(
    name="knn_vote",
    operation=knn_vote,
    reference=knn_vote_reference,
    triton=knn_vote_triton,
    inputs=_inputs,
    exact=("neighbours", "votes"),
    tolerance={
        torch.float32: 1e-5, torch.float16: 1e-5, torch.bfloat16: 1e-5,
    },
    examples=(
        Example("20 of 200", {"N": 70, "R": 200, "D": 48, "k": 20, "C": 12}),
        Example("odd width", {"N": 33, "R": 130, "D": 37, "k": 5, "C": 3}),
        Example("63 of 64", {"N": 9, "R": 64, "D": 16, "k": 63, "C": 57}),
        Example("several parts", {"N": 5, "R": 700, "D": 20, "k": 7, "C": 4}),
        Example("ties", {"N": 40, "R": 150, "D": 1, "k": 10, "C": 5},
                degenerate=True),
        Example("all rows equal",
                {"N": 5, "R": 140, "D": 8, "k": 64, "C": 9, "equal": True},
                degenerate=True),
        Example("always news",
                {"N": 3, "R": 100, "D": 2, "k": 16, "C": 2, "rising": True},
                degenerate=True),
        Example("one of each", {"N": 1, "R": 1, "D": 1, "k": 1, "C": 1},
                degenerate=True),
        Example("no query", {"N": 0, "R": 9, "D": 4, "k": 3, "C": 2},
                degenerate=True),
        Example("most categories",
                {"N": 4, "R": 90, "D": 16, "k": 30, "C": MOST_CATEGORIES},
                degenerate=True),
        Example("large",
                {"N": 16384, "R": 65536, "D": 384, "k": 20, "C": 57},
                large=True),
    ),
    cost=_cost,
    compiles=(
        *_compiled(384, 20, torch.float32), *_compiled(37, 5, torch.float32),
        *_compiled(384, 64, torch.float32),
        *_compiled(384, 20, torch.bfloat16),
        *_compiled(37, 5, torch.bfloat16),
        *_compiled(384, 64, torch.bfloat16),
        *_compiled(384, 20, torch.float16),
        _compiled_merge(1, 20, 12), _compiled_merge(16, 64, 57),
        _compiled_merge(16, 20, MOST_CATEGORIES),
    ),
)  # fmt: skip
