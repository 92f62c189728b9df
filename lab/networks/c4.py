"""C4: few equal flows that repeat can be watched and planned (chapter 40).

Dong et al., "Boosting Large-scale Parallel Training Efficiency with C4"
(arXiv 2406.04594, version 1, 2024); version 2 is "Enhancing Large-Scale AI
Training Efficiency: The C4 Solution" (HPCA 2025). No code was released.

C4D watches. Every message should take as long as its equals, so the delays of
all pairs of ranks say who is slow, without a look at any hardware
(`slow_parts`).

C4P plans. A job sends few flows, equal and known beforehand, so each new one
can be given the least used path (`uplinks.least_used`) in place of a hash.

Read: both abstracts and summaries by others, not the full text. That rows and
columns tell the two sides apart is remembered, not checked. The median, when a
pair is too slow (`kernels.delay_stats`), the share of 60 %, the maximum in
`least_used`, and flows as a fluid are the lab's. Left out: hangs, ranks that
are late because they compute slowly, the two ports of a NIC, and the probing
of paths.
"""

from functools import partial

import numpy as np
import torch
from torch import Tensor

from lab.claims import Claim
from lab.exercises import Exercise
from lab.networks.leaf_spine import Fabric, Flows, Subflows
from lab.networks.slow_parts import diagnosed
from lab.networks.spraying_rivals import ecmp
from lab.networks.training_jobs import FABRIC, bandwidth, rings
from lab.networks.uplinks import exact, least_used, rehashed


def by_arrival(
    flows: Flows, fabric: Fabric, alive: Tensor | None = None
) -> Subflows:
    """C4P: flows come job by job, and each takes its least used path."""
    return least_used(flows, fabric, range(len(flows.size)), alive)


# placements whose jobs share spines: how, and how many jobs
SHARED = [
    ["packed", 1], ["packed", 4],
    ["scattered", 1], ["scattered", 8], ["scattered", 16],
]  # fmt: skip


def experiment(
    seed: int, placement: str = "scattered", count: int = 8
) -> dict[str, np.ndarray]:
    """Bandwidth of each job by hash, by table of use, and by exact plan."""
    jobs = rings(placement, count, seed)
    plans = {
        "ECMP": ecmp(jobs.flows, FABRIC, seed),
        "least used": by_arrival(jobs.flows, FABRIC),
        "exact": exact(jobs.flows, FABRIC),
    }
    return {
        name: bandwidth(plan, jobs, FABRIC) for name, plan in plans.items()
    }


def _gain(seed: int, cases) -> float:
    """Percent of bandwidth gained over ECMP: smallest case."""
    runs = [experiment(seed, *case) for case in cases]
    return min(
        100 * (one["least used"].mean() / one["ECMP"].mean() - 1)
        for one in runs
    )


def _share_of_exact(seed: int, cases) -> float:
    """Bandwidth in percent of the exact plan's: smallest case."""
    runs = [experiment(seed, *case) for case in cases]
    return min(
        100 * one["least used"].mean() / one["exact"].mean() for one in runs
    )


def _speed_up(seed: int, communication: float, placement: str, count: int):
    """Percent of speed gained, mean of the jobs, by Amdahl's law.

    ``communication`` is its share of the run time with ECMP.
    """
    one = experiment(seed, placement, count)
    gain = one["least used"] / one["ECMP"]
    left = 1 - communication + communication / gain
    return 100 * float((1 / left - 1).mean())


def dead_links(count: int, seed: int, fabric: Fabric = FABRIC) -> Tensor:
    """Which links live [L, S], if ``count`` of leaf 0's are dead."""
    alive = torch.ones(fabric.leaves, fabric.spines, dtype=torch.bool)
    generator = torch.Generator().manual_seed(seed)
    dead = torch.randperm(fabric.spines, generator=generator)[:count]
    alive[0, dead] = False
    return alive


def _planned_anew(seed: int, dead, count: int) -> float:
    """Percent of bandwidth gained over hashing the hit flows: worst case."""
    jobs = rings("scattered", count, seed)
    plan, gains = by_arrival(jobs.flows, FABRIC), []
    for links in dead:
        alive = dead_links(links, seed)
        static = rehashed(plan, jobs.flows, FABRIC, alive, seed)
        anew = by_arrival(jobs.flows, FABRIC, alive=alive)
        one, two = (bandwidth(x, jobs, FABRIC).mean() for x in (static, anew))
        gains.append(100 * (two / one - 1))
    return min(gains)


def _planning_helps(seed: int, **parameters) -> float:
    """Points of right verdicts that planned paths gain over hashed ones."""
    planned, hashed = (
        diagnosed(seed, paths, **parameters) for paths in ("planned", "hashed")
    )
    return planned - hashed


FLUID = (
    "256 flows of a fluid on two tiers: no packets, no queues, no congestion"
    " control; one ring per job and rail, all in step."
)
MADE = (
    "32 ranks and delays that the lab made: one fault at a time, log-normal"
    " jitter that is the same for all pairs."
)
_claim = partial(Claim, chapter="40", seeds=10, side="above")

