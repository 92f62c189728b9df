"""Tours of cities: instances with a known optimum, lengths, local search.

TSPLIB instances (`data/tsplib`) have whole-number distances and a published
optimal tour, so a gap here is exact. All functions work on many tours at
once, [B, n] of city numbers.
"""

import math
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from lab.data import read_text

SCALE = 1e5  # coordinates as whole numbers for `knn_prior`


class Instance(NamedTuple):
    """A travelling salesman problem and its best tour."""

    name: str
    points: Tensor  # [n, 2] float64
    distances: Tensor  # [n, n] int32
    best_tour: Tensor  # [n] int64
    optimum: int


@cache
def tsplib(name: str) -> Instance:
    """The TSPLIB instance with this name, such as "berlin52"."""
    lines = read_text(f"tsplib/{name}.tsp").split("\n")
    first = lines.index("NODE_COORD_SECTION") + 1
    if not any("EUC_2D" in line for line in lines[:first]):
        raise ValueError(f"{name} is not EUC_2D; only those can be read")
    rows = [line.split()[1:3] for line in lines[first:] if len(line) > 3]
    points = torch.tensor(
        [[float(x), float(y)] for x, y in rows], dtype=torch.float64
    )
    words = read_text(f"tsplib/{name}.opt.tour").split("TOUR_SECTION")[1]
    tour = [int(w) - 1 for w in words.split() if w.isdigit()]
    return instance(name, points, torch.tensor(tour))


def instance(name: str, points: Tensor, best_tour: Tensor) -> Instance:
    """An instance from points [n, 2] and its best tour [n]."""
    if not points.isfinite().all():
        raise ValueError(f"{name} has a coordinate that is infinite or NaN")
    if len(points.unique(dim=0)) < 5:
        raise ValueError(f"{name} has fewer than 5 different places")
    apart = points[:, None] - points[None]
    # TSPLIB's EUC_2D: half a unit is rounded up
    distances = (apart.square().sum(2).sqrt() + 0.5).floor().to(torch.int32)
    optimum = lengths(best_tour[None], distances[None])
    return Instance(name, points, distances, best_tour, int(optimum))


def whole(points: Tensor) -> Tensor:
    """Points [n, 2] on a fine grid, int32, for exact neighbours."""
    low, side = points.amin(0), (points.amax(0) - points.amin(0)).max()
    # keep five decimals where the map is small enough for it
    scale = min(SCALE, (2**30 - 1) / max(float(side), 1e-9))
    return ((points - low) * scale).round().to(torch.int32)


def lengths(tours: Tensor, distances: Tensor) -> Tensor:
    """The lengths [B] of tours [B, n] under distances [B, n, n]."""
    row = torch.arange(len(tours), device=tours.device)[:, None]
    tours = tours.long()
    return distances[row, tours, tours.roll(-1, 1)].sum(1)


def gap(length, optimum: int):
    """How much longer a tour is than the best one, in percent."""
    return 100 * (length / optimum - 1)


def random_tours(weights: Tensor, generator: torch.Generator) -> Tensor:
    """Tours [B, n] from city 0; j follows i with probability ~ e^w[i, j].

    ``weights`` [B, n, n]. The maximum of each row is subtracted first, so
    that no exponential overflows.
    """
    B, n, _ = weights.shape
    row = torch.arange(B)
    # the largest of weight + Gumbel noise is a draw from the softmax
    noise = torch.rand(B, n, n, generator=generator).clamp_min(1e-30)
    keys = weights - (-noise.log()).log()
    tours = torch.zeros(B, n, dtype=torch.long)
    keys[:, :, 0] = -math.inf
    for place in range(1, n):
        city = keys[row, tours[:, place - 1]].argmax(dim=1)
        tours[:, place] = city
        keys[row, :, city] = -math.inf
    return tours


class TwoOpt(NamedTuple):
    """Tours that no 2-opt move among the candidates can shorten."""

    tours: Tensor  # [B, n]
    edges: Tensor  # [moves, 3] (tour, city, city) joined by the moves
    rises: Tensor  # [moves] gain / length of the tour before it


def two_opt(tours: Tensor, candidates: Tensor, distances: Tensor) -> TwoOpt:
    """Shorten tours [B, n] by the best 2-opt move until there is none.

    A move cuts the edges behind city i and behind its candidate j and joins
    i to j. ``candidates`` [B, n, C] with -1 for none, distances [B, n, n].
    """
    B, n = tours.shape
    C = candidates.shape[2]
    tours, row = tours.clone(), torch.arange(B)[:, None]
    cities = torch.arange(n).expand(B, n)
    real = candidates >= 0
    j = candidates.long().clamp_min(0)
    cross = distances[row[:, :, None], cities[:, :, None], j]
    at = torch.arange(n)
    edges, rises = [], []
    while True:
        after = torch.empty_like(tours).scatter_(1, tours, tours.roll(-1, 1))
        step = distances[row, cities, after]  # [B, n]
        after_j = after.gather(1, j.flatten(1)).view(B, n, C)
        step_j = step.gather(1, j.flatten(1)).view(B, n, C)
        saved = step[:, :, None] + step_j - cross
        saved -= distances[row[:, :, None], after[:, :, None], after_j]
        best, move = saved.where(real, -1).flatten(1).max(dim=1)
        going = best > 0
        if not going.any():
            break
        a = move // C
        b = j.flatten(1).gather(1, move[:, None])[:, 0]
        for ends in ((a, b), (after[row[:, 0], a], after[row[:, 0], b])):
            edges.append(torch.stack((row[:, 0], *ends), dim=1)[going])
        rise = best.double() / lengths(tours, distances)
        rises += [rise[going]] * 2
        place = tours.argsort(dim=1).gather(1, torch.stack((a, b), 1))
        low, high = place.amin(1, True) + 1, place.amax(1, True)
        inner = (at >= low) & (at <= high) & going[:, None]
        tours = tours.gather(1, torch.where(inner, low + high - at, at))
    if not edges:
        return TwoOpt(tours, torch.zeros(0, 3).long(), torch.zeros(0).double())
    return TwoOpt(tours, torch.cat(edges), torch.cat(rises))


def reversed_prefixes(path: Tensor, prefixes: Tensor) -> Tensor:
    """Paths [B, n] after reversing their first p places, for each p [B, D]."""
    at = torch.arange(path.shape[1], device=path.device)
    for p in prefixes.long().unbind(1):
        p = p[:, None]
        path = path.gather(1, torch.where(at < p, p - 1 - at, at))
    return path
