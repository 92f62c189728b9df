"""Reach bits: which marks each actor meets within h steps of a graph.

A graph has V actors; the suppliers of actor i are
col[rowptr[i] : rowptr[i + 1]]. Every actor carries marks, one bit each, packed
32 to a word. What it meets within h steps follows from its suppliers:

    R_0[i]     = marks[i]
    R_h+1[i]   = R_h[i]  or  R_h[j] for any supplier j of i
    counts_h[i] = how many bits of R_h[i] are set

With one bit of its own for each actor (`own_bits`), R_h[i] is the set of all
actors within h steps. This is a product of matrices over "or" and "and". But
a word holds 32 entries, and only edges are multiplied.

A program takes one actor and a tile of words, and goes through the suppliers.
A step reads what the step before has written, so each step is a launch.
Nothing is added up but bits, so every run gives the same. A long list is the
work of one program.

Bytes: a step reads 4 W (E + V) and writes 4 W V, for W words in a row and E
edges. For V = 16384 actors the rows take 32 MiB, which a large cache holds.
Multiplying fp32 matrices moves 32 times as much for every row.

Source: none; the model of chapter 37, which is ours, is built on it.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from lab.kernels._bit_matrix import BITS, popcount, words
from lab.kernels.declaration import Compile, Cost, Declaration, Example
from lab.kernels.mask_overlap import pack
from lab.kernels.operator import operator
from lab.kernels.runtime import cdiv, may_look, next_power_of_2

WIDEST = 512  # words of a tile: four warps with 16 bytes a lane


class Reach(NamedTuple):
    words: Tensor  # [V, W] int32, the marks within all steps, packed
    counts: Tensor  # [hops + 1, V] int32, how many marks within 0, 1, ...


def reach_bits(marks: Tensor, rowptr: Tensor, col: Tensor, hops: int) -> Reach:
    """The marks within ``hops`` steps, and how many within each number.

    ``marks`` [V, W] int32, packed as `own_bits` or `mask_overlap.pack` do;
    ``rowptr`` [V + 1] int64 and ``col`` [E] int32. Cycles, repeated edges and
    edges to oneself do no harm. On a CPU, lists and suppliers outside the
    graph are refused; on a GPU, where a check would stall it, they are not
    there. O(hops W (V + E)). No gradient.
    """
    _check(marks, rowptr, col, hops)
    if may_look(marks):
        _look(rowptr, col)
    return Reach(*_reach_bits(marks, rowptr, col, hops))


def _check(marks, rowptr, col, hops):
    """Refuse what can be told from shapes and dtypes."""
    if marks.ndim != 2 or marks.dtype != torch.int32:
        raise ValueError(
            f"marks {tuple(marks.shape)} {marks.dtype} do not fit; give int32"
            " words [actors, words], as own_bits(actors) makes them"
        )
    wanted = {
        "rowptr": (rowptr, torch.int64, (len(marks) + 1,)),
        "col": (col, torch.int32, (col.numel(),)),
    }
    for name, (tensor, dtype, shape) in wanted.items():
        if tensor.dtype != dtype or tuple(tensor.shape) != shape:
            raise ValueError(
                f"{name} is {tensor.dtype} of shape {tuple(tensor.shape)};"
                f" use {dtype} of shape {shape}"
            )
    if hops < 0:
        raise ValueError(f"hops={hops} is less than 0; use 0 or more")


def _look(rowptr, col):
    """Refuse lists and suppliers that lie outside the graph."""
    V, E = len(rowptr) - 1, len(col)
    if rowptr[0] != 0 or rowptr[-1] != E or (rowptr.diff() < 0).any():
        raise ValueError(f"rowptr must rise from 0 to {E}, the edges of col")
    if E and (col.min() < 0 or col.max() >= V):
        bad = col.min() if col.min() < 0 else col.max()
        raise ValueError(f"col names actor {int(bad)}; use 0 to {V - 1}")


def own_bits(actors: int, device="cpu") -> Tensor:
    """A bit of its own for each actor: [V, W] int32."""
    i = torch.arange(actors, device=device)
    marks = torch.zeros((actors, words(actors)), dtype=torch.int64)
    marks = marks.to(device)
    marks[i, i // BITS] = 1 << (i % BITS)
    # the highest bit is the sign
    return torch.where(marks >= 1 << 31, marks - (1 << 32), marks).int()


def reach_bits_reference(
    marks: Tensor, rowptr: Tensor, col: Tensor, hops: int
) -> Reach:
    """The same in plain PyTorch: all actors take their first supplier at
    once, then their second, and so on."""
    lengths = rowptr.diff()
    most = int(lengths.max()) if len(col) else 0
    takes = [(lengths > k).nonzero()[:, 0] for k in range(most)]
    seen, counts = marks.clone(), [_count(marks)]
    for _ in range(hops):
        before = seen.clone()
        for k, actors in enumerate(takes):
            seen[actors] |= before[col[rowptr[actors] + k].long()]
        counts.append(_count(seen))
    return Reach(seen, torch.stack(counts))


def _count(packed):
    """How many bits each row [V, W] has set, [V] int32, byte by byte."""
    table = torch.tensor([byte.bit_count() for byte in range(256)])
    octets = packed.contiguous().view(torch.uint8).int()
    return table.to(packed.device)[octets].sum(dim=1).int()


@triton.jit
def reach_bits_kernel(
    before_ptr,
    rowptr_ptr,
    col_ptr,
    after_ptr,
    counts_ptr,
    V,
    E,
    W,
    BLOCK_W: tl.constexpr,
):
    actor = tl.program_id(0).to(tl.int64)
    tile = tl.program_id(1)
    w = tile * BLOCK_W + tl.arange(0, BLOCK_W)
    is_word = w < W
    seen = tl.load(before_ptr + actor * W + w, mask=is_word, other=0)
    begin = tl.maximum(tl.load(rowptr_ptr + actor), 0)
    end = tl.minimum(tl.load(rowptr_ptr + actor + 1), E)
    for e in range(0, (end - begin).to(tl.int32)):
        j = tl.load(col_ptr + begin + e).to(tl.int64)
        # a supplier outside the graph has no words
        ends = tl.where((j >= 0) & (j < V), W, 0)
        seen |= tl.load(before_ptr + j * W + w, mask=w < ends, other=0)
    tl.store(after_ptr + actor * W + w, seen, mask=is_word)
    count = tl.sum(popcount(seen.to(tl.uint32, bitcast=True)), 0)
    tl.store(counts_ptr + tile.to(tl.int64) * V + actor, count)


def block(W: int) -> int:
    """Words of a tile."""
    return min(WIDEST, next_power_of_2(W))


def warps(W: int) -> int:
    """Warps of a program: each lane loads 16 bytes, if there are as many."""
    return max(1, block(W) // 128)


def reach_bits_triton(
    marks: Tensor, rowptr: Tensor, col: Tensor, hops: int
) -> Reach:
    """Launch the kernel once per step. Step 0 goes through no list."""
    V, W = marks.shape
    marks, rowptr, col = (x.contiguous() for x in (marks, rowptr, col))
    tiles = cdiv(W, WIDEST)
    counts = marks.new_zeros((hops + 1, tiles, V))
    for h in range(hops + 1):
        after = torch.empty_like(marks)
        if marks.numel():
            reach_bits_kernel[(V, tiles)](
                marks, rowptr, col, after, counts[h],
                V, len(col) if h else 0, W,
                BLOCK_W=block(W), num_warps=warps(W),
            )  # fmt: skip
        marks = after
    return Reach(marks, counts.sum(dim=1, dtype=torch.int32))


def _shapes(marks, rowptr, col, hops):
    return torch.empty_like(marks), marks.new_empty((hops + 1, len(marks)))


_reach_bits = operator(
    "reach_bits(Tensor marks, Tensor rowptr, Tensor col, SymInt hops)"
    " -> (Tensor, Tensor)",
    cpu=reach_bits_reference,
    cuda=reach_bits_triton,
    shapes=_shapes,
)


def _inputs(seed, device, dtype, V, degree, hops, D=0, line=False):
    """A random graph, or a line in which each builds on the next; each actor
    has its own bit, or ``D`` marks at random."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2 * degree + 1, (V,), generator=generator)
    if line:
        lengths = (torch.arange(V) < V - 1).long()
    rowptr = torch.zeros(V + 1, dtype=torch.int64)
    rowptr[1:] = lengths.cumsum(0)
    E = int(rowptr[-1])
    col = torch.randint(max(1, V), (E,), generator=generator)
    if line:
        col = torch.arange(1, max(1, V))
    random = torch.rand(V, D, generator=generator) < 0.1
    marks = pack(random) if D else own_bits(V)
    tensors = {"marks": marks, "rowptr": rowptr, "col": col.int()}
    return {n: t.to(device) for n, t in tensors.items()} | {"hops": hops}


