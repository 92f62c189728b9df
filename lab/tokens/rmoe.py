"""RMoE: a router that remembers what the layers below it chose (chapter 05).

Qiu, Huang, Cheng, Zhou, Wang, Titov, Fu, "Layerwise Recurrent Router for
Mixture-of-Experts", ICLR 2025. One small GRU runs over the depth of the
network, once per token. The router of layer i reads the GRU's state, not the
hidden vector, so what it chooses can depend on what was chosen before:

    x'_i = x_i W_i            a projection to p numbers, one per layer (eq. 4)
    h_i = GRU(x'_i, h_{i-1})  one cell for all layers, h_0 = 0 (eq. 5)
    z_i = h_i G_i             then top-k of softmax(z_i), renormalized (eq. 6)

The experts still read x_i. The state mixes neither tokens nor positions, so
all tokens run in parallel. The state is handed on with its gradient. Two
ablations of the paper have the same parameters and the same work: "not
passed" starts every layer from h_0 = 0, "no gradient" hands the state on
detached.

The released code cannot run as published and does not say how router and cell
are initialised. Here all matrices are drawn like the others of the character
model, and biases are 0. The released code averages the balance loss over all
layers joined, so that one layer may overload an expert that another leaves
idle; this version averages in every layer. The shared expert and token
dropping are left out. The paper does not say what is between the two matrices
of its MLP router. Here it is a ReLU, with the number of hidden units that
gives it as many parameters as RMoE.

The MLP router is in `mlp_router`, the measure of information in
`layer_information`, and what the pictures show in `rmoe_recorded`.
"""

from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lab.claims import Claim
from lab.exercises import Exercise
from lab.kernels.gru_router_step import RouterStep, gru_router_step
from lab.tokens.char_lm import DIM, CharLM, Evaluation, evaluate, train
from lab.tokens.layer_information import (
    adjacent,
    gate_entropy,
    information_map,
)
from lab.tokens.mlp_router import MLPRouter, mlp_width
from lab.tokens.routers import (
    BALANCE,
    Router,
    Routing,
    TopKRouter,
    balanced_top_k,
)

EXPERTS = 8
LAYERS = 6
WIDTH = 16  # p, numbers in the state
TOP_K = 2
STEPS = 600
VARIANTS = ("linear", "mlp", "not passed", "no gradient", "passed")
RECURRENT = VARIANTS[2:]


class Cell(nn.Module):
    """The GRU that the routers of all layers share, as plain weights."""

    def __init__(self, width: int) -> None:
        super().__init__()
        if width < 1:
            raise ValueError(f"width={width} holds no state; use 1 or more")
        self.width = width
        self.w_input = nn.Parameter(torch.empty(width, 3 * width))
        self.w_state = nn.Parameter(torch.empty(width, 3 * width))
        self.input_bias = nn.Parameter(torch.empty(3 * width))
        self.state_bias = nn.Parameter(torch.empty(3 * width))

    def forward(self, x: Tensor, state: Tensor, w_gate: Tensor) -> RouterStep:
        return gru_router_step(
            x, state, self.w_input, self.w_state,
            self.input_bias, self.state_bias, w_gate,
        )  # fmt: skip


class RMoERouter(Router):
    """Top-k from the state of a GRU that runs over the depth of the network.

    ``state`` says how the state reaches the next layer: "passed" (the paper),
    "no gradient" or "not passed". ``keep`` scales the state that arrives. It
    is 1 in training; turned down later, it shows what the memory was worth.
    """

    def __init__(
        self,
        dim: int,
        experts: int,
        k: int,
        cell: Cell,
        state: str = "passed",
        balance: float = BALANCE,
    ) -> None:
        super().__init__(cell.width, experts)
        if state not in RECURRENT:
            raise ValueError(f"state={state!r} is not one of {RECURRENT}")
        self.project = nn.Parameter(torch.empty(dim, cell.width))
        self.cell = cell
        self.k = k
        self.state = state
        self.balance = balance
        self.keep = 1.0

    def forward(self, hidden: Tensor, memory: Any = None) -> Routing:
        x = hidden @ self.project
        if memory is None:
            memory = torch.zeros_like(x)
        step = self.cell(x, self.keep * memory, self.weight)
        memory = {
            "passed": step.state,
            "no gradient": step.state.detach(),
            "not passed": None,
        }[self.state]
        return balanced_top_k(step.logits, self.k, self.balance, memory)


