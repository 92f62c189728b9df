"""Packet spraying, and how to do without it (chapter 39).

Addanki, Goyal, Marinos, "Challenging the Need for Packet Spraying in
Large-Scale Distributed Training", arXiv 2407.00550 (version 1, 2024; version
2, with Schmid, calls the algorithm Ethereal). The flows of a collective start
together and are of equal size. Then pinning each flow to one spine, and
cutting only the few that are left over, loads every link exactly as ideal
spraying does. For N flows between the same two leaves (a group) and S spines:

    q = floor(N / S), r = N - q S      the first q S flows stay whole
    g = gcd(r, S)                      the r others: S / g equal parts each
    per spine: q z + (r / g) (z g / S) = N z / S,   as with spraying
    max congestion: C* = max over leaves of max(out, in) / S

All r S / g parts go round the spines, r / g on each. Fewer equal parts cannot
be shared out equally. Overhead: r (S / g - 1) subflows per group.

The papers' abstracts state the result; the rule above was derived from it and
proved here (no code was released). It is the rule of version 2, Theorem 1, as
others quote from its proof: each of the r flows is split into s / g parts of
equal size, with r / g parts to each uplink. "leaf" groups by the two leaves,
so the hosts of a leaf share counters; "nic" groups by source host and target
leaf, so that every NIC decides alone. Data flow like a fluid: no packets, no
reordering, no loss. Bytes that cannot be divided equally would go to the last
part; here sizes are real numbers.

The other rules are in `spraying_rivals`, times come from `collective_time`,
and what the widget shows is in `packet_spraying_view`.
"""

import math
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from lab.claims import Claim, second_look
from lab.exercises import Exercise
from lab.networks.collective_time import transfer
from lab.networks.leaf_spine import (
    WORKLOADS,
    Fabric,
    Flows,
    Subflows,
    collective,
    ends,
    ideal_congestion,
    loads,
)
from lab.networks.spraying_rivals import BLIND, ecmp, greedy, spray


def pieces(count: int, spines: int) -> int:
    """The number of subflows of ``count`` equal flows between two leaves."""
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


RULES = {
    "ECMP": ecmp,
    f"blind {BLIND}": partial(ecmp, cuts=BLIND),
    "greedy": greedy,
    "leaf rule": lambda flows, fabric, seed: split(flows, fabric, "leaf"),
    "NIC rule": lambda flows, fabric, seed: split(flows, fabric, "nic"),
    "spraying": lambda flows, fabric, seed: spray(flows, fabric),
}


def assign(rule: str, flows: Flows, fabric: Fabric, seed: int) -> Subflows:
    """Cut and place flows by one of `RULES`; random ones use the seed."""
    if rule not in RULES:
        raise ValueError(
            f"rule={rule!r} is unknown; use one of {', '.join(RULES)}"
        )
    return RULES[rule](flows, fabric, seed)


class Arm(NamedTuple):
    """How one rule did on one collective."""

    congestion: float  # largest link load, 1 is ideal spraying
    time: float  # of the last arrival, 1 is ideal spraying


def experiment(
    seed: int,
    workload: str = "expert groups",
    spines: int = 8,
    leaves: int = 8,
    hosts: int = 8,
    spread: float = 0.0,
    fairness: str = "per subflow",
    rules: tuple[str, ...] = tuple(RULES),
) -> dict[str, Arm]:
    """Send one collective by each of the ``rules``."""
    fabric = Fabric(leaves, hosts, spines)
    flows = collective(workload, fabric, seed, spread)
    peaks = congestion(seed, workload, spines, leaves, hosts, spread, rules)
    sprayed = transfer("spraying", None, flows, fabric, fairness).time[-1]
    arms = {}
    for rule in rules:
        cut = assign(rule, flows, fabric, seed)
        end = transfer(rule, cut, flows, fabric, fairness).time[-1]
        arms[rule] = Arm(peaks[rule], float(end / sprayed))
    return arms


def congestion(
    seed: int,
    workload: str,
    spines: int = 8,
    leaves: int = 8,
    hosts: int = 8,
    spread: float = 0.0,
    rules: tuple[str, ...] = tuple(RULES),
) -> dict[str, float]:
    """Largest link load of every rule over C*, all rules at once."""
    fabric = Fabric(leaves, hosts, spines)
    flows = collective(workload, fabric, seed, spread)
    cuts = [assign(rule, flows, fabric, seed) for rule in rules]
    peaks = loads(cuts, flows, fabric).peak
    ratio = over_ideal(peaks, ideal_congestion(flows, fabric))
    return dict(zip(rules, ratio.tolist(), strict=True))


def over_ideal(peaks: Tensor, ideal: float) -> Tensor:
    """Largest link loads over C*; 1 if no flow is between two leaves."""
    return peaks / ideal if ideal else torch.ones_like(peaks)


def _pieces_each(cut: Subflows, flows: Flows, fabric: Fabric) -> float:
    leaf, other = ends(flows, fabric)
    return int((cut.spine >= 0).sum()) / max(1, int((leaf != other).sum()))


def _worst_load(seed: int, spines, rules=("leaf rule",), **options) -> float:
    """Percent above C*: worst collective, fabric and rule."""
    found = [
        max(congestion(seed, one, S, rules=rules, **options).values())
        for one in WORKLOADS
        for S in spines
    ]
    return _percent(max(found))