def _cost(marks, rowptr, col, hops) -> Cost:
    V, W = marks.shape
    moved = 8 * V * W + 8 * len(rowptr) + 4 * len(col) + 4 * (hops + 1) * V
    return Cost(moved, 0)


def _compile(W: int) -> Compile:
    return Compile(
        f"W{W}",
        reach_bits_kernel,
        signature={
            "before_ptr": "*i32", "rowptr_ptr": "*i64", "col_ptr": "*i32",
            "after_ptr": "*i32", "counts_ptr": "*i32", "V": "i32",
            "E": "i32", "W": "i32:16" if W % 16 == 0 else "i32",
        },
        constants={"BLOCK_W": block(W)},
        num_warps=warps(W),
    )  # fmt: skip


DECLARATION = Declaration(
    name="reach_bits",
    operation=reach_bits,
    reference=reach_bits_reference,
    triton=reach_bits_triton,
    inputs=_inputs,
    exact=("words", "counts"),
    examples=(
        Example("three steps", {"V": 37, "degree": 2, "hops": 3}),
        Example("one step", {"V": 63, "degree": 4, "hops": 1}),
        Example("70 marks", {"V": 41, "degree": 2, "hops": 2, "D": 70}),
        Example("two tiles", {"V": 5, "degree": 1, "hops": 2, "D": 16500}),
        Example("a line", {"V": 33, "degree": 1, "hops": 3, "line": True},
                degenerate=True),
        Example("no step", {"V": 20, "degree": 2, "hops": 0},
                degenerate=True),
        Example("no edge", {"V": 9, "degree": 0, "hops": 2},
                degenerate=True),
        Example("one actor", {"V": 1, "degree": 2, "hops": 2},
                degenerate=True),
        Example("nobody", {"V": 0, "degree": 1, "hops": 2},
                degenerate=True),
        Example("large", {"V": 16384, "degree": 4, "hops": 4}, large=True),
    ),
    cost=_cost,
    compiles=(_compile(8), _compile(33), _compile(512)),
)  # fmt: skip