CLAIMS = (
    _claim(
        slug="planning-pays",
        sentence="Traffic planning substantially reduces congestion (here:"
        " jobs synchronise at least half as fast again).",
        source="abstract, version 1",
        effect="bandwidth of the slowest flow of a job, least used above"
        " ECMP, smallest of five placements",
        unit="%",
        experiment=_gain,
        parameters={"cases": SHARED},
        reduced={"cases": SHARED[3:4]},
        threshold=50.0,
        limits=FLUID,
    ),
    _claim(
        slug="least-used-is-enough",
        sentence="The least used path for each new connection is as good as"
        " the best plan (implied; here: at least 95 % of its bandwidth).",
        source="our reading",
        effect="bandwidth of the slowest flow of a job, least used in percent"
        " of the exact plan, smallest of five placements",
        unit="%",
        experiment=_share_of_exact,
        parameters={"cases": SHARED},
        reduced={"cases": SHARED[3:4]},
        threshold=95.0,
        limits=FLUID,
    ),
    _claim(
        slug="plan-anew",
        sentence="When links die, planning anew keeps more bandwidth than"
        " hashing the flows that were hit.",
        source="our reading of what summaries call dynamic load balancing",
        effect="bandwidth of the slowest flow of a job, planned anew above"
        " hashed again, smallest of 2, 4 and 8 dead links of 32",
        unit="%",
        experiment=_planned_anew,
        parameters={"dead": [2, 4, 8], "count": 8},
        reduced={"dead": [4]},
        threshold=0.0,
        limits=FLUID,
    ),
    _claim(
        slug="run-time",
        sentence="Applications with moderate communication cost run about"
        " 15 % faster (here: at least 15 %, if 30 % is communication).",
        source="abstract, version 1",
        effect="speed by Amdahl's law, least used above ECMP, four packed"
        " jobs of 8 nodes",
        unit="%",
        experiment=_speed_up,
        parameters={"communication": 0.3, "placement": "packed", "count": 4},
        threshold=15.0,
        limits=FLUID + " The share of 30 % is assumed.",
    ),
    _claim(
        slug="finds-the-slow-part",
        sentence="Delays alone locate the faulty part within tens of seconds"
        " (here: 95 % right after four messages, twice as slow).",
        source="summaries of version 2",
        effect="right verdicts among no fault, sends, receives and link",
        unit="%",
        experiment=diagnosed,
        parameters={"paths": "planned", "samples": 4, "slowdown": 2.0},
        threshold=95.0,
        limits=MADE,
    ),
    _claim(
        slug="watching-needs-planning",
        sentence="Collisions of a hash hide faults, so whoever plans sees"
        " more (our reading; here: at least 10 points).",
        source="our reading",
        effect="right verdicts, planned minus hashed paths, 16 messages,"
        " twice as slow",
        unit="points",
        experiment=_planning_helps,
        parameters={"samples": 16, "slowdown": 2.0},
        threshold=10.0,
        limits=MADE,
    ),
    _claim(
        slug="the-past-would-do",
        sentence="A pair's own past serves as well as a plan: with it, hashed"
        " paths hide nothing (control; here: 95 % right).",
        source="control",
        effect="right verdicts on hashed paths, each pair against its own"
        " earlier window, 16 messages, twice as slow",
        unit="%",
        experiment=diagnosed,
        parameters={
            "paths": "hashed", "samples": 16, "slowdown": 2.0, "past": True,
        },
        threshold=95.0,
        limits=MADE + " The earlier window has no fault and the same paths.",
    ),
    _claim(
        slug="rows-would-do",
        sentence="A rule that judges rows and columns by their medians needs"
        " no plan: with it, hashed paths hide nothing (control; here: 95 %"
        " right).",
        source="control",
        effect="right verdicts on hashed paths by medians of rows and"
        " columns, 16 messages, twice as slow",
        unit="%",
        experiment=diagnosed,
        parameters={
            "paths": "hashed", "samples": 16, "slowdown": 2.0, "rule": "rows",
        },
        threshold=95.0,
        limits=MADE,
    ),
    _claim(
        slug="less-downtime",
        sentence="Downtime after errors falls from 31.19 % to 1.16 % of the"
        " time; overhead after errors falls by about 30 %.",
        source="summaries, and abstract, version 1",
        effect="share of time lost to errors",
        unit="points",
        experiment=None,
        threshold=0.0,
        out_of_reach="it needs the faults of a real cluster over months, and"
        " people who look for them without and with the tool",
    ),
)  # fmt: skip


def _next_spine(up, down, dead=()):
    """The least used living spine for a flow, from the counts of its links."""
    fill = [
        float("inf") if k in dead else max(u, d)
        for k, (u, d) in enumerate(zip(up, down, strict=True))
    ]
    return fill.index(min(fill))


EXERCISES = {
    # 8! / 8^8
    "exercise-1": Exercise(slug="exercise-1", answer=0.0024, tolerance=5e-5),
    "exercise-2": Exercise(slug="exercise-2", answer=("receives", 5)),
    "exercise-3": Exercise(
        slug="exercise-3",
        answer=_next_spine,
        cases=[
            ([2, 1, 1, 0], [0, 1, 2, 3], ()),
            ([0, 0, 0], [1, 0, 0], ()),
            ([0, 0, 0], [1, 0, 0], (1,)),
            ([3, 5, 4, 4], [1, 0, 2, 5], (0, 2)),
            ([1], [7], ()),
        ],
    ),
}
