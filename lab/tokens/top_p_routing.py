"""Top-p dynamic routing: harder tokens get more experts (chapter 01).

Huang, An, Zhuang et al., "Harder Tasks Need More Experts: Dynamic Routing in
MoE Models", ACL 2024. Instead of a fixed k, a token activates the smallest
set of its most probable experts whose probabilities add up to p; an entropy
loss keeps the router sharp enough for that set to stay small.

    P = softmax(x W)                     over all N experts
    S = the best t experts, t = min { t : P_(1) + ... + P_(t) >= p }
    y = sum of P_i E_i(x) over S         raw probabilities, not renormalized
    loss = L_lm + alpha N sum f_i Q_i + beta H(P)

alpha = 1e-2, beta = 1e-4, p = 0.4 in the paper. In the authors' code
(inference only) a partial sum that equals p exactly keeps one expert more
(``>`` instead of the paper's ``>=``); this version follows the paper. Their
experts are SwiGLU, ours are ReLU, as in all chapters of this part.
The measurements are in `experts_per_token`, the models that the pictures
show in `top_p_routing_recorded`.
"""

import math
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lab.claims import Claim
from lab.exercises import Exercise
from lab.kernels.topp_gate import topp_gate
from lab.tokens.char_lm import DIM, CharLM
from lab.tokens.experts_per_token import Arm, train_and_measure
from lab.tokens.mixing import bits_above_mixing
from lab.tokens.routers import (
    Router,
    Routing,
    TopKRouter,
    balance_loss,
    entropy,
)


class TopPRouter(Router):
    """Each token takes its best experts until their mass reaches p.

    ``balance`` is alpha, ``entropy_weight`` is beta; the logits are divided
    by ``temperature`` (1 in the paper). All can be changed after training.
    """

    def __init__(
        self,
        dim: int,
        experts: int,
        p: float = 0.4,
        balance: float = 1e-2,
        entropy_weight: float = 1e-4,
        temperature: float = 1.0,
    ) -> None:
        super().__init__(dim, experts)
        self.p = p
        self.balance = balance
        self.entropy_weight = entropy_weight
        self.temperature = temperature

    def forward(self, hidden: Tensor, memory: Any = None) -> Routing:
        logits = hidden @ self.weight / self.temperature
        gate = topp_gate(logits, self.p)
        scores = logits.softmax(dim=1)
        if not self.training:
            return Routing(gate, scores)
        loss = self.balance * balance_loss(gate.experts, scores)
        loss = loss + self.entropy_weight * entropy(logits)
        return Routing(gate, scores, loss)


class Result(NamedTuple):
    """One seed of the experiment: three routers, the same data and budget."""

    top_1: Arm
    top_2: Arm
    top_p: Arm


def experiment(
    seed: int,
    p: float = 0.4,
    entropy_weight: float = 1e-4,
    experts: int = 8,
    steps: int = 600,
    domain: str = "prose",
) -> Result:
    """Train top-1, top-2 and top-p on the same characters, and compare."""
    return Result(
        top_1=top_k_arm(seed, 1, experts, steps, domain),
        top_2=top_k_arm(seed, 2, experts, steps, domain),
        top_p=top_p_arm(seed, p, entropy_weight, experts, steps, domain),
    )


@cache
def top_k_arm(seed: int, k: int, experts: int, steps: int, domain: str) -> Arm:
    """The baseline with exactly k experts per token."""
    model = top_k_model(seed, k, experts)
    return train_and_measure(model, seed, steps, domain)


@cache
def top_p_arm(
    seed: int,
    p: float,
    entropy_weight: float,
    experts: int,
    steps: int,
    domain: str,
) -> Arm:
    """Top-p routing with the given threshold and entropy weight."""
    model = top_p_model(seed, p, entropy_weight, experts)
    return train_and_measure(model, seed, steps, domain)


def top_k_model(seed: int, k: int, experts: int) -> CharLM:
    """An untrained character model with a top-k router in every layer."""
    return CharLM(lambda _: TopKRouter(DIM, experts, k), experts, seed)


def top_p_model(
    seed: int, p: float, entropy_weight: float, experts: int
) -> CharLM:
    """An untrained character model with a top-p router in every layer."""

    def router(_: int) -> Router:
        return TopPRouter(DIM, experts, p, entropy_weight=entropy_weight)

    return CharLM(router, experts, seed)


STEPS = 600  # of every training that is recorded


def _quality(seed: int, **parameters) -> float:
    """Bits per character that top-p loses against top-2."""
    result = experiment(seed, **parameters)
    return result.top_p.bits - result.top_2.bits


def _compute(seed: int, **parameters) -> float:
    """Experts per token, in percent of top-2's."""
    result = experiment(seed, **parameters)
    return 100 * result.top_p.experts / result.top_2.experts


def _against_mixing(seed: int, **parameters) -> float:
    """Bits lost against the line from top-1 to top-2 at the same compute."""
    one, two, top_p = experiment(seed, **parameters)
    return bits_above_mixing(top_p.bits, top_p.experts, one.bits, two.bits)


def _difficulty(seed: int, **parameters) -> float:
    """Rank correlation of a token's experts with its loss."""
    return _alone(seed, **parameters).difficulty_rho


