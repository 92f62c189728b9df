"""The search for a pipeline: how to cut a batch, and who gets what share.

GPUs do not sell shares. The paper measures pairs of kernels instead: if a
GEMM beside attention keeps 1 - R of its speed, then attention is said to have
the share R, and reaches P of the speed that it has alone. Table 3, and a
sentence of section 4.1.4 (attention with R = 0.4 reaches 0.8):

    R           0   0.1  0.2  0.4  0.8   0.9   1
    attention   0   0.2  0.3  0.8  0.85  0.95  1
    network     0   0.3  0.5       0.9   1     1

Between these, straight lines are ours. The paper's search has two stages, each
an integer program: structure without interference, then shares. Here a grid is
small enough to try everything, in one stage or in two. All operations of a
kind have one share; the paper gives each its own.
"""

from collections.abc import Iterable
from functools import cache
from itertools import combinations, product
from typing import NamedTuple

import numpy as np
import torch

from lab.kernels.nano_sim import COMPUTE, STREAM, nano_sim
from lab.kernels.runtime import device
from lab.serving.layer_times import Workload, alone

SHARES = (0.0, 0.1, 0.2, 0.4, 0.8, 0.9, 1.0)
ATTENTION = (0.0, 0.2, 0.3, 0.8, 0.85, 0.95, 1.0)
NETWORK = (0.0, 0.3, 0.5, 0.5 + 0.4 / 3, 0.9, 1.0, 1.0)
SPREAD = 0.05  # of the table's entries, by the paper; of durations, by us
GEMMS = [k for k, stream in enumerate(STREAM) if stream == COMPUTE]
GRAIN = 128  # tokens; every cut is a multiple, as in the paper
# layers that are simulated; the first ones fill the pipeline and the last one
# drains it, so neither belongs to the steady state
SIMULATED, FILLED, STEADY = 12, 4, 7
# in tenths: attention up to 0.7, network up to 0.5, and a GEMM has the rest
PAIRS = tuple(
    (a / 10, n / 10)
    for a, n in product(range(1, 8), range(1, 6))
    if a + n < 10
)


class Machine(NamedTuple):
    """What a profile of one machine says."""

    slowness: tuple[float, ...] = 8 * (1.0,)  # of each operation
    attention: tuple[float, ...] = ATTENTION  # P at `SHARES`
    network: tuple[float, ...] = NETWORK


class Plan(NamedTuple):
    """A pipeline, and the seconds that a layer takes in it."""

    seconds: float
    split: tuple[int, ...]  # tokens of each nano-batch
    shares: tuple[float, float]  # R of attention and network
    behind: int  # who goes first: see `nano_sim`


@cache
def machine(seed: int | None = None) -> Machine:
    """The paper's means, or a machine that differs from them at random."""
    if seed is None:
        return Machine()
    generator = torch.Generator().manual_seed(seed)

    def factors(n: int) -> list[float]:
        drawn = torch.randn(n, generator=generator, dtype=torch.float64)
        return (1 + SPREAD * drawn).tolist()

    def table(speeds) -> tuple[float, ...]:
        pairs = zip(speeds, factors(len(speeds)), strict=True)
        noisy = torch.tensor([p * f for p, f in pairs], dtype=torch.float64)
        # a larger share is never slower, and nothing is faster than alone
        return tuple(noisy.cummax(0).values.clamp(max=1.0).tolist())

    return Machine(tuple(factors(8)), table(ATTENTION), table(NETWORK))


def speed(table: tuple[float, ...], share: float) -> float:
    """P of a share R: straight lines between the table's entries."""
    return float(np.interp(share, SHARES, table))


@cache
def durations(
    of: Machine, workload: Workload, split: tuple[int, ...]
) -> list[list[float]]:
    """Seconds of the eight operations of every nano-batch, alone."""
    return [
        [s * t for s, t in zip(of.slowness, alone(b, workload), strict=True)]
        for b in split
    ]


def nanoseconds(
    of: Machine, workload: Workload, split: tuple, slower: float = 1.0
) -> list[list[int]]:
    """The same in whole nanoseconds, with GEMMs slower by a factor."""
    return [
        [round(1e9 * (t * slower if k in GEMMS else t))
         for k, t in enumerate(row)]
        for row in durations(of, workload, split)
    ]  # fmt: skip


def one_by_one(of: Machine, workload: Workload, split: tuple) -> float:
    """Seconds of a layer if nothing overlaps."""
    return sum(map(sum, durations(of, workload, split)))


def splits(tokens: int, parts: int = 2, grain: int = GRAIN) -> list[tuple]:
    """All cuts of a batch into ``parts`` multiples of ``grain``."""
    whole = tokens // grain
    return [
        tuple(grain * (b - a) for a, b in zip((0, *cut), (*cut, whole),
                                              strict=True))
        for cut in combinations(range(1, whole), parts - 1)
    ]  # fmt: skip


def columns(of: Machine, shares: tuple[float, float] | None) -> list[int]:
    """What `nano_sim` takes: R and P in thousandths; None: no interference."""
    if shares is None:
        return [0, 1000, 0, 1000]
    found = []
    for share, table in zip(shares, (of.attention, of.network), strict=True):
        found += [round(1000 * share), round(1000 * speed(table, share))]
    return found


def measure(
    of: Machine,
    workload: Workload,
    plans: list[tuple],
    slower=None,
) -> list[float]:
    """Seconds that a layer takes in the steady state, for every plan.

    A plan is a split, shares and who goes first. All splits have the same
    number of parts. ``slower(split)`` is a factor on its GEMMs.
    """
    made = {
        split: nanoseconds(of, workload, split, slower(split) if slower else 1)
        for split in {split for split, *_ in plans}
    }
    where = {"dtype": torch.int32, "device": device()}
    finish = nano_sim(
        torch.tensor([made[split] for split, *_ in plans], **where),
        torch.tensor([columns(of, shares) for _, shares, _ in plans], **where),
        torch.tensor([behind for *_, behind in plans], **where),
        SIMULATED,
    )
    steady = finish[:, FILLED + STEADY - 1] - finish[:, FILLED - 1]
    return (steady.double() / STEADY / 1e9).tolist()


def search(
    of: Machine,
    workload: Workload,
    cuts: Iterable[tuple],
    pairs: Iterable = PAIRS,
    orders: Iterable[int] = (0, 1),
    slower=None,
) -> Plan:
    """The fastest of all combinations, the first one of several."""
    plans = list(product(cuts, pairs, orders))
    seconds = measure(of, workload, plans, slower)
    best = min(range(len(plans)), key=seconds.__getitem__)
    return Plan(seconds[best], *plans[best])


def two_stages(of: Machine, workload: Workload, cuts: Iterable) -> Plan:
    """First the structure, as if nothing interfered; then the shares."""
    structure = search(of, workload, cuts, [None])
    return search(of, workload, [structure.split], orders=[structure.behind])
