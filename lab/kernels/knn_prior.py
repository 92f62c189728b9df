"""Nearest neighbours by rank, the whole input of the k-nearest prior.

The result lists the K nearest other cities of each city i in the order of
their distance. The prior then says that the edge to the r-th of them is in the
tour with probability p_r:

    H[i, neighbours[i, r]] = p_r

Coordinates are whole numbers, so squared distances are exact. Ties, which real
maps are full of, go to the lowest index everywhere.

One program holds one city. It deals the other cities out to 32 lists, one per
lane, and each list keeps the four nearest cities that it gets, in order. The
nearest of the 32 heads is then the next neighbour, and its list moves up. A
list whose four cities are all taken may have left out a city nearer than the
other heads, so all cities are dealt again, without the neighbours found so
far. There is no distance matrix, no sort and no storage. 24 neighbours among
1000 cities in random order take 1.1 deals; the worst order, which has all
neighbours in one list, takes K / 4.

Bytes: 8 n read and 4 n K written per instance. A deal needs n^2 distances and
four comparisons for each, 63 instructions for 32 distances; a neighbour takes
55 instructions. So the kernel is bound by arithmetic, not by memory.

Source: Pan et al. 2024, "Rethinking the Heatmap + Monte Carlo Tree Search
Paradigm", GT-Prior; there `torch.topk` on a full matrix of fp32 distances.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from lab.kernels.declaration import Compile, Cost, Declaration, Example
from lab.kernels.operator import operator
from lab.kernels.runtime import may_look

LARGEST = 2**30  # difference of coordinates whose square is still exact
FAR = 1 << 61  # more than the square of any distance
LISTS = 32  # of one city's neighbours, one per lane
EMPTY = -1  # index of a city in a list that has none left


def knn_prior(points: Tensor, k: int) -> Tensor:
    """The k nearest cities [B, n, k], nearest first, of points [B, n, 2].

    Points are int32 and less than 2**30 apart. This is checked on a CPU; on a
    GPU a check would stall it. Cities that share a place are at distance 0; a
    city is never its own neighbour. Ties go to the lowest index.
    """
    if points.dtype != torch.int32 or points.ndim != 3:
        raise ValueError(
            f"points are {points.dtype} of shape {tuple(points.shape)}; use"
            " int32 [instances, cities, 2]"
        )
    n = points.shape[1]
    if points.shape[2] != 2:
        raise ValueError(
            f"points have {points.shape[2]} coordinates each; give 2"
        )
    if not 1 <= k < n:
        raise ValueError(f"k={k} does not fit {n} cities; use 1 to {n - 1}")
    if may_look(points) and len(points):
        apart = int((points.amax(1).long() - points.amin(1)).max())
        if apart >= LARGEST:
            raise ValueError(
                f"cities are {apart} apart in a coordinate; use less than"
                f" {LARGEST}, so that squared distances are exact"
            )
    return _knn_prior(points, k)


def knn_prior_reference(points: Tensor, k: int) -> Tensor:
    """The neighbours in plain PyTorch, by a stable sort of all distances."""
    apart = points[:, :, None].long() - points[:, None, :].long()
    squares = apart.square().sum(dim=3)  # [B, n, n]
    squares.diagonal(dim1=1, dim2=2).fill_(-1)
    order = squares.argsort(dim=2, stable=True)
    # the first place is the city itself
    near = order[:, :, 1 : k + 1]
    return near.to(torch.int32, memory_format=torch.contiguous_format)


@triton.jit
def insert(square, j, carried, carried_j, new):
    """One place of a sorted list when a city at distance ``new`` comes in.

    Every city behind the new one moves on by one place: ``carried`` comes from
    the place before, and the city that stood here is carried on. The new city
    has the highest index so far, so it goes behind its equals.
    """
    # compare with the new city, not the carried one, which may equal its
    # follower; and compare by the sign: a comparison would be made three
    # times, for minimum, maximum and j
    move = new - square < 0
    return (
        tl.where(move, carried, square),
        tl.where(move, carried_j, j),
        tl.where(move, square, carried),
        tl.where(move, j, carried_j),
    )


@triton.jit
def knn_prior_kernel(
    points_ptr,
    neighbours_ptr,
    n,
    k,
    FAR: tl.constexpr,
    EMPTY: tl.constexpr,
    LISTS: tl.constexpr,
):
    city = tl.program_id(0)
    i = city % n
    points_ptr += 2 * (city - i).to(tl.int64)
    neighbours_ptr += city.to(tl.int64) * k
    x = tl.load(points_ptr + 2 * i)
    y = tl.load(points_ptr + 2 * i + 1)
    # the last neighbour found: its squared distance and its index
    last = tl.full([], -1, tl.int64)
    last_j = -1
    # four places of each list: squared distances and indices [LISTS]
    s0 = tl.full([LISTS], FAR, tl.int64)
    j0 = tl.full([LISTS], EMPTY, tl.int32)
    s1, s2, s3 = s0, s0, s0
    j1, j2, j3 = j0, j0, j0
    for r in range(0, k):
        if tl.min(j0, 0) == EMPTY:
            s0 = tl.full([LISTS], FAR, tl.int64)
            j0 = tl.full([LISTS], n, tl.int32)
            s1, s2, s3 = s0, s0, s0
            j1, j2, j3 = j0, j0, j0
            for first in range(0, n, LISTS):
                j = first + tl.arange(0, LISTS)
                dx = tl.load(points_ptr + 2 * j, mask=j < n, other=x) - x
                dy = tl.load(points_ptr + 2 * j + 1, mask=j < n, other=y) - y
                square = dx.to(tl.int64) * dx + dy.to(tl.int64) * dy
                found = square < tl.where(j > last_j, last, last + 1)
                out = found | (j == i) | (j >= n)
                new = square | (out.to(tl.int64) * FAR)
                s0, j0, square, j = insert(s0, j0, new, j, new)
                s1, j1, square, j = insert(s1, j1, square, j, new)
                s2, j2, square, j = insert(s2, j2, square, j, new)
                s3, j3, square, j = insert(s3, j3, square, j, new)
        # the nearest head, by 31 bits at a time: one instruction each
        high = (s0 >> 31).to(tl.int32)
        low = (s0 & 0x7FFFFFFF).to(tl.int32)
        top = tl.min(high, 0)
        rest = tl.min(tl.where(high == top, low, 0x7FFFFFFF), 0)
        nearest = (high == top) & (low == rest)
        last = (top.to(tl.int64) << 31) | rest
        last_j = tl.min(tl.where(nearest, j0, n), 0)
        tl.store(neighbours_ptr + r, last_j)
        taken = j0 == last_j
        s0, j0 = tl.where(taken, s1, s0), tl.where(taken, j1, j0)
        s1, j1 = tl.where(taken, s2, s1), tl.where(taken, j2, j1)
        s2, j2 = tl.where(taken, s3, s2), tl.where(taken, j3, j2)
        j3 = tl.where(taken, EMPTY, j3)


def knn_prior_triton(points: Tensor, k: int) -> Tensor:
    """Launch the kernel; one program holds one city."""
    B, n, _ = points.shape
    points = points.contiguous()
    neighbours = points.new_empty((B, n, k))
    if B:
        knn_prior_kernel[(B * n,)](
            points, neighbours, n, k,
            FAR=FAR, EMPTY=EMPTY, LISTS=LISTS, num_warps=1,
        )  # fmt: skip
    return neighbours


def _shapes(points, k):
    B, n, _ = points.shape
    return points.new_empty((B, n, k))


_knn_prior = operator(
    "knn_prior(Tensor points, SymInt k) -> Tensor",
    cpu=knn_prior_reference,
    cuda=knn_prior_triton,
    shapes=_shapes,
)


def _inputs(seed, device, dtype, B, n, k, side=100_000, dealt=False):
    generator = torch.Generator().manual_seed(seed)
    points = torch.randint(side, (B, n, 2), generator=generator)
    if dealt:  # the cities of two lists lie together
        points[:, :, 0] += side * 10 * (torch.arange(n) % LISTS // 2)
    return {"points": points.to(device, torch.int32), "k": k}


def _cost(points, k) -> Cost:
    B, n, _ = points.shape
    return Cost(B * n * (8 + 4 * k), 0)


DECLARATION = Declaration(
    name="knn_prior",
    operation=knn_prior,
    reference=knn_prior_reference,
    triton=knn_prior_triton,
    inputs=_inputs,
    exact=("result",),
    examples=(
        Example("5 of 40", {"B": 2, "n": 40, "k": 5}),
        Example("24 of 63", {"B": 1, "n": 63, "k": 24}),
        Example(
            "all neighbours in two lists",
            {"B": 1, "n": 129, "k": 7, "side": 1, "dealt": True},
            degenerate=True,
        ),
        Example(
            "far apart", {"B": 1, "n": 40, "k": 8, "side": LARGEST}
        ),
        Example(
            "a coarse grid full of ties",
            {"B": 1, "n": 65, "k": 10, "side": 6},
            degenerate=True,
        ),
        Example(
            "ties within a list",
            {"B": 1, "n": 160, "k": 10, "side": 12},
            degenerate=True,
        ),
        Example("two cities", {"B": 3, "n": 2, "k": 1}, degenerate=True),
        Example("no instance", {"B": 0, "n": 9, "k": 3}, degenerate=True),
        Example(
            "all in one place",
            {"B": 1, "n": 9, "k": 8, "side": 1},
            degenerate=True,
        ),
        Example("large", {"B": 64, "n": 1000, "k": 24}, large=True),
    ),
    cost=_cost,
    compiles=(
        Compile(
            f"{LISTS} lists",
            knn_prior_kernel,
            signature={
                "points_ptr": "*i32", "neighbours_ptr": "*i32",
                "n": "i32", "k": "i32",
            },
            constants={"FAR": FAR, "EMPTY": EMPTY, "LISTS": LISTS},
            num_warps=1,
        ),
    ),
)  # fmt: skip
