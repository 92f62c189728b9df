"""Links and chains of entangled pairs, as SeQUeNCe's protocols make them.

**A link** (Barrett and Kok 2005; `generation/barret_kok.py` of 0.8.5). Two
memories send a photon each to a station half-way, in two rounds. A photon is
counted with probability

    eta = eta_memory eta_detector 10^(-0.2 (km / 2) / 10)

The first round clicks with p1 = eta - eta^2 / 4, and both rounds with
p = eta^2 / 2; then there is a pair. Each round takes three messages of tau ms
beside the fibre (ask, answer, tell the result), but no less than the 0.5 ms
after which a memory can be excited again, and the way of the light:

    T = (1 + p1) (max(3 tau, 0.5) + km / 200)

T is the lab's reading of the protocol, found with runs of the authors'
simulator at hand, but without a fitted number. Links, and chains of up to four
hops, make within a tenth as many pairs as there, see `simulated`.

**A chain** waits until all hops have a pair (`kernels.chain_mc`), and each
swap costs fidelity: F = F1 F2 0.95. `purified` is the other way round.
"""

import csv
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch

from lab.data import data_path
from lab.kernels import runtime
from lab.kernels.chain_mc import Chains, chain_mc
from lab.networks.starlight import DETECTOR, KEPT, LOSS, MEMORY, RAW

READY = 0.5  # ms between two photons of a memory: 2 kHz
LIGHT = 200.0  # km in a ms, in fibre
COHERENCE = 1300.0  # ms that a memory keeps a pair
MICRO = 1000  # `chain_mc` counts microseconds
LIMIT = 1 << 28  # of them, for a chain: 268 s


class Hop(NamedTuple):
    """A link between two neighbours."""

    p: np.ndarray  # chance that a try ends in a pair
    ms: np.ndarray  # how long a try takes on average


def counted(km, efficiency: float = MEMORY):
    """The probability that a photon is counted half-way."""
    return efficiency * DETECTOR * 10 ** (-LOSS * np.asarray(km) / 2 / 10)


def hop(km, delay, efficiency: float = MEMORY) -> Hop:
    """Links of ``km`` whose messages take ``delay`` ms."""
    eta = counted(km, efficiency)
    first = eta - eta**2 / 4
    turn = np.maximum(3 * np.asarray(delay), READY) + np.asarray(km) / LIGHT
    return Hop(eta**2 / 2, (1 + first) * turn)


def swapped(hops: int, raw: float = RAW) -> float:
    """Fidelity from end to end: F0^H 0.95^(H - 1)."""
    return raw**hops * KEPT ** (hops - 1)


def purified(fidelity: float) -> tuple[float, float]:
    """The chance that two pairs become a better one, and its fidelity."""
    if not 0.5 < fidelity <= 1:
        raise ValueError(
            f"a fidelity of {fidelity} cannot be purified; use more than 0.5,"
            " at most 1"
        )
    rest = (1 - fidelity) / 3
    chance = fidelity**2 + 2 * fidelity * rest + 5 * rest**2
    return chance, (fidelity**2 + rest**2) / chance


def run_chains(
    hops: list[Hop], trials: int, seed: int, cutoff: float = COHERENCE
) -> Chains:
    """Trials of chains of different length, in microseconds; no pair waits
    longer than ``cutoff`` ms. On a GPU where there is one."""
    longest = max(len(one.p) for one in hops)
    p = torch.ones(len(hops), longest)
    step = torch.zeros(len(hops), longest, dtype=torch.int32)
    for c, one in enumerate(hops):
        p[c, : len(one.p)] = torch.from_numpy(np.asarray(one.p))
        micro = np.rint(MICRO * np.asarray(one.ms)).clip(1)
        step[c, : len(one.p)] = torch.from_numpy(micro)
    most = min(round(MICRO * cutoff), LIMIT)
    place = runtime.device()
    found = chain_mc(
        p.to(place), step.to(place), trials, most, LIMIT, 1.0, seed
    )
    return Chains(*(x.cpu() for x in found))


def pairs_per_second(found: Chains) -> np.ndarray:
    """How often each chain ends; one that did not counts its full limit."""
    time = torch.where(found.time < 0, LIMIT, found.time).double()
    return (1000 * MICRO / time.mean(1)).numpy()


class Run(NamedTuple):
    """One run of the authors' simulator, hops of equal length."""

    hops: int
    km: float
    delay: float  # ms
    efficiency: float
    seconds: float
    seed: int
    pairs: int  # from end to end
    fidelity: float


@lru_cache
def simulated() -> tuple[Run, ...]:
    """The recorded runs of the authors' simulator, 0.8.5."""
    with data_path("starlight/chains.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return tuple(
        Run(
            int(row["hops"]),
            float(row["km"]),
            float(row["delay_ms"]),
            float(row["efficiency"]),
            float(row["seconds"]),
            int(row["seed"]),
            int(row["pairs"]),
            float(row["fidelity"]),
        )
        for row in rows
    )


def simulated_rate(
    seed: int, hops=1, km=20.0, delay=0.5, efficiency=MEMORY
) -> float:
    """Pairs per second of one recorded run."""
    setting = hops, km, delay, efficiency
    for run in simulated():
        if run[:4] == setting and run.seed == seed:
            return run.pairs / run.seconds
    known = sorted({run[:4] for run in simulated()})
    raise ValueError(
        f"no run of {setting} with seed {seed} is recorded; seeds 0 to 4,"
        f" and some to 9, of (hops, km, ms, efficiency) {known} are"
    )


def timetable(
    p: float, hops: int, slots: int, cutoff: int, seed: int
) -> list[list[float]]:
    """A chain slot by slot, to be looked at: a row for each hop, and one for
    the pairs from end to end.

    A cell is 0 without a pair, 1 with a new one, and less the older it is.
    """
    random = np.random.default_rng(seed)
    table = np.zeros((hops + 1, slots))
    age = np.full(hops, -1)
    for slot in range(slots):
        # whoever has no pair tries
        made = random.random(hops) < p
        age = np.where(age >= 0, age + 1, np.where(made, 0, -1))
        table[:hops, slot] = np.where(age >= 0, 1 / (1 + 0.25 * age), 0)
        if (age >= 0).all():
            table[hops, slot] = 1
            age[:] = -1
        age[age >= cutoff] = -1
    return table.tolist()
