"""When a collective has arrived, by rule and by how its subflows share links.

Data flow like a fluid: no packets, no reordering, no loss.
"""

import numpy as np
import torch

from lab.networks import max_min
from lab.networks.leaf_spine import (
    Fabric,
    Flows,
    Subflows,
    ideal_congestion,
    paths,
)
from lab.networks.spraying_rivals import ecmp

FAIRNESS = ("per subflow", "by size")


def transfer(
    rule: str,
    subflows: Subflows,
    flows: Flows,
    fabric: Fabric,
    fairness: str,
    pause: float = 0.0,
) -> max_min.Fluid:
    """When all subflows have arrived, at max-min fair rates.

    "per subflow" gives every subflow an equal share, "by size" a share in
    proportion to its size. A sprayed flow stays one connection, over all
    spines as one fat link: by symmetry its pieces have the same rate.
    ``pause`` trades exactness for running time, see `max_min.drain`.
    """
    if fairness not in FAIRNESS:
        raise ValueError(
            f"fairness={fairness!r} is not one of {', '.join(FAIRNESS)}"
        )
    if rule == "spraying":
        fat = fabric.spines * fabric.capacity
        fabric = fabric._replace(spines=1, capacity=fat)
        subflows = ecmp(flows, fabric, seed=0)
    links, capacity = paths(subflows, flows, fabric)
    size = subflows.size.numpy()
    weight = size if fairness == "by size" else np.ones_like(size)
    return max_min.drain(links, capacity, size, weight, pause)


def least_time(flows: Flows, fabric: Fabric) -> float:
    """The time of the fullest NIC, or C*: no routing ends sooner."""
    nics = fabric.leaves * fabric.hosts
    empty = torch.zeros(nics, dtype=torch.float64)
    out = empty.index_add(0, flows.source, flows.size)
    into = empty.index_add(0, flows.target, flows.size)
    busiest = float(torch.maximum(out, into).max())
    return max(busiest, ideal_congestion(flows, fabric) / fabric.capacity)
