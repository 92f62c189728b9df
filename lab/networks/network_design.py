"""Network design: which roads to widen (chapter 46).

Madadi, Correia, "A hybrid deep-learning-metaheuristic framework for bi-level
network design problems", Expert Systems with Applications 243 (2024) 122814,
arXiv 2303.06024. A planner widens links y within a budget, and drivers answer
with a user equilibrium x(y); the planner wants little time in all:

    min_y  sum_e x_e t_e(x_e)   s.t.  sum_e y_e cost_e <= B        (5), (6)
    x      = argmin sum_e integral_0^x_e t_e(z) dz                 (7), (1)
    t_e    = t0_e (1 + 0.15 (x_e / c_e)^4),  c_e = c0_e (1 + y_e / lanes)

(Equation 5 forgets the factor x_e; text and code have it.) A genetic algorithm
looks for y. The paper's idea is to replace the equilibrium by the guess of a
graph network, and to examine 20 plans of the last generation with a true
equilibrium. `flow_net` holds that network with the authors' own weights,
`plan_search` the algorithm and its rivals, `roads` the equilibrium.

Here is lane addition in Sioux Falls, in the paper's six variants. The best
plans that the exact procedure SORB found in four hours come from the authors'
result file. What differs from the authors' code: every plan is judged for the
same demand (theirs gives each place of the population a demand of its own),
the best of the 20 examined plans counts (theirs returns the one that the
network liked best), 100 generations instead of 60 s, and what `plan_search`
says of parents and copies.
"""

import time
from collections.abc import Callable
from functools import lru_cache, partial

import torch

from lab.claims import Claim
from lab.exercises import Exercise
from lab.networks.flow_net import predict
from lab.networks.plan_search import (
    Finalists,
    Problem,
    examined,
    finalists,
    fullest_first,
    genetic,
    guess,
    problem,
    travelled,
)
from lab.networks.roads import equilibrium, sioux_falls

GENERATIONS = 100
# (budget, lanes): total time of SORB's best plan after four hours
SORB = {
    (0.25, 2): 4857212.76, (0.25, 4): 5726249.39,
    (0.50, 2): 4383951.83, (0.50, 4): 5309461.76,
    (0.75, 2): 4357733.23, (0.75, 4): 5284122.32,
}  # fmt: skip
BUDGETS, LANES = (0.25, 0.5, 0.75), (2, 4)
JUDGES = {"GIN-GA": guess, "equilibrium GA": travelled}


def above_sorb(one: Problem, total: float) -> float:
    """Percent more than SORB's best total time."""
    return 100 * (float(total) / SORB[one.budget, one.lanes] - 1)


@lru_cache(maxsize=128)
def experiment(
    seed: int,
    judge: str = "GIN-GA",
    budget: float = 0.5,
    lanes: int = 2,
    generations: int = GENERATIONS,
    day: int | None = None,
) -> Finalists:
    """One search, and its best plans examined, the judge's favourite first."""
    one = problem(budget, lanes, day)
    return finalists(one, genetic(JUDGES[judge], one, seed, generations))


def _mean(effect: Callable, variants) -> float:
    """Mean of an effect over variants, pairs of budget and lanes."""
    found = [effect(budget, lanes) for budget, lanes in variants]
    return sum(found) / len(found)


def _gap(seed, judge, generations, budget, lanes) -> float:
    found = experiment(seed, judge, budget, lanes, generations)
    return above_sorb(problem(budget, lanes), found.true.min())


def _sorted_gap(budget, lanes) -> float:
    one = problem(budget, lanes)
    return above_sorb(one, examined(one, fullest_first(one)[None]).total[0])


def gap_of_gin(seed: int, variants, generations: int) -> float:
    """Percent above SORB: best of 20 examined plans, mean of variants."""
    return _mean(partial(_gap, seed, "GIN-GA", generations), variants)


def examining_pays(seed: int, variants, generations: int) -> float:
    """Points that the best examined plan lies below the favourite."""

    def gain(budget, lanes):
        found = experiment(seed, "GIN-GA", budget, lanes, generations)
        one = problem(budget, lanes)
        favourite = above_sorb(one, found.true[0])
        return favourite - above_sorb(one, found.true.min())

    return _mean(gain, variants)


