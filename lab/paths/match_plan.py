"""How a pattern is to be matched: in which order, with what, within what.

The plan follows from the pattern alone. Its core is matched vertex by vertex.
Of each match of the core, the other vertices are counted and not matched:

    siblings    g vertices with the same candidates, c of them, in an order
                that the conditions fix: binomial(c, g); in any order:
                c (c - 1) ... (c - g + 1)
    a pair      a and b candidates, of which n are the same: a b - n

If more vertices than that lie outside the core, the first are matched, too.
"""

from functools import cache
from itertools import combinations
from typing import NamedTuple

from lab.paths.patterns import Pattern, automorphisms, conditions, core

ORDERS = ("core first, counted", "core first, matched", "leaves first")


class Step(NamedTuple):
    """What the next vertex must be to the earlier ones, by their places."""

    near: tuple[int, ...]  # joined to these
    far: tuple[int, ...]  # not joined to these
    above: tuple[int, ...]  # a higher number than these
    below: tuple[int, ...]  # a lower number than these


class Plan(NamedTuple):
    """A matching order, and what is counted at its end."""

    pattern: Pattern
    order: tuple[int, ...]  # the vertices to match, then those to count
    core: tuple[int, ...]
    conditions: tuple[tuple[int, int], ...]
    steps: tuple[Step, ...]  # of the second matched vertex, and so on
    tail: tuple[Step, ...]  # of the counted: one, or of a pair, and of both
    absent: tuple[Step, ...]  # what a match must not have: anti-vertices
    siblings: int  # how many vertices one counted step stands for
    ordered: bool  # whether the conditions put these in order

    @property
    def copies(self) -> int:
        """How often the plan finds each match."""
        return 1 if self.conditions else len(automorphisms(self.pattern))


@cache
def plan(
    pattern: Pattern, symmetry: bool = True, order: str = ORDERS[0]
) -> Plan:
    """The plan for a pattern; without ``symmetry`` no condition is set.

    ``order`` is one of `ORDERS`. "leaves first" begins with a vertex of the
    lowest degree and goes on with as few earlier neighbours as it can. A
    pattern with anti-vertices is matched to the end, because only a whole
    match can be looked at for one.
    """
    if order not in ORDERS:
        raise ValueError(f"order={order!r} is not one of {', '.join(ORDERS)}")
    rules = conditions(pattern) if symmetry else ()
    middle = core(pattern, rules)
    if order == "leaves first":
        matched = _connected_order(pattern, range(pattern.size), rules, -1)
    else:
        matched = _connected_order(pattern, middle, rules, 1)
    rest = [v for v in range(pattern.size) if v not in matched]
    counted = ()
    if order == ORDERS[0] and not pattern.absent:
        counted = _counted(pattern, rest, rules)
    matched += [v for v in rest if v not in counted]
    steps = [
        _step(pattern, [v], matched[:place], rules)
        for place, v in enumerate(matched)
    ]
    absent = tuple(
        Step(tuple(sorted(matched.index(v) for v in group)), (), (), ())
        for group in sorted(pattern.absent)
    )
    tail, siblings = (), 1
    if counted:
        one = {_step(pattern, [v], matched, ()) for v in counted}
        groups = [[v] for v in counted]
        if len(one) == 1:
            groups, siblings = groups[:1], len(counted)
        else:
            groups.append(counted)
        tail = tuple(_step(pattern, g, matched, rules) for g in groups)
        # one of a pair is joined to a vertex that the other must avoid
        if set(tail[-1].near) & set(tail[-1].far):
            tail = tail[:-1]
    return Plan(
        pattern, (*matched, *counted), middle, rules, tuple(steps[1:]), tail,
        absent, siblings, _inner(rules, counted) > 0,
    )  # fmt: skip


def _connected_order(pattern, some, rules, sign) -> list[int]:
    """Each vertex joined to an earlier one, the most bound ones first.

    Of equals, the one that the conditions put highest comes first: a high
    number is a low degree, so its list is short. With ``sign`` -1 the least
    bound ones come first.
    """
    left, found = set(some), []
    while left:
        ready = [
            v for v in sorted(left)
            if not found or pattern.neighbours(v) & set(found)
        ]  # fmt: skip
        best = max(
            ready,
            key=lambda v: (
                sign * len(pattern.neighbours(v) & set(found)),
                sign * pattern.degree(v),
                sum(v == high for _, high in rules),
                -v,
            ),
        )
        found.append(best)
        left.remove(best)
    return found


def _step(pattern, vertices, earlier, rules) -> Step:
    """The step for a vertex that is to be all of ``vertices`` at once."""
    places = {v: place for place, v in enumerate(earlier)}

    def at(others) -> tuple[int, ...]:
        return tuple(sorted({places[v] for v in others if v in places}))

    return Step(
        at(w for v in vertices for w in pattern.neighbours(v)),
        at(w for v in vertices for w in pattern.strangers(v)),
        at(u for v in vertices for u, w in rules if w == v),
        at(w for v in vertices for u, w in rules if u == v),
    )


def _inner(rules, some) -> int:
    return sum(set(rule) <= set(some) for rule in rules)


def _counted(pattern, rest, rules) -> tuple[int, ...]:
    """The largest set outside the core that a formula can count."""
    for count in range(len(rest), 1, -1):
        for some in combinations(rest, count):
            earlier = [v for v in range(pattern.size) if v not in some]
            steps = {_step(pattern, [v], earlier, rules) for v in some}
            # siblings can be swapped, so conditions order all of them or none
            if len(steps) == 1:
                return some
            if count == 2 and not _inner(rules, some):
                return some
    return tuple(rest[:1])
