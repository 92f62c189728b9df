"""Routing strategies for language models, a survey (chapter 31).

Varangot-Reille, Bouvard, Gourru, Ciancone, Schaeffer, Jacquenet, "Doing More
with Less: A Survey on Routing Strategies for Resource Optimisation in Large
Language Model-Based Systems", JAIR 2026. The claims quote the abstract of its
first two versions ("... An Extended Survey", arXiv 2502.00409, 2025). Every
router solves one problem:

    R* = argmax of E s(q, R(q))   subject to   E C_R(q) <= B

With a multiplier lambda >= 0 for the budget, each prompt is decided alone:

    R(q) = argmax over models M of  s^(q, M) - lambda C_M

What is left is where the guess s^ comes from. Before the answer, it comes from
similar prompts, a classifier, comparisons, or a bandit's own calls. After it
(in a cascade), the cheap model always answers and is always paid, and its
answer is judged; passing a prompt on costs C_1 + C_2 in all. The survey passes
it on where the answer's confidence is below a threshold. Here the answer also
says what to expect from the dear model, and the rule above decides.

The survey states the problem with a budget per query; operators have a budget
for the average, which is what the multiplier prices. Left out are routers that
are language models themselves, and latency and energy, which were not
recorded. Costs are list prices per token, with the dearest model's set to 1;
token counts were not recorded. Metrics follow RouteLLM (APGR) and RouterBench
(area under the hull, here over the pool's own range of prices, which is not
their formula).
"""

from functools import cache, partial
from typing import NamedTuple

import torch
from torch import Tensor

from lab.claims import Claim
from lab.exercises import Exercise
from lab.kernels.frontier import Frontier, frontier
from lab.models import pareto, recorded
from lab.models.pareto import Hull, hull
from lab.models.strategies import (
    NEIGHBOURS,
    RATIO,
    STRATEGIES,
    available,
    predicted,
    prices,
    split,
)

# denser near 0, where most prompts change their model
PRICES = 2 * torch.linspace(0, 1, 48, dtype=torch.float64) ** 2


class Guess(NamedTuple):
    """A strategy's beliefs about the test prompts, and the costs of calls."""

    predicted: Tensor  # [N, M] float64
    truth: Tensor  # [N, M] float64
    costs: Tensor  # [M] float64, the dearest model's call is 1


def guess(
    strategy: str,
    data: str,
    ratio: float = RATIO,
    neighbours: int = NEIGHBOURS,
    broken: bool = True,
    seed: int = 0,
) -> Guess:
    """Train a strategy and let it guess the scores of the test prompts.

    ``ratio`` is the price of the large model of a pair over the small one's.
    Without ``broken``, the subject whose answers were not parsed is left out.
    """
    _, test = split(data, broken, seed)
    k = neighbours if strategy == "similarity" else NEIGHBOURS
    scores = predicted(strategy, data, k, broken, seed)
    costs = prices(data, ratio)
    if strategy == "cascade":
        # the first call is paid in any case
        costs = torch.stack([costs[0], costs[0] + costs[1]])
    return Guess(scores, recorded.load(data).scores[test], costs)


def route(guess: Guess, prices_of_money: Tensor = PRICES) -> Frontier:
    """The policy of each lambda: argmax of predicted - lambda * costs."""
    return frontier(*guess, prices_of_money)


class Result(NamedTuple):
    """One strategy on one split, and the best single model beside it."""

    quality: Tensor  # [L] float64, at each of `PRICES`
    cost: Tensor  # [L] float64
    hull: Hull  # with the cheapest model, which anybody can call
    single_quality: float  # of the model that was best in training
    single_cost: float
    cheap_auc: float  # how well "the first model is right" is predicted
    apgr: float | None  # for pools of two
    area: float  # under the hull, over the pool's prices
    gain: float  # the last model's lead over the first
    easy_gain: float  # the same on the half where a smaller one is predicted


