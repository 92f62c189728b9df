"""A small character language model whose layers are mixtures of experts.

It reads 12 characters and predicts the next one:

    characters → embedding (12 each) → linear to D = 48
    → 3 or more × [x + experts(layer norm x), chosen by a router]
    → layer norm → scores of the 97 symbols

It is small enough to train in seconds on two CPU cores, and it is real: it
learns real text, and its routers face real tokens, easy and hard. Every router
of this part can be plugged in, so that like is compared with like.
"""

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lab.descent import one_cycle_adam
from lab.kernels.moe_layer import moe_layer
from lab.tokens.routers import Router, Routing, choice_rate
from lab.tokens.text import ALPHABET, decode, split

CONTEXT = 12  # characters the model sees
EMBEDDING = 12  # numbers per character
DIM = 48  # D, width of a token's hidden vector
HIDDEN = 32  # F, hidden units of one expert
LAYERS = 3
BATCH = 512  # characters predicted in one training step
PASSAGE = slice(14988, 15236)  # of the test text, for the chapters' pictures
SAMPLE = 1024  # characters from all over the test text, for the numbers


class Prediction(NamedTuple):
    logits: Tensor  # [T, symbols]
    routings: list[Routing]  # one per layer


class Experts(nn.Module):
    """One mixture layer: x + sum of gate weight times expert of norm(x)."""

    def __init__(
        self,
        router: Router,
        experts: int,
        hidden: int = HIDDEN,
        compute: Callable[..., Tensor] = moe_layer,
    ) -> None:
        super().__init__()
        self.compute = compute
        self.norm = nn.LayerNorm(DIM)
        self.router = router
        self.w_up = nn.Parameter(torch.empty(experts, DIM, hidden))
        self.w_down = nn.Parameter(torch.empty(experts, hidden, DIM))
        if isinstance(router, Router):
            router.watch(self.w_up)

    def forward(self, x: Tensor, memory: object) -> tuple[Tensor, Routing]:
        tokens = self.norm(x)
        routing = self.router(tokens, memory)
        y = self.compute(tokens, routing.gate, self.w_up, self.w_down, "relu")
        return x + y, routing