def untrained(
    variant: str,
    width: int = WIDTH,
    layers: int = LAYERS,
    k: int = TOP_K,
    seed: int = 0,
) -> CharLM:
    """The untrained character model, a ``variant`` router in every layer."""
    if variant not in VARIANTS:
        raise ValueError(f"variant={variant!r} is not one of {VARIANTS}")
    cell = Cell(width)

    def router(_: int) -> Router:
        if variant == "linear":
            return TopKRouter(DIM, EXPERTS, k)
        if variant == "mlp":
            hidden = mlp_width(layers, DIM, EXPERTS, width)
            return MLPRouter(DIM, EXPERTS, k, hidden)
        return RMoERouter(DIM, EXPERTS, k, cell, variant)

    return CharLM(router, EXPERTS, seed, layers)


class Arm(NamedTuple):
    """One trained variant, measured on characters it has not seen."""

    bits: float  # bits per character on the prose test text
    information: float  # nats between neighbouring layers' first choices
    entropy: float  # mean entropy of the gates, in nats


@cache
def trained(variant: str, seed: int, steps: int = STEPS) -> CharLM:
    """Train one variant; data and their order depend only on the seed."""
    model = untrained(variant, seed=seed)
    return train(model, "prose", steps, seed)


@cache
def arm(variant: str, seed: int, steps: int = STEPS) -> Arm:
    """Train one variant and measure it."""
    return describe(evaluate(trained(variant, seed, steps), "prose"))


def describe(evaluation: Evaluation) -> Arm:
    """Reduce an evaluation to the numbers that the claims use."""
    return Arm(
        bits=evaluation.bits_per_character,
        information=adjacent(information_map(evaluation)),
        entropy=gate_entropy(evaluation.scores).mean().item(),
    )


def experiment(seed: int, steps: int = STEPS) -> dict[str, Arm]:
    """Every variant from one seed, with the same data, order and steps."""
    return {variant: arm(variant, seed, steps) for variant in VARIANTS}


def _against(variant: str, field: str) -> Callable[..., float]:
    """The effect of a claim: ``field`` of RMoE minus that of ``variant``."""

    def difference(seed: int, steps: int) -> float:
        ours = getattr(arm("passed", seed, steps), field)
        return ours - getattr(arm(variant, seed, steps), field)

    return difference


FULL = {"steps": STEPS}
SHORT = {"steps": 8}

_claim = partial(
    Claim,
    chapter="05",
    parameters=FULL,
    reduced=SHORT,
    seeds=10,
    threshold=0.0,
    limits=(
        "A character model of six layers, 600 steps of 512 characters, one "
        "learning rate for all arms, the model's usual one, tuned for none of"
        " them. The paper trains from 15 million parameters up, and reports a"
        " tie at that smallest size."
    ),
)

