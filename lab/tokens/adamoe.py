"""AdaMoE: experts that do nothing (chapter 02).

Zeng, Miao, Gao, Zhang, Deng, "AdaMoE: Token-Adaptive Routing with Null
Experts for Mixture-of-Experts Language Models", Findings of EMNLP 2024. The
router may also choose among m null experts, which output 0 and cost nothing,
and k is raised. Each token still makes k choices, but the number of true
experts that it pays for can differ from token to token.

    P = softmax(x W)         over n true and m null experts
    T = the true experts among the k best
    y = sum of w_i E_i(x) over T,  w_i = P_i / sum of P_j over T
    loss = alpha (n + m) sum of f~_i P_i                            (eq. 6)

f~_i is the share of tokens that chose expert i; for a null expert it is the
mean over all nulls, so that the loss never tells one null from another. If T
is empty the token passes through on its residual alone. Under perfect balance
the mean load is k n / (n + m).

The authors' Mixtral code averages the null loads over an empty slice, so it
trains with the ordinary balance loss; their LoRA code follows eq. 6, up to
the factor k. This version follows eq. 6. Ties go to the lowest index.

How a trained model gets its null experts is in `adamoe_phases`; the models
that the pictures show are in `adamoe_recorded`.
"""

from functools import cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lab.claims import Claim
from lab.exercises import Exercise
from lab.kernels.topk_gate import Gate, topk_gate
from lab.tokens.adamoe_phases import (
    ALPHA,
    EXPERTS,
    PHASE_1_STEPS,
    PHASE_2_STEPS,
    adapt,
)
from lab.tokens.char_lm import DIM, CharLM, evaluate
from lab.tokens.mixing import bits_above_mixing
from lab.tokens.routers import (
    Router,
    Routing,
    TopKRouter,
    balance_loss,
    choice_rate,
    weight_table,
)


class AdaMoERouter(Router):
    """Top-k among n true experts and, in the last columns, m null ones.

    ``balance`` is alpha. ``loss`` is "null" (eq. 6) or "ordinary" (the plain
    balance loss). ``normalize`` says which weights add up to 1: those of the
    "true" experts chosen (the paper), or of "all" experts chosen, in which
    case the nulls keep their share and the output shrinks.
    """

    def __init__(
        self,
        dim: int,
        experts: int,
        null_experts: int,
        k: int,
        balance: float = ALPHA[0],
        loss: str = "null",
        normalize: str = "true",
    ) -> None:
        super().__init__(dim, experts + null_experts)
        self.null_experts = null_experts
        self.k = k
        self.balance = balance
        self.loss = loss
        self.normalize = normalize

    def forward(self, hidden: Tensor, memory: Any = None) -> Routing:
        logits = hidden @ self.weight
        gate = route(logits, self.k, self.null_experts, self.normalize)
        scores = logits.softmax(dim=1)
        if not self.training:
            return Routing(gate, scores)
        if self.loss == "null":
            loss = null_loss(gate.experts, scores, self.null_experts)
        else:
            columns = topk_gate(logits, self.k).experts
            loss = balance_loss(columns, scores)
        return Routing(gate, scores, self.balance * loss)


def route(
    logits: Tensor, k: int, null_experts: int, normalize: str = "true"
) -> Gate:
    """Choose k for each row of the logits [T, n + m]; null slots are empty."""
    if normalize == "true":
        return topk_gate(logits, k, null_experts)
    if normalize != "all":
        raise ValueError(f'normalize={normalize!r} is not "true" or "all"')
    experts, weights = topk_gate(logits, k)
    is_null = experts >= logits.shape[1] - null_experts
    return Gate(
        experts.masked_fill(is_null, -1), weights.masked_fill(is_null, 0.0)
    )


def null_loss(experts: Tensor, scores: Tensor, null_experts: int) -> Tensor:
    """(n + m) * sum of f~_i P_i (eq. 6, without alpha).

    ``experts`` [T, k] with -1 for a null choice, ``scores`` [T, n + m]. At
    perfect balance the loss is k.
    """
    T, columns = scores.shape
    true_experts = columns - null_experts
    rate = choice_rate(experts, true_experts)
    if null_experts:
        null_choices = (experts < 0).sum() / max(1, T)
        share = (null_choices / null_experts).expand(null_experts)
        rate = torch.cat([rate, share])
    return columns * (rate * scores.mean(dim=0)).sum()


def expected_load(k: int, null_experts: int, experts: int = EXPERTS) -> float:
    """True experts per token when all are chosen equally: k n / (n + m)."""
    return k * experts / (experts + null_experts)


class Arm(NamedTuple):
    """The result of one way to adapt the pretrained model."""

    bits: float  # bits per character on the prose test text
    load: float  # true experts per token and layer


class Result(NamedTuple):
    """One seed: four arms that share model, data, order and steps."""

    top_1: Arm
    top_2: Arm
    null_loss: Arm  # AdaMoE as published
    ordinary_loss: Arm  # AdaMoE with the plain balance loss


def experiment(
    seed: int,
    top_k: int = 3,
    null_experts: int = 8,
    steps: int = PHASE_2_STEPS,
    pretraining_steps: int = PHASE_1_STEPS,
) -> Result:
    """Adapt one pretrained top-2 model in four ways, and compare."""
    budget = {"steps": steps, "pretraining_steps": pretraining_steps}
    return Result(
        top_1=arm(seed, 1, 0, **budget),
        top_2=arm(seed, 2, 0, **budget),
        null_loss=arm(seed, top_k, null_experts, **budget),
        ordinary_loss=arm(
            seed, top_k, null_experts, loss="ordinary", **budget
        ),
    )


