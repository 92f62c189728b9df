"""THOR: throw the gate away (chapter 03).

Zuo, Liu, Jiao, Kim, Hassan, Zhang, Zhao, Gao, "Taming Sparsely Activated
Transformer with Stochastic Experts", ICLR 2022. There is no gate: dice draw
the expert, in training and at inference. Two passes over a batch draw
independently, and a consistency loss pulls their predictions together, so
that every expert can stand in for every other.

    pass A, pass B: each layer draws an expert uniformly for the whole batch
    y = E_e(x), weight 1                  no gate, no gradient of a gate
    L = L_A + L_B + alpha CR,   CR = 1/2 [KL(p_A || p_B) + KL(p_B || p_A)]

Both passes get a gradient from CR. At inference the dice are thrown for each
token. Differences from the authors' Fairseq plug-in: all our losses are means
over the characters, theirs are sums that Fairseq divides later, so alpha
means the same; here every layer holds experts, there every second one; our
dropout acts on what the experts read; their throw per sentence has no
counterpart here, where each character is a prediction of its own. At
inference they compute all experts and mask out all but one; here only the
drawn expert works.
`thor_recorded` computes what the pictures show.
"""

from collections.abc import Callable
from functools import cache, partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lab.claims import Claim, second_look
from lab.exercises import Exercise
from lab.kernels.sym_kl import sym_kl
from lab.tokens.char_lm import (
    DIM,
    CharLM,
    Prediction,
    evaluate,
    next_character,
    train,
)
from lab.tokens.dice import RandomRouter, SwitchRouter

EXPERTS = 4
STEPS = 600  # of two passes each, in every arm of the experiment
PASS = 128  # characters of one pass
CHARACTERS = {"scarce": 16384, "plenty": 360_000}  # to learn from
KINDS = ("dense", "switch", "dice", "random")


def consistency(a: Tensor, b: Tensor, mask: Tensor | None = None) -> Tensor:
    """CR of two passes' logits [T, V]: the mean over the rows of the mask.

    A batch of nothing but padding has a CR of 0.
    """
    if mask is None:
        mask = torch.ones(len(a), dtype=torch.bool, device=a.device)
    return sym_kl(a, b, mask).sum() / mask.sum().clamp(min=1)


def two_passes(alpha: float) -> Callable:
    """The objective L_A + L_B + alpha CR, for `train`."""
    if alpha < 0:
        raise ValueError(
            f"alpha={alpha} would push the passes apart; use 0 or more"
        )

    def objective(
        model: CharLM, context: Tensor, target: Tensor
    ) -> tuple[Prediction, Tensor]:
        a, loss_a = next_character(model, context, target)
        b, loss_b = next_character(model, context, target)
        loss = loss_a + loss_b
        if alpha:
            loss = loss + alpha * consistency(a.logits, b.logits)
        return a, loss

    return objective


def add_dropout(model: CharLM, rate: float, seed: int) -> CharLM:
    """Add seeded dropout to what the experts read, in training only."""
    if not 0 <= rate < 1:
        raise ValueError(f"dropout={rate} is not within [0, 1); use 0.1")
    stream = torch.Generator().manual_seed(seed)

    def drop(norm: nn.Module, _, tokens: Tensor) -> Tensor:
        if not norm.training or not rate:
            return tokens
        kept = torch.rand(tokens.shape, generator=stream) >= rate
        return tokens * kept.to(tokens.device) / (1 - rate)

    for layer in model.layers:
        layer.norm.register_forward_hook(drop)
    return model


def untrained(kind: str, experts: int = EXPERTS, seed: int = 0) -> CharLM:
    """The untrained character model of one of `KINDS`; THOR's is "random"."""
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r} is not one of {KINDS}")
    experts = 1 if kind == "dense" else experts

    def router(layer: int) -> nn.Module:
        stream = 1000 * seed + layer
        if kind in ("dense", "random"):
            return RandomRouter(experts, stream)
        return SwitchRouter(DIM, experts, stream, by_dice=kind == "dice")

    return CharLM(router, experts, seed)


def trained(
    seed: int,
    kind: str,
    dropout: float,
    alpha: float = 0.0,
    characters: int = CHARACTERS["scarce"],
    steps: int = STEPS,
    experts: int = EXPERTS,
) -> CharLM:
    """Train a model of any kind with two passes over each batch."""
    model = add_dropout(untrained(kind, experts, seed), dropout, seed)
    return train(
        model,
        "prose",
        steps,
        seed,
        batch=PASS,
        objective=two_passes(alpha),
        characters=characters,
    )