CLAIMS = (
    _claim(
        slug="memory-ties-the-layers",
        sentence="Passing the state raises the mutual information between"
        " the layers' gates, over the same router without passing.",
        source="analysis of cross-layer mutual information",
        effect="mutual information of neighbouring layers' first choices,"
        " state passed minus not passed",
        unit="nats",
        experiment=_against("not passed", "information"),
        side="above",
    ),
    _claim(
        slug="more-than-a-linear-router",
        sentence="RMoE's gates share more information across layers than"
        " those of the ordinary router.",
        source="analysis of cross-layer mutual information",
        effect="mutual information of neighbouring layers' first choices,"
        " RMoE minus linear router",
        unit="nats",
        experiment=_against("linear", "information"),
        side="above",
    ),
    _claim(
        slug="flatter-gates",
        sentence="RMoE's gate scores are flatter (median of first over"
        " second score 2.02 against 34.68).",
        source="analysis of inner and outer balance",
        effect="mean entropy of the gates, RMoE minus linear router",
        unit="nats",
        experiment=_against("linear", "entropy"),
        side="above",
    ),
    _claim(
        slug="better-than-linear",
        sentence="RMoE predicts enwik8 better than the ordinary router,"
        " 1.116 against 1.128 bits per character.",
        source="main table, enwik8 test",
        effect="bits per character, RMoE minus linear router",
        unit="bits",
        experiment=_against("linear", "bits"),
        side="below",
    ),
    _claim(
        slug="passing-helps",
        sentence="Without passing the state the same router is worse, 1.123"
        " against 1.116 bits per character.",
        source="ablation, enwik8 test",
        effect="bits per character, state passed minus not passed",
        unit="bits",
        experiment=_against("not passed", "bits"),
        side="below",
    ),
    _claim(
        slug="its-gradient-helps",
        sentence="Passing the state without its gradient is worse, 1.133"
        " against 1.116 bits per character.",
        source="ablation, enwik8 test",
        effect="bits per character, with the state's gradient minus without",
        unit="bits",
        experiment=_against("no gradient", "bits"),
        side="below",
    ),
    _claim(
        slug="not-only-parameters",
        sentence="A router with a hidden layer does not close the gap, 1.137"
        " against 1.116 bits per character.",
        source="main table, enwik8 test",
        effect="bits per character, RMoE minus MLP router of as many"
        " parameters",
        unit="bits",
        experiment=_against("mlp", "bits"),
        side="below",
    ),
    _claim(
        slug="billions-of-parameters",
        sentence="At 15 billion parameters RMoE lifts MMLU from 59.54 to"
        " 60.60.",
        source="large-scale experiments",
        effect="MMLU, RMoE minus ordinary router",
        unit="points",
        experiment=None,
        side="above",
        out_of_reach="it needs 15 billion parameters and 400 billion tokens",
    ),
)


def leaky_cell(
    update: float, width: int = 4, sharpness: float = 4.0
) -> dict[str, Tensor]:
    """Weights for a `gru_router_step` that can be followed with a pencil.

    h' = (1 - update) tanh(x) + update h, and the logits are ``sharpness``
    times h'. ``update`` is 0 (no memory) or more, and below 1.
    """
    same, none = torch.eye(width), torch.zeros(width, 2 * width)
    bias = torch.zeros(3, width)
    # logit(0) is -inf; -30 is finite, and its sigmoid is 0 to 13 digits
    bias[1] = torch.logit(torch.tensor(update)).clamp_min(-30)
    return {
        "w_input": torch.cat([none, same], dim=1),
        "w_state": torch.zeros(width, 3 * width),
        "input_bias": bias.flatten(),
        "state_bias": torch.zeros(3 * width),
        "w_gate": sharpness * same,
    }


def _new_state(x, state, w_input, w_state, input_bias, state_bias):
    """h' alone, from the arguments of `gru_router_step`."""
    nobody = torch.zeros(x.shape[1], 1)
    return gru_router_step(
        x, state, w_input, w_state, input_bias, state_bias, nobody
    ).state


def _case(seed: int, tokens: int, width: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(tokens, width)] * 2 + [(width, 3 * width)] * 2
    shapes += [(3 * width,)] * 2
    return tuple(torch.randn(*s, generator=generator) for s in shapes)


EXERCISES = {
    "exercise-1": Exercise(slug="exercise-1", answer=(45_056, 475_904)),
    "exercise-2": Exercise(
        slug="exercise-2",
        answer=_new_state,
        cases=[_case(0, 5, 4), _case(1, 1, 1), _case(2, 3, 7)],
    ),
    "exercise-3": Exercise(slug="exercise-3", answer={"w_state"}),
}
