"""Which neurons matter to which text, and what losing them costs (chapter 09).

Three ways to rank the neurons of a model for every kind of text, and one
measurement of what every text loses without the best neurons for one.
"""

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from lab.tokens import brick_scores
from lab.tokens.brick_scores import INDICATORS, PER_DOMAIN, most
from lab.tokens.dense_lm import STEPS, DenseLM, trained
from lab.tokens.domains import DOMAINS

F = len(DOMAINS)
SPARSE, SPARSER = 0.7, 0.8  # shares of the neurons masked for a token
HALF = 0.5  # share of the neurons kept, to run only what a function needs


class Tables(NamedTuple):
    """Three ways to rank the neurons of each layer for each function."""

    score: Tensor  # [F, L, n] FuncScore
    activation: Tensor  # [F, L, n] mean |a| in the function's instances
    chance: Tensor  # [F, L, n] random numbers


WAYS = {
    "score": "the best scores",
    "activation": "the most active",
    "chance": "at random",
}


def tables(
    model: DenseLM, seed: int = 0, per_domain: int = PER_DOMAIN
) -> Tables:
    """Rank the neurons on the "choose" windows; ``seed`` is for chance."""
    seen = brick_scores.instances("choose", per_domain)
    means = brick_scores.activations(model, seen)
    _, *shape = means.shape
    return Tables(
        score=brick_scores.function_scores(means, seen),
        activation=means.unflatten(0, (F, -1)).mean(dim=1),
        chance=torch.stack(
            [brick_scores.at_random(shape, 100 * seed + f) for f in range(F)]
        ),
    )


class Found(NamedTuple):
    """What was measured on the neurons of one model."""

    best: Tensor  # [F] highest score for each function
    best_by_chance: Tensor  # [F] the same for neurons that know nothing
    mean: float  # score over neurons and functions
    mean_by_chance: float
    damage: Tensor  # [F, F] bits lost without the best neurons of f
    by_activation: Tensor  # [F, F] without the most active ones
    at_random: Tensor  # [F] without as many at random
    overlap: float  # of the best neurons of two functions, mean of all pairs
    half: Tensor  # [F] bits with only the better half of f's neurons
    half_at_random: Tensor  # [F] with only a random half
    sparse: dict  # (share, indicator): bits that masking costs


@cache
def measure(
    seed: int, per_domain: int = PER_DOMAIN, pretraining: int = STEPS
) -> Found:
    """Score the neurons of one model, then measure what pruning costs."""
    model = trained(seed, pretraining)
    score, activation, chance = tables(model, seed, per_domain)
    seen = brick_scores.instances("choose", per_domain)
    judge = brick_scores.instances("judge", per_domain)
    lucky = brick_scores.chance_scores(score.shape[1:], seen, seed)
    shared = brick_scores.overlap(score)
    whole = brick_scores.bits(model, judge).mean().item()
    tries = [(SPARSE, "activation")] + [(SPARSER, i) for i in INDICATORS]

    def alone(table: Tensor) -> Tensor:
        halves = [~most(one, HALF) for one in table]
        kept = [brick_scores.bits(model, judge, half) for half in halves]
        return torch.stack(kept).diagonal()

    return Found(
        best=score.flatten(1).amax(dim=1),
        best_by_chance=lucky.flatten(1).amax(dim=1),
        mean=score.mean().item(),
        mean_by_chance=brick_scores.expected_chance(
            per_domain, F * per_domain
        ),
        damage=brick_scores.damage(model, judge, score),
        by_activation=brick_scores.damage(model, judge, activation),
        at_random=brick_scores.damage(model, judge, chance).mean(dim=0),
        overlap=((shared.sum() - F) / (F * F - F)).item(),
        half=alone(score),
        half_at_random=alone(chance),
        sparse={
            one: brick_scores.sparse_bits(model, judge, *one) - whole
            for one in tries
        },
    )


def percent(bits: Tensor) -> Tensor:
    """Turn damage in bits per character into a rise of perplexity in %."""
    return 100 * (2**bits - 1)
