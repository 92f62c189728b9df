"""The baseline: grow every connected subgraph, then look what it is.

Systems before Peregrine, such as Arabesque (Teixeira et al. 2015), do not know
what they look for until a subgraph is complete. They extend every connected
subgraph by every neighbour. A canonicality check keeps one order of each set
of vertices: it starts at the lowest one, and w may follow u_0 ... u_i only if
w > u_0 and w > u_q for all q behind the first neighbour of w. Each complete
subgraph is then compared with the pattern, an isomorphism check.

The check needs the first neighbour p of w, so w is read from the list of u_p,
and the rule becomes a step as in a plan: near p, far from all before p, above
u_0 and above all behind p. The same kernel does it, and the work is counted in
the same candidates, within the same bounds.
"""

from functools import cache
from itertools import combinations, permutations
from typing import NamedTuple

import torch
from torch import Tensor

from lab.paths.graphs import Graph
from lab.paths.guided_match import grow
from lab.paths.match_plan import Step
from lab.paths.patterns import Pattern, automorphisms


class Explored(NamedTuple):
    """All connected subgraphs of k vertices."""

    levels: tuple[int, ...]  # candidates for each vertex
    made: tuple[int, ...]  # subgraphs of 1, 2, ... vertices
    kinds: Tensor  # [2 ** pairs] subgraphs by which pairs are joined

    @property
    def candidates(self) -> int:
        return sum(self.levels)

    @property
    def checks(self) -> int:
        """Isomorphism checks: one for each complete subgraph."""
        return self.made[-1]


def explore_all(graph: Graph, k: int) -> Explored:
    """Every connected set of k vertices, once."""
    V = graph.size
    sets = torch.arange(V, device=graph.col.device).int()[:, None]
    kinds = torch.zeros(V, dtype=torch.int64, device=sets.device)
    levels, made = [V], [V]
    for size in range(1, k):
        longer, joined, looked = [], [], 0
        for p in range(size):
            above = tuple({0, *range(p + 1, size)})
            step = Step((p,), tuple(range(p)), above, ())
            grown = grow(graph, sets, step)
            looked += int(grown.candidates.sum())
            some, w = sets[grown.match], grown.vertex[:, None]
            longer.append(torch.cat((some, w), dim=1))
            joined.append(kinds[grown.match] | _bits(graph, some, w, p))
        sets, kinds = torch.cat(longer), torch.cat(joined)
        levels.append(looked)
        made.append(len(sets))
    return Explored(
        tuple(levels), tuple(made), kinds.bincount(minlength=1 << _pairs(k))
    )


def _pairs(k: int) -> int:
    """How many pairs k vertices have; pair (i, j) has bit _pairs(j) + i."""
    return k * (k - 1) // 2


def _bits(graph: Graph, sets: Tensor, w: Tensor, p: int) -> Tensor:
    """Which of a set [M, size] the new vertex is joined to, as bits [M]."""
    size = sets.shape[1]
    # nothing before its first neighbour p
    edge = sets[:, p + 1 :].long() * graph.size + w
    last = len(graph.edges) - 1
    place = torch.searchsorted(graph.edges, edge).clamp_max(max(0, last))
    joined = graph.edges[place] == edge
    shift = torch.arange(p + 1, size, device=w.device) + _pairs(size)
    return (joined.long() << shift).sum(1) + (1 << p + _pairs(size))


@cache
def copies(pattern: Pattern) -> Tensor:
    """How many matches of the pattern each kind of subgraph holds.

    Kinds are the bits of `Explored`; this is the isomorphism check.
    """
    k = pattern.size
    pairs = {pair: _pairs(pair[1]) + pair[0] for pair in _all(k)}
    found = torch.zeros(1 << _pairs(k), dtype=torch.int64)
    kind = torch.arange(len(found))
    for p in permutations(range(k)):

        def mask(some, p=p):
            return sum(
                1 << pairs[tuple(sorted((p[a], p[b])))] for a, b in some
            )

        need, ban = mask(pattern.edges), mask(pattern.anti)
        found += ((kind & need) == need) & ((kind & ban) == 0)
    return found // len(automorphisms(pattern))


def _all(k: int):
    return combinations(range(k), 2)


def counted(explored: Explored, pattern: Pattern) -> int:
    """How many matches of a pattern all its subgraphs hold together."""
    if pattern.absent:
        raise ValueError(
            "anti-vertices lie outside a subgraph; match the pattern by plan"
        )
    if len(explored.made) != pattern.size:
        raise ValueError(
            f"the subgraphs have {len(explored.made)} vertices, the pattern"
            f" has {pattern.size}; explore all of {pattern.size}"
        )
    return int((explored.kinds.cpu() * copies(pattern)).sum())
