"""Eleven experts, what each of them loses on each prompt, and its routers.

Of all texts, a random half trains the experts, a quarter the router, and a
quarter tests both. So no expert has met a prompt on which it is measured.
"""

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from lab.models import loss_routers, ngrams, snippets
from lab.models.loss_routers import Router
from lab.models.ngrams import NGram

EXPERTS = (*snippets.DOMAINS, *ngrams.ORDERS)
CARD = 5  # sample prompts on a model card


class Parts(NamedTuple):
    """Which texts do what; each is an index into `snippets.load()`."""

    experts: Tensor  # [half]
    router: Tensor  # [quarter]
    test: Tensor  # [quarter]


class World(NamedTuple):
    """The library of one seed, and every loss that is needed."""

    sizes: Tensor  # [K] int64, counts that are not 0
    learned: Tensor  # [n, K] float32, losses of the router's prompts
    losses: Tensor  # [N, K] float32, losses of the test prompts

    @property
    def costs(self) -> Tensor:
        """The sizes [K] float32, the largest being 1."""
        return (self.sizes / self.sizes.max()).float()


def parts(seed: int) -> Parts:
    """A random half, quarter and quarter of all texts."""
    count = len(snippets.load().ids)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(count, generator=generator)
    half, rest = count // 2, count * 3 // 4
    return Parts(order[:half], order[half:rest], order[rest:])


def library(seed: int) -> list[NGram]:
    """The eleven `EXPERTS`, trained on the experts' half."""
    texts, mine = snippets.load(), parts(seed).experts
    ids, domain = texts.ids[mine], texts.domain[mine]
    special = [
        ngrams.train(ids[domain == place])
        for place in range(len(snippets.DOMAINS))
    ]
    return special + [ngrams.train(ids, n) for n in ngrams.ORDERS.values()]


@cache
def world(seed: int) -> World:
    """Train the library, and measure it on all other prompts."""
    models, prompts = library(seed), snippets.load().prompts
    mine = parts(seed)
    return World(
        torch.tensor([model.size for model in models]),
        ngrams.losses(models, prompts[mine.router]),
        ngrams.losses(models, prompts[mine.test]),
    )


@cache
def router(seed: int, kind: str, card: int = CARD) -> Router:
    """A router of one of `loss_routers.KINDS`.

    ``card`` is the number of prompts on a model card, 0 for all that trained
    the expert.
    """
    mine, prompts = parts(seed), snippets.load().prompts
    if kind == "model card":
        domain = snippets.load().domain[mine.experts]
        known = [
            mine.experts[domain == d] for d in range(len(snippets.DOMAINS))
        ]
        known += [mine.experts] * len(ngrams.ORDERS)
        return loss_routers.from_cards(
            [loss_routers.features(prompts[r[: card or None]]) for r in known]
        )
    read = loss_routers.features(prompts[mine.router])
    return loss_routers.train(kind, read, world(seed).learned, seed)
