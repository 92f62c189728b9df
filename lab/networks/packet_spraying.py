"""Packet spraying, and how to do without it (chapter 39).

Addanki, Goyal, Marinos, "Challenging the Need for Packet Spraying in
Large-Scale Distributed Training", arXiv 2407.00550 (version 1, 2024; version
2, with Schmid, calls the algorithm Ethereal). The flows of a collective start
together and are of equal size. Then pinning each flow to one spine, and
cutting only the few that are left over, loads every link exactly as ideal
spraying does. Per group of N flows with the same two leaves and S spines:

    q = floor(N / S), r = N - q S      the first q S flows stay whole
    g = gcd(r, S)                      each of the r others: S / g equal parts
    per spine: q z + (r / g) (z g / S) = N z / S,   as with spraying
    max congestion: C* = max over leaves of max(out, in) / S

All r S / g parts go round the spines, r / g on each. Fewer equal parts cannot
be shared out equally. Overhead: r (S / g - 1) subflows a group.

The papers' abstracts state the result; the rule above is derived from it and
proved here, its wording unverified (no code was released). "leaf" groups by
the two leaves, so the hosts of a leaf share counters; "nic" groups by source
host and target leaf, so that every NIC decides alone. Time is fluid: no
packets, no reordering, no loss. Data that does not divide into equal bytes
would go to the last part; here sizes are real numbers.
"""

import math
from functools import cache, partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lab.claims import Claim
from lab.exercises import Exercise
from lab.networks import max_min
from lab.networks.leaf_spine import (
    Fabric,
    Flows,
    Subflows,
    collective,
    ends,
    ideal_congestion,
    loads,
    paths,
)

BLIND = 4  # pieces that the blind rule cuts every flow into
FAIRNESS = ("per subflow", "by size")


def pieces(count: int, spines: int) -> int:
    """Subflows that ``count`` equal flows between two leaves become."""
    r = count % spines
    return count - r + r * spines // math.gcd(r, spines)


def split(flows: Flows, fabric: Fabric, group: str = "leaf") -> Subflows:
    """Pin flows to spines and cut the left-over ones, group by group.

    ``group`` is "leaf" or "nic". The flows of a group count as equal,
    whatever their sizes; those with the lowest index stay whole.
    """
    if group not in ("leaf", "nic"):
        raise ValueError(f'group={group!r} is not "leaf" or "nic"')
    S = fabric.spines
    leaf, other = ends(flows, fabric)
    near = leaf if group == "leaf" else flows.source
    rank, count = _rank(near * fabric.leaves + other)
    r = count % S
    whole = rank < count - r
    # flows inside a leaf meet no spine, and S / gcd(0, S) is 1
    inner = leaf == other
    parts = torch.where(whole | inner, 1, S // torch.gcd(r, torch.tensor(S)))
    flow = torch.arange(len(rank)).repeat_interleave(parts)
    part = torch.arange(len(flow)) - (parts.cumsum(0) - parts)[flow]
    # whole flows take spine after spine, and so do the parts of the others
    turn = torch.where(whole, rank, (rank - count + r) * parts)[flow] + part
    spine = (turn % S).masked_fill(inner[flow], -1)
    return Subflows(flow, spine, (flows.size / parts)[flow])


def _rank(group: Tensor) -> tuple[Tensor, Tensor]:
    """Place of each flow among those of its group, and the group's size."""
    order = group.argsort(stable=True)
    _, member, size = group.unique(return_inverse=True, return_counts=True)
    first = size.cumsum(0) - size
    rank = torch.empty_like(group)
    rank[order] = torch.arange(len(group)) - first[member[order]]
    return rank, size[member]


def ecmp(flows: Flows, fabric: Fabric, seed: int, cuts: int = 1) -> Subflows:
    """Cut every flow into ``cuts`` pieces, each on a random spine."""
    generator = torch.Generator().manual_seed(seed)
    leaf, other = ends(flows, fabric)
    flow = torch.arange(len(leaf)).repeat_interleave(cuts)
    spine = torch.randint(fabric.spines, (len(flow),), generator=generator)
    spine = spine.masked_fill((leaf == other)[flow], -1)
    return Subflows(flow, spine, flows.size[flow] / cuts)


def greedy(flows: Flows, fabric: Fabric, seed: int) -> Subflows:
    """Whole flows in random order, each to the spine that it fills least.

    Least is max(up, down) at its two leaves; ties go to the lowest spine.
    """
    leaf, other = (x.tolist() for x in ends(flows, fabric))
    S, size = fabric.spines, flows.size.tolist()
    up, down = ([[0.0] * S for _ in range(fabric.leaves)] for _ in range(2))
    spine = torch.full((len(size),), -1)
    random = np.random.default_rng(seed)
    for f in random.permutation(len(size)).tolist():
        if leaf[f] == other[f]:
            continue
        rises, falls = up[leaf[f]], down[other[f]]
        fill = [max(u, d) for u, d in zip(rises, falls, strict=True)]
        k = fill.index(min(fill))
        rises[k] += size[f]
        falls[k] += size[f]
        spine[f] = k
    return Subflows(torch.arange(len(size)), spine, flows.size)


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


RULES = {
    "ECMP": ecmp,
    f"blind {BLIND}": partial(ecmp, cuts=BLIND),
    "greedy": greedy,
    "leaf rule": lambda flows, fabric, seed: split(flows, fabric, "leaf"),
    "NIC rule": lambda flows, fabric, seed: split(flows, fabric, "nic"),
    "spraying": lambda flows, fabric, seed: spray(flows, fabric),
}


def assign(rule: str, flows: Flows, fabric: Fabric, seed: int) -> Subflows:
    """Cut and place the flows by one of `RULES`; chance needs the seed."""
    if rule not in RULES:
        raise ValueError(
            f"rule={rule!r} is unknown; use one of {', '.join(RULES)}"
        )
    return RULES[rule](flows, fabric, seed)


def transfer(
    rule: str, subflows: Subflows, flows: Flows, fabric: Fabric, fairness: str
) -> max_min.Fluid:
    """When all subflows have arrived, at max-min fair rates.

    "per subflow" gives every subflow an equal share, "by size" one in
    proportion to its size. A sprayed flow stays one connection, over all
    spines as one fat link: by symmetry its pieces share one rate.
    """
    if fairness not in FAIRNESS:
        raise ValueError(
            f"fairness={fairness!r} is not one of {', '.join(FAIRNESS)}"
        )
    if rule == "spraying":
        fabric = fabric._replace(spines=1, capacity=float(fabric.spines))
        subflows = ecmp(flows, fabric, seed=0)
    links, capacity = paths(subflows, flows, fabric)
    size = subflows.size.numpy()
    weight = size if fairness == "by size" else np.ones_like(size)
    return max_min.drain(links, capacity, size, weight)


def least_time(flows: Flows, fabric: Fabric) -> float:
    """No routing ends sooner: the fullest NIC, or C*."""
    nics = fabric.leaves * fabric.hosts
    empty = torch.zeros(nics, dtype=torch.float64)
    out = empty.index_add(0, flows.source, flows.size)
    into = empty.index_add(0, flows.target, flows.size)
    busiest = float(torch.maximum(out, into).max())
    return max(busiest, ideal_congestion(flows, fabric) / fabric.capacity)