def _worst_time(seed: int, spines, rule="leaf rule", **options) -> float:
    """Percent later than ideal spraying: worst collective and fabric."""
    found = [
        experiment(seed, one, S, rules=(rule,), **options)[rule].time
        for one in WORKLOADS
        for S in spines
    ]
    return _percent(max(found))


def _percent(ratio: float) -> float:
    # rounding leaves 1e-14; adding 0 turns -0.0 into 0.0
    return round(100 * (ratio - 1), 10) + 0.0


def _against_blind(seed: int, spines, **parameters) -> float:
    """Percent more than the leaf rule when cutting as often, but blindly.

    Every flow is cut into as many pieces as the leaf rule has subflows per
    flow, rounded up. The result is the least over all collectives and fabrics.
    """
    least = math.inf
    for one in WORKLOADS:
        for S in spines:
            fabric = Fabric(spines=S, **parameters)
            flows = collective(one, fabric, seed)
            rule = split(flows, fabric)
            cuts = math.ceil(_pieces_each(rule, flows, fabric))
            blind = ecmp(flows, fabric, seed, cuts)
            peak = loads([rule, blind], flows, fabric).peak
            least = min(least, 100 * float(peak[1] / peak[0] - 1))
    return least


FULL = {"spines": [4, 6, 8], "leaves": 8, "hosts": 8}
SHORT = {**FULL, "spines": [6]}
# a case is one of the five collectives on one of the three fabrics
SMALL = (
    "A fluid of 64 hosts on two tiers: no packets, so no reordering, no loss"
    " recovery and no queues, where the paper's simulations find most."
)
_claim = partial(
    Claim,
    chapter="39",
    unit="%",
    parameters=FULL,
    reduced=SHORT,
    limits=SMALL,
)

CLAIMS = (
    _claim(
        slug="equal-congestion",
        sentence="Single paths with minimal flow splitting are equivalent to"
        " ideal packet spraying in terms of maximum congestion.",
        source="abstract, version 1",
        effect="fullest link above C*, both rules, worst case",
        experiment=partial(_worst_load, rules=("leaf rule", "NIC rule")),
        # the largest error that rounding may leave
        threshold=1e-9,
        side="below",
    ),
    _claim(
        slug="aimed-cuts",
        sentence="Minimal splitting suffices: what counts is which flows are"
        " cut and where the pieces go (implied by the equivalence).",
        source="our reading",
        effect=(
            "fullest link of blind cuts above the leaf rule's, smallest case"
        ),
        experiment=_against_blind,
        threshold=0.0,
        side="above",
    ),
    _claim(
        slug="equal-time-by-size",
        sentence=(
            "Equal congestion means equal completion, if every subflow's rate"
            " follows its size (our reading of the equivalence)."
        ),
        source="our reading",
        effect="time above ideal spraying, rates by size, worst case",
        experiment=partial(_worst_time, fairness="by size"),
        threshold=1e-6,
        side="below",
    ),
    _claim(
        slug="near-in-time",
        sentence="Single-path transport can perform nearly as well as ideal"
        " packet spraying (here: at most 5 % slower).",
        source="abstract",
        effect="time above ideal spraying, leaf rule, worst case",
        experiment=_worst_time,
        threshold=5.0,
        side="below",
    ),
    _claim(
        slug="near-in-time-by-nic",
        sentence="The same, when every NIC decides alone (version 2 calls"
        " its algorithm distributed).",
        source="abstract, version 2",
        effect="time above ideal spraying, NIC rule, worst case",
        experiment=partial(_worst_time, rule="NIC rule"),
        threshold=5.0,
        side="below",
    ),
    _claim(
        slug="nearly-equal-sizes",
        sentence="Flow sizes need only be nearly equal (here: a log-normal"
        " spread of 0.1 may cost 5 %).",
        source="abstract, observation ii of version 1",
        effect="fullest link above C*, spread 0.1, worst case",
        experiment=partial(_worst_load, spread=0.1),
        threshold=5.0,
        side="below",
        **second_look("6.0 % (4.3 to 7.7)", SMALL),
    ),
    _claim(
        slug="faster-than-spraying",
        sentence="Completion times up to 30 % below packet spraying and up"
        " to 40 % below REPS, even under link failures.",
        source="abstract, version 2",
        effect="completion time below packet spraying",
        experiment=None,
        threshold=0.0,
        side="above",
        out_of_reach="it needs a packet simulator with RDMA NICs, reordering"
        " and loss recovery; in a fluid spraying pays nothing for disorder",
    ),
)


def _exact_pieces(count: int, spines: int) -> list[float]:
    """Sizes of all subflows of ``count`` flows of size 1, largest first."""
    r = count % spines
    parts = spines // math.gcd(r, spines)
    return [1.0] * (count - r) + [1 / parts] * (r * parts)


EXERCISES = {
    "exercise-1": Exercise(slug="exercise-1", answer=32),
    "exercise-2": Exercise(slug="exercise-2", answer={6, 12}),
    "exercise-3": Exercise(
        slug="exercise-3",
        answer=_exact_pieces,
        cases=[(12, 8), (8, 8), (3, 8), (0, 4), (13, 6), (5, 1)],
    ),
}
