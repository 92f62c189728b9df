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
from functools import lru_cache, partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lab.claims import Claim
from lab.exercises import Exercise
from lab.kernels.linkload import LinkLoad, linkload
from lab.networks import max_min
from lab.networks.leaf_spine import (
    WORKLOADS,
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
    rule: str,
    subflows: Subflows,
    flows: Flows,
    fabric: Fabric,
    fairness: str,
    pause: float = 0.0,
) -> max_min.Fluid:
    """When all subflows have arrived, at max-min fair rates.

    "per subflow" gives every subflow an equal share, "by size" one in
    proportion to its size. A sprayed flow stays one connection, over all
    spines as one fat link: by symmetry its pieces share one rate. ``pause``
    trades exactness for time, see `max_min.drain`.
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
    return max_min.drain(links, capacity, size, weight, pause)


def least_time(flows: Flows, fabric: Fabric) -> float:
    """No routing ends sooner: the fullest NIC, or C*."""
    nics = fabric.leaves * fabric.hosts
    empty = torch.zeros(nics, dtype=torch.float64)
    out = empty.index_add(0, flows.source, flows.size)
    into = empty.index_add(0, flows.target, flows.size)
    busiest = float(torch.maximum(out, into).max())
    return max(busiest, ideal_congestion(flows, fabric) / fabric.capacity)


class Arm(NamedTuple):
    """What one rule made of one collective."""

    congestion: float  # largest link load, 1 is ideal spraying
    subflows: float  # per flow that leaves its leaf
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
        pieces_each = _pieces_each(cut, flows, fabric)
        arms[rule] = Arm(peaks[rule], pieces_each, float(end / sprayed))
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
    peaks = loads(cuts, flows, fabric).peak / ideal_congestion(flows, fabric)
    return dict(zip(rules, peaks.tolist(), strict=True))


def lottery(
    workload: str,
    fabric: Fabric,
    draws: int,
    seed: int = 0,
    device: str = "cpu",
) -> Tensor:
    """Largest link load [draws] of ECMP with as many different hashes.

    The flows stay; that many fabrics carry them in one call of the kernel.
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


def _pieces_each(cut: Subflows, flows: Flows, fabric: Fabric) -> float:
    leaf, other = ends(flows, fabric)
    return int((cut.spine >= 0).sum()) / max(1, int((leaf != other).sum()))


class Picture(NamedTuple):
    """What the widget shows of one setting."""

    up: list[list[float]]  # [L, S], load of each link up
    ideal: float  # C*, the fullest link of ideal spraying
    congestion: dict[str, float]  # of every rule, 1 is ideal spraying
    cut: int  # flows in more than one piece
    crossing: int  # flows that leave their leaf
    time: list[float]  # moments, for both curves
    used: dict[str, list[float]]  # % of what all NICs could send then
    end: float  # of this rule
    sprayed: float  # end of ideal spraying
    title: str  # the same in words


def picture(
    spines: int,
    workload: str,
    rule: str,
    fairness: str,
    hosts: int = 8,
    spread: float = 0.0,
    leaves: int = 4,
    seed: int = 0,
) -> Picture:
    """One collective by one rule, beside what the other rules reach."""
    scene = _scene(Fabric(leaves, hosts, spines), workload, spread, seed)
    cut = scene.cuts[rule]
    # where all sizes differ, a thousand ends would be a thousand steps
    pause = least_time(scene.flows, scene.fabric) / 100 if spread else 0.0
    setting = (scene.flows, scene.fabric, fairness, pause)
    mine = transfer(rule, cut, *setting)
    theirs = transfer("spraying", None, *setting)
    # a little past the end, where both rates are 0
    edges = np.linspace(0, 1.04 * max(mine.time[-1], theirs.time[-1]), 105)
    full = leaves * hosts * np.diff(edges)
    used = {
        name: 100 * np.diff(np.interp(edges, one.time, one.delivered)) / full
        for name, one in ((rule, mine), ("spraying", theirs))
    }
    several = int((cut.flow[cut.spine >= 0].bincount(minlength=1) > 1).sum())
    ratio = dict(zip(RULES, scene.congestion, strict=True))
    end, sprayed = float(mine.time[-1]), float(theirs.time[-1])
    return Picture(
        up=scene.load.up[list(RULES).index(rule)].tolist(),
        ideal=scene.ideal,
        congestion=ratio,
        cut=several,
        crossing=scene.crossing,
        time=((edges[1:] + edges[:-1]) / 2).tolist(),
        used={name: u.round(6).tolist() for name, u in used.items()},
        end=end,
        sprayed=sprayed,
        title=f"{several} of {scene.crossing} flows cut, fullest link"
        f" {ratio[rule]:.2f} x ideal; done at {'about ' if pause else ''}"
        f"{end:.1f}, spraying {sprayed:.1f}",
    )


class _Scene(NamedTuple):
    """What stays when only rule and fairness change."""

    fabric: Fabric
    flows: Flows
    crossing: int
    cuts: dict[str, Subflows]
    load: LinkLoad  # [rules, L, S]
    ideal: float
    congestion: list[float]


@lru_cache(maxsize=64)
def _scene(fabric: Fabric, workload: str, spread: float, seed: int) -> _Scene:
    flows = collective(workload, fabric, seed, spread)
    leaf, other = ends(flows, fabric)
    cuts = {name: assign(name, flows, fabric, seed) for name in RULES}
    load = loads(list(cuts.values()), flows, fabric)
    # without a flow between leaves every rule is ideal
    ideal = ideal_congestion(flows, fabric)
    ratio = load.peak / ideal if ideal else torch.ones(len(RULES))
    crossing = int((leaf != other).sum())
    return _Scene(fabric, flows, crossing, cuts, load, ideal, ratio.tolist())


def _worst_load(seed: int, spines, rules=("leaf rule",), **options) -> float:
    """Percent above C*: worst collective, fabric and rule."""
    found = [
        max(congestion(seed, one, S, rules=rules, **options).values())
        for one in WORKLOADS
        for S in spines
    ]
    return _percent(max(found))


def _worst_time(seed: int, spines, rule="leaf rule", **options) -> float:
    """Percent after ideal spraying: worst collective and fabric."""
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
    flow, rounded up; the least over all collectives and fabrics.
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
        effect="fullest link of blind cuts above the leaf rule's, least case",
        experiment=_against_blind,
        threshold=0.0,
        side="above",
    ),
    _claim(
        slug="equal-time-by-size",
        sentence="Equal congestion is equal completion, if every subflow's"
        " rate follows its size (our reading of the equivalence).",
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
        " and loss recovery; a fluid cannot be faster than ideal spraying",
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
