"""The rivals of the splitting rule: chance, greed and ideal spraying.

    ECMP       every flow, or each of its pieces, on a random spine
    greedy     whole flows in random order, each on the least full spine
    spraying   1 / S of every flow on every spine, packet by packet

ECMP is a lottery, and `lottery` draws it many times in one kernel call.
"""

import numpy as np
import torch
from torch import Tensor

from lab.kernels.linkload import linkload
from lab.networks.leaf_spine import Fabric, Flows, Subflows, collective, ends
from lab.networks.uplinks import least_used

BLIND = 4  # pieces that the blind rule cuts every flow into


def ecmp(flows: Flows, fabric: Fabric, seed: int, cuts: int = 1) -> Subflows:
    """Cut every flow into ``cuts`` pieces, each on a random spine."""
    generator = torch.Generator().manual_seed(seed)
    leaf, other = ends(flows, fabric)
    flow = torch.arange(len(leaf)).repeat_interleave(cuts)
    spine = torch.randint(fabric.spines, (len(flow),), generator=generator)
    spine = spine.masked_fill((leaf == other)[flow], -1)
    return Subflows(flow, spine, flows.size[flow] / cuts)


def greedy(flows: Flows, fabric: Fabric, seed: int) -> Subflows:
    """Whole flows in random order, each to the spine that is least full.

    Least in max(up, down) at the flow's leaves; ties go to the lowest spine.
    """
    random = np.random.default_rng(seed)
    order = random.permutation(len(flows.size)).tolist()
    return least_used(flows, fabric, order)


def spray(flows: Flows, fabric: Fabric) -> Subflows:
    """Ideal spraying: 1 / S of every flow on every spine."""
    S = fabric.spines
    leaf, other = ends(flows, fabric)
    inner = leaf == other
    parts = torch.where(inner, 1, S)
    flow = torch.arange(len(leaf)).repeat_interleave(parts)
    part = torch.arange(len(flow)) - (parts.cumsum(0) - parts)[flow]
    spine = part.masked_fill(inner[flow], -1)
    return Subflows(flow, spine, (flows.size / parts)[flow])


def lottery(
    workload: str,
    fabric: Fabric,
    draws: int,
    seed: int = 0,
    device: str = "cpu",
) -> Tensor:
    """Largest link load of ECMP for each of many random hashes [draws].

    The flows stay the same; one kernel call loads ``draws`` fabrics with them.
    """
    flows = collective(workload, fabric, seed)
    leaf = [x.int().to(device) for x in ends(flows, fabric)]
    shape = (draws, len(flows.size))
    source, target = (x.expand(shape) for x in leaf)
    generator = torch.Generator(device).manual_seed(seed)
    spine = torch.randint(
        fabric.spines, shape, generator=generator, device=device
    )
    size = flows.size.float().to(device).expand(shape)
    L, S = fabric.leaves, fabric.spines
    return linkload(source, target, spine.int(), size, L, S).peak.cpu()
