"""Requests to a composition of experts: who is asked for, and in which order.

Two kinds of independent requests. Made ones follow Zipf's law: of K experts,
the r-th most popular gets a share of r^-s, and s = 0 has no favourites. Real
ones are the 4997 prompts of chapter 30: K prompts drawn at random each stand
for an expert, and a prompt goes to the one whose sentence vector is most
similar. The prompts come in a random order, because the data list them by
benchmark.

Experts are numbered by popularity, the most popular one first.
"""

from functools import cache

import torch
from torch import Tensor

from lab.models.expert_pool import pool

PROMPTS = "prompts"  # the real ones
SKEWS = tuple(f"{0.2 * i:.1f}" for i in range(9))  # s of Zipf's law
TRAFFIC = (*SKEWS, PROMPTS)
REQUESTS = 4000
MOST_EXPERTS = 1000


def shares(traffic: str, experts: int, seed: int = 0) -> Tensor:
    """The share of the requests that each expert gets [K] float64."""
    _check(traffic, experts)
    if traffic == PROMPTS:
        counts = torch.bincount(_by_likeness(experts, seed), minlength=experts)
        found = counts.sort(descending=True).values.double()
    else:
        ranks = torch.arange(1, experts + 1, dtype=torch.float64)
        found = ranks ** -float(traffic)
    return found / found.sum()


@cache
def requests(
    traffic: str, experts: int, seed: int = 0, number: int = REQUESTS
) -> tuple[int, ...]:
    """The experts that are asked for, one after the other."""
    _check(traffic, experts)
    generator = torch.Generator().manual_seed(seed)
    if traffic == PROMPTS:
        which = _by_likeness(experts, seed)
        counts = torch.bincount(which, minlength=experts)
        # the place of each expert among all, by popularity
        rank = counts.argsort(descending=True, stable=True).argsort()
        # the prompts that stand for an expert are the first; they come last
        order = torch.randperm(len(which), generator=generator).roll(-experts)
        return tuple(rank[which[order[:number]]].tolist())
    share = shares(traffic, experts)
    drawn = torch.multinomial(share, number, True, generator=generator)
    return tuple(drawn.tolist())


@cache
def _by_likeness(experts: int, seed: int) -> Tensor:
    """The expert of each prompt: the most similar of K prompts drawn."""
    rows = pool().embeddings
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randperm(len(rows), generator=generator)[:experts]
    return (rows @ rows[drawn].T).argmax(dim=1)


def _check(traffic, experts):
    if traffic not in TRAFFIC:
        raise ValueError(
            f"traffic={traffic!r} is not one of {', '.join(TRAFFIC)}"
        )
    if not 1 <= experts <= MOST_EXPERTS:
        raise ValueError(
            f"experts={experts} is not within 1 to {MOST_EXPERTS}"
        )
