"""Intersect: which candidates extend a partial match by one vertex.

A graph has V vertices and sorted neighbour lists: those of u are
col[rowptr[u] : rowptr[u + 1]]. A partial match is a row m of P vertices. Its
candidates are a piece of one list, from col[begin] on, and candidate w is

    found  = w   if  w is in the list of m_p       for all p in ``near``,
                 not w is in the list of m_p       for any p in ``far``,
                 and w differs from all m_p,
             -1  otherwise.

So ``near`` intersects sorted lists and ``far`` takes lists away. ``near`` and
``far`` are bit masks: bit p stands for place p of a match.

All candidates of all matches lie in one row, and each lane takes one: a hub
with a thousand neighbours takes a thousand lanes, a leaf takes one. A lane
finds its match by a binary search in ``first``, where candidates begin, and
its vertex in each list by a binary search there. A search ends when the
longest list of the program has been halved to nothing. Nothing is summed or
shared, so every run gives the same bits.

Bytes: 4 per candidate read and 4 written, and 4 P + 16 per match. A search
reads log2(d) more, of which the cache holds what lanes share. So the limit is
how many such reads can wait for memory together.

Source: Jamshidi, Mahadasa, Vora 2020 (Peregrine), whose code merges two lists
at a time on a CPU.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from lab.kernels.declaration import Compile, Cost, Declaration, Example
from lab.kernels.operator import operator
from lab.kernels.runtime import cdiv, may_look

MOST_PLACES = 16  # of a match
BLOCK = 256  # candidates of a program


def intersect(
    matches: Tensor,
    rowptr: Tensor,
    col: Tensor,
    begin: Tensor,
    first: Tensor,
    slots: int,
    near: int,
    far: int,
) -> Tensor:
    """The candidates [slots] int32 that fit, and -1 for those that do not.

    ``matches`` [T, P] int32; ``rowptr`` [V + 1] int64 and ``col`` [E] int32
    with every list ascending, which is not checked. Match t has the candidates
    ``first[t]`` to ``first[t + 1]`` (int64 [T + 1], from 0 to ``slots``), read
    from ``begin[t]`` on (int64 [T]). On a CPU, vertices and places outside the
    graph are refused; on a GPU, where a check would stall it, such a vertex
    has no neighbours, and there is no candidate at such a place. No gradient.
    """
    _check(matches, rowptr, col, begin, first, slots, near, far)
    if may_look(matches) and slots:
        _look(matches, rowptr, col, begin, first, slots)
    return _intersect(matches, rowptr, col, begin, first, slots, near, far)


def _check(matches, rowptr, col, begin, first, slots, near, far):
    """Refuse what can be told from shapes, dtypes and masks."""
    if matches.ndim != 2 or not 1 <= matches.shape[1] <= MOST_PLACES:
        raise ValueError(
            f"matches of shape {tuple(matches.shape)} do not fit; give"
            f" [matches, places] with 1 to {MOST_PLACES} places"
        )
    T, P = matches.shape
    wanted = {
        "matches": (matches, torch.int32, (T, P)),
        "rowptr": (rowptr, torch.int64, (max(1, rowptr.numel()),)),
        "col": (col, torch.int32, (col.numel(),)),
        "begin": (begin, torch.int64, (T,)),
        "first": (first, torch.int64, (T + 1,)),
    }
    for name, (tensor, dtype, shape) in wanted.items():
        if tensor.dtype != dtype or tuple(tensor.shape) != shape:
            raise ValueError(
                f"{name} is {tensor.dtype} of shape {tuple(tensor.shape)};"
                f" use {dtype} of shape {shape}"
            )
    if slots < 0 or (slots and not T):
        raise ValueError(f"slots={slots} do not fit {T} matches")
    if near & far or not 0 <= near | far < 1 << P:
        raise ValueError(
            f"near={near:b} and far={far:b} must be different bits of {P}"
        )


def _look(matches, rowptr, col, begin, first, slots):
    """Refuse vertices and candidates that lie outside the graph."""
    V = len(rowptr) - 1
    low, high = int(matches.min()), int(matches.max())
    if low < 0 or high >= V:
        raise ValueError(
            f"a match has vertex {low if low < 0 else high}; use 0 to {V - 1}"
        )
    lengths = first.diff()
    if first[0] != 0 or first[-1] != slots or (lengths < 0).any():
        raise ValueError(f"first must rise from 0 to slots={slots}")
    some = lengths > 0
    ends = (begin + lengths)[some]
    if begin[some].min() < 0 or ends.max() > len(col):
        raise ValueError(
            f"candidates end at {int(ends.max())}, but col holds {len(col)}"
        )


def intersect_reference(
    matches: Tensor,
    rowptr: Tensor,
    col: Tensor,
    begin: Tensor,
    first: Tensor,
    slots: int,
    near: int,
    far: int,
) -> Tensor:
    """The same in plain PyTorch, one place of the matches after the other."""
    if not slots:
        return col.new_empty(0)
    V = len(rowptr) - 1
    slot = torch.arange(slots, device=col.device)
    match = torch.searchsorted(first, slot, right=True) - 1
    w = col[begin[match] + slot - first[match]]
    # an edge (u, w) as the number u V + w; these ascend
    row = torch.arange(V, device=col.device).repeat_interleave(rowptr.diff())
    edges = row * V + col
    keep = torch.ones_like(w, dtype=torch.bool)
    for p, u in enumerate(matches[match].unbind(1)):
        keep &= u != w
        if (near | far) >> p & 1:
            edge = u.long() * V + w
            place = torch.searchsorted(edges, edge).clamp_max(len(col) - 1)
            adjacent = edges[place] == edge
            keep &= adjacent if near >> p & 1 else ~adjacent
    return torch.where(keep, w, -1)


@triton.jit
def first_at_least(list_ptr, low, high, value):
    """The first place from ``low`` to ``high`` with an entry >= ``value``."""
    longest = tl.max(high - low, 0)
    while longest > 0:
        middle = (low + high) // 2
        is_open = low < high
        less = tl.load(list_ptr + middle, mask=is_open, other=0) < value
        low = tl.where(is_open & less, middle + 1, low)
        high = tl.where(is_open & (less == 0), middle, high)
        longest = longest // 2
    return low


@triton.jit
def intersect_kernel(
    matches_ptr,
    rowptr_ptr,
    col_ptr,
    begin_ptr,
    first_ptr,
    found_ptr,
    T,
    P,
    V,
    E,
    slots,
    near,
    far,
    BLOCK: tl.constexpr,
):
    slot = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = slot < slots
    # the match whose candidates end behind this slot
    none = tl.zeros([BLOCK], tl.int64)
    match = first_at_least(
        first_ptr + 1, none, tl.where(inside, none + T, 0), slot + 1
    )
    at = tl.load(begin_ptr + match, mask=inside, other=0) + slot
    at -= tl.load(first_ptr + match, mask=inside, other=0)
    keep = inside & (at >= 0) & (at < E)
    w = tl.load(col_ptr + at, mask=keep, other=-1)
    for p in range(0, P):
        u = tl.load(matches_ptr + match * P + p, mask=inside, other=-1)
        keep = keep & (u != w)
        if ((near | far) >> p) & 1:
            known = keep & (u >= 0) & (u < V)
            low = tl.load(rowptr_ptr + u, mask=known, other=0)
            high = tl.load(rowptr_ptr + u + 1, mask=known, other=0)
            place = first_at_least(col_ptr, low, high, w)
            ends = place == high
            there = tl.load(col_ptr + place, mask=ends == 0, other=-1) == w
            wanted = (near >> p) & 1
            keep = keep & ((there & (ends == 0)).to(tl.int32) == wanted)
    tl.store(found_ptr + slot, tl.where(keep, w, -1), mask=inside)


def intersect_triton(
    matches: Tensor,
    rowptr: Tensor,
    col: Tensor,
    begin: Tensor,
    first: Tensor,
    slots: int,
    near: int,
    far: int,
) -> Tensor:
    """Launch the kernel, one lane per candidate."""
    T, P = matches.shape
    found = col.new_empty(slots)
    if slots:
        intersect_kernel[(cdiv(slots, BLOCK),)](
            matches.contiguous(), rowptr.contiguous(), col.contiguous(),
            begin.contiguous(), first.contiguous(), found,
            T, P, len(rowptr) - 1, len(col), slots, near, far,
            BLOCK=BLOCK, num_warps=4,
        )  # fmt: skip
    return found


def _shapes(matches, rowptr, col, begin, first, slots, near, far):
    return col.new_empty(slots)


_intersect = operator(
    "intersect(Tensor matches, Tensor rowptr, Tensor col, Tensor begin,"
    " Tensor first, SymInt slots, int near, int far) -> Tensor",
    cpu=intersect_reference,
    cuda=intersect_triton,
    shapes=_shapes,
)


def _inputs(seed, device, dtype, V, T, P, near, far, density=0.2, cut=0.0):
    generator = torch.Generator().manual_seed(seed)
    half = torch.rand(V, V, generator=generator) < density
    row, col = (half.triu(1) | half.triu(1).T).nonzero(as_tuple=True)
    rowptr = torch.zeros(V + 1, dtype=torch.int64)
    rowptr[1:] = torch.bincount(row, minlength=V).cumsum(0)
    matches = torch.randint(V, (T, P), generator=generator).int()
    begin = rowptr[matches[:, 0].long()]
    lengths = rowptr[matches[:, 0].long() + 1] - begin
    # some matches have no candidate left
    lengths *= torch.rand(T, generator=generator) >= cut
    first = torch.zeros(T + 1, dtype=torch.int64)
    first[1:] = lengths.cumsum(0)
    graph = {"rowptr": rowptr, "col": col.int(), "begin": begin}
    tensors = {"matches": matches, **graph, "first": first}
    return {name: tensor.to(device) for name, tensor in tensors.items()} | {
        "slots": int(first[-1]),
        "near": near,
        "far": far,
    }


def _cost(matches, rowptr, col, begin, first, slots, near, far) -> Cost:
    T, P = matches.shape
    graph = 8 * len(rowptr) + 4 * len(col)
    return Cost(8 * slots + (4 * P + 16) * T + graph, 0)


DECLARATION = Declaration(
    name="intersect",
    operation=intersect,
    reference=intersect_reference,
    triton=intersect_triton,
    inputs=_inputs,
    exact=("result",),
    examples=(
        Example("two lists", {"V": 60, "T": 90, "P": 2, "near": 3, "far": 0}),
        Example("one less another",
                {"V": 40, "T": 70, "P": 2, "near": 1, "far": 2}),
        Example("four places",
                {"V": 70, "T": 50, "P": 4, "near": 11, "far": 4}),
        Example("many without candidates",
                {"V": 30, "T": 130, "P": 3, "near": 5, "far": 2, "cut": 0.8}),
        Example("only different",
                {"V": 30, "T": 20, "P": 3, "near": 0, "far": 0},
                degenerate=True),
        Example("a complete graph",
                {"V": 33, "T": 9, "P": 3, "near": 7, "far": 0, "density": 2.0},
                degenerate=True),
        Example("no edge",
                {"V": 9, "T": 5, "P": 2, "near": 3, "far": 0, "density": 0.0},
                degenerate=True),
        Example("one vertex",
                {"V": 1, "T": 3, "P": 1, "near": 1, "far": 0},
                degenerate=True),
        Example("no match", {"V": 9, "T": 0, "P": 2, "near": 3, "far": 0},
                degenerate=True),
        Example("large",
                {"V": 4096, "T": 1 << 20, "P": 3, "near": 7, "far": 0,
                 "density": 0.02},
                large=True),
    ),
    cost=_cost,
    compiles=(
        Compile(
            f"block {BLOCK}",
            intersect_kernel,
            signature={
                "matches_ptr": "*i32", "rowptr_ptr": "*i64",
                "col_ptr": "*i32", "begin_ptr": "*i64", "first_ptr": "*i64",
                "found_ptr": "*i32", "T": "i32", "P": "i32", "V": "i32",
                "E": "i32", "slots": "i32", "near": "i32", "far": "i32",
            },
            constants={"BLOCK": BLOCK},
        ),
    ),
)  # fmt: skip
