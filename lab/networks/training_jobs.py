"""Training jobs on a fabric, and how fast each can synchronise.

A node has several NICs (rails). A job's nodes form a ring, and in every step
each node sends one flow per rail to the next, from its NIC of that rail to the
other's. All flows are equal and the ring runs in lockstep, so a job is as fast
as its slowest flow. 1 is the rate of a NIC.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lab.networks.leaf_spine import Fabric, Flows, Subflows, flows, paths
from lab.networks.max_min import fair_rates

NODES, RAILS = 4, 8  # nodes of a leaf, NICs of a node
# 32 nodes with 8 NICs each, and as many links up as NICs below a leaf
FABRIC = Fabric(leaves=8, hosts=NODES * RAILS, spines=NODES * RAILS)
PLACEMENTS = ("scattered", "packed")


class Jobs(NamedTuple):
    """The flows of all jobs in one step of their rings."""

    flows: Flows
    job: Tensor  # [F] int64, whose flow it is


def rings(
    placement: str,
    count: int,
    seed: int,
    fabric: Fabric = FABRIC,
    rails: int = RAILS,
) -> Jobs:
    """``count`` jobs of equal size that share all nodes of the fabric.

    "packed" takes the nodes in their order, leaf after leaf; "scattered"
    takes them in a random order, and so do their rings.
    """
    nodes = fabric.leaves * fabric.hosts // rails
    if placement not in PLACEMENTS:
        raise ValueError(
            f"placement={placement!r} is unknown; use one of"
            f" {', '.join(PLACEMENTS)}"
        )
    if not 1 <= count <= nodes // 2 or nodes % count:
        raise ValueError(
            f"{count} jobs do not share {nodes} nodes equally; use a divisor"
            f" from 1 to {nodes // 2}"
        )
    place = np.arange(nodes)
    if placement == "scattered":
        place = np.random.default_rng(seed).permutation(nodes)
    ring = place.reshape(count, -1)
    rail = np.arange(rails)
    source = ring[:, :, None] * rails + rail  # [jobs, nodes, rails]
    target = np.roll(ring, -1, axis=1)[:, :, None] * rails + rail
    job = np.arange(count).repeat(nodes // count * rails)
    sent = flows(source.ravel(), target.ravel(), np.ones(source.size))
    return Jobs(sent, torch.from_numpy(job))


def rates(plan: Subflows, sent: Flows, fabric: Fabric) -> np.ndarray:
    """Max-min fair rate of every flow [F]."""
    links, capacity = paths(plan, sent, fabric)
    return fair_rates(links, capacity, np.ones(len(plan.flow)))


def bandwidth(plan: Subflows, jobs: Jobs, fabric: Fabric) -> np.ndarray:
    """The rate of each job's slowest flow [jobs], 1 is that of a NIC."""
    slowest = np.full(int(jobs.job.max()) + 1, np.inf)
    np.minimum.at(slowest, jobs.job.numpy(), rates(plan, jobs.flows, fabric))
    return slowest
