"""Which roads to widen: plans, their price, and how to look for a good one.

A plan is one bit for each of E links. A widened link gets one more lane, and
so 1 / lanes of its capacity. A lane costs free time times capacity, and the
budget is a share of what a lane on every link would cost.

`genetic` keeps the authors' settings. What a plan is worth it asks a judge, a
function from plans, and flows to start from, to total times and flows:

`guess`      the graph network of `flow_net`
`travelled`  a few Frank-Wolfe steps from the mean of the parents' flows, which
             serve the same demand, so a child's drivers need not start anew

`fullest_first` has no judge. It sorts the links by load, flow / capacity. A
lane on a link saves, if nobody changes route, x rise (x / c)^4 (1 - (1 + 1 /
lanes)^-4), which divided by its price is proportional to the fifth power of
its load: the fullest link saves most for its money.

The authors' package draws two children from each random pair of the 51 parents
and puts plans at random in the place of copies. Here every child has a pair of
its own, and copies stay.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from lab.kernels.ue_batch import Equilibrium
from lab.networks.flow_net import predict
from lab.networks.roads import Roads, equilibrium, sioux_falls, times

POPULATION = 128  # plans in a generation
ELITE, PARENTS = 38, 51  # that survive: the best, and all together
MUTATION = 0.05  # bits of a child that are drawn anew
PENALTY = 500.0  # for each unit of money over the budget
TOP = 20  # plans of the last generation that are examined
STEPS = 5  # of Frank-Wolfe for a child, from its parents' flows
EXAM = 100  # of Frank-Wolfe in float64 for a plan that is examined
TODAY = 600  # the same for the network as it is


class Problem(NamedTuple):
    """Roads, the flows on them today [1, E], and what may be done."""

    roads: Roads
    today: Tensor
    budget: float  # share of the price of a lane on every link
    lanes: int  # of a link, before


class Search(NamedTuple):
    """A genetic search, generation by generation."""

    plans: Tensor  # [G + 1, E] bool, the best of each, if its judge is right
    believed: Tensor  # [G + 1], the total time that the judge gives it
    last: Tensor  # [P, E] bool, the last generation, best first
    scores: Tensor  # [P], their total times and penalties


Judge = Callable[[Problem, Tensor, Tensor], tuple[Tensor, Tensor]]


def problem(budget: float, lanes: int, day: int | None = None) -> Problem:
    """Sioux Falls; another ``day`` draws every demand anew, +- 20 %."""
    return Problem(*_today(day), budget, lanes)


@lru_cache(maxsize=16)
def _today(day: int | None) -> tuple[Roads, Tensor]:
    roads = sioux_falls()
    if day is not None:
        generator = torch.Generator().manual_seed(day)
        drawn = torch.rand(24, 24, generator=generator, dtype=torch.float64)
        roads = roads._replace(demand=roads.demand * (0.8 + 0.4 * drawn))
    found = equilibrium(roads, roads.capacity[None], TODAY, exact=True)
    return roads, found.flows


def prices(problem: Problem) -> Tensor:
    """Price of a lane on each link [E]."""
    return problem.roads.free * problem.roads.capacity


def money(problem: Problem) -> float:
    """What may be spent."""
    return problem.budget * float(prices(problem).sum())


def widened(problem: Problem, plans: Tensor) -> Tensor:
    """Capacities [P, E] under plans [P, E]."""
    return problem.roads.capacity * (1 + plans.double() / problem.lanes)


def guess(problem: Problem, plans: Tensor, flows: Tensor):
    """Total times and flows as the graph network guesses them."""
    capacity = widened(problem, plans)
    flows = predict(problem.roads, capacity, problem.roads.demand[None])
    flows = flows.double()
    minutes = times(problem.roads, capacity, flows)
    return (minutes * flows).sum(1), flows


def travelled(problem: Problem, plans: Tensor, flows: Tensor):
    """Total times and flows near equilibrium, a few steps from ``flows``."""
    capacity = widened(problem, plans)
    found = equilibrium(problem.roads, capacity, STEPS, flows)
    return found.total.double(), found.flows.double()


def examined(problem: Problem, plans: Tensor) -> Equilibrium:
    """What drivers really do under plans [P, E], in float64."""
    start = problem.today.expand(len(plans), -1)
    capacity = widened(problem, plans)
    return equilibrium(problem.roads, capacity, EXAM, start, exact=True)


def affordable(problem: Problem, plans: Tensor) -> Tensor:
    """Which of the plans [P, E] the budget pays for."""
    return plans.double() @ prices(problem) <= money(problem)


def genetic(
    judge: Judge, problem: Problem, seed: int, generations: int
) -> Search:
    """Let plans compete for some generations, and judge each of them once."""
    P, E = POPULATION, problem.roads.links.shape[1]
    random = torch.Generator().manual_seed(seed)
    cost, limit = prices(problem), money(problem)

    def scored(plans, flows):
        total, flows = judge(problem, plans, flows)
        over = (plans.double() @ cost - limit).clamp_min(0)
        return total + PENALTY * over, flows

    plans = torch.rand(P, E, generator=random) < problem.budget
    # the authors' start: nothing, everything, and chance
    plans[0], plans[1] = False, True
    score, flows = scored(plans, problem.today.expand(P, E))
    best, believed = [], []
    for generation in range(generations + 1):
        order = score.argsort(stable=True)
        plans, score, flows = plans[order], score[order], flows[order]
        best.append(plans[0])
        believed.append(score[0])
        if generation == generations:
            break
        parents = _survivors(random)
        plans, score, flows = plans[parents], score[parents], flows[parents]
        pair = torch.randint(PARENTS, (2, P - PARENTS), generator=random)
        children = _crossed(plans[pair[0]], plans[pair[1]], random)
        start = (flows[pair[0]] + flows[pair[1]]) / 2
        new, travel = scored(children, start)
        plans = torch.cat([plans, children])
        score, flows = torch.cat([score, new]), torch.cat([flows, travel])
    return Search(torch.stack(best), torch.stack(believed), plans, score)


def _survivors(random: torch.Generator) -> Tensor:
    """The elite and some more, the likelier the better their rank."""
    weights = torch.arange(POPULATION, 0, -1.0)
    weights[:ELITE] = 0
    more = torch.multinomial(weights, PARENTS - ELITE, generator=random)
    return torch.cat([torch.arange(ELITE), more])


def _crossed(one: Tensor, other: Tensor, random: torch.Generator) -> Tensor:
    """Children that take each bit from either parent, some bits anew."""
    first, anew, bit = torch.rand(3, *one.shape, generator=random)
    children = torch.where(first < 0.5, one, other)
    return torch.where(anew < MUTATION, bit < 0.5, children)


class Finalists(NamedTuple):
    """The distinct affordable plans that a judge likes best."""

    plans: Tensor  # [K, E] bool, K at most `TOP`
    believed: Tensor  # [K], total time as the judge gives it
    true: Tensor  # [K], at equilibrium


def finalists(problem: Problem, search: Search) -> Finalists:
    """Examine the best plans of the last generation (paper, section 3.5)."""
    fits = affordable(problem, search.last)
    first = {}
    for place, plan in enumerate(search.last.tolist()):
        if fits[place]:
            first.setdefault(tuple(plan), place)
    chosen = list(first.values())[:TOP]
    plans = search.last[chosen]
    true = examined(problem, plans).total
    return Finalists(plans, search.scores[chosen], true)


def fullest_first(problem: Problem, flows: Tensor | None = None) -> Tensor:
    """Widen links in the order of their load while money lasts: a plan [E].

    ``flows`` [1, E] are today's if left out. A link that is too dear for what
    is left is passed over. Of equal loads the lower link comes first.
    """
    flows = problem.today if flows is None else flows
    load = (flows[0] / problem.roads.capacity).tolist()
    cost, left = prices(problem).tolist(), money(problem)
    plan = torch.zeros(len(load), dtype=torch.bool)
    for link in sorted(range(len(load)), key=lambda e: -load[e]):
        if cost[link] <= left:
            plan[link] = True
            left -= cost[link]
    return plan


def by_chance(problem: Problem, seed: int, count: int = TOP) -> Tensor:
    """Plans [count, E] of links in random order, while money lasts."""
    random = torch.Generator().manual_seed(seed)
    some = problem.today.new_empty(count, problem.today.shape[1])
    loads = torch.rand(some.shape, generator=random, dtype=torch.float64)
    drawn = loads * problem.roads.capacity
    return torch.stack([fullest_first(problem, one[None]) for one in drawn])
