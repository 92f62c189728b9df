"""Oracle, null oracle and router of Duo-LLM on one model (chapter 07)."""

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from lab.tokens.char_lm import spread
from lab.tokens.duo_char_lm import LAYERS, STEPS, trained
from lab.tokens.duo_router import ROUTER_STEPS, learn
from lab.tokens.duo_routes import (
    Choice,
    budgets,
    choose,
    layers_of,
    matched_rate,
    noisy_losses,
    route_losses,
    scatter,
    shuffled,
    taken,
)

HALF = LAYERS // 2
POSITIONS = 8192  # characters of the test text
SHUFFLES = 8  # orders of the tokens for "random tokens"


class Null(NamedTuple):
    """The null oracle that matches the oracle of one budget."""

    scatter: float  # of the copies' losses on one token, in bits
    wanted: float  # the scatter of the routes' losses
    mean: float  # bits of the copies, on average
    best: float  # bits of the best copy for each token


class Routed(NamedTuple):
    """What a trained router achieves at inference."""

    bits: float
    budget: float  # big layers per token
    random_tokens: float  # bits if random tokens get each layer's share


class Result(NamedTuple):
    """One seed: all choosers on one trained model and the same characters."""

    choice: Choice
    null: list[Null]  # for budgets 1 .. L - 1
    routed: Routed  # with a budget of half of the layers
    overlap: float  # of the hard tokens with those worth compute, in percent


def experiment(
    seed: int,
    steps: int = STEPS,
    router_steps: int = ROUTER_STEPS,
    positions: int = POSITIONS,
) -> Result:
    """Train the networks, try every route, train a router, and compare."""
    data = dict(steps=steps, positions=positions)
    return Result(
        choice=all_routes(seed, **data),
        null=[null_oracle(seed, b, **data) for b in range(1, LAYERS)],
        routed=learned(seed, HALF, router_steps, **data),
        overlap=overlap(losses_of(seed, **data)),
    )


@cache
def losses_of(seed: int, steps: int, positions: int) -> Tensor:
    """Bits of all 64 routes on ``positions`` test characters, [64, T]."""
    context, target = spread("prose", positions)
    return route_losses(trained(seed, steps), context, target)


@cache
def all_routes(seed: int, steps: int, positions: int) -> Choice:
    """Oracle and fixed routes by budget."""
    return choose(losses_of(seed, steps, positions), budgets(LAYERS))


@cache
def null_oracle(seed: int, budget: int, steps: int, positions: int) -> Null:
    """As many noisy copies as the budget has routes, with equal scatter."""
    model = trained(seed, steps)
    context, target = spread("prose", positions)
    menu = losses_of(seed, steps, positions)[budgets(LAYERS) == budget]
    copies, wanted = len(menu), scatter(menu)
    rate = matched_rate(model, context, target, wanted, copies, seed)
    noisy = noisy_losses(model, context, target, rate, copies, seed)
    return Null(
        scatter=scatter(noisy),
        wanted=wanted,
        mean=noisy.mean().item(),
        best=noisy.amin(dim=0).mean().item(),
    )


@cache
def learned(
    seed: int, budget: int, router_steps: int, steps: int, positions: int
) -> Routed:
    """A trained router, and as a control its shares on random tokens."""
    routed = learn(trained(seed, steps), budget, router_steps, seed)
    context, _ = spread("prose", positions)
    losses = losses_of(seed, steps, positions)
    routes = routed.routes(context)
    dealt = [shuffled(routes, LAYERS, s) for s in range(SHUFFLES)]
    return Routed(
        bits=taken(losses, routes).mean().item(),
        budget=layers_of(routes).sum(dim=0).double().mean().item(),
        random_tokens=torch.stack([taken(losses, r).mean() for r in dealt])
        .mean()
        .item(),
    )


def overlap(losses: Tensor) -> float:
    """Percent of the hard tokens that are also worth compute.

    Hard: the tenth with the largest loss when all layers are small. Worth it:
    the tenth with the largest gap between that loss and the best route's.
    """
    tenth = losses.shape[1] // 10
    hard = losses[0].argsort(descending=True, stable=True)[:tenth]
    gap = losses[0] - losses.amin(dim=0)
    worth = gap.argsort(descending=True, stable=True)[:tenth]
    return 100 * len(set(hard.tolist()) & set(worth.tolist())) / tenth
