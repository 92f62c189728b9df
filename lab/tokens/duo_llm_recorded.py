"""What the pictures of chapter 07 show, recorded: a model, routers, losses.

For one model, seed 0, two kinds of loss are recorded on 4096 characters from
all over the test text: those of its 64 routes, and those of 20 all-big copies
with dropout noise of several strengths. The passage is evaluated live.
"""

import math
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lab.half_precision import read_halves, write_halves
from lab.tokens.char_lm import PASSAGE, spread, windows
from lab.tokens.duo_char_lm import LAYERS, DuoCharLM, trained
from lab.tokens.duo_comparison import HALF
from lab.tokens.duo_router import LearnedRoutes, learn
from lab.tokens.duo_routes import (
    Choice,
    budgets,
    choose,
    layers_of,
    matched_rate,
    noisy_losses,
    route_losses,
    scatter,
    shortened,
    shuffled,
    taken,
)
from lab.tokens.text import decode, split

FILE = "duo_llm/routes.npz"
SAMPLE = 4096  # characters all over the test text
NOISES = (0.5, 1.0, 1.5)  # the copies' scatter relative to the routes'
CHOOSERS = ("oracle", "null oracle", "router", "random tokens", "mean fixed")
# what a colour shows, its unit, and the top of its scale
COLOURS = {
    "loss": ("Loss of every character", "bits", 8),
    "gap": ("Bits saved against all layers small", "bits", 4),
    "depth": ("Mean place of the big layers", "layer", 6),
}
MENUS = tuple(math.comb(LAYERS, b) for b in range(LAYERS + 1))
MOST = max(MENUS)  # routes on the longest menu


def train_checkpoints(progress: Callable = iter) -> None:
    """Train and record the model and routers of seed 0: half a minute."""
    model = trained(0)
    context, target = spread("prose", SAMPLE)
    losses = route_losses(model, context, target)
    wanted = scatter(losses[budgets(LAYERS) == HALF])
    rates = [
        matched_rate(model, context, target, noise * wanted, MOST)
        for noise in NOISES
    ]
    noisy = [noisy_losses(model, context, target, r, MOST) for r in rates]
    routers = [learn(model, b).weight for b in progress(range(1, LAYERS))]
    arrays = {f"model.{k}": v for k, v in model.state_dict().items()}
    arrays |= {"losses": losses, "noisy": torch.stack(noisy)}
    arrays |= {"routers": torch.stack(routers), "rates": torch.tensor(rates)}
    write_halves(FILE, arrays)


class Recorded(NamedTuple):
    """One model, its routers, and what was measured with them."""

    model: DuoCharLM
    routers: list[LearnedRoutes]  # for budgets 1 .. L - 1
    losses: Tensor  # [64, 4096] in bits
    noisy: dict[float, Tensor]  # by noise, [20, 4096]
    rates: dict[float, float]  # by noise, the dropout


@cache
def recorded() -> Recorded:
    """What `train_checkpoints` recorded."""
    arrays = read_halves(FILE)
    model = DuoCharLM()
    model.load_state_dict(
        {
            name.removeprefix("model."): array
            for name, array in arrays.items()
            if name.startswith("model.")
        }
    )
    routers = []
    for budget, weight in enumerate(arrays["routers"], start=1):
        router = LearnedRoutes(model.eval(), budget)
        router.weight.data = weight
        routers.append(router)
    return Recorded(
        model=model.requires_grad_(False),
        routers=routers,
        losses=arrays["losses"],
        noisy=dict(zip(NOISES, arrays["noisy"], strict=True)),
        rates=dict(zip(NOISES, arrays["rates"].tolist(), strict=True)),
    )


class Read(NamedTuple):
    """What every chooser can choose from, on some characters."""

    losses: Tensor  # [64, T]
    noisy: dict[float, Tensor]  # by noise, [20, T]
    routed: list[Tensor]  # routes [T] of the routers, for budgets 0 .. L


@cache
def passage() -> tuple[str, Read]:
    """The text of the pictures, evaluated live."""
    ids = split("prose").test
    context, target = windows(ids, torch.arange(PASSAGE.start, PASSAGE.stop))
    model, _, _, _, rates = recorded()
    noisy = {
        noise: noisy_losses(model, context, target, rate, MOST)
        for noise, rate in rates.items()
    }
    losses = route_losses(model, context, target)
    return decode(target), Read(losses, noisy, _routed(context))


@cache
def sample() -> Read:
    """The recorded characters from all over the test text."""
    _, _, losses, noisy, _ = recorded()
    return Read(losses, noisy, _routed(spread("prose", SAMPLE)[0]))


def _routed(context: Tensor) -> list[Tensor]:
    never = torch.zeros(len(context), dtype=torch.int64)
    learned = [router.routes(context) for router in recorded().routers]
    return [never, *learned, never + 2**LAYERS - 1]


class Taken(NamedTuple):
    """What one chooser took, at budgets 0 .. L."""

    bits: Tensor  # [L + 1, T]
    big: Tensor  # [L + 1, layers, T], share of the token in the big network
    budget: Tensor  # [L + 1] big layers per token


