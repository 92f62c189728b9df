"""Duo-LLM: what the best route could do (chapter 07).

Alizadeh, Mirzadeh, Shahrokhi, Belenko, Sun, Cho, Sekhavat, Nabi, Farajtabar,
"Duo-LLM: A Framework for Studying Adaptive Computation in Large Language
Models", NeurIPS workshop ENLSP 2024, PMLR 262. In three stages:

    1  every layer has a big and a small network, trained with a random
       choice for each token until either can stand in for the other
    2  the oracle tries every route r of S(mall) and B(ig) for each token t
           l*_t(b) = min { -log p_r(y_t | before) : r has b big layers }
    3  a router is trained for the frozen networks and compared with the oracle
           P_l = softmax(x_l W_l / tau)        x_l: the input of the networks
           x + P_big big(x) + P_small small(x)         mixed in training
           loss + alpha (mean over layers and tokens of P_big - b / L)^2
       tau falls from 1 to 0.1; at inference only the more probable network

The model is in `duo_char_lm`, the oracle in `duo_routes`. As printed in the
paper, tau divides the exponential, outside the exponent, where it would
cancel. It is also said to grow, which with a division makes the choice
softer. This version divides the logits by tau and lets tau fall. The paper
does not say which route the earlier tokens take while token t tries its own;
here tokens never look at each other, so it does not matter. The authors
remark themselves that the oracle's gain follows the number of routes on its
menu; the null oracle asks how much of that gain needs routes at all. The
authors have published no code.

Oracle, null oracle and router are compared in `duo_comparison`; what the
pictures show is in `duo_llm_recorded`.
"""

import math
from functools import partial

import torch
from torch import Tensor

from lab.claims import Claim
from lab.exercises import Exercise
from lab.kernels.min_by_budget import min_by_budget
from lab.tokens.duo_char_lm import LAYERS, STEPS
from lab.tokens.duo_comparison import (
    HALF,
    POSITIONS,
    all_routes,
    learned,
    losses_of,
    null_oracle,
    overlap,
)
from lab.tokens.duo_router import ROUTER_STEPS
from lab.tokens.duo_routes import layers_of


def at_budget(curve: Tensor, budget: float) -> float:
    """A curve over budgets 0 .. L at any budget, by linear interpolation."""
    low = min(int(budget), len(curve) - 2)
    share = budget - low
    return ((1 - share) * curve[low] + share * curve[low + 1]).item()


def depth(routes: Tensor) -> float:
    """Mean place of the big layers of routes [T]; the first layer is 1."""
    big = layers_of(routes).double()
    place = torch.arange(1, LAYERS + 1)[:, None]
    return ((big * place).sum() / big.sum()).item()


def _one_beats_all(seed: int, router_steps: int, **data) -> float:
    """Bits of the oracle with one big layer minus those of all big."""
    choice = all_routes(seed, **data)
    return (choice.oracle[1] - choice.best_fixed[-1]).item()


def _half_is_best(seed: int, router_steps: int, **data) -> float:
    """Bits of the oracle at half the budget minus the best of the others."""
    oracle = all_routes(seed, **data).oracle.tolist()
    return oracle.pop(HALF) - min(oracle)


def _against_null(seed: int, budget: int, router_steps: int, **data) -> float:
    """Bits of the oracle minus those of the null oracle."""
    oracle = all_routes(seed, **data).oracle[budget].item()
    return oracle - null_oracle(seed, budget, **data).best


def _gain(seed: int, budget: int, router_steps: int, **data) -> float:
    """The oracle's gain over its menu's mean, in percent of the null's."""
    choice, null = all_routes(seed, **data), null_oracle(seed, budget, **data)
    gain = (choice.mean_fixed - choice.oracle)[budget].item()
    return 100 * gain / (null.mean - null.best)


def _router_gain(seed: int, router_steps: int, **data) -> float:
    """Bits of the best fixed route minus the router's, at the same budget."""
    routed = learned(seed, HALF, router_steps, **data)
    fixed = all_routes(seed, **data).best_fixed
    return at_budget(fixed, routed.budget) - routed.bits


def _random_tokens(seed: int, router_steps: int, **data) -> float:
    """Bits of the router minus those of its shares on random tokens."""
    routed = learned(seed, HALF, router_steps, **data)
    return routed.bits - routed.random_tokens


def _overlap(seed: int, router_steps: int, **data) -> float:
    """Percent of the hard tokens that are worth compute."""
    return overlap(losses_of(seed, **data))


def _later_when_scarce(seed: int, router_steps: int, **data) -> float:
    """Mean depth of the oracle's big layers, budget 2 minus budget 4."""
    routes = all_routes(seed, **data).routes
    return depth(routes[2]) - depth(routes[LAYERS - 2])


FULL = {
    "steps": STEPS, "router_steps": ROUTER_STEPS, "positions": POSITIONS,
}  # fmt: skip
# in the first 60 steps the big networks are no better than the small ones
SHORT = {"steps": 120, "router_steps": 30, "positions": 1024}
SMALL = (
    "A character model of six layers whose tokens never look at each other,"
    " trained for seconds; the paper's has twelve layers with attention, 1.4"
    " billion parameters and 300 billion tokens."
)

_claim = partial(
    Claim,
    chapter="07",
    parameters=FULL,
    reduced=SHORT,
    seeds=5,
    unit="bits",
    threshold=0.0,
    side="below",
    limits=SMALL,
)

