"""Graphs to look for patterns in: sorted neighbour lists, small or drawn.

A graph is simple and undirected. As in Peregrine, its vertices get new
numbers by their degree, and vertices without an edge are dropped.
"""

import random
from collections.abc import Iterable
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from lab.data import read_json
from lab.kernels.runtime import device

IDS = ("largest first", "smallest first", "shuffled")
RECORDED = "graphs/graphs.json"
NAMES = ("les miserables", "karate", "florentine", "davis", "power law")
SHOWN = (80, 3, 0.3, 0)  # of `power_law`; its drawing is recorded


class Graph(NamedTuple):
    """Sorted neighbour lists, as `lab.kernels.intersect` takes them."""

    rowptr: Tensor  # [V + 1] int64
    col: Tensor  # [E] int32, every edge in both lists
    edges: Tensor  # [E] int64, edge (u, w) as the number u V + w, ascending
    names: Tensor  # [V] the number of each vertex in the given edges

    @property
    def size(self) -> int:
        return len(self.rowptr) - 1

    @property
    def pairs(self) -> list[list[int]]:
        """Every edge once, the lower vertex first."""
        u, w = self.edges // max(1, self.size), self.col.long()
        return torch.stack((u, w), dim=1)[u < w].tolist()


def from_edges(
    pairs: Iterable[tuple[int, int]], ids: str = "largest first"
) -> Graph:
    """The graph of these pairs of numbers, without loops and repetitions.

    ``ids`` says in which order of degree the vertices are numbered; among
    equal degrees, a lower number stays lower.
    """
    if ids not in IDS:
        raise ValueError(f"ids={ids!r} is not one of {', '.join(IDS)}")
    pairs = list(pairs)
    if any(len(pair) != 2 for pair in pairs):
        raise ValueError("an edge is a pair of numbers; leave weights out")
    pairs = sorted({(min(e), max(e)) for e in pairs if e[0] != e[1]})
    ends = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2)
    names, place = ends.unique(return_inverse=True)
    V = len(names)
    degree = place.flatten().bincount(minlength=V)
    if ids == "shuffled":
        order = torch.randperm(V, generator=torch.Generator().manual_seed(0))
    else:
        order = degree.argsort(descending=ids == "largest first", stable=True)
    place = order.argsort()[place]
    both = torch.cat((place, place.flip(1)))
    edges = (both[:, 0] * V + both[:, 1]).sort().values
    rowptr = torch.zeros(V + 1, dtype=torch.int64)
    rowptr[1:] = degree[order].cumsum(0)
    found = rowptr, (edges % max(1, V)).int(), edges, names[order]
    return Graph(*(tensor.to(device()) for tensor in found))


@cache
def named(name: str, ids: str = "largest first") -> Graph:
    """One of the graphs called `NAMES`."""
    if name not in NAMES:
        raise ValueError(f"name={name!r} is not one of {', '.join(NAMES)}")
    if name == "power law":
        return from_edges(power_law(*SHOWN), ids)
    return from_edges(read_json(RECORDED)[name]["edges"], ids)


def drawing(name: str, graph: Graph) -> list[list[float]]:
    """Where the vertices of a named graph are drawn, in their order."""
    places = read_json(RECORDED)[name]["places"]
    return [places[v] for v in graph.names.tolist()]


@cache
def power_law(n: int, m: int, triads: float, seed: int) -> tuple:
    """A random graph with hubs and triangles, as pairs (Holme, Kim 2002).

    Each new vertex joins ``m`` others. The first is drawn in proportion to its
    degree. Each further one is, with chance ``triads``, a neighbour of the
    last one drawn in this way, which closes a triangle.
    """
    if not 1 <= m < n:
        raise ValueError(f"m={m} does not fit n={n}; use 1 to {n - 1}")
    dice = random.Random(seed)
    lists = [[] for _ in range(n)]
    # a vertex once for each of its edges, and the first ones once more
    ends = list(range(m))
    for new in range(m, n):
        chosen, hub = [], None
        while len(chosen) < m:
            friends = (
                [v for v in lists[hub] if v not in chosen] if chosen else []
            )
            if friends and dice.random() < triads:
                chosen.append(dice.choice(friends))
                continue
            drawn = dice.choice(ends)
            if drawn not in chosen:
                chosen.append(drawn)
                hub = drawn
        for v in chosen:
            lists[v].append(new)
            lists[new].append(v)
            ends += [v, new]
    return tuple((u, v) for u in range(n) for v in lists[u] if u < v)
