"""What the picture of chapter 29 shows: recorded routers of one library.

Seed 0. The routers are recorded, because each trains for a second; the experts
are counted again, because they would be large to keep.
"""

import math
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lab.half_precision import read_halves, write_halves
from lab.kernels.runtime import device
from lab.models import expert_library, loss_routers, ngrams, snippets, tryage
from lab.models.expert_library import EXPERTS, parts, router, world
from lab.models.loss_routers import KINDS, Router
from lab.parameters import listed
from lab.tokens.text import encode

RECORDED = "tryage/routers.npz"
ORACLE, ALONE = "oracle", "one for all"
ROUTERS = (*KINDS, ORACLE)
UNITS = {
    "losses": "predicted bits + lambda x size",
    "centred losses": "predicted bits, mean set to 4, + lambda x size",
    "best expert": "bits of surprise if this one is best",
    "model card": "distance of the card (1 - cosine)",
    ORACLE: "bits + lambda x size",
}
MEAN = 4.0  # bits, where bars of centred losses stand
TICKS = (5_000, 10_000, 15_000, 20_000, 30_000, 40_000)  # of mean sizes
# denser near 0, where most prompts change their expert
WISHES = (0.0, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0, 1.4, 2.0)
SAMPLE = "return [x for x in self.items if x not in seen]"


def train_checkpoints(progress: Callable = iter) -> None:
    """Train the three routers that learn from losses again, seed 0."""
    arrays = {}
    for kind in progress(KINDS[:3]):
        for name, weight in router(0, kind)._asdict().items():
            arrays[f"{kind}.{name}"] = weight
    write_halves(RECORDED, arrays)


@cache
def recorded(kind: str) -> Router:
    """The router of `train_checkpoints`; cards are made on the spot."""
    if kind == "model card":
        return router(0, kind)
    arrays = read_halves(RECORDED)
    return Router(*(arrays[f"{kind}.{name}"] for name in Router._fields))


@cache
def _models() -> list[ngrams.NGram]:
    return expert_library.library(0)


@cache
def _hidden(kind: str) -> Tensor:
    """The hidden states of the test prompts."""
    prompts = snippets.load().prompts[parts(0).test]
    return recorded(kind).hidden(loss_routers.features(prompts))


def staying(left_out: str) -> tuple[int, ...]:
    """The experts that are left when those named, "law, code", are out."""
    out = listed(left_out)
    found = tuple(k for k, name in enumerate(EXPERTS) if name not in out)
    if len(found) < 2:
        raise ValueError(
            f"{len(found)} of {len(EXPERTS)} experts cannot be chosen among;"
            f" leave out at most {len(EXPERTS) - 2}"
        )
    return found


class Policy(NamedTuple):
    """What routing every test prompt by one rule is worth."""

    hits: float  # share sent to a best expert, in percent
    bits: float
    size: float  # mean counts of the chosen experts
    load: list[float]  # share of each expert, in percent


def policy(kind: str, who: tuple[int, ...], penalty: float) -> Policy:
    """Route every test prompt among the experts ``who``."""
    known, among = world(0), [*who]
    losses, cost = known.losses[:, among], known.costs[among]
    if kind == ORACLE:
        chosen = (losses + penalty * cost).argmin(dim=1)
    else:
        by, hidden = _among(kind, who), _hidden(kind)
        chosen = tryage.choose(by, hidden, _wanted(kind, penalty) * cost)
        chosen = chosen.choice.long()
    count = torch.bincount(chosen, minlength=len(who))
    return Policy(
        100 * tryage.hits(chosen, losses),
        losses.gather(1, chosen[:, None]).double().mean().item(),
        known.sizes[among][chosen].double().mean().item(),
        (100 * count.double() / len(chosen)).tolist(),
    )


def single(who: tuple[int, ...]) -> tuple[str, Policy]:
    """The expert that was best on the router's prompts, used for all."""
    known, among = world(0), [*who]
    best = known.learned[:, among].mean(dim=0).argmin().item()
    losses = known.losses[:, among]
    chosen = torch.full((len(losses),), best)
    load = [100.0 * (k == best) for k in range(len(who))]
    return EXPERTS[who[best]], Policy(
        100 * tryage.hits(chosen, losses),
        losses[:, best].double().mean().item(),
        known.sizes[who[best]].item(),
        load,
    )


def _wanted(kind: str, penalty: float) -> float:
    """The penalty, if the router's values are in bits like it."""
    return penalty if kind in (*tryage.FLEXIBLE, ORACLE) else 0.0


def _shown(kind: str, values: Tensor) -> Tensor:
    """A router's values [N, K] in the same order, in a unit to be read."""
    if kind == "centred losses":
        return MEAN + values
    if kind == "best expert":
        return -torch.log_softmax(-values, dim=1) / math.log(2)
    return 1 + values if kind == "model card" else values


def _among(kind: str, who: tuple[int, ...]) -> Router:
    """The router without the rows of experts that are left out."""
    whole, among = recorded(kind), [*who]
    return whole._replace(head=whole.head[among], bias=whole.bias[among])