@cache
def choices(chooser: str, most: int, noise: float, where: str) -> Taken:
    """Let ``chooser`` choose for the "passage" or the "sample".

    ``most`` is the most routes or copies that an oracle may look at.
    """
    if chooser not in CHOOSERS:
        raise ValueError(f"chooser={chooser!r} is not one of {CHOOSERS}")
    losses, noisy, routed = passage()[1] if where == "passage" else sample()
    budget = budgets(LAYERS)
    T = losses.shape[1]
    if chooser == "oracle":
        best = shortened(losses, budget, most)
        return _taken(best.loss, layers_of(best.route))
    if chooser == "null oracle":
        copies = noisy[noise]
        bits = [copies[: min(n, most)].amin(dim=0) for n in MENUS]
        return _taken(torch.stack(bits), torch.ones(LAYERS, LAYERS + 1, T))
    if chooser == "mean fixed":
        rows = [(budget == b).nonzero().flatten() for b in range(LAYERS + 1)]
        bits = torch.stack([losses[menu].mean(dim=0) for menu in rows])
        share = torch.arange(LAYERS + 1.0)[None, :, None] / LAYERS
        return _taken(bits, share.expand(LAYERS, -1, T))
    if chooser == "random tokens":
        routed = [shuffled(routes, LAYERS) for routes in routed]
    bits = torch.stack([taken(losses, routes) for routes in routed])
    return _taken(bits, layers_of(torch.stack(routed)))


def _taken(bits: Tensor, big: Tensor) -> Taken:
    big = big.float().transpose(0, 1)
    return Taken(bits, big, big.sum(dim=1).mean(dim=1))


class Picture(NamedTuple):
    """One setting of the knobs."""

    text: str
    values: list[float]  # one for each character of the text
    curve: list[float]  # bits of the chooser at budgets 0 .. L
    oracle: list[float]  # bits of the oracle with its whole menu
    best_fixed: list[float]
    layers: dict[str, float]  # percent of the tokens that are big there
    budget: float  # big layers per token
    gain: float  # bits below the best fixed route of this budget
    title: str
    mark: str  # label of the mark at the budget
    what: str  # what the values are
    unit: str
    high: float  # the top of their scale


def picture(
    chooser: str = "oracle",
    budget: int = 1,
    most: int = MOST,
    noise: float = 1.0,
    colour: str = "loss",
) -> Picture:
    """What ``chooser`` does with ``budget`` of six layers big.

    ``colour`` says what the characters show: the "loss", the "gap" to all
    layers small, or the "depth" of the big layers. Curves are interpolated
    between the budgets that were really spent.
    """
    if colour not in COLOURS:
        raise ValueError(f"colour={colour!r} is not one of {(*COLOURS,)}")
    text, here = passage()
    there = choices(chooser, most, noise, "passage")
    all_ = choices(chooser, most, noise, "sample")
    spent = all_.budget.numpy()
    if chooser == "null oracle":
        spent = np.arange(LAYERS + 1)  # its copies take the place of routes
    curve = np.interp(
        np.arange(LAYERS + 1), spent, all_.bits.mean(dim=1).numpy()
    )
    values = there.bits[budget]
    if colour == "gap":
        values = here.losses[0] - values
    elif colour == "depth":
        depth = torch.arange(1.0, LAYERS + 1)[:, None]
        big = there.big[budget]
        values = (big * depth).sum(dim=0) / big.sum(dim=0).clamp(min=1)
    what, unit, high = COLOURS[colour]
    menu = min(most, MENUS[budget]) if "oracle" in chooser else 1
    who = f"{chooser.capitalize()}, {budget} of {LAYERS} layers big"
    if chooser == "null oracle":
        who = f"Null oracle, best of {menu} noisy all-big copies"
    whole = _whole()
    shares = all_.big[budget].mean(dim=1)
    return Picture(
        text=text,
        values=values.tolist(),
        curve=curve.tolist(),
        oracle=whole.oracle.tolist(),
        best_fixed=whole.best_fixed.tolist(),
        layers={
            f"layer {place}": 100 * share
            for place, share in enumerate(shares.tolist(), start=1)
        },
        budget=all_.budget[budget].item(),
        # adding 0 turns -0 into 0; no reader expects -0
        gain=round(whole.best_fixed[budget].item() - curve[budget], 3) + 0,
        title=f"{who}: {curve[budget]:.2f} bits per character,"
        f" all big {whole.oracle[-1]:.2f}",
        mark=f"best of {menu}" if menu > 1 else "no choice",
        what=what,
        unit=unit,
        high=high,
    )


@cache
def _whole() -> Choice:
    return choose(recorded().losses, budgets(LAYERS))


def train_anew(budget: int, progress: Callable = iter) -> str:
    """Train a router for the recorded model and report what it achieves."""
    routed = learn(recorded().model, budget, progress=progress)
    routes = routed.routes(spread("prose", SAMPLE)[0])
    spent = layers_of(routes).sum(dim=0).double().mean().item()
    bits = taken(recorded().losses, routes).mean().item()
    return (
        f"trained for {budget} of {LAYERS} layers: {spent:.2f} big layers per"
        f" token, {bits:.3f} bits per character"
    )
