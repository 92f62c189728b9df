"""Nearest neighbours by rank, the whole input of the k-nearest prior.

For each city i, the K other cities in the order of their distance; the prior
then says that the r-th of them is a tour edge with probability p_r:

    H[i, neighbours[i, r]] = p_r

Coordinates are whole numbers, so squared distances are exact and ties, which
real maps are full of, go to the lowest index everywhere. Round r looks for
the nearest city that comes after the last one found: no distance matrix, no
sort, and no storage, at the price of K passes over the points.

Bytes: 8 n read and 4 n K written per instance; K n^2 distances of 5 integer
operations, so the kernel is bound by arithmetic, not by memory.

Source: Pan et al. 2024, "Rethinking the Heatmap + Monte Carlo Tree Search
Paradigm", GT-Prior; there `torch.topk` on a full matrix of fp32 distances.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from lab.kernels.declaration import Compile, Cost, Declaration, Example
from lab.kernels.operator import operator

LARGEST = 2**30  # difference of coordinates whose square is still exact
BLOCK = 32  # cities of one program, and of one step of its inner loop


def knn_prior(points: Tensor, k: int) -> Tensor:
    """The k nearest cities [B, n, k], nearest first, of points [B, n, 2].

    Points are int32 and less than 2**30 apart. Cities that share a place are
    at distance 0; a city is never its own neighbour. Ties go to the lowest
    index.
    """
    if points.dtype != torch.int32 or points.ndim != 3:
        raise ValueError(
            f"points of shape {tuple(points.shape)} and type {points.dtype}"
            " are not allowed; use int32 [instances, cities, 2]"
        )
    n = points.shape[1]
    if points.shape[2] != 2:
        raise ValueError(
            f"points have {points.shape[2]} coordinates; give 2 each"
        )
    if not 1 <= k < n:
        raise ValueError(f"k={k} of {n} cities; use 1 to {n - 1}")
    return torch.ops.lab.knn_prior(points, k)


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
def knn_prior_kernel(
    points_ptr,
    neighbours_ptr,
    n,
    k,
    BLOCK_I: tl.constexpr,
    BLOCK_J: tl.constexpr,
):
    b = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * BLOCK_I + tl.arange(0, BLOCK_I)
    points_ptr += 2 * b * n
    x = tl.load(points_ptr + 2 * i, mask=i < n, other=0).to(tl.int64)
    y = tl.load(points_ptr + 2 * i + 1, mask=i < n, other=0).to(tl.int64)
    far = tl.full([BLOCK_I], 1 << 62, tl.int64)
    # the last neighbour found: its squared distance and its index
    last = tl.full([BLOCK_I], -1, tl.int64)
    last_j = tl.full([BLOCK_I], -1, tl.int32)
    for r in range(0, k):
        best = far
        best_j = tl.full([BLOCK_I], 0, tl.int32)
        for first in range(0, n, BLOCK_J):
            j = first + tl.arange(0, BLOCK_J)
            xj = tl.load(points_ptr + 2 * j, mask=j < n, other=0)
            yj = tl.load(points_ptr + 2 * j + 1, mask=j < n, other=0)
            dx = x[:, None] - xj.to(tl.int64)[None, :]
            dy = y[:, None] - yj.to(tl.int64)[None, :]
            square = dx * dx + dy * dy  # [BLOCK_I, BLOCK_J]
            later = (square > last[:, None]) | (
                (square == last[:, None]) & (j[None, :] > last_j[:, None])
            )
            other = (i[:, None] != j[None, :]) & (j[None, :] < n)
            square = tl.where(later & other, square, far[:, None])
            nearest = tl.min(square, 1)
            is_nearest = square == nearest[:, None]
            nearest_j = tl.min(tl.where(is_nearest, j[None, :], n), 1)
            # an equal distance in a later block has a higher index
            closer = nearest < best
            best_j = tl.where(closer, nearest_j, best_j)
            best = tl.where(closer, nearest, best)
        at = (b * n + i) * k + r
        tl.store(neighbours_ptr + at, best_j, mask=i < n)
        last = best
        last_j = best_j


def knn_prior_triton(points: Tensor, k: int) -> Tensor:
    """Launch the kernel; one program holds a block of cities."""
    B, n, _ = points.shape
    points = points.contiguous()
    neighbours = points.new_empty((B, n, k))
    if B:
        knn_prior_kernel[(B, triton.cdiv(n, BLOCK))](
            points, neighbours, n, k,
            BLOCK_I=BLOCK, BLOCK_J=BLOCK, num_warps=4,
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


def _inputs(seed, device, dtype, B, n, k, side=100_000):
    generator = torch.Generator().manual_seed(seed)
    points = torch.randint(side, (B, n, 2), generator=generator)
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
        Example("5 of 100", {"B": 2, "n": 100, "k": 5}),
        Example("24 of 63", {"B": 1, "n": 63, "k": 24}),
        Example(
            "far apart", {"B": 1, "n": 40, "k": 8, "side": LARGEST}
        ),
        Example(
            "a coarse grid full of ties",
            {"B": 2, "n": 65, "k": 10, "side": 6},
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
            f"{BLOCK} x {BLOCK}",
            knn_prior_kernel,
            signature={
                "points_ptr": "*i32", "neighbours_ptr": "*i32",
                "n": "i32", "k": "i32",
            },
            constants={"BLOCK_I": BLOCK, "BLOCK_J": BLOCK},
        ),
    ),
)  # fmt: skip
