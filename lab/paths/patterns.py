"""What is looked for in a graph, and what its shape says before any search.

A pattern has vertices 0 to k - 1, edges, anti-edges (pairs that must not be
joined) and anti-vertices (nothing may be joined to all of these vertices). A
match maps the vertices to different vertices of the graph.

    automorphisms   ways to permute the pattern so that it stays the same
    conditions      m(u) < m(v): of the copies of a match that differ by an
                    automorphism, exactly one satisfies all of them
    core            smallest connected set that meets every edge and anti-edge

A vertex of the match itself never counts for an anti-vertex. In the authors'
code it does, unless the pattern joins it to all of them.
"""

from functools import cache
from itertools import combinations, permutations
from typing import NamedTuple

MOST_VERTICES = 7  # all permutations are tried


class Pattern(NamedTuple):
    """Pairs are sorted; an anti-vertex is the tuple of its neighbours."""

    size: int
    edges: frozenset[tuple[int, int]]
    anti: frozenset[tuple[int, int]] = frozenset()
    absent: frozenset[tuple[int, ...]] = frozenset()

    def neighbours(self, v: int) -> set[int]:
        return _others(self.edges, v)

    def strangers(self, v: int) -> set[int]:
        """The other ends of the anti-edges of v."""
        return _others(self.anti, v)

    def degree(self, v: int) -> int:
        return len(self.neighbours(v))


def _others(pairs, v: int) -> set[int]:
    return {a + b - v for a, b in pairs if v in (a, b)}


def _connected(one: Pattern, some: set[int]) -> bool:
    """Whether the edges join all vertices of ``some`` through ``some``."""
    reached, new = set(), {min(some)}
    while new:
        reached |= new
        new = {w for v in new for w in one.neighbours(v)} & some - reached
    return reached == some


def pattern(edges: str, anti: str = "", absent: str = "") -> Pattern:
    """A pattern from pairs such as "01 12", and anti-vertices as "012"."""
    for letter in "".join((edges, anti, absent)):
        if letter not in "0123456789 ":
            raise ValueError(
                f"{letter!r} is no vertex; write pairs of digits, such as"
                " '01 12'"
            )
    pairs, apart, gone = (
        frozenset(tuple(sorted(map(int, word))) for word in text.split())
        for text in (edges, anti, absent)
    )
    size = 1 + max((v for pair in pairs for v in pair), default=0)
    if not 2 <= size <= MOST_VERTICES:
        raise ValueError(
            f"the pattern has {size} vertices; use 2 to {MOST_VERTICES}"
        )
    if any(len(set(pair)) != 2 for pair in pairs | apart):
        raise ValueError("an edge joins two different vertices, such as 01")
    if any(len(set(group)) != len(group) for group in gone):
        raise ValueError("an anti-vertex has each neighbour once, such as 012")
    if any(v >= size for group in apart | gone for v in group):
        raise ValueError(f"only vertices 0 to {size - 1} have an edge")
    if pairs & apart:
        raise ValueError("a pair is an edge or an anti-edge, not both")
    made = Pattern(size, pairs, apart, gone)
    if not _connected(made, set(range(size))):
        raise ValueError("the pattern is not connected; match its parts")
    return made


# vertices of high degree first
PATTERNS = {
    "triangle": pattern("01 02 12"),
    "3-star": pattern("01 02 03"),
    "4-cycle": pattern("01 12 23 03"),
    "tailed triangle": pattern("01 02 03 12"),
    "diamond": pattern("01 02 03 12 13"),
    "4-clique": pattern("01 02 03 12 13 23"),
    "house": pattern("01 02 13 23 04 14"),
}


def induced(one: Pattern) -> Pattern:
    """The pattern in which every pair that is not an edge is an anti-edge."""
    every = frozenset(combinations(range(one.size), 2))
    return one._replace(anti=every - one.edges)


@cache
def automorphisms(one: Pattern) -> tuple[tuple[int, ...], ...]:
    """The permutations that keep edges, anti-edges and anti-vertices."""

    def moved(groups, p):
        return {tuple(sorted(p[v] for v in group)) for group in groups}

    return tuple(
        p
        for p in permutations(range(one.size))
        if moved(one.edges, p) == one.edges
        and moved(one.anti, p) == one.anti
        and moved(one.absent, p) == one.absent
    )


@cache
def conditions(one: Pattern) -> tuple[tuple[int, int], ...]:
    """Pairs (u, v) with m(u) < m(v) that leave one copy of each match.

    While some vertex can be moved, it gets the lowest number among the places
    it can be moved to, and only what keeps it in place is left. Vertices of
    high degree come first, so that conditions tend to lie in the core.
    """
    group, found = automorphisms(one), []
    for v in sorted(range(one.size), key=lambda v: (-one.degree(v), v)):
        reached = {p[v] for p in group} - {v}
        found += [(v, w) for w in sorted(reached)]
        group = [p for p in group if p[v] == v]
    return tuple(found)


@cache
def core(one: Pattern, order: tuple = ()) -> tuple[int, ...]:
    """The smallest connected cover of edges and anti-edges.

    Of several, the one with the most pairs of ``order`` (conditions) inside,
    then with the most edges inside, then with the lowest vertices.
    """

    def inside(pairs, some):
        return sum(set(pair) <= some for pair in pairs)

    for count in range(1, one.size):
        covers = [
            some
            for some in map(set, combinations(range(one.size), count))
            if all(some & set(pair) for pair in one.edges | one.anti)
            and _connected(one, some)
        ]
        if covers:
            best = max(
                covers,
                key=lambda some: (
                    inside(order, some),
                    inside(one.edges, some),
                ),
            )
            return tuple(sorted(best))
    raise ValueError("all but one vertex always cover; this cannot happen")
