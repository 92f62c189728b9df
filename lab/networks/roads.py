"""Road networks: links, capacities and demand, and what drivers make of them.

Sioux Falls (LeBlanc, Morlok, Pierskalla 1975) has 24 nodes, 76 links and
360 600 trips; the numbers come from AequilibraE, see `data/sioux_falls`. It is
an invented exercise on the plan of a real town, small enough to be solved a
million times, and most of its links carry more than their capacity.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lab.data import data_path
from lab.kernels import runtime
from lab.kernels.ue_batch import Equilibrium, ue_batch

BPR = 0.15  # the share of its free time that a link loses at capacity
# where the nodes lie on the usual drawing of the network
PLACES = (
    (0, 10), (6, 10), (0, 8.6), (2, 8.6), (4, 8.6), (6, 8.6), (8, 7.2),
    (6, 7.2), (4, 7.2), (4, 5.9), (2, 5.9), (0, 5.9), (0, 0), (2, 3),
    (4, 3), (6, 5.9), (6, 4.5), (8, 5.9), (6, 3), (6, 0), (4, 0),
    (4, 1.5), (2, 1.5), (2, 0),
)  # fmt: skip


class Roads(NamedTuple):
    """A network of N nodes and E links; times in minutes."""

    links: Tensor  # [2, E] int32, the node that a link leaves and enters
    capacity: Tensor  # [E], trips
    free: Tensor  # [E], time without traffic
    rise: Tensor  # [E], what is added to it when flow = capacity
    demand: Tensor  # [N, N], trips from node to node
    power: int  # of the flow in a link's time


@lru_cache
def sioux_falls() -> Roads:
    """The network of Sioux Falls, in float64."""
    table, demand = (
        np.loadtxt(data_path(f"sioux_falls/{name}"), delimiter=",", skiprows=n)
        for name, n in (("links.csv", 1), ("demand.csv", 0))
    )
    links = torch.from_numpy(table[:, :2].T.astype(np.int32)) - 1
    capacity, free = (torch.from_numpy(table[:, i].copy()) for i in (2, 3))
    return Roads(
        links, capacity, free, BPR * free, torch.from_numpy(demand), 4
    )


def diamond(width: float, trips: float = 6.0) -> Roads:
    """Braess's four roads and a bridge in the middle.

    All trips go from node 0 to node 3. The roads 0-1 and 2-3 take 10 minutes
    for each driver on them, the others 50 and one more for each driver. The
    bridge from 1 to 2 takes 10 and 1 / ``width`` more for each.
    """
    links = [[0, 0, 1, 1, 2], [1, 2, 2, 3, 3]]
    demand = torch.zeros(4, 4, dtype=torch.float64)
    demand[0, 3] = trips
    return Roads(
        torch.tensor(links, dtype=torch.int32),
        torch.tensor([1, 1, width, 1, 1], dtype=torch.float64),
        torch.tensor([0, 50, 10, 50, 0], dtype=torch.float64),
        torch.tensor([10, 1, 1, 1, 10], dtype=torch.float64),
        demand,
        1,
    )


def times(roads: Roads, capacity: Tensor, flows: Tensor) -> Tensor:
    """Minutes on each link [B, E] for these flows [B, E]."""
    return roads.free + roads.rise * (flows / capacity) ** roads.power


def equilibrium(
    roads: Roads,
    capacity: Tensor,
    iterations: int,
    start: Tensor | None = None,
    demand: Tensor | None = None,
    exact: bool = False,
) -> Equilibrium:
    """Drivers' flows for capacities [B, E], on a GPU where there is one.

    ``exact`` computes in float64, with which the gap falls below 1e-4.
    """
    wide = torch.float64 if exact else torch.float32
    demand = roads.demand[None] if demand is None else demand
    inputs = [capacity, demand, roads.links, roads.free, roads.rise]
    inputs.append(start)
    capacity, demand, links, free, rise, start = (
        x
        if x is None
        else x.to(runtime.device(), wide if x.is_floating_point() else None)
        for x in inputs
    )
    found = ue_batch(
        capacity, demand, links, free, rise, iterations, roads.power, start
    )
    return Equilibrium(*(x.cpu() for x in found))
