"""How many experts tokens get: hard and easy ones, early and late in training.

This is what chapter 01 measures on each model that it trains.
"""

from typing import NamedTuple

import torch
from scipy import stats

from lab.tokens.char_lm import BATCH, CharLM, Evaluation, evaluate, train


class Arm(NamedTuple):
    """What one trained model shows on the test text."""

    bits: float  # bits per character
    experts: float  # mean per token and layer
    experts_by_layer: list[float]  # [layers]
    difficulty_rho: float  # Spearman rank correlation, experts with loss
    experts_early: float  # mean in the second tenth of the training steps
    experts_late: float  # mean in the last tenth


def train_and_measure(
    model: CharLM, seed: int, steps: int, domain: str
) -> Arm:
    """Train ``model`` on a domain and count the experts of its tokens."""
    working = []  # mean number of experts per token, step by step

    def watch(_: int, prediction) -> None:
        chosen = [r.gate.experts >= 0 for r in prediction.routings]
        working.append(torch.stack([c.sum() for c in chosen]).sum())

    train(model, domain, steps, seed, on_step=watch)
    per_token = torch.stack(working).double() / (BATCH * len(model.layers))
    tenth = max(1, steps // 10)
    return describe(
        evaluate(model, domain),
        early=per_token[tenth : 2 * tenth].mean().item(),
        late=per_token[-tenth:].mean().item(),
    )


def describe(evaluation: Evaluation, early: float, late: float) -> Arm:
    """Reduce an evaluation to the numbers that the claims use."""
    loss, experts = evaluation.token_loss, evaluation.experts.double()
    per_token = experts.mean(dim=1)
    # the rank correlation of a constant number of experts is undefined
    varies = bool((per_token != per_token[0]).any())
    rho = stats.spearmanr(per_token, loss).statistic if varies else 0.0
    return Arm(
        bits=evaluation.bits_per_character,
        experts=evaluation.mean_experts,
        experts_by_layer=experts.mean(dim=0).tolist(),
        difficulty_rho=float(rho),
        experts_early=early,
        experts_late=late,
    )
