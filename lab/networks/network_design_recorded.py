"""What chapter 46 shows: recorded searches, and the traffic of any plan."""

from collections.abc import Callable
from functools import cache
from itertools import product
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lab.atomic import write_arrays
from lab.data import DATA, read_arrays
from lab.networks.network_design import (
    BUDGETS,
    GENERATIONS,
    JUDGES,
    LANES,
    above_sorb,
)
from lab.networks.plan_search import (
    Problem,
    by_chance,
    examined,
    finalists,
    fullest_first,
    genetic,
    problem,
    widened,
)
from lab.networks.roads import PLACES, equilibrium

RECORDED = "network_design/recorded.npz"
SEED = 0
PLANS = (*JUDGES, "fullest first", "by chance", "nothing")
PERCENT = tuple(round(100 * budget) for budget in BUDGETS)
SHOWN = 8  # iterations, from today's flows, for the map


class Picture(NamedTuple):
    """What the widget shows of one setting."""

    points: tuple[tuple[float, float], ...]  # where the nodes lie
    links: list[list[int]]  # [E][2]
    load: list[float]  # [E], flow over capacity, new lane included
    wide: list[bool]  # [E]
    ends: dict[str, float]  # percent above SORB where each way ends up
    steps: list[int]  # generations
    curves: dict[str, list[float]]  # percent above SORB, by generation
    marks: dict[str, int]  # the generation on the map, if there is one
    gap: float  # of the plan on the map
    title: str


def train_checkpoints(progress: Callable) -> None:
    """Search in all six variants again and keep what the widget shows."""
    kept = {"plans": [], "believed": [], "true": [], "ends": []}
    kept |= {"chance": [], "others": []}
    for lanes, budget in progress(list(product(LANES, BUDGETS))):
        one = problem(budget, lanes)
        for judge in JUDGES.values():
            found = genetic(judge, one, SEED, GENERATIONS)
            kept["plans"].append(np.packbits(found.plans.numpy(), axis=1))
            kept["believed"].append(found.believed.numpy())
            kept["true"].append(examined(one, found.plans).total.numpy())
            kept["ends"].append(finalists(one, found).true.min().numpy())
        some = by_chance(one, SEED)
        totals = examined(one, some).total
        best = some[totals.argmin()]
        kept["chance"].append(np.packbits(best.numpy()))
        nothing = torch.zeros_like(best)
        rest = torch.stack([fullest_first(one), best, nothing])
        kept["others"].append(examined(one, rest).total.numpy())
    shape = len(LANES), len(BUDGETS)
    write_arrays(
        DATA / RECORDED,
        **{
            name: np.stack(found).reshape(
                *shape,
                *([len(JUDGES)] if len(found) > len(kept["chance"]) else []),
                *np.shape(found[0]),
            )
            for name, found in kept.items()
        },
    )


class Recorded(NamedTuple):
    """One variant of the recording."""

    plans: Tensor  # [judge, G + 1, E] bool, the favourite of a generation
    believed: Tensor  # [judge, G + 1], its total time, says the judge
    true: Tensor  # [judge, G + 1], its total time
    ends: Tensor  # [judge], the best of the examined plans
    chance: Tensor  # [E] bool, the best of 20 plans drawn at random
    others: Tensor  # [3], total time: fullest first, by chance, nothing


@cache
def recorded(budget: float, lanes: int) -> Recorded:
    """The searches of one variant, without running them."""
    arrays = read_arrays(RECORDED)
    place = LANES.index(lanes), BUDGETS.index(budget)
    E = len(problem(budget, lanes).roads.capacity)
    found = {}
    for name in Recorded._fields:
        part = arrays[name][place]
        if part.dtype == np.uint8:
            part = np.unpackbits(part, axis=-1, count=E).astype(bool)
        found[name] = torch.from_numpy(np.array(part))
    return Recorded(**found)


def chosen(one: Problem, plan: str, generation: int) -> tuple[Tensor, float]:
    """The plan [E] of one way to choose, and its total time."""
    known = recorded(one.budget, one.lanes)
    if plan in JUDGES:
        judge = list(JUDGES).index(plan)
        total = known.true[judge, generation]
        return known.plans[judge, generation], float(total)
    made = {
        "fullest first": lambda: fullest_first(one),
        "by chance": lambda: known.chance,
        "nothing": lambda: torch.zeros_like(known.chance),
    }
    place = list(made).index(plan)
    return made[plan](), float(known.others[place])


def picture(
    plan: str = "GIN-GA", budget: int = 50, lanes: int = 2, generation: int = 0
) -> Picture:
    """Traffic under a plan, and where every way to choose one leads."""
    one = problem(budget / 100, lanes)
    known = recorded(one.budget, lanes)
    wide, total = chosen(one, plan, generation)
    capacity = widened(one, wide[None])
    flows = equilibrium(one.roads, capacity, SHOWN, one.today).flows.double()
    gap = above_sorb(one, total)
    ends = dict(zip(JUDGES, known.ends.tolist(), strict=True))
    ends["GIN's favourite"] = float(known.true[0, -1])
    ends |= zip(("fullest first", "by chance"), known.others, strict=False)
    curves = {
        "GIN-GA, guessed": known.believed[0],
        "GIN-GA, true": known.true[0],
        "equilibrium GA, true": known.true[1],
    }
    count = int(wide.sum())
    return Picture(
        points=PLACES,
        links=one.roads.links.T.tolist(),
        load=(flows[0] / capacity[0]).tolist(),
        wide=wide.tolist(),
        ends={name: above_sorb(one, end) for name, end in ends.items()},
        steps=list(range(GENERATIONS + 1)),
        curves={
            name: [above_sorb(one, total) for total in line.tolist()]
            for name, line in curves.items()
        },
        marks={"on the map": generation} if plan in JUDGES else {},
        gap=gap,
        title=f"{plan}: {count} links widened,"
        f" {total / 1e6:.2f} million minutes,"
        f" {abs(gap):.1f} % {'above' if gap > 0 else 'below'} SORB",
    )


def heights(seen: Picture, most: float = 25.0) -> tuple[float, float]:
    """What the curves' axis shows: the end in full, the first steep part cut.

    It reaches from below the lowest point to the highest one of the second
    half or to the first generations' ``most`` percent, whichever is lower.
    """
    values = [v for line in seen.curves.values() for v in line]
    late = [v for line in seen.curves.values() for v in line[50:]]
    return min(values) - 1.0, min(max(values), max(*late, most)) + 1.0
