"""The routers that take part in the arena, one line for each.

All compete under the same conditions: the character model of this part with
three layers of eight experts, the same text, 600 steps of 512 characters in an
order drawn from the seed, one learning rate, tuned for no router. Only the
router differs, and what its paper says about training it:

    THOR          reads the first 256 of the 512 characters twice, which makes
                  as many predictions as the others, and adds its consistency
                  loss; it lacks the dropout of its chapter
    SMoE-Dropout  its k grows from 4 to 8 during one training, whose first
                  step still uses all 8 experts; the setting is the k that is
                  switched on afterwards
    AdaMoE        trains from scratch like the others, not from a pretrained
                  model; its alpha stays at 0.02 (its chapter lowers it)
    Union         in training, an expert keeps its best c tokens of a batch;
                  afterwards, when that would look ahead, it keeps them all
    Duo-LLM       router and networks learn together; while they learn, both
                  networks work on every token
    Read-ME       its one router learns with the rest; nothing is distilled
    bricks        its router learns to predict the activations of all experts,
                  so in training all of them compute these for every token

To enter a router, add its line to `ENTRANTS`.
"""

from collections.abc import Callable
from functools import lru_cache
from itertools import count
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lab.kernels.topk_gate import Gate
from lab.tokens.adamoe import AdaMoERouter
from lab.tokens.brick_router import BrickRouter
from lab.tokens.char_lm import (
    BATCH,
    DIM,
    HIDDEN,
    LAYERS,
    CharLM,
    Prediction,
    next_character,
    train,
)
from lab.tokens.dice import RandomRouter
from lab.tokens.duo_router import DuoRouter
from lab.tokens.pre_gate_router import PreGateRouter
from lab.tokens.rmoe import WIDTH, Cell, RMoERouter
from lab.tokens.routers import Router, Routing, TopKRouter
from lab.tokens.slimmable_layer import slimmable_layer
from lab.tokens.smoe_dropout import (
    Schedule,
    SlimmableRouter,
    active_experts,
    calm,
    switch_on,
)
from lab.tokens.thor import two_passes
from lab.tokens.top_p_routing import TopPRouter
from lab.tokens.union_router import UnionRouter

