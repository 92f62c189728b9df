"""What the widget of chapter 15 shows: three resources, in turn or at once."""

from functools import cache
from itertools import pairwise
from typing import NamedTuple

from lab.kernels.nano_sim import (
    COMPUTE,
    MEMORY,
    NETWORK,
    OPERATIONS,
    STREAM,
    Pipeline,
)
from lab.serving.layer_times import WORKLOADS
from lab.serving.nano_search import (
    FILLED,
    SIMULATED,
    STEADY,
    Plan,
    columns,
    durations,
    machine,
    measure,
    nanoseconds,
    one_by_one,
)
from lab.serving.nanoflow import optimum_share

RESOURCES = ("compute", "memory", "network")
KINDS = {
    "whole batch": "baseline",
    "first nano-batch": "kept",
    "second nano-batch": "mean",
}  # and their colours
STEP = 64  # tokens between two cuts
TOKENS = (256, 512, 1024, 1536, 2048)
FIRST = tuple(range(STEP, TOKENS[-1], STEP))
SHOWN = 2  # layers, one by one; the other lanes show the same time
BEHIND = 1  # the nano-batch that is furthest behind goes first
SHADES = {
    "interference": "best",
    "without": "dropped",
    "whole batch": "baseline",
}


class Picture(NamedTuple):
    """One setting of the knobs."""

    lanes: dict[str, list[tuple]]  # resource: (kind, start, end, words), ms
    until: float  # ms
    cuts: list[int]  # tokens of the first nano-batch
    gains: dict[str, list[float]]  # times the throughput, for each cut
    used: dict[str, float]  # percent of its full speed, by resource
    split: tuple[int, int]
    gain: float
    optimum: float  # percent of the optimum

    @property
    def title(self) -> str:
        """What the cut brings."""
        one, two = self.split
        return (
            f"{one} + {two} tokens: {self.gain:.2f} x the throughput,"
            f" {self.optimum:.0f} % of the optimum"
        )


def picture(
    first: int = 768,
    lengths: str = "512 in, 1024 out",
    tokens: int = 2048,
    attention: int = 40,
    network: int = 20,
    interference: bool = True,
) -> Picture:
    """Two nano-batches on the machine of the paper's means.

    ``attention`` and ``network`` are shares R in percent. The ``first``
    nano-batch leaves at least 64 tokens to the second.
    """
    first = min(first, tokens - STEP)
    split = first, tokens - first
    shares = attention / 100, network / 100
    whole = one_by_one(machine(), WORKLOADS[lengths], (tokens,))
    until = SHOWN * whole
    cuts = range(STEP, tokens, STEP)
    gains = (
        _gains(lengths, tokens, shares),
        _gains(lengths, tokens, None),
        [1.0] * len(cuts),
    )
    gain = gains[0 if interference else 1][cuts.index(first)]
    shares = shares if interference else None
    used, lanes = {}, {}
    for word, cut, seconds in (
        ("whole", (tokens,), whole), ("cut", split, whole / gain),
    ):  # fmt: skip
        rows = _jobs(lengths, cut, shares, until)
        for resource, work, jobs in zip(
            RESOURCES, _work(lengths, cut), rows, strict=True
        ):
            percent = 100 * work / seconds
            used[f"{word}: {resource}"] = percent
            lanes[f"{word}: {resource} {percent:.0f} %"] = jobs
        # an empty row between the two
        lanes |= {} if " " in lanes else {" ": []}
    return Picture(
        lanes,
        1e3 * until,
        list(cuts),
        dict(zip(SHADES, gains, strict=True)),
        used,
        split,
        gain,
        optimum_share(whole / gain, tokens),
    )


@cache
def _gains(lengths: str, tokens: int, shares: tuple | None) -> list[float]:
    """Times the throughput of the whole batch, for every cut."""
    of, workload = machine(), WORKLOADS[lengths]
    plans = [
        ((first, tokens - first), shares, BEHIND)
        for first in range(STEP, tokens, STEP)
    ]
    whole = one_by_one(of, workload, (tokens,))
    return [whole / seconds for seconds in measure(of, workload, plans)]


def _work(lengths: str, split: tuple) -> list[float]:
    """Seconds of each resource that a layer needs, alone."""
    rows = durations(machine(), WORKLOADS[lengths], split)
    return [
        sum(row[k] for row in rows for k, s in enumerate(STREAM) if s == which)
        for which in range(len(RESOURCES))
    ]


def bill(lengths: str, plan: Plan) -> dict[str, float]:
    """Where the time of a layer goes, from the view of the multipliers.

    Microseconds of their own work, of what attention and the network take
    while a product runs, and of the time in which none runs.
    """
    rows = nanoseconds(machine(), WORKLOADS[lengths], plan.split)
    r_a, _, r_n, _ = columns(machine(), plan.shares)
    run = Pipeline(rows, columns(machine(), plan.shares), plan.behind,
                   SIMULATED)  # fmt: skip
    finish = run.run()
    start, end = finish[FILLED - 1], finish[FILLED + STEADY - 1]
    times = sorted({start, end, *(t for job in run.jobs for t in job[4:])})
    found = dict.fromkeys(("work", "to attention", "to network", "none"), 0.0)
    for one, two in pairwise(t for t in times if start <= t <= end):
        runs = {job[0] for job in run.jobs if job[4] <= one < job[5]}
        part = (two - one) / STEADY / 1e3
        if COMPUTE not in runs:
            found["none"] += part
            continue
        lost = r_a * (MEMORY in runs), r_n * (NETWORK in runs)
        found["to attention"] += part * lost[0] / 1000
        found["to network"] += part * lost[1] / 1000
        found["work"] += part * (1 - sum(lost) / 1000)
    return found


def _jobs(lengths, split, shares, until) -> list[list[tuple]]:
    """What each resource does for some seconds of the steady state."""
    rows = nanoseconds(machine(), WORKLOADS[lengths], split)
    layers = FILLED + 2 * SHOWN
    run = Pipeline(rows, columns(machine(), shares), BEHIND, layers)
    start, end = run.run()[FILLED - 1] / 1e6, 1e3 * until
    kinds = list(KINDS)[len(split) > 1 :]
    found = [[] for _ in RESOURCES]
    for stream, operation, layer, n, *times in run.jobs:
        # a job that began earlier or ends later is cut off
        one, two = (min(max(t / 1e6 - start, 0.0), end) for t in times)
        if one < two:
            words = f"{OPERATIONS[operation]} of {split[n]} tokens"
            words += f", layer {layer - FILLED + 1}"
            found[stream].append((kinds[n], one, two, words))
    return found
