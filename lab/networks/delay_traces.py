"""How long messages take between ranks, with one part of them too slow.

One rail of the training fabric: 32 ranks, 4 under each of 8 leaves, and 4
spines. Every rank sends to every other one, in 31 rounds; in round r rank i
sends to rank i + r (mod 32). So each round has 32 equal flows, which share
links as their paths say. The delay of a message, per byte, is

    class (1 inside a leaf, 1.5 to another) / rate of its flow
    * slowdown of the faulty part * exp(jitter * normal)

A path is kept for the whole job, by ECMP as well as by plan. So what two flows
take from each other is the same in all samples, and no median removes it.
"""

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from lab.networks.leaf_spine import Fabric, flows
from lab.networks.spraying_rivals import ecmp
from lab.networks.training_jobs import FABRIC, NODES, rates
from lab.networks.uplinks import exact

RAIL = Fabric(leaves=FABRIC.leaves, hosts=NODES, spines=NODES)
RANKS = RAIL.leaves * RAIL.hosts
FAR = 1.5  # delay of a message to another leaf, 1 inside a leaf
PATHS = ("planned", "hashed")
KINDS = ("none", "sends", "receives", "link")


class Fault(NamedTuple):
    """What is slow: nothing, all that a rank sends or receives, or a link."""

    kind: str  # one of KINDS
    rank: int = -1
    peer: int = -1  # the receiver, if the link from rank to peer is slow


def leaves(ranks: int = RANKS) -> Tensor:
    """The leaf of every rank [N] int32, the groups of `delay_stats`."""
    return torch.arange(ranks, dtype=torch.int32) // RAIL.hosts


def undisturbed(paths: str, seed: int) -> Tensor:
    """Delays [N, N] float64 without fault and jitter, NaN on the diagonal."""
    # the plan has no chance in it
    return _undisturbed(paths, seed if paths == "hashed" else 0)


@lru_cache(maxsize=64)
def _undisturbed(paths: str, seed: int) -> Tensor:
    if paths not in PATHS:
        raise ValueError(
            f"paths={paths!r} are unknown; use one of {', '.join(PATHS)}"
        )
    delay = torch.full((RANKS, RANKS), float("nan"), dtype=torch.float64)
    leaf = leaves()
    for r in range(1, RANKS):
        source = torch.arange(RANKS)
        target = (source + r) % RANKS
        sent = flows(source, target, torch.ones(RANKS))
        if paths == "hashed":
            # another hash for every pair, because ports differ
            plan = ecmp(sent, RAIL, RANKS * seed + r)
        else:
            plan = exact(sent, RAIL)
        usual = torch.where(leaf[source] == leaf[target], 1.0, FAR)
        rate = torch.from_numpy(rates(plan, sent, RAIL))
        delay[source, target] = usual / rate
    return delay


def window(
    fault: Fault,
    samples: int,
    slowdown: float,
    seed: int,
    paths: str = "planned",
    jitter: float = 0.15,
    part: int = -1,
) -> Tensor:
    """Delays of one window [T, N, N] float32 with one faulty part.

    ``seed`` decides the paths, and with ``part`` the jitter: windows of the
    same seed with different parts follow one another on the same paths.
    """
    if fault.kind not in KINDS:
        raise ValueError(
            f"kind={fault.kind!r} is unknown; use one of {', '.join(KINDS)}"
        )
    # -1 is the window before the first
    generator = torch.Generator().manual_seed(1000 * seed + part + 1)
    base = undisturbed(paths, seed).clone()
    rank, peer = fault.rank, fault.peer
    if fault.kind == "sends":
        base[rank] *= slowdown
    elif fault.kind == "receives":
        base[:, rank] *= slowdown
    elif fault.kind == "link":
        base[rank, peer] *= slowdown
    noise = torch.randn((samples, *base.shape), generator=generator)
    return (base * (jitter * noise).exp()).float()


def faults(seed: int) -> list[Fault]:
    """One fault of each kind, on random ranks."""
    generator = torch.Generator().manual_seed(seed)
    rank, peer = torch.randperm(RANKS, generator=generator)[:2].tolist()
    return [
        Fault("none"),
        Fault("sends", rank),
        Fault("receives", rank),
        Fault("link", rank, peer),
    ]
