"""Pairs of graphs that are hard to tell apart: Fürer's, from a base graph.

Take a connected base graph F. A vertex of the large graph is a base vertex x
with an even set S of its neighbours; (x, S) and (y, T) are joined if xy is an
edge of F and

    y in S  <=>  x in T

The **twisted** graph turns this rule round, ``<=>`` into "not <=>", on one
edge of F. Which edge does not matter: the twisted graph stays the same up to
new names for its vertices, and a second twist gives the first graph back. One
twist makes another graph, although around every single vertex both look the
same. How far a test must look to see it depends on F, so that F can be chosen
to fail one test and to pass the next.

`WITNESSES` holds one base graph for each step of the hierarchy. Those called
"figure" are the base graphs of the paper's figures, read from the base graphs
in ``examples.py`` of zml72062/fwl2_family; the other ones were found by
search. No code was copied.
"""

from functools import cache
from itertools import combinations
from typing import NamedTuple

import torch
from torch import Tensor

from lab.kernels.pair_aggregation import neighbour_lists
from lab.kernels.runtime import device

MOST = 64  # vertices of a graph: a Folklore test looks at n^3 triples
Edges = tuple[tuple[int, int], ...]


class Pair(NamedTuple):
    """Two graphs of n vertices, to be coloured together."""

    joined: Tensor  # [2, n, n] bool
    lists: Tensor  # [2, n, K] int32, as `lab.kernels.pair_aggregation` takes
    names: tuple  # (x, S) of each vertex, in both graphs

    @property
    def size(self) -> int:
        return self.joined.shape[1]


def base_edges(text: str) -> Edges:
    """The edges of a base graph from pairs such as "01 12 02".

    Vertices are digits and letters: a stands for 10.
    """
    edges = []
    for word in text.split():
        if len(word) != 2 or not word.isalnum() or not word.isascii():
            raise ValueError(
                f"{word!r} is no edge; write pairs of vertices, such as 01"
            )
        u, v = sorted(int(letter, 36) for letter in word)
        edges.append((u, v))
    _check(edges)
    return tuple(edges)


def _check(edges) -> None:
    """Refuse what has no twisted pair."""
    if not edges:
        raise ValueError("a base graph has edges; give at least one")
    if len(set(edges)) < len(edges) or any(u == v for u, v in edges):
        raise ValueError("an edge joins two different vertices, and only once")
    around = neighbours(edges)
    reached, new = set(), {edges[0][0]}
    while new:
        reached |= new
        new = {w for v in new for w in around[v]} - reached
    if len(reached) < len(around):
        raise ValueError(
            f"only {len(reached)} of {len(around)} vertices hang together; a"
            " twist can be seen only in a connected base graph"
        )
    n = sum(2 ** (len(near) - 1) for near in around.values())
    if n > MOST:
        raise ValueError(
            f"the pair would have {n} vertices; use a base graph with smaller"
            f" degrees, for at most {MOST}"
        )


def neighbours(edges: Edges) -> dict[int, list[int]]:
    """The neighbours of every vertex of a base graph, ascending."""
    around = {}
    for u, v in edges:
        around.setdefault(u, []).append(v)
        around.setdefault(v, []).append(u)
    return {v: sorted(around[v]) for v in sorted(around)}


@cache
def twisted_pair(edges: Edges, twist: int = 0) -> Pair:
    """The graph of a base graph and the one twisted at ``edges[twist]``."""
    _check(edges)
    around = neighbours(edges)
    names = tuple(
        (x, frozenset(some))
        for x, near in around.items()
        for size in range(0, len(near) + 1, 2)
        for some in combinations(near, size)
    )
    plain, turned = (
        [[_joined(a, b, around, bent) for b in names] for a in names]
        for bent in (None, set(edges[twist]))
    )
    return pair_of(torch.tensor([plain, turned]), names)


def _joined(a, b, around, bent) -> bool:
    """Whether (x, S) and (y, T) are joined; ``bent`` is the twisted edge."""
    (x, S), (y, T) = a, b
    return y in around[x] and ((y in S) == (x in T)) != ({x, y} == bent)


def pair_of(joined: Tensor, names: tuple = ()) -> Pair:
    """A pair from two adjacency matrices [2, n, n] bool."""
    if joined.ndim != 3 or joined.shape[0] != 2:
        raise ValueError(
            f"joined of shape {tuple(joined.shape)} is no pair; give two"
            " graphs with equally many vertices, as [2, n, n]"
        )
    if not torch.equal(joined, joined.transpose(1, 2)):
        raise ValueError("an edge has no direction; give it both ways")
    joined = joined.to(device())
    return Pair(joined, neighbour_lists(joined), names)


def renumbered(pair: Pair, seed: int) -> Pair:
    """Both graphs with new numbers for their vertices, drawn for each."""
    dice = torch.Generator().manual_seed(seed)
    moved = []
    for graph in pair.joined.cpu():
        p = torch.randperm(pair.size, generator=dice)
        moved.append(graph[p][:, p])
    return pair_of(torch.stack(moved))


def random_base(dice: torch.Generator, vertices: int, edges: int) -> Edges:
    """A connected base graph drawn at random, with degrees 2 to 4."""
    every = list(combinations(range(vertices), 2))
    while True:
        order = torch.randperm(len(every), generator=dice)[:edges]
        chosen = tuple(sorted(every[i] for i in order.tolist()))
        degrees = [len(near) for near in neighbours(chosen).values()]
        if len(degrees) < vertices or min(degrees) < 2 or max(degrees) > 4:
            continue
        try:
            _check(chosen)
        except ValueError:
            # in parts, or too large: draw again
            continue
        return chosen


# what each pair needs: its base graph
WITNESSES = {
    "any copy": "01 12 02",
    "SV or vv": "01 02 03 12 34 35 45",
    "SV (figure 4)": "01 12 02 13 23 34 45 35 46 56",
    "vv": "01 02 03 12 36 39 45 47 48 56 59 78",
    "vG (figure 6)": "01 12 02 13 23 34 45 35 56 67 57 68 78",
    "vL": "01 05 12 15 23 24 34 45",
    "Folklore (figure 8)": "01 12 02 13 34 14 24 45 25",
    "vL, not LFWL (figure 9)": "01 13 35 45 24 02 06 46 17 57",
    "2-FWL (figure 10)": "03 13 17 27 25 05 04 14 18 28 26 06",
    "beyond 2-FWL": "01 02 03 12 13 23",
}


def witness(name: str) -> Pair:
    """The twisted pair of one of the `WITNESSES`."""
    if name not in WITNESSES:
        raise ValueError(f"name={name!r} is not one of {', '.join(WITNESSES)}")
    return twisted_pair(base_edges(WITNESSES[name]))