def guessing_costs(seed: int, variants, generations: int) -> float:
    """Points of GIN-GA's gap above that of the same search by equilibria."""
    guessed, known = (
        _mean(partial(_gap, seed, judge, generations), variants)
        for judge in JUDGES
    )
    return guessed - known


def against_the_sort(seed: int, variants, generations: int) -> float:
    """Points of GIN-GA's gap above that of widening the fullest first."""
    guessed = gap_of_gin(seed, variants, generations)
    return guessed - _mean(_sorted_gap, variants)


def sort_against_search(seed: int, variants, generations: int) -> float:
    """Percent more total time: fullest first against the search by equilibria,
    on a day with demands of its own."""

    def loss(budget, lanes):
        one = problem(budget, lanes, seed)
        sort = examined(one, fullest_first(one)[None]).total[0]
        judge = "equilibrium GA"
        found = experiment(seed, judge, budget, lanes, generations, seed)
        return 100 * float(sort / found.true.min() - 1)

    return _mean(loss, variants)


def fit_on_new_traffic(seed: int, instances: int) -> float:
    """R squared of the guessed flows, in percent, drawn as in training."""
    roads = sioux_falls()
    E, N = len(roads.capacity), len(roads.demand)
    random = torch.Generator().manual_seed(seed)
    steps = torch.randint(-2, 3, (instances, E), generator=random)
    capacity = roads.capacity * (1 + steps / 4)
    drawn = torch.rand(instances, N, N, generator=random, dtype=torch.float64)
    demand = roads.demand * (0.8 + 0.4 * drawn)
    true = equilibrium(roads, capacity, 100, demand=demand).flows.double()
    guessed = predict(roads, capacity, demand).double()
    off = (guessed - true).square().sum() / (true - true.mean()).square().sum()
    return 100 * float(1 - off)


def times_as_long(seed: int, plans: int, iterations: int) -> float:
    """Time of equilibria from scratch over the time of guesses."""
    one = problem(0.5, 2)
    random = torch.Generator().manual_seed(seed)
    some = torch.rand(plans, len(one.roads.capacity), generator=random)
    capacity = one.roads.capacity * (1 + (some < 0.5).double() / 2)

    def shortest(work) -> float:
        took = []
        for _ in range(3):
            begin = time.perf_counter()
            work()
            took.append(time.perf_counter() - begin)
        return min(took)

    solved = shortest(lambda: equilibrium(one.roads, capacity, iterations))
    return solved / shortest(lambda: predict(one.roads, capacity))


FULL = {"variants": [list(v) for v in SORB], "generations": GENERATIONS}
SHORT = {"variants": [[0.5, 2]], "generations": 20}
DAYS = {**FULL, "variants": [[0.25, 2], [0.25, 4], [0.5, 2]]}
SMALL = (
    "One network of 76 links, where an equilibrium is cheap, one demand and"
    " the authors' released weights; seeds redraw the search alone."
)
_claim = partial(Claim, chapter="46", parameters=FULL, limits=SMALL)

