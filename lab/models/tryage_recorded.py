"""What the picture of chapter 29 shows: recorded routers of one library.

Seed 0. The routers are recorded, because each trains for a second; the experts
are counted again, because they would be large to keep.
"""

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from lab.half_precision import read_halves, write_halves
from lab.models import expert_library, loss_routers, ngrams, snippets, tryage
from lab.models.expert_library import EXPERTS, parts, router, world
from lab.models.loss_routers import KINDS, Router
from lab.parameters import listed
from lab.tokens.text import encode

RECORDED = "tryage/routers.npz"
ORACLE = "oracle"
ROUTERS = (*KINDS, ORACLE)
ALL = ", ".join(EXPERTS)
# denser near 0, where most prompts change their expert
WISHES = (0.0, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0, 1.4, 2.0)
SAMPLE = (
    "A woman sues the owner of a shop. The court asks whether the letter"
    " that she wrote to her lawyer may be read to the jury."
)


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


def members(library: str) -> list[int]:
    """The experts named in a text, such as "law, trigram", as indices."""
    found = [EXPERTS.index(name) for name in listed(library)]
    if len(found) < 2:
        raise ValueError(
            f"{len(found)} experts leave nothing to choose; tick 2 or more"
        )
    return sorted(found)


class Point(NamedTuple):
    """What one policy is worth on the test prompts."""

    bits: float
    size: float
    load: list[float]  # share of prompts of each member, in percent

    def dot(self, name: str) -> dict:
        """The policy as a point of `figures.fronts`."""
        text = f"{name}: {self.bits:.3f} bits at {self.size:,.0f} counts"
        y = dict.fromkeys(("y", "low", "high"), self.bits)
        return dict(x=self.size, hover=text.replace(",", " "), **y)


def policy(kind: str, who: tuple[int, ...], penalty: float) -> Point:
    """Route every test prompt among the experts ``who``."""
    known, who = world(0), [*who]
    losses, cost = known.losses[:, who], known.costs[who]
    if kind == ORACLE:
        chosen = (losses + penalty * cost).argmin(dim=1)
    else:
        wants = penalty if kind in tryage.FLEXIBLE else 0.0
        by = _among(kind, who)
        chosen = tryage.choose(by, _hidden(kind), wants * cost).choice.long()
    count = torch.bincount(chosen, minlength=len(who))
    return Point(
        losses.gather(1, chosen[:, None]).double().mean().item(),
        known.sizes[who][chosen].double().mean().item(),
        (100 * count.double() / len(chosen)).tolist(),
    )


def _among(kind: str, who: list[int]) -> Router:
    """The router without the rows of experts that are not in the library."""
    whole = recorded(kind)
    return whole._replace(head=whole.head[who], bias=whole.bias[who])


@cache
def _curve(kind: str, who: tuple[int, ...]) -> list[dict]:
    """The policies of all wishes; a single one where no wish is heard."""
    heard = kind in (*tryage.FLEXIBLE, ORACLE)
    wishes = WISHES if heard else WISHES[:1]
    return [policy(kind, who, wish).dot(kind) for wish in wishes]


class Picture(NamedTuple):
    """What the chapter's picture shows, as plain numbers."""

    curves: dict[str, list[dict]]  # of routers, and the best single expert
    here: Point  # the chosen policy
    free: Point  # the same router at lambda 0
    load: dict[str, float]  # share of the test prompts, in percent
    values: dict[str, float]  # of the typed prompt: what the router compares
    losses: dict[str, float]  # and its true losses
    chosen: str  # the typed prompt's expert
    best: str  # the one with the lowest true loss plus penalty
    margin: float  # the second lowest value minus the lowest


def picture(
    penalty: float = 0.0,
    kind: str = KINDS[0],
    library: str = ALL,
    prompt: str = SAMPLE,
) -> Picture:
    """Route the test prompts, and one prompt that the reader has typed."""
    who = tuple(members(library))
    names = [EXPERTS[k] for k in who]
    known = world(0)
    losses, cost = known.losses[:, [*who]], known.costs[[*who]]
    single = known.learned[:, [*who]].mean(dim=0).argmin()
    alone = Point(
        losses[:, single].double().mean().item(),
        known.sizes[[*who]][single].item(), [],
    )  # fmt: skip
    curves = {"one for all": [alone.dot(f"only {names[single]}")]}
    for name in dict.fromkeys((KINDS[0], KINDS[2], ORACLE, kind)):
        curves[name] = _curve(name, who)

    ids = encode(prompt)[None]
    true = ngrams.losses([_models()[k] for k in who], ids)
    if kind == ORACLE:
        values = true + penalty * cost
    else:
        wants = penalty if kind in tryage.FLEXIBLE else 0.0
        by = _among(kind, [*who])
        values = by.values(loss_routers.features(ids)) + wants * cost
    first, second = values[0].sort(stable=True).values[:2].tolist()
    return Picture(
        curves=curves,
        here=(here := policy(kind, who, penalty)),
        free=policy(kind, who, 0.0),
        load=dict(zip(names, here.load, strict=True)),
        values=dict(zip(names, values[0].tolist(), strict=True)),
        losses=dict(zip(names, true[0].tolist(), strict=True)),
        chosen=names[values[0].tolist().index(first)],
        best=names[(true + penalty * cost)[0].argmin()],
        margin=second - first,
    )
