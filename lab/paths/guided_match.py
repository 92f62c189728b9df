"""Matching by plan: all partial matches of a size grow by a vertex at once.

The work is counted in candidates: entries of neighbour lists that are looked
at, within the bounds that the conditions set. Of the lists in which a
candidate must be, the shortest is read (the authors' code begins with the
first). The first vertex has all vertices of the graph as candidates. Peregrine
goes depth-first and holds one partial match per thread. Here a whole level is
held, which looks at the same candidates in another order.

What is counted and not matched is read only if it must be. The length of one
list is known; only the matched vertices are looked up in it. Two sets overlap
among what was read for one of them. All that is looked up is a candidate, too.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from lab.kernels.intersect import intersect
from lab.paths.graphs import Graph
from lab.paths.match_plan import Plan, Step


class Grown(NamedTuple):
    """Candidates of partial matches, and the ones that fit."""

    match: Tensor  # [M] the row of the partial match
    vertex: Tensor  # [M] int32
    candidates: Tensor  # [T] how many each partial match had


class Counted(NamedTuple):
    """How many vertices extend each match."""

    sizes: Tensor  # [T]
    candidates: Tensor  # [T] looked at to tell so
    grown: Grown | None  # the vertices themselves, if they were read


class Work(NamedTuple):
    """What a search found, and how much it looked at."""

    matches: int  # found, each as often as the plan finds it
    levels: tuple[int, ...]  # candidates for each matched vertex
    made: tuple[int, ...]  # partial matches of 1, 2, ... vertices
    tail: int  # candidates for those that are counted
    starts: Tensor  # [V] candidates by start vertex

    @property
    def candidates(self) -> int:
        return sum(self.levels) + self.tail


def grow(graph: Graph, matches: Tensor, step: Step) -> Grown:
    """The vertices that extend each of the matches [T, P] int32 by a step."""
    T = len(matches)
    begin, length = _bounded(graph, matches, step)
    first = torch.zeros(T + 1, dtype=torch.int64, device=matches.device)
    torch.cumsum(length, 0, out=first[1:])
    found = intersect(
        matches, graph.rowptr, graph.col, begin, first, int(first[-1]),
        sum(1 << p for p in step.near), sum(1 << p for p in step.far),
    )  # fmt: skip
    fits = (found >= 0).nonzero()[:, 0]
    match = torch.searchsorted(first, fits, right=True) - 1
    return Grown(match, found[fits], length)


def _bounded(graph: Graph, matches: Tensor, step: Step):
    """Where to read candidates [T], and how many [T]: the shortest piece."""
    V = graph.size
    low, high = _bounds(graph, matches, step)
    begins, lengths = [], []
    for place in step.near:
        u = matches[:, place].long()
        begin, end = graph.rowptr[u], graph.rowptr[u + 1]
        if step.above:
            begin = torch.searchsorted(graph.edges, u * V + low, right=True)
        if step.below:
            end = torch.searchsorted(graph.edges, u * V + high)
        begins.append(begin)
        # bounds may cross
        lengths.append((end - begin).clamp_min(0))
    if len(begins) == 1:
        return begins[0], lengths[0]
    length, which = torch.stack(lengths).min(dim=0)
    return torch.stack(begins).gather(0, which[None])[0], length


def _bounds(graph: Graph, matches: Tensor, step: Step):
    """Between which numbers [T] and [T] the next vertex must lie."""
    low = matches.new_full((len(matches),), -1).long()
    high = matches.new_full((len(matches),), graph.size).long()
    for place in step.above:
        low = torch.maximum(low, matches[:, place].long())
    for place in step.below:
        high = torch.minimum(high, matches[:, place].long())
    return low, high


def _fits(graph: Graph, matches: Tensor, vertex: Tensor, step: Step) -> Tensor:
    """Whether each vertex [T] is what a step asks for, looked up."""
    low, high = _bounds(graph, matches, step)
    fits = (low < vertex) & (vertex < high)
    for place in step.near:
        fits &= _joined(graph, matches[:, place], vertex)
    for place in step.far:
        fits &= ~_joined(graph, matches[:, place], vertex)
    return fits


def _joined(graph: Graph, u: Tensor, w: Tensor) -> Tensor:
    """Whether u [T] and w [T] are joined, by binary search."""
    edge = u.long() * graph.size + w
    place = torch.searchsorted(graph.edges, edge)
    return graph.edges[place.clamp_max(len(graph.edges) - 1)] == edge


def matched(graph: Graph, plan: Plan) -> tuple[Tensor, Work]:
    """All matches [M, P] of the vertices that a plan matches, and the work.

    The columns have the order of the plan.
    """
    V = graph.size
    matches = torch.arange(V, device=graph.col.device).int()[:, None]
    starts = torch.ones_like(graph.rowptr[:-1])
    levels, made = [V], [V]
    for step in plan.steps:
        grown = grow(graph, matches, step)
        starts.index_add_(0, matches[:, 0].long(), grown.candidates)
        matches = torch.cat(
            (matches[grown.match], grown.vertex[:, None]), dim=1
        )
        levels.append(int(grown.candidates.sum()))
        made.append(len(matches))
    tail = 0
    for step in plan.absent:
        grown = grow(graph, matches, step)
        starts.index_add_(0, matches[:, 0].long(), grown.candidates)
        tail += int(grown.candidates.sum())
        # whoever has such a neighbour is no match
        alone = grown.match.bincount(minlength=len(matches)) == 0
        matches = matches[alone]
    work = Work(len(matches), tuple(levels), tuple(made), tail, starts)
    return matches, work


def count(graph: Graph, plan: Plan) -> Work:
    """How many matches there are; a tail is counted and never made."""
    matches, work = matched(graph, plan)
    if not plan.tail:
        return work
    # one set, or two and what they share, if they can share anything
    ends = [_counted(graph, matches, step) for step in plan.tail[:2]]
    if len(plan.tail) == 3:
        ends.append(_overlap(graph, matches, plan.tail, ends))
    tail = work.tail
    for end in ends:
        work.starts.index_add_(0, matches[:, 0].long(), end.candidates)
        tail += int(end.candidates.sum())
    total = int(ways(plan, [end.sizes for end in ends]).sum())
    return work._replace(matches=total, tail=tail)


def _counted(graph: Graph, matches: Tensor, step: Step) -> Counted:
    """How many vertices extend each match [T] by a step."""
    if len(step.near) == 1 and not step.far:
        return _length(graph, matches, step)
    grown = grow(graph, matches, step)
    sizes = grown.match.bincount(minlength=len(matches))
    return Counted(sizes, grown.candidates, grown)


def _length(graph: Graph, matches: Tensor, step: Step) -> Counted:
    """The same for one list: its length, less the matched vertices in it."""
    sizes = _bounded(graph, matches, step)[1]
    # nobody is in their own list
    others = [p for p in range(matches.shape[1]) if p not in step.near]
    for place in others:
        inside = _fits(graph, matches, matches[:, place], step)
        sizes = sizes - inside.long()
    return Counted(sizes, torch.full_like(sizes, len(others)), None)


def _overlap(graph: Graph, matches: Tensor, tail, ends) -> Counted:
    """How many vertices are in both sets of a pair.

    They are sought in the smaller set that was read, if one was.
    """
    one, other, both = tail
    known = [
        (end, step)
        for end, step in zip(ends, (other, one), strict=True)
        if end.grown is not None
    ]
    if not known:
        return _counted(graph, matches, both)
    end, step = min(known, key=lambda pair: len(pair[0].grown.vertex))
    match, vertex, _ = end.grown
    match = match[_fits(graph, matches[match], vertex, step)]
    sizes = match.bincount(minlength=len(matches))
    return Counted(sizes, end.sizes, None)


def ways(plan: Plan, counts: list[Tensor]) -> Tensor:
    """In how many ways each match [T] of the core can be completed."""
    if len(counts) > 1:
        # a b, less the ways to take the same vertex twice, if there can be any
        a, b, *same = counts
        return a * b - sum(same)
    total = torch.ones_like(counts[0])
    for taken in range(plan.siblings):
        total = total * (counts[0] - taken).clamp_min(0)
        if plan.ordered:
            # binomial(c, taken + 1) is a whole number
            total = total // (taken + 1)
    return total


def exists(graph: Graph, plan: Plan) -> tuple[bool, int]:
    """Whether there is a match, and the candidates until the first one.

    This search is depth-first, one partial match at a time. The plan must
    match every vertex.
    """
    if plan.tail:
        raise ValueError(
            "a plan that counts its last vertices does not tell whether they"
            " exist; use order='core first, matched'"
        )
    looked = 0
    for start in range(graph.size):
        looked += 1
        waiting = [graph.rowptr.new_tensor([[start]]).int()]
        while waiting:
            match = waiting.pop()
            if match.shape[1] > len(plan.steps):
                ends = [grow(graph, match, step) for step in plan.absent]
                looked += sum(int(end.candidates.sum()) for end in ends)
                if not any(len(end.vertex) for end in ends):
                    return True, looked
                continue
            grown = grow(graph, match, plan.steps[match.shape[1] - 1])
            looked += int(grown.candidates.sum())
            longer = [
                torch.cat((match, vertex.view(1, 1)), dim=1)
                for vertex in grown.vertex
            ]
            # the lowest vertex is the next
            waiting += reversed(longer)
    return False, looked
