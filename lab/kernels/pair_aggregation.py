"""Pair aggregation: what the neighbours of a pair of vertices say, summed.

A subgraph network keeps a state x_uv for every pair: vertex v, seen in the
copy of the graph in which u is marked. Two sums go along edges:

    inside  (uL)  y_uv = sum over w in N(v) of x_uw     within one copy
    across  (vL)  y_uv = sum over w in N(u) of x_wv     from copy to copy

Shapes: x [B, n, n, D] for B graphs of n vertices, neighbour lists [B, n, K]
int32, padded with -1, result [terms, B, n, n, D], inside before across. With
a symmetric adjacency matrix A this is X A and A X for each of the D numbers.

A program takes one u, a tile of vertices v and a tile of the D numbers. For
each of the K places of the lists it adds one tile. Inside, the rows of a tile
lie at places that the lists of v name; across, at neighbouring places of a
copy that the list of u names. A sum is kept in registers, in the order of the
list, and written once: no message is stored, and every run gives the same
bits. Sums are fp32; for float64 a GPU, too, runs the reference, whose sums are
float64. For int64 they wrap around, as the hashes of a colour refinement need;
no float sum may decide whether two multisets are equal.

Bytes: e (1 + terms) B n^2 D + 4 B n K for elements of e bytes, if the cache
holds a copy's rows between their readers. Additions: n D for each entry of a
list and each term, so memory is the limit. Gathering and scattering messages,
as the authors' code does, writes and reads every one of them: 2 e n D bytes
for each entry more.

The gradient is the same sum, because the lists are symmetric: no atomics.

Source: Zhang, Feng, Du, He, Wang 2023; names as in ``src/utils.py`` there.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from lab.kernels.declaration import KINDS, Compile, Cost, Declaration, Example
from lab.kernels.operator import operator
from lab.kernels.runtime import cdiv, may_look, next_power_of_2

TILE = 1024  # numbers of a program's tile
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def pair_aggregation(
    x: Tensor, lists: Tensor, inside: bool = True, across: bool = True
) -> Tensor:
    """The sums [terms, B, n, n, D] of the states x [B, n, n, D].

    ``lists`` [B, n, K] int32 names the neighbours of every vertex, -1 where
    there is none. ``inside`` and ``across`` say which sums are wanted, in
    this order. The dtype is that of x: a float, differentiable, or int64. On
    a CPU, lists that are not those of an undirected graph are refused; on a
    GPU, where a check would stall it, an entry that is no vertex counts for
    nothing, and the gradient is that of an undirected graph. A NaN spreads to
    the sums that it is part of.
    """
    if x.ndim != 4 or x.shape[1] != x.shape[2]:
        raise ValueError(
            f"x of shape {tuple(x.shape)} has no pairs; give"
            " [graphs, vertices, vertices, numbers]"
        )
    if x.dtype not in (*FLOATS, torch.int64):
        raise TypeError(f"x is {x.dtype}; use a floating type or int64")
    if lists.ndim != 3 or lists.shape[:2] != x.shape[:2]:
        raise ValueError(
            f"lists of shape {tuple(lists.shape)} do not fit x of"
            f" {x.shape[0]} graphs with {x.shape[1]} vertices"
        )
    if lists.dtype != torch.int32:
        raise TypeError(f"lists are {lists.dtype}; use torch.int32")
    if not inside and not across:
        raise ValueError("no sum is wanted; set inside, across or both")
    if may_look(x):
        _look(lists)
    return _pair_aggregation(x, lists, inside, across)


def _look(lists: Tensor):
    """Refuse lists that are not those of an undirected graph."""
    B, n, _ = lists.shape
    if lists.numel() and not -1 <= lists.min() <= lists.max() < n:
        raise ValueError(
            f"lists hold {int(lists.min())} to {int(lists.max())}; use"
            f" vertices 0 to {n - 1}, and -1 for a free place"
        )
    # the last column counts the free places
    joined = torch.zeros(B, n, n + 1, dtype=torch.int32, device=lists.device)
    joined.scatter_add_(2, (lists % (n + 1)).long(), torch.ones_like(lists))
    joined = joined[:, :, :n]
    if not torch.equal(joined, joined.transpose(1, 2)):
        raise ValueError(
            "lists are not symmetric: some u has the neighbour v that does"
            " not have u; give both directions of every edge"
        )


def pair_aggregation_reference(
    x: Tensor, lists: Tensor, inside: bool = True, across: bool = True
) -> Tensor:
    """The same in plain PyTorch, one place of the lists after the other."""
    sums = []
    if inside:
        # a copy's neighbours are reached as a vertex's are, the other way
        sums += [_across(x.transpose(1, 2), lists).transpose(1, 2)]
    if across:
        sums += [_across(x, lists)]
    return torch.stack(sums)


def _across(x: Tensor, lists: Tensor) -> Tensor:
    half = x.dtype in (torch.float16, torch.bfloat16)
    total = torch.zeros_like(x, dtype=torch.float32 if half else x.dtype)
    graph = torch.arange(len(x), device=x.device)[:, None]
    for w in lists.long().unbind(2):
        # [B, n, n, D]: row w of x for every u
        said = x[graph, w.clamp(min=0)]
        total = total + torch.where((w >= 0)[:, :, None, None], said, 0)
    return total.to(x.dtype)


@triton.jit
def pair_aggregation_kernel(
    pairs_ptr,
    lists_ptr,
    sums_ptr,
    n,
    K,
    D,
    size,
    INSIDE: tl.constexpr,
    ACROSS: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    # the program's u, counted over all graphs
    row = tl.program_id(0).to(tl.int64)
    graph = row // n
    v = tl.program_id(1).to(tl.int64) * BLOCK_V + tl.arange(0, BLOCK_V)
    d = tl.program_id(2).to(tl.int64) * BLOCK_D + tl.arange(0, BLOCK_D)
    is_vertex = v < n
    here = is_vertex[:, None] & (d < D)[None, :]
    # the vertices of this graph begin at this row
    origin = graph * n
    at = (row * n + v)[:, None] * D + d[None, :]
    kind = pairs_ptr.dtype.element_ty
    wide: tl.constexpr = tl.int64 if kind == tl.int64 else tl.float32
    if INSIDE:
        total = tl.zeros([BLOCK_V, BLOCK_D], wide)
        for k in range(0, K):
            name = lists_ptr + (origin + v) * K + k
            w = tl.load(name, mask=is_vertex, other=-1).to(tl.int64)
            known = here & ((w >= 0) & (w < n))[:, None]
            said = pairs_ptr + (row * n + w)[:, None] * D + d[None, :]
            total += tl.load(said, mask=known, other=0).to(wide)
        tl.store(sums_ptr + at, total, mask=here)
        sums_ptr += size
    if ACROSS:
        total = tl.zeros([BLOCK_V, BLOCK_D], wide)
        for k in range(0, K):
            w = tl.load(lists_ptr + row * K + k).to(tl.int64)
            # of a free place nobody is heard
            heard = tl.where((w >= 0) & (w < n), n, 0)
            known = here & (v < heard)[:, None]
            said = ((origin + w) * n + v)[:, None] * D + d[None, :]
            total += tl.load(pairs_ptr + said, mask=known, other=0).to(wide)
        tl.store(sums_ptr + at, total, mask=here)


def blocks(n: int, D: int) -> tuple[int, int]:
    """Vertices and numbers of a program's tile."""
    block_d = min(128, next_power_of_2(D))
    return min(next_power_of_2(n), TILE // block_d), block_d


def pair_aggregation_triton(
    x: Tensor, lists: Tensor, inside: bool = True, across: bool = True
) -> Tensor:
    """Launch the kernel, one program per u and tile of its row."""
    B, n, _, D = x.shape
    x, lists = x.contiguous(), lists.contiguous()
    sums = x.new_empty((inside + across, *x.shape))
    if x.numel():
        block_v, block_d = blocks(n, D)
        grid = (B * n, cdiv(n, block_v), cdiv(D, block_d))
        pair_aggregation_kernel[grid](
            x, lists, sums, n, lists.shape[2], D, x.numel(),
            INSIDE=inside, ACROSS=across,
            BLOCK_V=block_v, BLOCK_D=block_d, num_warps=4,
        )  # fmt: skip
    return sums


def _shapes(x, lists, inside, across):
    return x.new_empty((inside + across, *x.shape))


def _remember(ctx, inputs, output):
    _, lists, ctx.inside, ctx.across = inputs
    ctx.save_for_backward(lists)


def _backward(ctx, grad):
    (lists,) = ctx.saved_tensors
    parts, total = list(grad), 0
    if ctx.inside:
        total = _pair_aggregation(parts.pop(0), lists, True, False)[0]
    if ctx.across:
        total = total + _pair_aggregation(parts.pop(), lists, False, True)[0]
    return total, None, None, None


_pair_aggregation = operator(
    "pair_aggregation(Tensor x, Tensor lists, bool inside, bool across)"
    " -> Tensor",
    cpu=pair_aggregation_reference,
    cuda=pair_aggregation_triton,
    shapes=_shapes,
    backward=_backward,
    remember=_remember,
)


def neighbour_lists(joined: Tensor) -> Tensor:
    """Lists [B, n, K] int32 of graphs [B, n, n] bool, the lowest first.

    K is the largest degree, and 1 if there is no edge; free places hold -1.
    """
    degree = joined.sum(dim=2)
    K = max(1, int(degree.max())) if degree.numel() else 1
    first = joined.to(torch.int8).argsort(dim=2, descending=True, stable=True)
    place = torch.arange(K, device=joined.device)
    return torch.where(place < degree[:, :, None], first[:, :, :K], -1).int()


def _inputs(
    seed, device, dtype, B, n, D, density=0.3, inside=True, across=True
):
    generator = torch.Generator().manual_seed(seed)
    half = torch.rand(B, n, n, generator=generator) < density
    joined = half.triu(1) | half.triu(1).transpose(1, 2)
    x = torch.randn(B, n, n, D, generator=generator, dtype=torch.float64)
    return {
        "x": x.to(device, dtype),
        "lists": neighbour_lists(joined).to(device),
        "inside": inside,
        "across": across,
    }


def _cost(x, lists, inside, across) -> Cost:
    B, n, _, D = x.shape
    terms = inside + across
    moved = x.element_size() * (1 + terms) * x.numel() + 4 * lists.numel()
    return Cost(moved, terms * int((lists >= 0).sum()) * n * D)


def _compile(n: int, D: int, dtype: str, inside: bool, across: bool):
    block_v, block_d = blocks(n, D)
    terms = " ".join(["inside"] * inside + ["across"] * across)
    return Compile(
        f"{dtype} {block_v}x{block_d} {terms}",
        pair_aggregation_kernel,
        signature={
            "pairs_ptr": f"*{dtype}", "lists_ptr": "*i32",
            "sums_ptr": f"*{dtype}", "n": "i32", "K": "i32",
            "D": "i32:16" if D % 16 == 0 else "i32", "size": "i64",
        },
        constants={
            "INSIDE": inside, "ACROSS": across,
            "BLOCK_V": block_v, "BLOCK_D": block_d,
        },
    )  # fmt: skip


DECLARATION = Declaration(
    name="pair_aggregation",
    operation=pair_aggregation,
    reference=pair_aggregation_reference,
    triton=pair_aggregation_triton,
    inputs=_inputs,
    differentiable=("x",),
    # sums are fp32; what is stored has the digits of the dtype
    tolerance={
        torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3,
    },
    examples=(
        Example("two graphs", {"B": 2, "n": 11, "D": 5}),
        Example("inside", {"B": 1, "n": 17, "D": 3, "across": False}),
        Example("across", {"B": 3, "n": 9, "D": 4, "inside": False}),
        Example("two tiles of vertices",
                {"B": 1, "n": 21, "D": 70, "density": 0.1}),
        Example("two tiles of numbers",
                {"B": 1, "n": 5, "D": 131, "density": 0.5}),
        Example("no edge", {"B": 2, "n": 6, "D": 2, "density": 0.0},
                degenerate=True),
        Example("complete", {"B": 1, "n": 8, "D": 1, "density": 2.0},
                degenerate=True),
        Example("one vertex", {"B": 3, "n": 1, "D": 4}, degenerate=True),
        Example("no graph", {"B": 0, "n": 4, "D": 3}, degenerate=True),
        Example("no number", {"B": 2, "n": 4, "D": 0}, degenerate=True),
        Example("large", {"B": 128, "n": 24, "D": 96, "density": 0.1},
                large=True),
    ),
    cost=_cost,
    compiles=(
        *(_compile(24, 96, dtype, True, True) for dtype in KINDS.values()),
        _compile(38, 1, "i64", True, False),
        _compile(38, 1, "i64", True, True),
        _compile(13, 16, "fp32", False, True),
    ),
)  # fmt: skip