@cache
def experiment(
    seed: int,
    strategy: str,
    data: str,
    ratio: float = RATIO,
    neighbours: int = NEIGHBOURS,
    broken: bool = True,
) -> Result:
    """One seed: train on a random part, sweep lambda on the rest."""
    believed = guess(strategy, data, ratio, neighbours, broken, seed)
    swept = route(believed)
    train, _ = split(data, broken, seed)
    pool, truth = prices(data, ratio), believed.truth
    best = recorded.load(data).scores[train].mean(dim=0).argmax()
    lead = truth[:, -1] - truth[:, 0]
    foreseen = believed.predicted[:, -1] - believed.predicted[:, 0]
    smaller = foreseen.argsort(stable=True)[: len(truth) // 2]
    # the sweep need not reach down to the cheapest model
    corners = hull(
        torch.cat([swept.cost, pool.min()[None]]),
        torch.cat([swept.quality, truth[:, pool.argmin()].mean()[None]]),
    )
    pair = truth.shape[1] == 2
    return Result(
        quality=swept.quality,
        cost=swept.cost,
        hull=corners,
        single_quality=truth[:, best].mean().item(),
        single_cost=pool[best].item(),
        cheap_auc=pareto.auc(believed.predicted[:, 0], truth[:, 0] > 0.5),
        apgr=pareto.apgr(foreseen, *truth.T) if pair else None,
        area=corners.area(pool.min().item(), pool.max().item()),
        easy_gain=lead[smaller].mean().item(),
        gain=lead.mean().item(),
    )


class Picture(NamedTuple):
    """What the chapter's picture shows, as plain lists."""

    curves: dict[str, tuple[list[float], list[float]]]  # cost %, quality
    models: dict[str, tuple[float, float]]
    mixing: tuple[list[float], list[float]]  # calling them at random
    here: tuple[float, float]  # the chosen policy
    load: dict[str, float]  # share of prompts, in percent
    note: str


def picture(
    strategy: str,
    data: str,
    money: float,
    ratio: float,
    neighbours: int,
    broken: bool,
) -> Picture:
    """Every strategy's curve, and one policy of one of them, seed 0."""
    options = (ratio, neighbours, broken)
    possible = available(data)
    curves = {
        name: _curve(name, data, *options) if name in possible else ([], [])
        for name in STRATEGIES
    }
    believed = guess(strategy, data, *options)
    at = torch.tensor([money], dtype=torch.float64)
    quality, cost, load = route(believed, at)
    names, pool = recorded.load(data).models, prices(data, ratio)
    means = believed.truth.mean(dim=0).tolist()
    points = zip((100 * pool).tolist(), means, strict=True)
    lots = hull(100 * pool, believed.truth.mean(dim=0))
    result = experiment(0, strategy, data, *options)
    share = (100 * load[0].double() / load.sum()).tolist()
    if strategy == "cascade":
        names_of_load = (f"{names[0]} alone", f"both, {names[1]} last")
    else:
        names_of_load = names
    if result.apgr is None:
        note = f"mean score over all budgets {result.area:.3f}"
        note += " (area under the hull)"
    else:
        note = f"“{names[0]} is right”: AUC {result.cheap_auc:.2f};"
        note += f" gap recovered (APGR): {result.apgr:.2f}; chance: 0.50"
    return Picture(
        curves=curves,
        models=dict(zip(names, points, strict=True)),
        mixing=(lots.cost.tolist(), lots.quality.tolist()),
        here=(100 * cost.item(), quality.item()),
        load=dict(zip(names_of_load, share, strict=True)),
        note=note,
    )


@cache
def _curve(name: str, data: str, ratio, neighbours, broken):
    quality, cost, _ = route(guess(name, data, ratio, neighbours, broken))
    return (100 * cost).tolist(), quality.tolist()


def _gain(seed: int, **parameters) -> float:
    """Points above the best single model where money does not matter."""
    result = experiment(seed, **parameters)
    return 100 * (result.quality[0].item() - result.single_quality)


def _price(seed: int, **parameters) -> float:
    """Price where money does not matter, in % of the best single model's."""
    result = experiment(seed, **parameters)
    return 100 * result.cost[0].item() / result.single_cost


def _price_of_parity(seed: int, **parameters) -> float:
    """Least price at half a point below the best single model.

    In percent of that model's price.
    """
    result = experiment(seed, **parameters)
    equal = result.quality >= result.single_quality - 0.005
    if not equal.any():
        return 100.0  # then the single model is called
    return 100 * result.cost[equal].min().item() / result.single_cost


def _after(seed: int, **parameters) -> float:
    """APGR of the cascade minus that of the classifier."""
    after = experiment(seed, "cascade", **parameters)
    return after.apgr - experiment(seed, "classifier", **parameters).apgr


def _after_at_half(seed: int, **parameters) -> float:
    """Points that the cascade wins at half the large model's price."""
    after = experiment(seed, "cascade", **parameters).hull.at(0.5)
    before = experiment(seed, "classifier", **parameters).hull.at(0.5)
    return 100 * (after - before)


def _easy(seed: int, **parameters) -> float:
    """The large model's lead where a small lead is predicted.

    In percent of its lead on all prompts.
    """
    result = experiment(seed, **parameters)
    return 100 * result.easy_gain / result.gain


NINE = {"strategy": "classifier", "data": "nine"}
SMALL = (
    "Recorded scores, list prices per token, sentence vectors from a model of"
    " 22 million parameters. Seeds draw new splits of the same prompts, so "
    "the interval covers the split, not other traffic. Results of one or two "
    "seeds had been seen when the claims were put into code."
)

_claim = partial(
    Claim,
    chapter="31",
    source="abstract, versions 1 and 2",
    parameters=NINE,
    reduced=NINE,
    seeds=10,
    limits=SMALL,
)

CLAIMS = (
    _claim(
        slug="better-than-best-single",
        sentence="Routing may improve response quality.",
        effect="mean score at lambda 0 above the best single of nine models",
        unit="points",
        experiment=_gain,
        threshold=0.0,
        side="above",
    ),
    _claim(
        slug="and-cheaper",
        sentence="... while minimising costs: the same policy is cheaper.",
        effect="its price in percent of the best single model's",
        unit="%",
        experiment=_price,
        threshold=100.0,
        side="below",
    ),
    _claim(
        slug="half-price-parity",
        sentence="Equal quality costs less than half.",
        source="our reading of the abstract",
        effect="least price with at most 0.5 points lost, in percent of the"
        " best single model's",
        unit="%",
        experiment=_price_of_parity,
        threshold=50.0,
        side="below",
        limits=SMALL + " The lambda is read off the test curve.",
    ),
    _claim(
        slug="similarity-is-enough",
        sentence="Simple similarity routers are already effective.",
        source="synthesis",
        effect="mean score at lambda 0 above the best single of nine models",
        unit="points",
        experiment=_gain,
        threshold=0.0,
        side="above",
        parameters={**NINE, "strategy": "similarity"},
        reduced={**NINE, "strategy": "similarity"},
    ),
    _claim(
        slug="after-beats-before",
        sentence="A router that sees the answer knows more than one that"
        " sees the question.",
        source="taxonomy, pre- and post-generation",
        effect="APGR on GSM8K, cascade minus classifier",
        unit="APGR",
        experiment=_after,
        threshold=0.0,
        side="above",
        parameters={"data": "gsm8k"},
        reduced={"data": "gsm8k"},
    ),
    _claim(
        slug="after-pays-its-first-call",
        sentence="... also when the first call is paid, at a price ratio of"
        " 1 to 40.",
        source="our reading",
        effect="score on GSM8K at half of GPT-4's price, cascade minus"
        " classifier",
        unit="points",
        experiment=_after_at_half,
        threshold=0.0,
        side="above",
        parameters={"data": "gsm8k", "ratio": RATIO},
        reduced={"data": "gsm8k", "ratio": RATIO},
        limits=SMALL + " The ratio is an estimate.",
    ),
    _claim(
        slug="easy-queries",
        sentence="A generalist model is not worth its price on easy queries.",
        source="synthesis",
        effect=(
            "GPT-4's lead over Mixtral on the half of MMLU where a table of "
            "subjects predicts the smaller lead, in percent of its lead on "
            "all"
        ),
        unit="%",
        experiment=_easy,
        threshold=50.0,
        side="below",
        parameters={"strategy": "table", "data": "mmlu", "broken": False},
        reduced={"strategy": "table", "data": "mmlu", "broken": False},
    ),
    _claim(
        slug="latency-and-energy",
        sentence="Routing also saves latency and energy.",
        source="motivation",
        effect="seconds and joules per prompt",
        unit="s",
        experiment=None,
        threshold=0.0,
        side="below",
        out_of_reach="neither was recorded with the answers",
    ),
)


EXERCISES = {
    "exercise-1": Exercise(slug="exercise-1", answer=[13.0, 39 / 40]),
    "exercise-2": Exercise(
        slug="exercise-2", answer=[1 / 6, 1.0], tolerance=1e-3
    ),
    "exercise-3": Exercise(
        slug="exercise-3",
        answer=pareto.auc,
        cases=[
            (torch.tensor([0.9, 0.2, 0.6]), torch.tensor([1, 0, 1])),
            (torch.tensor([0.3, 0.8, 0.1]), torch.tensor([1, 0, 0])),
            (torch.tensor([0, -1, 0, 0, -2]), torch.tensor([1, 1, 0, 1, 0])),
            # all guesses are equal, whichever comes first
            (torch.zeros(3), torch.tensor([1, 1, 0])),
            (torch.zeros(3), torch.tensor([0, 1, 1])),
        ],
        tolerance=1e-6,
    ),
}
