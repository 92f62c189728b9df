"""What the widget of chapter 53 shows: one search, beside its rivals."""

from functools import cache
from typing import NamedTuple

from lab.paths.graphs import Graph, drawing, named
from lab.paths.guided_match import Work, count
from lab.paths.match_plan import Plan, plan
from lab.paths.patterns import PATTERNS, Pattern, automorphisms, induced
from lab.paths.peregrine import COUNTED, one_match
from lab.paths.unaware_match import Explored, explore_all

KINDS = ("any", "induced")
# where the vertices of a pattern are drawn
PLACES = {
    "triangle": [(0, 1), (-0.9, -0.6), (0.9, -0.6)],
    "3-star": [(0, 0), (0, 1.1), (-1, -0.7), (1, -0.7)],
    "4-cycle": [(-0.9, 0.9), (0.9, 0.9), (0.9, -0.9), (-0.9, -0.9)],
    "tailed triangle": [(0.1, 0), (-0.8, 0.9), (-0.8, -0.9), (1.1, 0)],
    "diamond": [(0, 1), (0, -1), (-1, 0), (1, 0)],
    "4-clique": [(0, 1.1), (-1, -0.7), (1, -0.7), (0, -0.1)],
}


class Picture(NamedTuple):
    """One search of a named graph, for a picture."""

    plan: Plan
    work: Work
    full: Work  # by Peregrine's own plan
    unaware: Explored
    graph: Graph
    places: list  # where the pattern's vertices are drawn
    points: list  # where the graph's vertices are drawn
    pairs: list  # the graph's edges
    match: list[int]  # one match, in the pattern's order, if there is one
    name: str

    @property
    def pattern(self) -> Pattern:
        return self.plan.pattern

    @property
    def matches(self) -> int:
        return self.full.matches

    @property
    def repeats(self) -> int:
        """How often this plan finds each match."""
        return self.plan.copies

    @property
    def title(self) -> str:
        looked = f"in {self.work.candidates} candidates"
        if not self.matches:
            return f"No match {looked}"
        times = "once" if self.repeats == 1 else f"{self.repeats} times"
        what = "match" if self.matches == 1 else "matches"
        return f"{self.matches} {what}, each found {times}, {looked}"

    @property
    def note(self) -> str:
        rules = len(self.plan.conditions)
        return (
            f"{self.name}: {len(automorphisms(self.pattern))} symmetries,"
            f" {rules} condition{'' if rules == 1 else 's'};"
            f" core of {len(self.plan.core)} of {self.pattern.size} vertices"
        )

    @property
    def order(self) -> str:
        """In which order the pattern is matched, and what arrows mean."""
        order = ", ".join(map(str, self.plan.order))
        arrows = (
            "; arrows: to the higher number" if self.plan.conditions else ""
        )
        return f"order {order}{arrows}"

    @property
    def parts(self) -> dict:
        """Vertices of the pattern by what the plan does with them."""
        size = len(self.plan.steps) + 1
        return {
            "matched": ("kept", self.plan.order[:size]),
            "counted": ("best", self.plan.order[size:]),
        }

    @property
    def vertices(self) -> dict:
        """Vertices of the graph, those of one match on top."""
        return {
            "vertex": ("baseline", range(self.graph.size)),
            "one match": ("mean", self.match),
        }

    @property
    def matched_edges(self) -> dict:
        """The edges of the one match."""
        pairs = self.pattern.edges if self.match else ()
        edges = [(self.match[u], self.match[v]) for u, v in pairs]
        return {"its edges": ("mean", edges)}

    @property
    def anti_edges(self) -> dict:
        return {"anti-edge": ("baseline", self.pattern.anti)}

    @property
    def sizes(self) -> list[float]:
        """Marker sizes; areas grow with the candidates of a start vertex."""
        starts = self.work.starts.double()
        return (5 + 16 * (starts / starts.max()).sqrt()).tolist()

    @property
    def costs(self) -> dict[str, int]:
        """Candidates of this search, of Peregrine's and of the unaware one."""
        return {
            "these settings": self.work.candidates,
            "Peregrine": self.full.candidates,
            "pattern-unaware": self.unaware.candidates,
        }

    @property
    def made(self) -> dict[str, int]:
        """What is made and compared on the way."""
        return {
            "matches": self.matches,
            "found": self.matches * self.repeats,
            "partial": sum(self.work.made),
            "subgraphs": sum(self.unaware.made),
            "compared": self.unaware.checks,
        }


def picture(
    name: str = "4-clique",
    symmetry: bool = True,
    order: str = COUNTED,
    kind: str = "any",
    ids: str = "largest first",
    graph: str = "les miserables",
) -> Picture:
    """Search a named graph for a pattern, with these settings."""
    one = PATTERNS[name] if kind == "any" else induced(PATTERNS[name])
    data = named(graph, ids)
    return Picture(
        plan(one, symmetry, order),
        searched(name, symmetry, order, kind, ids, graph),
        searched(name, True, COUNTED, kind, ids, graph),
        unaware(one.size, ids, graph),
        data,
        PLACES[name],
        *drawn(ids, graph),
        some_match(name, kind, ids, graph),
        name if kind == "any" else f"induced {name}",
    )


@cache
def searched(name, symmetry, order, kind, ids, graph) -> Work:
    one = PATTERNS[name] if kind == "any" else induced(PATTERNS[name])
    return count(named(graph, ids), plan(one, symmetry, order))


@cache
def unaware(size: int, ids: str, graph: str) -> Explored:
    return explore_all(named(graph, ids), size)


@cache
def drawn(ids, graph) -> tuple[list, list]:
    data = named(graph, ids)
    return drawing(graph, data), data.pairs


@cache
def some_match(name, kind, ids, graph) -> list[int]:
    one = PATTERNS[name] if kind == "any" else induced(PATTERNS[name])
    return one_match(named(graph, ids), one).tolist()