@cache
def arm(
    seed: int, top_k: int, null_experts: int, loss: str = "null", **options
) -> Arm:
    """Adapt with k choices among 8 true and ``null_experts`` null experts.

    Without null experts the arm is plain top-k, trained in the same way.
    """
    model = adapt(
        untrained(top_k, null_experts, loss), null_experts, seed, **options
    )
    seen = evaluate(model, "prose")
    return Arm(bits=seen.bits_per_character, load=seen.mean_experts)


def untrained(
    top_k: int, null_experts: int, loss: str = "null", normalize: str = "true"
) -> CharLM:
    """The character model with an AdaMoE router in every layer.

    Without null experts the router is the plain top-k router of this part, the
    baseline. It weights a lone expert by its raw score, which is better for
    top-1 than the weight 1 that AdaMoE's rule would give.
    """

    def router(_: int) -> Router:
        if not null_experts:
            return TopKRouter(DIM, EXPERTS, top_k)
        return AdaMoERouter(
            DIM, EXPERTS, null_experts, top_k, loss=loss, normalize=normalize
        )

    return CharLM(router, EXPERTS)


def _saving(seed: int, top_k: int, null_experts: int, **budget) -> float:
    """Percent of top-2's expert calls that AdaMoE does not make."""
    ours = arm(seed, top_k, null_experts, **budget)
    return 100 * (1 - ours.load / arm(seed, 2, 0, **budget).load)


def _quality(seed: int, top_k: int, null_experts: int, **budget) -> float:
    """Bits per character that AdaMoE loses against top-2."""
    ours = arm(seed, top_k, null_experts, **budget)
    return ours.bits - arm(seed, 2, 0, **budget).bits


def _against_mixing(
    seed: int, top_k: int, null_experts: int, **budget
) -> float:
    """Bits lost against the line from top-1 to top-2 at the same load."""
    ours = arm(seed, top_k, null_experts, **budget)
    one, two = (arm(seed, k, 0, **budget).bits for k in (1, 2))
    return bits_above_mixing(ours.bits, ours.load, one, two)


def _null_loss(seed: int, top_k: int, null_experts: int, **budget) -> float:
    """Bits per character that eq. 6 loses against the plain balance loss."""
    result = experiment(seed, top_k, null_experts, **budget)
    return result.null_loss.bits - result.ordinary_loss.bits


FULL = {
    "top_k": 3,
    "null_experts": 8,
    "steps": PHASE_2_STEPS,
    "pretraining_steps": PHASE_1_STEPS,
}
SHORT = {**FULL, "steps": 60, "pretraining_steps": 60}
SMALL = (
    "A character model of three layers, pretrained on code and adapted to"
    " prose; the paper fine-tunes Mixtral-8x7B. Compute means expert calls."
)

_claim = partial(
    Claim,
    chapter="02",
    parameters=FULL,
    reduced=SHORT,
    seeds=10,
    limits=SMALL,
)

CLAIMS = (
    _claim(
        slug="fewer-expert-calls",
        sentence="AdaMoE with 8 null experts and k = 3 saves 14.5 % of the"
        " FLOPs of top-2 (ARC-C, Mixtral-8x7B).",
        source="abstract; table 2",
        effect="expert calls saved compared with top-2",
        unit="%",
        experiment=_saving,
        threshold=14.5,
        side="above",
    ),
    _claim(
        slug="no-worse-than-top-2",
        sentence="The saving costs no quality: accuracy rises from 87.46 to"
        " 89.15 (ARC-C), from 84.64 to 85.35 on six tasks.",
        source="table 2",
        effect="bits per character, AdaMoE minus top-2",
        unit="bits",
        experiment=_quality,
        threshold=0.01,
        side="below",
    ),
    _claim(
        slug="better-than-mixing",
        sentence="Choosing the load by token beats spending the same compute"
        " blindly (implied by the two claims above).",
        source="our reading",
        effect="bits per character, AdaMoE minus the line from top-1 to"
        " top-2 at equal load",
        unit="bits",
        experiment=_against_mixing,
        threshold=0.0,
        side="below",
    ),
    _claim(
        slug="null-loss-helps",
        sentence="Averaging the null experts' loads in the balance loss"
        " helps (RTE 67.51 against 56.68).",
        source="ablation of the loss",
        effect="bits per character, null loss minus ordinary loss",
        unit="bits",
        experiment=_null_loss,
        threshold=0.0,
        side="below",
    ),
    _claim(
        slug="language-model-accuracy",
        sentence="The gains hold on six question-answering tasks.",
        source="table 2",
        effect="mean accuracy on six tasks, AdaMoE minus top-2",
        unit="points",
        experiment=None,
        threshold=0.0,
        side="above",
        out_of_reach="it needs fine-tuning a language model of 47 billion"
        " parameters",
    ),
)


def _true_weights(logits: Tensor, k: int, null_experts: int) -> Tensor:
    """The weight of every true expert, [T, n], 0 where it was not chosen."""
    gate = topk_gate(logits, k, null_experts)
    return weight_table(gate, logits.shape[1] - null_experts)


_LOGITS = torch.tensor(
    [[2.0, 1.0, 0.0, -1.0, 1.5, 0.5], [0.3, 0.2, 0.1, 0.0, 3.0, 2.0]]
)

EXERCISES = {
    "exercise-1": Exercise(slug="exercise-1", answer=(8, 3)),
    "exercise-2": Exercise(
        slug="exercise-2",
        answer=_true_weights,
        cases=[(_LOGITS, 3, 2), (_LOGITS, 2, 2), (_LOGITS, 6, 2)],
    ),
    "exercise-3": Exercise(slug="exercise-3", answer=0.0, tolerance=1e-5),
}
