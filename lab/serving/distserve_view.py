"""What the widget of chapter 16 shows: six GPUs, some for prefill.

The curves are recorded. What the GPUs do in two seconds is simulated when
it is asked for.
"""

from functools import cache
from typing import NamedTuple

from lab.kernels.serve_sim import Simulation
from lab.serving.distserve_recorded import (
    LINKS,
    RATES,
    REQUESTS,
    RIVALS,
    SHOWN,
    WORKLOADS,
    divided,
    recorded,
    rival,
)
from lab.serving.engine_profiles import moving
from lab.serving.goodput import GOAL, NODE, Placement, columns
from lab.serving.request_traces import drawn

KINDS = {"prefill": "mean", "decode": "kept"}  # of jobs, and their colours
SHADES = {"split": "best", "together": "baseline"}
FROM, SECONDS = 3.0, 2.0  # the time that is shown job by job
WHY = ("in time", "late", "slow")  # the first token; then the others


class Picture(NamedTuple):
    """One setting of the knobs."""

    attained: dict[str, list[float]]  # percent of requests, over `RATES`
    missed: dict[str, float]  # percent at this rate, by system and reason
    jobs: dict[str, list[tuple]]  # lane: (kind, start, end, words)
    goodput: dict[str, float]  # per GPU
    placement: Placement
    other: Placement  # the colocated one

    @property
    def title(self) -> str:
        """Who serves more."""
        split, together = map(said, self.goodput.values())
        return (
            f"{self.placement.prefill} of {NODE} GPUs prefill: {split}"
            f" requests/s per GPU, together {together}"
        )


def picture(
    prefill: int = 3,
    workload: str = "code 400/40",
    against: str = "same engine",
    rate: float = 2.0,
    link: int = LINKS[-1],
) -> Picture:
    """Recorded attainment of a split and its rival, and jobs of the split."""
    w, r = list(WORKLOADS).index(workload), list(RIVALS).index(against)
    here = LINKS.index(link)
    parts = {
        "split": recorded()["split"][w, prefill - 1, here].tolist(),
        "together": recorded()["together"][w, r].tolist(),
    }
    attained = {name: [row[0] for row in rows] for name, rows in parts.items()}
    at = RATES.index(rate)
    placement = divided(workload, prefill)
    other = rival(workload, RIVALS[against])
    return Picture(
        attained,
        {f"{name}, {why}": row[k]
         for name, row in ((n, rows[at]) for n, rows in parts.items())
         for k, why in enumerate(WHY) if k},
        lanes(placement, workload, rate, link)
        | lanes(other, workload, rate, link, instances=1),
        {name: crossing(rows) for name, rows in attained.items()},
        placement,
        other,
    )  # fmt: skip


def crossing(percent: list[float]) -> float:
    """The rate at which a curve over `RATES` falls below the goal, by straight
    lines; 0 below the first rate and infinity past the last."""
    goal = 100 * GOAL
    if percent[0] < goal:
        return 0.0
    for k, (one, two) in enumerate(zip(percent, percent[1:], strict=False)):
        if two < goal:
            part = (one - goal) / (one - two)
            return RATES[k] + part * (RATES[k + 1] - RATES[k])
    return float("inf")


def said(goodput: float) -> str:
    """A goodput in words."""
    if not goodput:
        return f"less than {RATES[0]}"
    return f"over {RATES[-1]:.0f}" if goodput > RATES[-1] else f"{goodput:.1f}"


@cache
def lanes(
    placement: Placement,
    workload: str,
    rate: float,
    link: int,
    instances: int = NODE,
) -> dict[str, list[tuple]]:
    """What the first instances do in the seconds that are shown."""
    trace, _ = WORKLOADS[workload]
    whole = drawn(trace, REQUESTS, SHOWN)
    come = whole.arrivals[0] < rate * placement.gpus * (FROM + SECONDS)
    stream = (rows[0, come].tolist() for rows in whole)
    pool, cost = columns(placement, rate, moving(link))
    run = Simulation(*stream, pool, cost)
    run.serve()
    found = {
        _name(placement, j): []
        for j in range(min(instances, len(run.instances)))
    }
    for j, kind, start, end, requests in run.jobs:
        start, end = start / 1000 - FROM, end / 1000 - FROM
        if j < instances and end > 0 and start < SECONDS:
            words = f"of {requests} request" + "s" * (requests > 1)
            found[_name(placement, j)].append(
                (kind, max(start, 0.0), min(end, SECONDS), words)
            )
    return found


def _name(placement: Placement, j: int) -> str:
    """What a lane is called."""
    if not placement.decode:
        return f"together {j + 1}"
    first = placement.prefill
    return f"prefill {j + 1}" if j < first else f"decode {j - first + 1}"