@cache
def curve(kind: str, who: tuple[int, ...]) -> list[tuple[float, float]]:
    """Mean size and bits for each of `WISHES`; one point if none is heard."""
    known, among = world(0), [*who]
    losses = known.losses[:, among]
    if kind == ORACLE:
        values = losses
    else:
        by = _among(kind, who)
        values = F.linear(_hidden(kind), by.head, by.bias)
    heard = _wanted(kind, 1.0) > 0
    found = tryage.sweep(
        *(x.to(device()) for x in (values, losses, known.costs[among])),
        WISHES if heard else WISHES[:1],
    )
    sizes = found.cost * known.sizes.max().item()
    return list(zip(sizes.tolist(), (-found.quality).tolist(), strict=True))


def errors(kind: str) -> tuple[float, float]:
    """Mean error of the predicted losses, and of their differences.

    Of a router that predicts centred losses, the first one means nothing.
    """
    by, losses = recorded(kind), world(0).losses
    gap = F.linear(_hidden(kind), by.head, by.bias) - losses
    apart = loss_routers.centred(gap)
    return gap.abs().mean().item(), apart.abs().mean().item()


@cache
def by_kind() -> list[list[float]]:
    """Mean bits of every expert on the test prompts of each kind of text."""
    domain = snippets.load().domain[parts(0).test]
    losses = world(0).losses
    return [
        losses[domain == place].mean(dim=0).tolist()
        for place in range(len(snippets.DOMAINS))
    ]


class Picture(NamedTuple):
    """What the chapter's picture shows, as plain numbers."""

    curves: dict[str, list[dict]]  # points of `figures.fronts`
    here: Policy  # the chosen router at the chosen penalty
    free: Policy  # the same router at lambda 0
    load: dict[str, float]  # share of the test prompts, in percent
    values: dict[str, float]  # of the typed prompt, in the unit of `UNITS`
    losses: dict[str, float]  # its true losses
    paid: dict[str, float]  # the same plus penalty
    chosen: str  # the typed prompt's expert
    best: str  # the one that has least to be paid
    margin: float  # the second lowest of these values minus the lowest
    penalty: float

    @property
    def title(self) -> str:
        """What the wish did to all test prompts, in words."""
        here, free = self.here, self.free
        words = f"lambda {self.penalty:g}: {here.bits:.3f} bits,"
        words += f" {here.size / 1000:.1f} thousand counts"
        if not self.penalty:
            return words
        return f"{words} (at 0: {free.bits:.3f} bits, {free.size / 1000:.1f})"

    @property
    def note(self) -> str:
        """What the typed prompt's expert truly loses, in words.

        A wish is added, because the one that is better with it may lose more.
        """
        mine, least = self.paid[self.chosen], self.paid[self.best]
        wish = " + wish" if self.penalty else ""
        words = f"true loss{wish} {mine:.2f} bits"
        if self.chosen == self.best:
            return f"{words}; the right choice"
        return f"{words}; {self.best} would have {least:.2f}"


def ring(seen: Picture, kind: str) -> dict:
    """The chosen policy as a point of `figures.fronts`."""
    return dot(kind, seen.here.size, seen.here.bits)


def picture(
    penalty: float = 0.0,
    kind: str = KINDS[0],
    left_out: str = "",
    prompt: str = SAMPLE,
) -> Picture:
    """Route the test prompts, and one prompt that the reader has typed."""
    who = staying(left_out)
    names, among = [EXPERTS[k] for k in who], [*who]
    cost = world(0).costs[among]
    alone, point = single(who)
    curves = {ALONE: [dot(f"{alone} for all", point.size, point.bits)]}
    for name in dict.fromkeys((KINDS[0], KINDS[2], ORACLE, kind)):
        curves[name] = [dot(name, *point) for point in curve(name, who)]

    ids = encode(prompt)[None]
    true = ngrams.losses([_models()[k] for k in who], ids)
    if kind == ORACLE:
        values = true
    else:
        read = loss_routers.features(ids)
        values = _shown(kind, _among(kind, who).values(read))
    values = values[0] + _wanted(kind, penalty) * cost
    paid = true[0] + penalty * cost
    low, second = values.sort().values[:2].tolist()
    here = policy(kind, who, penalty)
    return Picture(
        curves=curves,
        here=here,
        free=policy(kind, who, 0.0),
        load=dict(zip(names, here.load, strict=True)),
        values=dict(zip(names, values.tolist(), strict=True)),
        losses=dict(zip(names, true[0].tolist(), strict=True)),
        paid=dict(zip(names, paid.tolist(), strict=True)),
        chosen=names[values.tolist().index(low)],
        best=names[paid.argmin()],
        margin=second - low,
        penalty=penalty,
    )


def dot(name: str, size: float, bits: float) -> dict:
    """A policy as a point of `figures.fronts`."""
    text = f"{name}: {bits:.3f} bits, experts of {size:.0f} counts"
    return dict(x=size, y=bits, low=bits, high=bits, hover=text)