def _fall(seed: int, **parameters) -> float:
    """Experts per token early in training minus those late in training."""
    top_p = _alone(seed, **parameters)
    return top_p.experts_early - top_p.experts_late


def _depth(seed: int, **parameters) -> float:
    """Experts per token in the first layer minus those in the last."""
    by_layer = _alone(seed, **parameters).experts_by_layer
    return by_layer[0] - by_layer[-1]


def _alone(
    seed: int, p: float, entropy_weight: float, experts: int, steps: int
) -> Arm:
    """The top-p arm, for claims that need no baseline."""
    return top_p_arm(seed, p, entropy_weight, experts, steps, "prose")


def _kept(scores: Tensor, p: float) -> Tensor:
    """Booleans [N] that say which of the scores [N] top-p keeps."""
    experts = topp_gate(scores.log()[None], p).experts[0]
    return (torch.arange(len(scores))[:, None] == experts).any(dim=1)


FULL = {"p": 0.4, "entropy_weight": 1e-4, "experts": 8, "steps": STEPS}
SHORT = {**FULL, "steps": 100}
SMALL = (
    "A character model of three layers and 8 experts, trained for seconds;"
    " the paper trains up to 24 layers and 16 experts on 100 billion tokens."
)

_claim = partial(
    Claim,
    chapter="01",
    parameters=FULL,
    reduced=SHORT,
    seeds=10,
    limits=SMALL,
)

CLAIMS = (
    _claim(
        slug="quality-of-top-2",
        sentence="Top-p routing is better than top-2 on average"
        " (42.3 against 41.6 points over five tasks).",
        source="abstract; main table",
        effect="bits per character, top-p minus top-2",
        unit="bits",
        experiment=_quality,
        threshold=0.01,
        side="below",
    ),
    _claim(
        slug="under-90-percent",
        sentence="It activates fewer than 90 % of top-2's parameters.",
        source="abstract",
        effect="experts per token, in percent of top-2's",
        unit="%",
        experiment=_compute,
        threshold=90.0,
        side="below",
    ),
    _claim(
        slug="better-than-mixing",
        sentence="Choosing the number by token beats spending the same"
        " compute blindly (implied by the two claims above).",
        source="our reading",
        effect="bits per character, top-p minus the line from top-1 to top-2"
        " at equal compute",
        unit="bits",
        experiment=_against_mixing,
        threshold=0.0,
        side="below",
    ),
    _claim(
        slug="harder-tokens-more-experts",
        sentence="Harder inputs get more experts (1.87 on BBH, 1.76 on"
        " average).",
        source="section 5; table of activated experts",
        effect="rank correlation of a token's experts with its loss",
        unit="rho",
        experiment=_difficulty,
        threshold=0.05,
        side="above",
        limits="The paper compares tasks, we compare tokens: no model of this"
        " size can do the tasks.",
    ),
    _claim(
        slug="harder-tokens-sharp-router",
        sentence="Harder inputs get more experts, with an entropy weight a"
        " hundred times the paper's.",
        source="our variation, beta = 1e-2",
        effect="rank correlation of a token's experts with its loss",
        unit="rho",
        experiment=_difficulty,
        threshold=0.05,
        side="above",
        parameters={**FULL, "entropy_weight": 1e-2},
        reduced={**SHORT, "entropy_weight": 1e-2},
    ),
    _claim(
        slug="fewer-as-training-goes-on",
        sentence="The number of experts falls during training (from 2.42 at"
        " 8 billion tokens to 1.82 at 100 billion).",
        source="training curves",
        effect="experts per token in the second tenth of the training minus"
        " in the last",
        unit="experts",
        experiment=_fall,
        threshold=0.0,
        side="above",
    ),
    _claim(
        slug="lower-layers-use-more",
        sentence="Lower layers use more experts (up to about 4 in the first,"
        " about 1 in the last).",
        source="layer analysis",
        effect="experts per token in the first layer minus in the last",
        unit="experts",
        experiment=_depth,
        threshold=0.0,
        side="above",
        limits="Three layers can show a slope, not the profile of 24.",
    ),
    _claim(
        slug="reasoning-tasks",
        sentence="The largest gain is on BBH, the hardest benchmark (25.6"
        " against 23.3).",
        source="main table",
        effect="accuracy on BBH, top-p minus top-2",
        unit="points",
        experiment=None,
        threshold=0.0,
        side="above",
        out_of_reach="it needs language models trained on billions of tokens",
    ),
)

EXERCISES = {
    "exercise-1": Exercise(
        slug="exercise-1",
        answer=[{0}, {0}, {0, 2}, {0, 2, 3, 4}],
    ),
    "exercise-2": Exercise(
        slug="exercise-2",
        answer=lambda experts, p: math.ceil(round(p * experts, 9)),
        cases=[(16, 0.4), (8, 0.5), (10, 1.0), (4, 0.1)],
    ),
    "exercise-3": Exercise(
        slug="exercise-3",
        answer=_kept,
        cases=[
            (torch.tensor([0.35, 0.05, 0.3, 0.2, 0.1]), 0.6),
            (torch.tensor([0.25, 0.25, 0.25, 0.25]), 0.5),
            (torch.tensor([0.1, 0.9]), 0.4),
            (torch.tensor([1.0]), 1.0),
        ],
    ),
}