class CharLM(nn.Module):
    """The model with a router per layer, made by ``make_router(layer)``.

    All matrices, the routers' included, are drawn from the seed in one
    stream, normal with variance 1 / (3 fan-in) as in ``nn.Linear``, and
    biases are 0. So two models with the same seed and the same experts start
    equal up to the first router of another shape: embedding, ``enter`` and the
    first layer's experts are always the same; whatever is drawn after that
    router is not. ``compute`` applies a layer's experts, with the arguments of
    `moe_layer`.
    """

    def __init__(
        self,
        make_router: Callable[[int], Router],
        experts: int = 8,
        seed: int = 0,
        layers: int = LAYERS,
        hidden: int = HIDDEN,
        compute: Callable[..., Tensor] = moe_layer,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(len(ALPHABET), EMBEDDING)
        self.enter = nn.Linear(CONTEXT * EMBEDDING, DIM)
        self.layers = nn.ModuleList(
            Experts(make_router(layer), experts, hidden, compute)
            for layer in range(layers)
        )
        self.norm = nn.LayerNorm(DIM)
        self.leave = nn.Linear(DIM, len(ALPHABET))
        draw_weights(self, seed)

    def forward(self, context: Tensor) -> Prediction:
        """Predict the character after each context [T, 12]."""
        x = self.enter(self.embedding(context).flatten(1))
        routings, memory = [], None
        for layer in self.layers:
            x, routing = layer(x, memory)
            memory = routing.memory
            routings.append(routing)
        return Prediction(self.leave(self.norm(x)), routings)


def draw_weights(model: nn.Module, seed: int) -> None:
    """Draw the matrices of a character model as `CharLM` describes."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(weight)
        elif weight.ndim >= 2:
            # nn.Linear keeps its matrix as [out, in], ours are [in, out]
            stored_out_in = name in ("enter.weight", "leave.weight")
            fan_in = weight.shape[-1 if stored_out_in else -2]
            scale = 1 if "embedding" in name else (3 * fan_in) ** -0.5
            nn.init.normal_(weight, std=scale, generator=generator)


def windows(ids: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
    """Contexts [T, 12] and targets [T] for the positions ``at`` [T] of ids.

    Position i predicts ids[i] from the 12 characters before it.
    """
    before = torch.arange(-CONTEXT, 0, device=at.device)
    return ids[at[:, None] + before], ids[at]


def next_character(
    model: CharLM, context: Tensor, target: Tensor
) -> tuple[Prediction, Tensor]:
    """The prediction and its loss, the routers' auxiliary losses included."""
    prediction = model(context)
    loss = F.cross_entropy(prediction.logits, target)
    return prediction, loss + sum(r.loss for r in prediction.routings)


def train(
    model: CharLM,
    domain: str,
    steps: int,
    seed: int,
    batch: int = BATCH,
    peak_rate: float = 1e-2,
    progress: Callable[[Iterable], Iterable] = iter,
    on_step: Callable[[int, Prediction], None] | None = None,
    objective: Callable = next_character,
    characters: int | None = None,
) -> CharLM:
    """Train in place on the text of ``domain`` and return the model.

    Adam with a one-cycle learning rate. The batches are drawn from the seed,
    so every router sees the same characters in the same order. ``progress``
    wraps the steps (a progress bar); ``on_step(step, prediction)`` is called
    before each update, for schedules and measurements. What it sets on the
    model takes effect from the next step on, because this step's loss is
    already computed. ``objective(model, context, target)`` returns a
    prediction and the loss to minimise. ``characters`` keeps only that many
    characters from the start of the training text.
    """
    if steps < 1:
        raise ValueError(f"steps={steps} trains nothing; use 1 or more")
    device = model.leave.weight.device
    ids = split(domain).train[:characters].to(device)
    generator = torch.Generator().manual_seed(seed)

    def loss(step: int) -> Tensor:
        at = torch.randint(CONTEXT, len(ids), (batch,), generator=generator)
        context, target = windows(ids, at.to(device))
        prediction, value = objective(model, context, target)
        if on_step:
            on_step(step, prediction)
        return value

    model.train()
    one_cycle_adam(
        model.parameters(), loss, steps, peak_rate, progress, fused=True
    )
    return model


class Evaluation(NamedTuple):
    """What a model does on characters it has not learned."""

    token_loss: Tensor  # [T] in bits
    experts: Tensor  # [T, layers] int64, experts that worked on each token
    load: Tensor  # [layers, E] share of the tokens that chose each expert
    scores: list[Tensor]  # a layer's router scores [T, E]
    chosen: list[Tensor]  # and its experts [T, S], best first, -1 if empty

    @property
    def bits_per_character(self) -> float:
        return self.token_loss.mean().item()

    @property
    def mean_experts(self) -> float:
        """Mean number of experts per token and layer."""
        return self.experts.double().mean().item()

    def part(self, rows: slice) -> "Evaluation":
        """The evaluation of some of the characters only."""
        chosen = [experts[rows] for experts in self.chosen]
        num_experts = self.load.shape[1]
        return Evaluation(
            token_loss=self.token_loss[rows],
            experts=self.experts[rows],
            load=torch.stack([choice_rate(e, num_experts) for e in chosen]),
            scores=[scores[rows] for scores in self.scores],
            chosen=chosen,
        )


@torch.no_grad()
def evaluate(model: CharLM, domain: str, positions: int = 16384) -> Evaluation:
    """Measure on ``positions`` characters spread evenly over the test text."""
    device = model.leave.weight.device
    return measure(model, *spread(domain, positions, device))


def spread(
    domain: str, positions: int, device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor]:
    """Contexts and targets spread evenly over the test text of ``domain``."""
    ids = split(domain).test.to(device)
    if not 1 <= positions <= len(ids) - CONTEXT:
        raise ValueError(
            f"positions={positions} is not within 1 to {len(ids) - CONTEXT},"
            f" the characters of the {domain} test text"
        )
    at = torch.linspace(CONTEXT, len(ids) - 1, positions).long()
    return windows(ids, at.to(ids.device))


@torch.no_grad()
def measure(model: CharLM, context: Tensor, target: Tensor) -> Evaluation:
    """Loss and routing for contexts [T, 12] and their targets [T]."""
    model.eval()
    logits, routings = model(context)
    nats = F.cross_entropy(logits, target, reduction="none")
    chosen = [routing.gate.experts for routing in routings]
    experts = model.layers[0].w_up.shape[0]
    return Evaluation(
        token_loss=nats / math.log(2),
        experts=torch.stack([(e >= 0).sum(1) for e in chosen], dim=1),
        load=torch.stack([choice_rate(e, experts) for e in chosen]),
        scores=[routing.scores for routing in routings],
        chosen=chosen,
    )


class Look(NamedTuple):
    """A trained model at work, for a picture."""

    text: str  # the 248 characters of the passage
    passage: Evaluation  # what the model does on them
    sample: Evaluation  # and on 1024 characters from all over the test text


def look(model: CharLM, domain: str = "prose") -> Look:
    """Let ``model`` read the passage of the pictures, and a wider sample."""
    device = model.leave.weight.device
    ids = split(domain).test.to(device)
    at = torch.arange(PASSAGE.start, PASSAGE.stop, device=device)
    passage, sample = windows(ids, at), spread(domain, SAMPLE, device)
    # one pass for both, because a slider waits for it
    context, target = map(torch.cat, zip(passage, sample, strict=True))
    both, cut = measure(model, context, target), len(at)
    return Look(
        text=decode(target[:cut]),
        passage=both.part(slice(0, cut)),
        sample=both.part(slice(cut, None)),
    )