class Setting(NamedTuple):
    """What an arm is trained with."""

    kind: str
    dropout: float
    alpha: float = 0.0


# no arm is tuned: alpha is the value of the authors' script, all arms share
# one dropout; the rates and Switch's balance loss are those of chapters 01, 02
SETTINGS = {
    "switch": Setting("switch", 0.1),
    "switch by dice": Setting("dice", 0.1),
    "random": Setting("random", 0.1),
    "r-drop": Setting("dense", 0.1, 5.0),
    "thor": Setting("random", 0.1, 5.0),
}


@cache
def arm(seed: int, name: str, characters: str, steps: int) -> float:
    """Bits per character of an arm on the test text, one throw per token."""
    model = trained(seed, *SETTINGS[name], CHARACTERS[characters], steps)
    return evaluate(model, "prose").bits_per_character


def _gap(seed: int, one: str, other: str, characters: str, steps: int):
    """Bits per character of one arm minus those of the other, same seed."""
    first = arm(seed, one, characters, steps)
    return first - arm(seed, other, characters, steps)


FULL = {"steps": STEPS}
SHORT = {"steps": 20}
SMALL = (
    "A character model of three layers with 4 experts, trained for 600 steps;"
    " the paper translates with Transformers trained for days."
)

_claim = partial(
    Claim,
    chapter="03",
    unit="bits",
    side="below",
    threshold=0.0,
    parameters=FULL,
    reduced=SHORT,
    seeds=5,
    limits=SMALL,
)


def _against(one: str, other: str, characters: str = "scarce") -> Callable:
    return partial(_gap, one=one, other=other, characters=characters)


CLAIMS = (
    _claim(
        slug="dice-as-good-as-a-gate",
        sentence="A learned gate is no better than routing the inputs at"
        " random (Switch Transformer).",
        source="abstract; analysis of gates",
        effect="bits per character, Switch trained by dice minus Switch with"
        " its gate",
        experiment=_against("switch by dice", "switch"),
        threshold=0.01,
    ),
    _claim(
        slug="better-than-switch",
        sentence="THOR is better than the Switch Transformer when data are"
        " scarce (low-resource translation).",
        source="experiments on low-resource translation",
        effect="bits per character, THOR minus Switch, 16 384 characters to"
        " learn from",
        experiment=_against("thor", "switch"),
        **second_look("0.14 bits (-0.01 to 0.30)", SMALL),
    ),
    _claim(
        slug="consistency-helps",
        sentence="The consistency loss improves on random experts alone.",
        source="the method's premise",
        effect="bits per character, THOR minus random experts with two passes"
        " and alpha = 0",
        experiment=_against("thor", "random"),
        **second_look("0.00 bits (-0.07 to 0.08)", SMALL),
    ),
    _claim(
        slug="more-than-consistency",
        sentence="The experts add to what consistency alone brings.",
        source="our control: one expert and the same loss, known as R-Drop",
        effect="bits per character, THOR minus a dense model with the"
        " consistency loss",
        experiment=_against("thor", "r-drop"),
        **second_look("0.20 bits (-0.03 to 0.42)", SMALL),
    ),
    _claim(
        slug="translation-quality",
        sentence="2 BLEU more than the Switch Transformer in multilingual"
        " translation, and as good as a mixture 18 times larger.",
        source="abstract",
        effect="BLEU, THOR minus Switch",
        unit="BLEU",
        experiment=None,
        threshold=2.0,
        side="above",
        out_of_reach="it needs translation models trained for days on"
        " several GPUs",
    ),
)


def _divergence(a: Tensor, b: Tensor) -> Tensor:
    """CR of each row [T] of the logits [T, V], by the kernel's operation."""
    return sym_kl(a, b, torch.ones(len(a), dtype=torch.bool))


_A = torch.tensor([[1.0, 0.0, -1.0], [2.0, 2.0, 2.0], [0.0, 5.0, 1.0]])
_B = torch.tensor([[0.0, 0.0, 0.0], [7.0, 7.0, 7.0], [3.0, -2.0, 1.0]])

EXERCISES = {
    "exercise-1": Exercise(slug="exercise-1", answer=0.875),
    "exercise-2": Exercise(
        slug="exercise-2",
        answer=_divergence,
        cases=[(_A, _B), (_B, _A), (60 * _A, 60 * _B)],
    ),
    "exercise-3": Exercise(slug="exercise-3", answer=0.0, tolerance=1e-5),
}
