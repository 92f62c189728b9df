"""SMoE-Dropout: a router that never learns (chapter 04).

Chen, Zhang, Jaiswal, Liu, Wang, "Sparse MoE as the New Dropout: Scaling
Dense and Self-Slimmable Transformers", ICLR 2023. A dense network is cut into
N small experts. A random router chooses k of them and is never trained. k
grows during training and can be chosen freely at test time: the model is
meant to get better with every further expert switched on ("self-slimmable").

    z = x W_r                 W_r random and frozen
    w = softmax over the k largest z
    y = sum of w_i E_i(x)     an average of experts, whatever k is
    k_s = k_min + round((k_max - k_min) s / S)    at step s of S

Freezing W_r does not cut the gradient to x through w, except for k = 1,
where w is 1 whatever the logits are.

Left out: the router's bias (0 and frozen in the authors' code), biases and
dropout inside the experts, and schedules that fall. The authors draw W_r with
standard deviation 0.02 at width 256, which spreads the logits by 0.32; here
the width is 48, so W_r is scaled to the same spread. Ties go to the lowest
index.
`smoe_dropout_recorded` computes what the pictures show.
"""

import math
from functools import cache, partial
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lab.claims import Claim
from lab.exercises import Exercise
from lab.kernels.topk_gate import topk_gate
from lab.tokens.char_lm import DIM, CharLM, evaluate, train
from lab.tokens.routers import BALANCE, Router, Routing, balance_loss
from lab.tokens.slimmable_layer import all_experts, slimmable_layer

EXPERTS = 16  # N
HIDDEN = 16  # units of one expert; the dense twin has N times as many
SPREAD = 0.02 * 256**0.5  # of the logits at the start, as in the authors' code
SWEEP = (1, 2, 4, 8, 12, 16)  # k at test time
STEPS = 600
POSITIONS = 16384  # test characters


class SlimmableRouter(Router):
    """Top-k with weights that add up to 1; the router is frozen or learned.

    ``k`` may be changed at any time. A learned router gets a balance loss
    with loads that add up to 1, as in the authors' code. The authors divide
    the mean scores by k as well; here they are not divided.
    """

    def __init__(
        self, dim: int, experts: int, k: int, frozen: bool = True
    ) -> None:
        super().__init__(dim, experts)
        self.k = k
        self.frozen = frozen
        self.weight.requires_grad_(not frozen)

    def forward(self, hidden: Tensor, memory: Any = None) -> Routing:
        logits = hidden @ self.weight
        gate = topk_gate(logits, self.k)
        scores = logits.softmax(dim=1)
        loss = logits.new_zeros(())
        if not self.frozen:
            loss = BALANCE / self.k * balance_loss(gate.experts, scores)
        return Routing(gate, scores, loss)


class Schedule(NamedTuple):
    """How k grows from ``low`` to ``high`` during training."""

    shape: str
    low: int
    high: int


