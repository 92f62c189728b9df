"""Supply chains as graphs: who builds directly on whom, real or by chance.

An edge i -> j says that i builds on j, so suppliers lie **upstream** of i, and
i is one of the **dependents** of j.
"""

import csv
import importlib.metadata
import random
import re
from collections.abc import Iterable, Mapping
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from lab.data import read_text
from lab.kernels.runtime import device

RECORDED = "pypi_supply_chain/packages.csv"
LEVELS = ("packages", "owners")
CHANCE = ("in any order", "by depth")


class Chain(NamedTuple):
    """Actors and their lists of suppliers, as `lab.kernels.reach_bits` takes
    them."""

    names: tuple[str, ...]  # V, ascending
    owners: tuple[str, ...]  # V
    rowptr: Tensor  # [V + 1] int64
    col: Tensor  # [E] int32

    @property
    def size(self) -> int:
        return len(self.names)

    @property
    def lists(self) -> list[list[int]]:
        """The suppliers of each actor."""
        ends, col = self.rowptr.tolist(), self.col.tolist()
        return [col[a:b] for a, b in zip(ends, ends[1:], strict=False)]

    @property
    def matrix(self) -> Tensor:
        """A [V, V] bool: whether i builds directly on j."""
        direct = torch.zeros(self.size, self.size, dtype=torch.bool)
        for i, suppliers in enumerate(self.lists):
            direct[i, suppliers] = True
        return direct

    def number(self, name: str) -> int:
        """The place of this name."""
        if name not in self.names:
            raise ValueError(f"{name!r} is not an actor of this chain")
        return self.names.index(name)


def chain(
    suppliers: Mapping[str, Iterable[str]], owners: Mapping[str, str] = {}
) -> Chain:
    """The chain in which each name builds on the names of its list.

    Cycles are allowed. A name that has no list of its own, or is on its own
    list, is refused. Without an owner an actor owns itself.
    """
    names = tuple(sorted(suppliers))
    place = {name: i for i, name in enumerate(names)}
    lists = []
    for name in names:
        asked = set(suppliers[name])
        if lost := sorted(asked - place.keys()):
            raise ValueError(
                f"{name} builds on {lost[0]}, which has no list; give it an"
                " empty one"
            )
        if name in asked:
            raise ValueError(f"{name} builds on itself; leave that out")
        lists.append(sorted(place[one] for one in asked))
    owned = tuple(owners.get(name, name) for name in names)
    return from_lists(names, owned, lists)


def from_lists(names, owners, lists) -> Chain:
    """The chain of these suppliers, given by their numbers."""
    ends = torch.tensor([0, *map(len, lists)]).cumsum(0)
    col = torch.tensor([j for row in lists for j in row], dtype=torch.int32)
    return Chain(names, owners, ends.to(device()), col.to(device()))


@cache
def packages() -> Chain:
    """233 packages of an environment for AI software, and their owners."""
    rows = list(csv.DictReader(read_text(RECORDED).splitlines()))
    return chain(
        {row["package"]: row["requires"].split() for row in rows},
        {row["package"]: row["owner"] for row in rows},
    )


@cache
def owners() -> Chain:
    """The same by owner: one builds on another if any of its packages does."""
    whole = packages()
    lists = {owner: set() for owner in whole.owners}
    for i, row in enumerate(whole.lists):
        lists[whole.owners[i]] |= {whole.owners[j] for j in row}
    return chain({name: row - {name} for name, row in lists.items()})


def named(level: str) -> Chain:
    """The chain of one of the `LEVELS`."""
    if level not in LEVELS:
        raise ValueError(f"level={level!r} is not one of {', '.join(LEVELS)}")
    return packages() if level == "packages" else owners()


def installed() -> Chain:
    """The packages that are installed here, without extras."""
    found = {
        _plain(one.metadata["Name"]): one.requires or []
        for one in importlib.metadata.distributions()
        if one.metadata["Name"]
    }
    lists = {}
    for name, asked in found.items():
        wanted = {
            _plain(re.match(r"[\w.-]+", line)[0])
            for line in asked
            if "extra ==" not in line
        }
        lists[name] = wanted & found.keys() - {name}
    return chain(lists)


def _plain(name):
    """A name as PyPI compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def depths(whole: Chain) -> list[int]:
    """The longest way down to each actor, from one that nobody builds on.

    A chain with a cycle is refused.
    """
    depth = [0] * whole.size
    for _ in range(whole.size):
        before = list(depth)
        for i, row in enumerate(whole.lists):
            for j in row:
                depth[j] = max(depth[j], depth[i] + 1)
        if depth == before:
            return depth
    raise ValueError("a chain with a cycle has no depths")


def blind(whole: Chain, seed: int, how: str = CHANCE[0]) -> Chain:
    """The same chain, but every actor chooses its suppliers blindly.

    Each keeps the number of its suppliers. *In any order*, they are drawn from
    those who come later in a random order, which those without suppliers end.
    *By depth*, they are drawn from those who lie deeper in the real chain, so
    that few foundations have to serve all. Neither makes a cycle.
    """
    if how not in CHANCE:
        raise ValueError(f"how={how!r} is not one of {', '.join(CHANCE)}")
    dice, lists = random.Random(seed), whole.lists
    if how == CHANCE[0]:
        order = dice.sample(range(whole.size), whole.size)
        order.sort(key=lambda i: not lists[i])
        rank = {i: place for place, i in enumerate(order)}
    else:
        rank = depths(whole)
    drawn = []
    for i, row in enumerate(lists):
        later = [j for j in range(whole.size) if rank[j] > rank[i]]
        drawn.append(sorted(dice.sample(later, len(row))))
    return from_lists(whole.names, whole.owners, drawn)
