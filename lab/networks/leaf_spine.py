"""A leaf-spine fabric and the flows that collectives send through it.

Hosts hang on leaves, and every leaf has one link up to every spine and one
link down from it. A path between two leaves is fixed by its spine; a flow
inside a leaf meets no spine. Host h hangs on leaf h // hosts. All links and
NICs carry one unit of data in one unit of time, unless `Fabric.capacity` says
otherwise.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lab.kernels.linkload import LinkLoad, linkload


class Fabric(NamedTuple):
    """How many switches and hosts there are."""

    leaves: int = 8
    hosts: int = 8  # per leaf
    spines: int = 8
    capacity: float = 1.0  # of a link between leaf and spine


class Flows(NamedTuple):
    """The flows of one collective step, which all start together."""

    source: Tensor  # [F] int64, host
    target: Tensor  # [F] int64, another host
    size: Tensor  # [F] float64


class Subflows(NamedTuple):
    """The pieces that flows were cut into, and the path of each."""

    flow: Tensor  # [G] int64, the flow it is a piece of
    spine: Tensor  # [G] int64, -1 inside a leaf
    size: Tensor  # [G] float64


def collective(
    workload: str, fabric: Fabric, seed: int = 0, spread: float = 0.0
) -> Flows:
    """The flows of one step of ``workload``, one of `WORKLOADS`.

    Sizes are 1, or log-normal with median 1 and deviation ``spread`` of the
    logarithm. Placements and sizes follow from ``seed``.
    """
    if workload not in WORKLOADS:
        raise ValueError(
            f"workload={workload!r} is unknown; use one of"
            f" {', '.join(WORKLOADS)}"
        )
    if min(fabric.leaves, fabric.hosts, fabric.spines) < 1:
        raise ValueError(
            f"{fabric} has nothing to route over; use at least one leaf,"
            " host and spine"
        )
    random = np.random.default_rng([seed, list(WORKLOADS).index(workload)])
    pairs = WORKLOADS[workload](fabric.leaves * fabric.hosts, random)
    source, target = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    size = np.exp(spread * random.standard_normal(len(source)))
    return flows(source, target, size)


def flows(source, target, size) -> Flows:
    """`Flows` from three sequences; refuses what no fabric can carry."""
    source, target = (torch.as_tensor(x).long() for x in (source, target))
    size = torch.as_tensor(size, dtype=torch.float64)
    if (source == target).any():
        host = int(source[source == target][0])
        raise ValueError(
            f"host {host} sends to itself; leave such flows out, because they"
            " meet no link"
        )
    if not size.isfinite().all() or (size < 0).any():
        raise ValueError(
            "some flow sizes are negative, infinite or NaN; use finite sizes"
            " of 0 or more"
        )
    return Flows(source, target, size)


def _all_to_all(hosts, random):
    return [(a, b) for a in range(hosts) for b in range(hosts) if a != b]


def _ring(hosts, random):
    return [(a, (a + 1) % hosts) for a in range(hosts) if hosts > 1]


def _shuffled_ring(hosts, random):
    place = random.permutation(hosts)
    return [(place[a], place[b]) for a, b in _ring(hosts, random)]


def _permutation(hosts, random):
    return [(a, b) for a, b in enumerate(random.permutation(hosts)) if a != b]


def _groups(hosts, random, size=8):
    place = random.permutation(hosts)
    groups = [place[i : i + size] for i in range(0, hosts, size)]
    return [(a, b) for group in groups for a in group for b in group if a != b]


WORKLOADS = {
    "all-to-all": _all_to_all,
    "ring": _ring,
    "shuffled ring": _shuffled_ring,
    "permutation": _permutation,
    "expert groups": _groups,  # all-to-all in random groups of 8 hosts
}


def ends(flows: Flows, fabric: Fabric) -> tuple[Tensor, Tensor]:
    """Source and target leaf of every flow."""
    hosts = fabric.leaves * fabric.hosts
    for host in (flows.source, flows.target):
        if len(host) and not 0 <= int(host.min()) <= int(host.max()) < hosts:
            raise ValueError(
                f"hosts run from {int(host.min())} to {int(host.max())};"
                f" use 0 to {hosts - 1} in this fabric"
            )
    return flows.source // fabric.hosts, flows.target // fabric.hosts


def loads(subflows: list[Subflows], flows: Flows, fabric: Fabric) -> LinkLoad:
    """Link loads of several assignments of the same flows, all at once."""
    B, G = len(subflows), max((len(s.flow) for s in subflows), default=0)
    leaf = [leaf.int() for leaf in ends(flows, fabric)]
    source, target = (torch.zeros(B, G, dtype=torch.int32) for _ in range(2))
    spine = torch.full((B, G), -1, dtype=torch.int32)
    size = torch.zeros(B, G, dtype=torch.float64)
    for b, (flow, path, piece) in enumerate(subflows):
        source[b, : len(flow)] = leaf[0][flow]
        target[b, : len(flow)] = leaf[1][flow]
        spine[b, : len(flow)], size[b, : len(flow)] = path.int(), piece
    return linkload(source, target, spine, size, fabric.leaves, fabric.spines)


def ideal_congestion(flows: Flows, fabric: Fabric) -> float:
    """The largest link load of ideal spraying, which no routing can beat.

    A leaf has S links up and S down, so what leaves or enters it is shared
    by S at best: C* = max over leaves of max(out, in) / S.
    """
    source, target = ends(flows, fabric)
    size = flows.size.where(source != target, 0.0)
    empty = torch.zeros(fabric.leaves, dtype=torch.float64)
    out, into = (empty.index_add(0, leaf, size) for leaf in (source, target))
    return float(torch.maximum(out, into).max()) / fabric.spines


def paths(
    subflows: Subflows, flows: Flows, fabric: Fabric
) -> tuple[np.ndarray, np.ndarray]:
    """The four links of every subflow [4, G], and their capacities [M].

    The links are NIC out, NIC in, up and down; inside a leaf the last two are
    a link of infinite capacity. `max_min` works on these arrays.
    """
    L, S, hosts = fabric.leaves, fabric.spines, fabric.leaves * fabric.hosts
    leaf, other = (x[subflows.flow] for x in ends(flows, fabric))
    source, target = flows.source[subflows.flow], flows.target[subflows.flow]
    up, down = 2 * hosts + leaf * S, 2 * hosts + (L + other) * S
    nowhere = 2 * (hosts + L * S)
    inner = subflows.spine < 0
    links = torch.stack(
        [
            source,
            hosts + target,
            (up + subflows.spine).masked_fill(inner, nowhere),
            (down + subflows.spine).masked_fill(inner, nowhere),
        ],
        dim=0,
    )
    nics, core = np.ones(2 * hosts), np.full(2 * L * S, fabric.capacity)
    return links.numpy(), np.concatenate([nics, core, [np.inf]])