def active_experts(step: int, steps: int, schedule: Schedule) -> int:
    """k at ``step`` of ``steps``; halves are rounded to even, as in Python.

    Past the end k stays at ``schedule.high``.
    """
    shape, low, high = schedule
    if not 1 <= low <= high:
        raise ValueError(
            f"k from {low} to {high} does not grow; use 1 <= low <= high"
        )
    more = high - low
    # multiply before dividing, as the authors do, to meet the same halves
    if shape == "linear":
        k = low + round(more * step / steps)
    elif shape == "cosine":
        k = high - round(more * math.cos(math.pi * step / (2 * steps)))
    elif shape == "exponential":
        k = high - round(more * 0.99 ** (300 * step // steps))
    elif shape == "doubling":
        k = 2 ** min(5 * step // steps, 4)
    else:
        raise ValueError(
            f"shape={shape!r} is not linear, cosine, exponential or doubling"
        )
    return min(max(k, low), high)


SCHEDULES = {
    "constant 2": Schedule("linear", 2, 2),
    "constant 16": Schedule("linear", 16, 16),
    "linear 8 to 16": Schedule("linear", 8, 16),
    "linear 1 to 16": Schedule("linear", 1, 16),
    "cosine 8 to 16": Schedule("cosine", 8, 16),
    "exponential 8 to 16": Schedule("exponential", 8, 16),
    "doubling 1 to 16": Schedule("doubling", 1, 16),
}
PAPER = "linear 8 to 16"  # the schedule of the authors' scripts


def mean_experts(schedule: Schedule, steps: int = STEPS) -> float:
    """Mean k over a training: its cost in experts per token."""
    ks = [active_experts(step, steps, schedule) for step in range(steps)]
    return sum(ks) / steps


def untrained(seed: int, frozen: bool = True, k: int = EXPERTS) -> CharLM:
    """The untrained character model, 16 experts of 16 hidden units.

    Frozen and learned routers start from the same weights.
    """
    model = CharLM(
        lambda _: SlimmableRouter(DIM, EXPERTS, k, frozen),
        EXPERTS,
        seed,
        hidden=HIDDEN,
        compute=slimmable_layer,
    )
    return calm(model)


def calm(model: CharLM) -> CharLM:
    """Scale the routers' logits to the authors' spread; return the model."""
    for layer in model.layers:
        # CharLM draws them so that the logits spread by 1 / sqrt(3)
        layer.router.weight.data.mul_(SPREAD * 3**0.5)
    return model


def dense_twin(seed: int) -> CharLM:
    """The dense twin, untrained: one expert of 256 hidden units, no router."""
    return CharLM(
        lambda _: SlimmableRouter(DIM, 1, 1),
        1,
        seed,
        hidden=EXPERTS * HIDDEN,
        compute=slimmable_layer,
    )


def switch_on(model: CharLM, k: int) -> CharLM:
    """Let ``model`` use k experts from now on; return the model."""
    for layer in model.layers:
        layer.router.k = k
    return model


@cache
def trained(seed: int, frozen: bool, schedule: str, steps: int) -> CharLM:
    """The trained model of one arm; its k is what its last user set."""
    plan = SCHEDULES[schedule]
    model = untrained(seed, frozen, plan.low)

    def grow(step: int, _) -> None:
        switch_on(model, active_experts(step + 1, steps, plan))

    return train(model, "prose", steps, seed, on_step=grow)


@cache
def bits(
    seed: int, frozen: bool, schedule: str, k: int, steps: int, positions: int
) -> float:
    """Bits per character on prose of one arm with k experts switched on."""
    model = switch_on(trained(seed, frozen, schedule, steps), k)
    return evaluate(model, "prose", positions).bits_per_character


@cache
def dense_bits(seed: int, steps: int, positions: int) -> float:
    """Bits per character of the dense twin, trained in the same way."""
    model = train(dense_twin(seed), "prose", steps, seed)
    return evaluate(model, "prose", positions).bits_per_character


def _largest_rise(seed: int, frozen: bool, **budget) -> float:
    """The largest rise in loss, in bits, when more experts are switched on."""
    by_k = [bits(seed, frozen, PAPER, k, **budget) for k in SWEEP]
    return max(b - a for a, b in pairwise(by_k))


def _past_training(seed: int, **budget) -> float:
    """Bits that the learned top-2 model loses when all experts are on."""
    two, all_on = (
        bits(seed, False, "constant 2", k, **budget) for k in (2, EXPERTS)
    )
    return all_on - two


def _against(frozen: bool, schedule: str, seed: int, **budget) -> float:
    """Bits that SMoE-Dropout loses to another arm, all experts on."""
    ours = bits(seed, True, PAPER, EXPERTS, **budget)
    return ours - bits(seed, frozen, schedule, EXPERTS, **budget)


def _against_dense(seed: int, **budget) -> float:
    """Bits that SMoE-Dropout loses to its dense twin."""
    ours = bits(seed, True, PAPER, EXPERTS, **budget)
    return ours - dense_bits(seed, **budget)


FULL = {"steps": STEPS, "positions": POSITIONS}
SHORT = {"steps": 60, "positions": 2048}
SMALL = (
    "A character model of three layers, trained for 600 steps; the paper"
    " trains Transformer-XL for 400,000 steps, and BERT and RoBERTa."
)
RISE = "largest rise in bits per character from one k to the next"
AT_16 = "bits per character with all 16 experts, SMoE-Dropout minus "

_claim = partial(
    Claim,
    chapter="04",
    parameters=FULL,
    reduced=SHORT,
    seeds=10,
    limits=SMALL,
)
_below = partial(_claim, unit="bits", threshold=0.0, side="below")

CLAIMS = (
    _claim(
        slug="grows-with-k",
        sentence="Performance grows steadily as more experts are switched on"
        " at test time.",
        source="abstract",
        effect=f"{RISE} (1, 2, 4, 8, 12, 16)",
        unit="bits",
        experiment=partial(_largest_rise, frozen=True),
        threshold=0.01,
        side="below",
    ),
    _claim(
        slug="learned-gets-worse",
        sentence="A learned router saturates or gets worse when more experts"
        " are switched on than it learned with.",
        source="introduction; figures over k",
        effect="bits per character of a learned top-2 model, k = 16 minus"
        " k = 2",
        unit="bits",
        experiment=_past_training,
        threshold=0.0,
        side="above",
    ),
    _claim(
        slug="freezing-is-needed",
        sentence="It is the frozen router that makes the model slimmable: a"
        " learned one with the same growing k still gets worse somewhere.",
        source="our reading",
        effect=f"{RISE}, learned router",
        unit="bits",
        experiment=partial(_largest_rise, frozen=False),
        threshold=0.01,
        side="above",
    ),
    _below(
        slug="random-beats-learned",
        sentence="A frozen random router is better than a learned one.",
        source="comparison with learned SMoE",
        effect=AT_16 + "a learned router with the same growing k",
        experiment=partial(_against, False, PAPER),
    ),
    _below(
        slug="better-than-dense",
        sentence="It is better than its dense twin (by 1.03, 0.78 and 1.09 %"
        " on ASDiv-A, MAWPS and SVAMP).",
        source="abstract",
        effect=AT_16 + "the dense twin",
        experiment=_against_dense,
    ),
    _below(
        slug="growing-helps",
        sentence="Growing k during training is better than having all"
        " experts on from the start.",
        source="our reading of the method",
        effect=AT_16 + "a frozen router at a constant k = 16",
        experiment=partial(_against, True, "constant 16"),
    ),
    _below(
        slug="linear-beats-cosine",
        sentence="The linear schedule is better than the cosine one (1.1486"
        " against 1.1858 bits on enwik8).",
        source="ablation of the schedule",
        effect=AT_16 + "the same with a cosine schedule",
        experiment=partial(_against, True, "cosine 8 to 16"),
    ),
    _below(
        slug="linear-beats-exponential",
        sentence="The linear schedule is better than the exponential one"
        " (1.1486 against 1.1877 bits on enwik8).",
        source="ablation of the schedule",
        effect=AT_16 + "the same with an exponential schedule",
        experiment=partial(_against, True, "exponential 8 to 16"),
    ),
    _claim(
        slug="training-time",
        sentence="Training takes up to 37 % less time than the dense model.",
        source="main text",
        effect="training time saved against the dense twin",
        unit="%",
        experiment=None,
        threshold=0.0,
        side="above",
        out_of_reach=(
            "it depends on the authors' GPUs and kernels; here only the share"
            " of experts at work is known, 75 % on average from 8 to 16"
        ),
    ),
)

EXERCISES = {
    "exercise-1": Exercise(
        slug="exercise-1",
        answer=11.5 / 16,
        # the notebook's solution is given to three decimals as well
        tolerance=5e-4,
    ),
    "exercise-2": Exercise(slug="exercise-2", answer={1}),
    "exercise-3": Exercise(
        slug="exercise-3",
        answer=all_experts,
        cases=[
            tuple(
                torch.randn(*shape, generator=torch.Generator().manual_seed(T))
                for shape in ((T, 4), (T, N), (N, 4, F), (N, F, 4))
            )
            for T, N, F in ((5, 3, 2), (1, 1, 4), (7, 2, 1))
        ],
    ),
}