CLAIMS = (
    _claim(
        slug="one-big-layer-beats-all",
        sentence=(
            "The oracle with one big layer for each token has a lower "
            "perplexity than a model with all twelve layers big."
        ),
        source="section 3.2.1, figure 4b",
        effect="bits per character, oracle with 1 of 6 layers big minus all"
        " big",
        experiment=_one_beats_all,
    ),
    _claim(
        slug="half-is-best",
        sentence="The oracle is best at six of twelve big layers, and gets"
        " worse with more.",
        source="section 3.2.1, figure 4b",
        effect="bits per character, oracle at 3 of 6 big layers minus the"
        " best other budget",
        experiment=_half_is_best,
    ),
    _claim(
        slug="better-than-noise-one-layer",
        sentence="The oracle shows what better routing could gain (budget 1).",
        source="our reading: then it must beat as many copies that differ by"
        " noise alone",
        effect=(
            "bits per character, oracle minus null oracle, 6 routes against 6"
            " copies that scatter as widely"
        ),
        experiment=partial(_against_null, budget=1),
    ),
    _claim(
        slug="better-than-noise-half",
        sentence="The oracle shows what better routing could gain (half of"
        " the layers).",
        source="our reading: then it must beat as many copies that differ by"
        " noise alone",
        effect=(
            "bits per character, oracle minus null oracle, 20 routes against "
            "20 copies that scatter as widely"
        ),
        experiment=partial(_against_null, budget=HALF),
    ),
    _claim(
        slug="gains-more-than-noise",
        sentence="Choosing a route gains clearly more than choosing among"
        " noisy copies.",
        source="our variation, added after a first look at seed 0",
        effect=(
            "mean minus best of a menu of 6 routes, in percent of the same "
            "for 6 copies that scatter as widely"
        ),
        unit="%",
        experiment=partial(_gain, budget=1),
        threshold=110.0,
        side="above",
    ),
    _claim(
        slug="router-like-best-fixed",
        sentence="The trained router is about as good as the best fixed"
        " route (our reading of: closer to fixed patterns than to the"
        " oracle).",
        source="section 3.3, figure 4; the bound 0.01 is ours",
        effect="bits per character, best fixed route at the router's own"
        " budget minus the router",
        experiment=_router_gain,
        threshold=0.01,
    ),
    _claim(
        slug="better-than-random-tokens",
        sentence="A learned router knows which tokens need compute (implied"
        " by the aim of the paper).",
        source="our reading: the honest test, without labels",
        effect="bits per character, router minus the same share of every"
        " layer given to random tokens",
        experiment=_random_tokens,
    ),
    _claim(
        slug="hard-is-not-worth-compute",
        sentence="A high loss does not mean that a token is worth more"
        " compute.",
        source="section 3.2.2, figure 6",
        effect=(
            "overlap of two sets, a tenth of the tokens each: largest loss "
            "with small layers, and largest gap from there to the oracle"
        ),
        unit="%",
        experiment=_overlap,
        threshold=50.0,
        limits=SMALL
        + (
            " At first the loss was that of the big networks (12 % overlap); "
            "the paper's is that of the small ones, and its result here, "
            "about 30 %, was known when the measure was changed."
        ),
    ),
    _claim(
        slug="later-when-scarce",
        sentence="With few big layers (4 of 12) the oracle puts them late,"
        " with many (8) early.",
        source="section 3.2.1, figure 2",
        effect="mean depth of the oracle's big layers, 2 of 6 minus 4 of 6",
        unit="layers",
        experiment=_later_when_scarce,
        side="above",
    ),
    _claim(
        slug="training-from-scratch",
        sentence="Training both networks from scratch is much better than"
        " adding small ones to a frozen language model.",
        source="section 3.4, figure 8c",
        effect="perplexity, from scratch minus frozen",
        unit="",
        experiment=None,
        out_of_reach="it needs a pretrained language model and 300 billion"
        " tokens",
    ),
)


def _oracle_by_budget(losses: Tensor, budgets: Tensor) -> Tensor:
    """Mean over the tokens of the best loss at each budget, [budgets]."""
    best = min_by_budget(losses, budgets.int(), int(budgets.max()) + 1)
    return best.loss.mean(dim=1)


_LOSSES = torch.tensor(
    [
        [3.0, 2.0, 4.0, 1.0],
        [2.0, 2.5, 3.0, 1.5],
        [2.5, 1.0, 3.5, 0.5],
        [1.0, 1.5, 2.0, 2.0],
    ]
)

EXERCISES = {
    "exercise-1": Exercise(
        slug="exercise-1", answer=(math.comb(12, 4), 2**13 - 2)
    ),
    # 0.01 either way, because the tolerance is relative too
    "exercise-2": Exercise(
        slug="exercise-2", answer=3.0 - 0.2 * 1.8675, tolerance=0.004
    ),
    "exercise-3": Exercise(
        slug="exercise-3",
        answer=_oracle_by_budget,
        cases=[
            (_LOSSES, torch.tensor([0, 1, 1, 2])),
            (_LOSSES, torch.tensor([1, 0, 2, 0])),
            (_LOSSES[:, :1], torch.tensor([0, 0, 0, 1])),
        ],
    ),
}