EXPERTS = 8
STEPS = 600
GROWS = Schedule("linear", EXPERTS // 2, EXPERTS)  # SMoE-Dropout's k


class Training(NamedTuple):
    """One training: the entrant's setting, the seed, the steps."""

    setting: float
    seed: int
    steps: int


class Entrant(NamedTuple):
    """A router that takes part, and what its training needs."""

    name: str
    chapter: str  # "01", or "" for a baseline
    knob: str  # what its settings are values of
    settings: tuple[float, ...]
    make: Callable[[Training], Callable[[int], nn.Module]]  # router by layer
    before: Callable[[CharLM], Any] | None = None
    objective: Callable[[float], Callable] | None = None  # by setting
    on_step: Callable[[CharLM, int, int], Any] | None = None  # step of steps
    # switches the setting on after a training that all settings share
    at_work: Callable[[CharLM, float], Any] | None = None


class EveryExpert(nn.Module):
    """No router: all experts work on every token, with weight 1."""

    def forward(self, hidden: Tensor, memory: Any = None) -> Routing:
        ones = hidden.new_ones(len(hidden), EXPERTS)
        each = torch.arange(EXPERTS, device=hidden.device).int()
        gate = Gate(each.expand(len(hidden), -1), ones)
        return Routing(gate, ones / EXPERTS, hidden.new_zeros(()))


def alike(router: type[Router], knob: str = "k", **fixed: Any) -> Callable:
    """The same router in every layer, with its ``knob`` at the setting."""

    def make(training: Training) -> Callable[[int], Router]:
        options = {knob: training.setting, **fixed}
        return lambda layer: router(DIM, EXPERTS, **options)

    return make


def _dice(training: Training) -> Callable[[int], nn.Module]:
    streams = count(1000 * training.seed)
    return lambda layer: RandomRouter(EXPERTS, next(streams))


def _recurrent(training: Training) -> Callable[[int], Router]:
    cell = Cell(WIDTH)
    k = training.setting
    return lambda layer: RMoERouter(DIM, EXPERTS, k, cell)


def _duo(training: Training) -> Callable[[int], Router]:
    budget, _, steps = training
    return lambda layer: DuoRouter(DIM, EXPERTS, layer, LAYERS, budget, steps)


def _once(training: Training) -> Callable[[int], Router]:
    k = training.setting
    return lambda layer: PreGateRouter(DIM, EXPERTS, k, layer)


def _half_twice(alpha: float) -> Callable:
    """THOR's objective on the first half of the batch, read twice."""
    passes = two_passes(alpha)

    def objective(
        model: CharLM, context: Tensor, target: Tensor
    ) -> tuple[Prediction, Tensor]:
        half = len(target) // 2
        return passes(model, context[:half], target[:half])

    return objective


def _grow(model: CharLM, step: int, steps: int) -> None:
    switch_on(model, active_experts(step + 1, steps, GROWS))


_frozen = alike(SlimmableRouter, frozen=True)

# fmt: off
ENTRANTS = (
    Entrant("top-k", "", "k", (1, 2, 4, 8), alike(TopKRouter)),
    Entrant("dense", "", "experts", (EXPERTS,),
            lambda _: lambda layer: EveryExpert()),
    Entrant("top-p", "01", "p", (0.4, 0.6, 0.8), alike(TopPRouter, "p")),
    Entrant("AdaMoE", "02", "null experts", (4, 8, 16),
            alike(AdaMoERouter, "null_experts", k=3)),
    Entrant("THOR", "03", "alpha", (0.0, 5.0), _dice, objective=_half_twice),
    Entrant("SMoE-Dropout", "04", "k", (2, 4, 8), _frozen, calm,
            on_step=_grow, at_work=switch_on),
    Entrant("RMoE", "05", "k", (1, 2, 4), _recurrent),
    Entrant("Union", "06", "k", (1, 2, 4), alike(UnionRouter)),
    Entrant("Duo-LLM", "07", "budget", (0.05, 0.15, 0.5), _duo),
    Entrant("Read-ME", "08", "k", (1, 2, 4), _once),
    Entrant("bricks", "09", "k", (1, 2, 4), alike(BrickRouter)),
)
# fmt: on


def entrant(name: str) -> Entrant:
    """The entrant called ``name``; an error for an unknown one lists all."""
    for one in ENTRANTS:
        if one.name == name:
            return one
    names = ", ".join(one.name for one in ENTRANTS)
    raise ValueError(f"{name!r} is not in the arena; use one of {names}")


def untrained(one: Entrant, training: Training) -> CharLM:
    """The character model with the entrant's router in every layer."""
    model = CharLM(
        one.make(training), EXPERTS, training.seed, compute=slimmable_layer
    )
    if one.before:
        one.before(model)
    return model


class Trained(NamedTuple):
    model: CharLM
    experts: float  # mean per token and layer, while it was training


def trained(
    one: Entrant, training: Training, progress: Callable = iter
) -> Trained:
    """Train the entrant like all the others, and switch its setting on."""
    if one.at_work is None:
        return _trained(one, training, progress)
    shared = training._replace(setting=one.settings[-1])
    done = _shared(one, shared, progress)
    one.at_work(done.model, training.setting)
    return done


def _trained(one: Entrant, training: Training, progress: Callable) -> Trained:
    setting, seed, steps = training
    model = untrained(one, training)
    working = []

    def watch(step: int, prediction: Prediction) -> None:
        chosen = [(r.gate.experts >= 0).sum() for r in prediction.routings]
        tokens = len(prediction.logits) * len(chosen)
        working.append((sum(chosen) / tokens).item())
        if one.on_step:
            one.on_step(model, step, steps)

    train(
        model,
        "prose",
        steps,
        seed,
        BATCH,
        progress=progress,
        on_step=watch,
        objective=one.objective(setting) if one.objective else next_character,
    )
    return Trained(model, sum(working) / len(working))


# all settings that are switched on afterwards share one training
_shared = lru_cache(maxsize=2)(_trained)


def expert_work() -> int:
    """Multiply-adds of one expert for one token: 2 D F."""
    return 2 * DIM * HIDDEN


def router_work(model: CharLM) -> float:
    """Mean multiply-adds of a layer's router per token.

    Softmax, selection and the weighted sum are left out for every router.
    """
    routers = [layer.router for layer in model.layers]
    return sum(map(matrices, routers)) / len(routers)


def matrices(router: nn.Module) -> int:
    """Multiply-adds per token of a router that uses each matrix once."""
    return sum(w.numel() for w in router.parameters() if w.ndim >= 2)


def router_parameters(model: CharLM) -> int:
    """Parameters of all routers; those that layers share are counted once."""
    return sum(
        w.numel() for name, w in model.named_parameters() if ".router." in name
    )
