"""What the widget of chapter 37 shows: one product, its chain, its view."""

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from lab.models import accountability as ac
from lab.models import supply_chain, visibility
from lab.models.responsibility import (
    EQUAL,
    as_told,
    flow,
    known_lists,
    misplaced,
    shares,
)
from lab.models.supply_chain import Chain

MOST_DISCLOSERS, FARTHEST = 10, 6
CHOSEN, POPULAR = "chosen in turn", "most depended on"
WHO = (CHOSEN, POPULAR)
SHOWN = 6  # actors with a bar of their own
OTHERS, BEYOND = "others in view", "beyond the horizon"
PRODUCTS = tuple(
    supply_chain.packages().names[i]
    for i in visibility.products(ac.distances("packages"))
)


class Picture(NamedTuple):
    """One product and what its maker sees."""

    name: str
    rows: list[list[int]]  # actors by their steps from the product
    edges: list[tuple[int, int]]  # within the chain
    names: tuple[str, ...]  # of all actors
    seen: set[int]  # the product and whom its maker sees
    known: set[int]  # those whose lists it knows
    public: list[int]  # those who disclose
    true: dict[str, float]  # % of the responsibility
    told: dict[str, float]  # the same as told by who sees this far
    curves: dict[str, list[float]]  # % in view after 0, 1, 2, ... steps
    wrong: float  # % misplaced
    sizes: dict[int, float]  # of markers: larger, more responsibility
    h: int

    @property
    def suppliers(self) -> int:
        return sum(map(len, self.rows)) - 1

    @property
    def share(self) -> float:
        """Percent of the suppliers that are in view."""
        return self.curves["suppliers"][self.h]

    @property
    def beyond(self) -> float:
        """Percent of the responsibility that nobody in view has."""
        return self.true[BEYOND]

    @property
    def title(self) -> str:
        part = "under 1" if self.beyond < 1 else f"{self.beyond:.0f}"
        beyond = f"{part} % of the responsibility lies"
        if len(self.seen) > self.suppliers:
            beyond = "nothing lies"
        return (
            f"{self.name} sees {len(self.seen) - 1} of {self.suppliers}"
            f" suppliers; {beyond} beyond"
        )

    @property
    def in_view(self) -> set[str]:
        """The names whose bars are lit."""
        return {name for name in self.true if name != BEYOND}


def picture(
    h: int = 1,
    product: str = "llama-index",
    disclosing: int = 0,
    who: str = CHOSEN,
    passed: float = ac.PASSED,
    level: str = "packages",
) -> Picture:
    """What the maker of this product sees, and what it does not.

    At the level of owners it is the product's owner who looks.
    """
    whole = supply_chain.named(level)
    start = _start(product, level)
    public = _disclosers(level, who)[:disclosing]
    true_far = ac.distances(level)[start]
    far = _far(level, who, disclosing)[start]
    known = known_lists(far, h, public)
    parts = _shares(level)
    true = flow(parts, start, passed)
    told = as_told(parts, known, start, passed)
    in_chain = true_far >= 0
    seen = in_chain & (far <= h)
    every = max(1, int(in_chain.sum()) - 1)
    curves = {"suppliers": [], "responsibility": []}
    for step in range(FARTHEST + 1):
        here = in_chain & (far <= step)
        curves["suppliers"].append(100 * (int(here.sum()) - 1) / every)
        curves["responsibility"].append(100 * true[here].sum().item())
    rows, edges = _drawing(level, start)
    area = (true / true.max()).sqrt()
    return Picture(
        name=whole.names[start],
        rows=rows,
        edges=edges,
        names=whole.names,
        seen=_set(seen),
        known=_set(known & in_chain),
        public=public,
        true=_bars(true, true, seen, start, whole),
        told=_bars(told, true, seen, start, whole),
        curves=curves,
        wrong=100 * misplaced(true, told),
        sizes={v: 5 + 17 * area[v].item() for v in _set(in_chain)},
        h=h,
    )


def _start(product: str, level: str) -> int:
    """The actor who looks: the product, or its owner."""
    packages = supply_chain.packages()
    i = packages.number(product)
    if level == "packages":
        return i
    return supply_chain.named(level).number(packages.owners[i])


@cache
def _disclosers(level: str, who: str) -> list[int]:
    if who not in WHO:
        raise ValueError(f"who={who!r} is not one of {', '.join(WHO)}")
    whole = supply_chain.named(level)
    if who == POPULAR:
        return visibility.most_depended_on(whole, MOST_DISCLOSERS)
    rows = visibility.products(ac.distances(level))
    return visibility.best_disclosers(whole, rows, MOST_DISCLOSERS)


@cache
def _far(level: str, who: str, disclosing: int) -> Tensor:
    """The steps between all actors, if so many disclose."""
    if not disclosing:
        return ac.distances(level)
    public = _disclosers(level, who)[:disclosing]
    whole = visibility.disclosed(supply_chain.named(level), public)
    return visibility.steps(whole)


@cache
def _shares(level: str) -> Tensor:
    return shares(supply_chain.named(level), EQUAL)


@cache
def _drawing(level: str, start: int) -> tuple[list, list]:
    """Rows by distance, each ordered by where its customers stand."""
    whole, far = supply_chain.named(level), ac.distances(level)[start]
    lists = whole.lists
    rows, place = [[start]], {start: 0.5}
    for step in range(1, int(far.max()) + 1):
        above = {v: [] for v in (far == step).nonzero()[:, 0].tolist()}
        for u in rows[-1]:
            for v in lists[u]:
                if v in above:
                    above[v].append(place[u])
        row = sorted(above, key=lambda v: sum(above[v]) / len(above[v]))
        place |= {v: (k + 0.5) / len(row) for k, v in enumerate(row)}
        rows.append(row)
    edges = [(u, v) for row in rows for u in row for v in lists[u]]
    return rows, edges


def _set(mask: Tensor) -> set[int]:
    return set(mask.nonzero()[:, 0].tolist())


def _bars(
    values: Tensor, true: Tensor, seen: Tensor, start: int, whole: Chain
) -> dict[str, float]:
    """Percent for the largest in view, for the others, and for the rest."""
    rank = torch.where(seen, true, -1.0)
    rank[start] = 2.0  # the product comes first
    order = rank.argsort(descending=True, stable=True)
    largest = order[: min(SHOWN, int(seen.sum()))].tolist()
    found = {whole.names[v]: 100 * values[v].item() for v in largest}
    others = seen.clone()
    others[largest] = False
    found[OTHERS] = 100 * values[others].sum().item()
    found[BEYOND] = 100 * values[~seen].sum().item()
    return found
