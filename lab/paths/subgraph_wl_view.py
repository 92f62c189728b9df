"""What the widget of chapter 54 shows: a pair of graphs, coloured together."""

import math
from functools import cache
from typing import NamedTuple

from torch import Tensor

from lab.paths.pair_colours import (
    TESTS,
    Design,
    Round,
    class_of,
    refine,
    told_apart,
)
from lab.paths.twisted_pairs import WITNESSES, base_edges, neighbours, witness

HEARD = ("uL", "uL + vv", "uL + vG", "uL + vL")
POOLED = {"VS": "rows", "SV": "columns"}
PAIRS = tuple(WITNESSES)
ROUNDS = 10  # of the slider
# shades of what both graphs have, then of what only one of them has
STEP = 1.2
SHADES = (
    [("#EEF3F8", 0.0), ("#8DBBD9", 0.5), ("#1F5F8F", 1.0)],
    [("#F8D9C0", 0.0), ("#E88B4A", 0.5), ("#A83E00", 1.0)],
)
TOP = STEP + 1
SCALE = [
    ((place + STEP * kind) / TOP, shade)
    for kind, shades in enumerate(SHADES)
    for shade, place in shades
]

# of a heatmap of shades
LOOK = {"colorscale": SCALE, "showscale": False, "texttemplate": ""}
FEW = 16  # vertices that all have room for their number


class Picture(NamedTuple):
    """Both graphs after some rounds of one test."""

    name: str  # of the pair
    design: Design
    rounds: int  # asked for
    found: Round
    last: int  # the round after which nothing changes
    since: int | None  # told apart since this round
    needs: dict[str, int]  # test: rounds that it needs, 0 for never

    @property
    def steady(self) -> bool:
        return self.rounds >= self.last

    @property
    def lonely(self) -> list[Tensor]:
        """[n] bool for each graph: groups that the other one lacks.

        Of a group that one graph has more often, all are marked there.
        """
        groups = self.found.groups
        counts = [g.bincount(minlength=groups.max() + 1) for g in groups]
        more = counts[0] - counts[1]
        return [
            (sign * more)[g] > 0
            for sign, g in zip((1, -1), groups, strict=True)
        ]

    @property
    def title(self) -> str:
        colours = f"After round {min(self.rounds, self.last)}"
        colours += f": {self.found.count} colours; "
        if self.found.apart:
            return f"{colours}told apart since round {self.since}"
        end = ", and nothing will change" if self.steady else " so far"
        return f"{colours}not told apart{end}"

    @property
    def note(self) -> str:
        heard = " and ".join(self.design.heard)
        return (
            f"{self.member} hears {heard}, pools"
            f" {POOLED[self.design.pool]} first; orange: fewer in the other"
            " graph"
        )

    @property
    def member(self) -> str:
        """The class that the design belongs to."""
        return class_of(self.design)

    @property
    def ticks(self) -> dict:
        n = self.found.colours.shape[1]
        places = list(range(0, n, 1 if n <= FEW else 5))
        return {"tickvals": places, "ticktext": [str(p) for p in places]}

    @property
    def maps(self) -> list[tuple]:
        """Title, note and shades [n, n] of both graphs."""
        n = self.found.colours.shape[1]
        shades = self.found.colours / max(1, self.found.count - 1)
        by_row = self.design.pool == "VS"
        what = "copies" if by_row else "vertices"
        tables = []
        for name, shade, alone in zip(
            ("The graph", "The twisted graph"),
            shades,
            self.lonely,
            strict=True,
        ):
            lift = STEP * alone[:, None] if by_row else STEP * alone[None]
            text = f"{int(alone.sum())} of {n} {what} orange"
            tables.append((name, text, shade + lift))
        return tables

    @property
    def base(self) -> dict:
        """The base graph on a circle, for `figures.network`."""
        edges = base_edges(WITNESSES[self.name])
        n = len(neighbours(edges))
        turn = [2 * math.pi * v / n for v in range(n)]
        return {
            "points": [(math.sin(a), math.cos(a)) for a in turn],
            "edges": edges[1:],
            "bold": {"twisted edge": ("cut", edges[:1])},
            "names": "0123456789",
        }


def picture(
    heard: str = "uL",
    pool: str = "VS",
    pair: str = "vL",
    rounds: int = 6,
) -> Picture:
    """Colour a named pair for some rounds."""
    if heard not in HEARD:
        raise ValueError(f"heard={heard!r} is not one of {', '.join(HEARD)}")
    if rounds < 0:
        raise ValueError(f"rounds={rounds} is too few; use 0 or more")
    design = Design(tuple(heard.split(" + ")), pool)
    every = history(design, pair)
    last = len(every) - 1
    since = [number for number, one in enumerate(every) if one.apart]
    return Picture(
        pair, design, rounds, every[min(rounds, last)], last,
        since[0] if since else None, needs(pair),
    )  # fmt: skip


@cache
def history(design: Design, pair: str) -> list[Round]:
    """Every round of a test on a named pair, the start first."""
    return [
        Round(one.colours.cpu(), one.groups.cpu(), one.count)
        for one in refine(witness(pair), design)
    ]


@cache
def needs(pair: str) -> dict[str, int]:
    """The rounds after which each test tells a named pair apart, 0: never."""
    return {
        name: told_apart(witness(pair), test) or 0
        for name, test in TESTS.items()
    }