CLAIMS = (
    _claim(
        slug="better-than-a-sort",
        sentence="Searching with the graph network finds better plans than"
        " widening the fullest roads first after one equilibrium (control;"
        " the paper has no such baseline).",
        source="control",
        effect="gap to SORB, GIN-GA minus fullest first, mean of six variants",
        unit="points",
        experiment=against_the_sort,
        reduced=SHORT,
        threshold=0.0,
        side="below",
    ),
    _claim(
        slug="close-to-four-hours",
        sentence="Lane addition in Sioux Falls: GIN-GA's plans are 4.34 %"
        " above the best of SORB's four hours on average (here: at most 5.17,"
        " the end of the paper's interval).",
        source="table 3",
        effect="gap to SORB, GIN-GA, best of 20 examined plans, mean of six"
        " variants",
        unit="%",
        experiment=gap_of_gin,
        reduced=SHORT,
        threshold=5.17,
        side="below",
        limits=SMALL + " The best examined plan counts, as the paper says; the"
        " released code returns the network's favourite, which is 4.88 %"
        " above, interval 4.58 to 5.18.",
    ),
    _claim(
        slug="guesses-are-enough",
        sentence="Guesses may replace equilibria in a search (implied; here:"
        " for at most 1.5 points, the abstract's average gap).",
        source="our reading of the abstract",
        effect="gap to SORB, GIN-GA minus the same search judged by"
        " equilibria, mean of six variants",
        unit="points",
        experiment=guessing_costs,
        reduced=SHORT,
        threshold=1.5,
        side="below",
    ),
    _claim(
        slug="thousand-times",
        sentence="Inferences of the trained network reduce the times of"
        " fitness evaluations by a factor of at least 1000 (here: against"
        " equilibria in one batch, to a gap of 0.1 %, much finer than a"
        " guess).",
        source="section 3.5",
        effect="time of 128 equilibria from scratch, 80 iterations, over the"
        " time of 128 guesses",
        unit="x",
        experiment=times_as_long,
        parameters={"plans": 128, "iterations": 80},
        threshold=1000.0,
        side="above",
        limits="Both in PyTorch on this machine; the paper times another"
        " program, one network at a time, to 0.001 %. To that gap plain"
        " Frank-Wolfe takes about 10 000 iterations, and the factor would be"
        " near 900. On larger networks an equilibrium takes longer.",
    ),
    _claim(
        slug="fits-new-traffic",
        sentence="The network explains 97.93 % of the flows' variance on test"
        " data.",
        source="section 4.5.1",
        effect="R squared of the released network on new demands and"
        " capacities, fed as it was trained",
        unit="%",
        experiment=fit_on_new_traffic,
        parameters={"instances": 256},
        threshold=97.93,
        side="above",
        limits="Drawn by the rule of the authors' data code, not their test"
        " set; equilibria have a gap of about 0.3 %.",
    ),
    _claim(
        slug="examining-pays",
        sentence="Some plans of the last generation are evaluated exactly to"
        " identify the best one (implied: it is not the network's favourite).",
        source="section 3.5",
        effect="gap to SORB of the network's favourite minus that of the best"
        " of 20 examined plans, mean of six variants",
        unit="points",
        experiment=examining_pays,
        reduced=SHORT,
        threshold=0.1,
        side="above",
    ),
    _claim(
        slug="a-sort-is-enough",
        sentence="Even with equilibria, a search of 100 generations gains"
        " little over the fullest first (control; here: at most 1 %).",
        source="control",
        effect="total time, fullest first above the search judged by"
        " equilibria, demands redrawn by 20 %, mean of three variants",
        unit="%",
        experiment=sort_against_search,
        parameters=DAYS,
        reduced=SHORT,
        threshold=1.0,
        side="below",
        limits="One network, and the paper's prices: free time times"
        " capacity. Other prices need the saving per price in place of load.",
    ),
    _claim(
        slug="larger-networks",
        sentence="Over three networks and two problems, 1.49 % above SORB in"
        " less than 0.5 % of its time, and no worse as networks grow.",
        source="abstract, section 5",
        effect="gap to SORB over 36 variants",
        unit="%",
        experiment=None,
        threshold=1.5,
        side="below",
        out_of_reach="it needs SORB on a commercial solver for four hours a"
        " variant, and graph networks trained for the larger networks",
    ),
)


def _fullest(flows, capacity, price, budget):
    """The links to widen, the fullest first, while money lasts."""
    taken = []
    order = sorted(range(len(flows)), key=lambda e: -flows[e] / capacity[e])
    for e in order:
        if price[e] <= budget:
            taken.append(e)
            budget -= price[e]
    return taken


EXERCISES = {
    # 10 (1 + 0.15), and t + x dt/dx = 10 (1 + 0.15 * 5)
    "exercise-1": Exercise(slug="exercise-1", answer=(11.5, 17.5)),
    # x = 10; and x * x + 10 (10 - x) is least at x = 5
    "exercise-2": Exercise(slug="exercise-2", answer=(10, 5, 25)),
    "exercise-3": Exercise(
        slug="exercise-3",
        answer=_fullest,
        cases=[
            ([5, 8, 3], [10, 10, 2], [4, 3, 2], 5),
            ([9, 9, 1], [3, 4, 10], [5, 2, 2], 4),
            ([4, 2, 6, 8], [4, 2, 3, 4], [1, 1, 1, 1], 3),
            ([1], [1], [2], 1),
            ([3, 1, 2], [1, 1, 1], [0.5, 0.25, 0.25], 1),
        ],
    ),
}
