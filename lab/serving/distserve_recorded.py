"""What chapter 16 recorded: the search, and attainment over the rate.

The search tries every placement of six GPUs on one stream of requests. The
claims then measure what it chose on streams that it never saw. The curves are
those of the widget: six GPUs, of which one to five prefill.
"""

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import numpy as np

from lab.atomic import write_arrays
from lab.data import DATA, read_arrays
from lab.serving.engine_profiles import ENGINES, NVLINK
from lab.serving.goodput import (
    NODE,
    Limits,
    Placement,
    colocated,
    disaggregated,
    goodput,
    served,
    within,
)
from lab.serving.request_traces import drawn

FOLDER = "distserve"
REQUESTS = 1024  # of a stream
SEARCHED, SHOWN = 1000, 2000  # the seeds of their streams


class Workload(NamedTuple):
    """Requests and their limits."""

    trace: str
    limits: Limits


WORKLOADS = {
    "chat 400/100": Workload("chat", Limits(400, 100)),
    # the paper's limits for OPT-13B
    "chat 250/100": Workload("chat", Limits(250, 100)),
    "chat 250/40": Workload("chat", Limits(250, 40)),
    "code 400/100": Workload("code", Limits(400, 100)),
    "code 400/40": Workload("code", Limits(400, 40)),
}
SYSTEMS = ("split", "together", "vLLM")
RATES = (0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0)
LINKS = (25, 50, 100, 200, NVLINK)  # Gbit/s of a prefill instance
RIVALS = {"same engine": "DistServe", "vLLM's times": "vLLM"}


def candidates(system: str) -> list[Placement]:
    """All placements of one of `SYSTEMS`."""
    if system == "split":
        return disaggregated()
    return colocated(engine=ENGINES[SYSTEMS.index(system) - 1])


@cache
def recorded() -> dict[str, np.ndarray]:
    """What `train_checkpoints` kept.

    "search" [workloads, placements] is the goodput on the stream of the
    search; the others are percent of requests that are in time, late with the
    first token, and else slow: "split" [workloads, 5, links, rates, 3] by
    prefill instances, "together" [workloads, rivals, rates, 3].
    """
    return read_arrays(f"{FOLDER}/recorded.npz")


def table(workload: str) -> list[tuple[Placement, float]]:
    """Every placement with its goodput on the stream of the search."""
    found = recorded()["search"][list(WORKLOADS).index(workload)]
    return list(zip(every(), found.tolist(), strict=True))


def best(workload: str, system: str, keep=lambda placement: True):
    """The `Placement` with the most goodput, then the fewest GPUs.

    ``keep`` says which of the system's placements may be chosen.
    """
    among = set(candidates(system))
    rows = [
        (found, -one.gpus, one)
        for one, found in table(workload)
        if one in among and keep(one)
    ]
    return max(rows, key=lambda row: row[:2])[2]


def every() -> list[Placement]:
    """The placements of all systems, in the order of the search."""
    return [one for system in SYSTEMS for one in candidates(system)]


def search(workload: str) -> list[float]:
    """The goodput of every placement on the stream of the search."""
    trace, limits = WORKLOADS[workload]
    stream = drawn(trace, REQUESTS, SEARCHED)
    return goodput(every(), stream, limits, tries=8)


@cache
def rival(workload: str, engine: str) -> Placement:
    """The colocated placement of exactly six GPUs that was best."""
    system = "together" if engine == "DistServe" else "vLLM"
    return best(workload, system, lambda one: one.gpus == NODE)


@cache
def divided(workload: str, prefill: int) -> Placement:
    """Six GPUs of which so many prefill, with the better batch."""
    return best(
        workload,
        "split",
        lambda one: one[:4] == (prefill, NODE - prefill, 1, 1),
    )


def shares(placement: Placement, workload: str, gbits=NVLINK) -> np.ndarray:
    """Percent in time, with a late first token, and else slow [rates, 3]."""
    trace, limits = WORKLOADS[workload]
    stream = drawn(trace, REQUESTS, SHOWN)
    waits = served([placement] * len(RATES), list(RATES), stream, gbits)
    late, slow = (part.cpu().numpy() for part in within(waits, limits))
    early = ~late & ~slow
    parts = np.stack((early, late, slow & ~late), axis=-1)
    return 100 * parts.mean(axis=(1, 2))


def train_checkpoints(progress: Callable = iter) -> None:
    """Search and record all workloads: about five minutes."""
    kept = {
        "search": np.zeros((len(WORKLOADS), len(every()))),
        "split": np.zeros((len(WORKLOADS), 5, len(LINKS), len(RATES), 3)),
        "together": np.zeros((len(WORKLOADS), len(RIVALS), len(RATES), 3)),
    }
    for w, name in enumerate(progress(list(WORKLOADS))):
        kept["search"][w] = search(name)
    # what comes next asks for the best placements
    _keep(kept)
    for w, name in enumerate(progress(list(WORKLOADS))):
        for r, engine in enumerate(RIVALS.values()):
            kept["together"][w, r] = shares(rival(name, engine), name)
        for p in range(5):
            for k, gbits in enumerate(LINKS):
                one = divided(name, p + 1)
                kept["split"][w, p, k] = shares(one, name, gbits)
    _keep(kept)


def _keep(arrays: dict[str, np.ndarray]) -> None:
    narrow = {name: rows.astype(np.float32) for name, rows in arrays.items()}
    write_arrays(DATA / FOLDER / "recorded.npz", **narrow)
    recorded.cache_clear()
