"""Experts by size, and the remembered prompts that are nearest to a new one.

Nine open language models and 4997 prompts with recorded scores. An expert's
size decides what fits into memory; the neighbours decide where a prompt goes.
"""

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from lab.data import read_json
from lab.kernels.knn_vote import MOST_NEIGHBOURS, knn_vote
from lab.kernels.runtime import device
from lab.models import recorded, strategies


class Pool(NamedTuple):
    """The experts, from the smallest to the largest, and the prompts."""

    names: tuple[str, ...]  # M
    sizes: Tensor  # [M] float64, billions of parameters
    scores: Tensor  # [N, M] float64
    embeddings: Tensor  # [N, 384], unit rows
    category: Tensor  # [N] int32
    categories: tuple[str, ...]

    @property
    def all(self) -> float:
        """The budget that holds every expert."""
        return self.sizes.sum().item()


@cache
def pool() -> Pool:
    """Nine open models of 7 to 70 billion parameters on 4997 prompts."""
    known = recorded.load("nine")
    listed = read_json(f"{recorded.FOLDER}/llm_routing_9models.json")
    sizes = torch.tensor([m["params_b"] for m in listed]).double()
    # so that ties between experts go to a smallest one
    order = sizes.argsort(stable=True)
    return Pool(
        tuple(known.models[m] for m in order),
        sizes[order],
        known.scores[:, order],
        known.embeddings,
        known.group.int(),
        known.groups,
    )


class Setting(NamedTuple):
    """Which prompts are remembered, and which are to be routed."""

    memory: Tensor  # [R]
    new: Tensor  # [N]
    neighbours: Tensor  # [N, k] places in the memory, the nearest first

    def near(self, values: Tensor, k: int) -> Tensor:
        """The values of the k nearest remembered prompts, [N, k, ...]."""
        return values[self.memory][self.neighbours[:, :k].long()]


def setting(seed: int, hidden: str = "", tuning: bool = False) -> Setting:
    """The split of one seed, 3498 prompts to learn from and 1499 to test.

    A ``hidden`` category is not remembered, and only its prompts are tested.
    ``tuning`` splits the 3498 again, and holds back a fifth.
    """
    # the cache would take a default for another call than the same value
    return _setting(seed, hidden, tuning)


@cache
def _setting(seed, hidden, tuning):
    known = pool()
    memory, new = strategies.split("nine", True, seed)
    if tuning:
        cut = len(memory) - len(memory) // 5
        memory, new = memory[:cut], memory[cut:]
    if hidden:
        place = known.categories.index(hidden)
        memory = memory[known.category[memory] != place]
        new = new[known.category[new] == place]
    rows = known.embeddings.to(device())
    found = knn_vote(
        rows[new.to(device())], rows[memory.to(device())],
        known.category[memory].to(device()), MOST_NEIGHBOURS,
        len(known.categories),
    )  # fmt: skip
    return Setting(memory, new, found.neighbours.cpu())
