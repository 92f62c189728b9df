"""What the widget of chapter 11 shows: a guess of some quality against LRU.

Times and hits are those of the recorded grid; the jobs of one step are
simulated when they are asked for.
"""

from typing import NamedTuple

from lab.serving.demand_caches import load_all
from lab.serving.expertflow_recorded import (
    CAPACITIES,
    EXPERTS,
    SHOWN,
    WRONG,
    lru,
    lru_hits,
    needed,
    served,
    sums,
)
from lab.serving.prefetch_cache import QUEUES, Costs
from lab.serving.routing_traces import LAYERS

FEW = 16  # steps whose last one is shown job by job
KINDS = {  # of jobs, and their colours
    "attention": "dropped",
    "expert": "kept",
    "prefetch": "best",
    "prefetch, unused": "null",
    "on demand": "cut",
}
SHADES = {  # of the lines
    "mistakes": "kept",
    "learned": "best",
    "table": "mean",
    "LRU": "baseline",
}


class Picture(NamedTuple):
    """One setting of the knobs, for a picture."""

    wrong: int
    times: dict[str, list[float]]  # of a layer, over `WRONG`
    hits: dict[str, list[float]]  # percent, over `CAPACITIES`
    jobs: dict[str, list[tuple]]  # lane: (kind, start, end, words)
    time: float  # of a layer, with so many wrong guesses
    lru_time: float
    hit_ratio: float  # percent
    lru_hit_ratio: float
    load_all_time: float

    @property
    def title(self) -> str:
        """Who is faster."""
        return (
            f"{self.wrong} % of the guesses are wrong: a layer takes"
            f" {self.time:.2f}, with LRU {self.lru_time:.2f}"
        )

    @property
    def note(self) -> str:
        """Who finds more."""
        return (
            f"{self.hit_ratio:.0f} % hits, with LRU"
            f" {self.lru_hit_ratio:.0f} %; loading all experts of a layer"
            f" takes {self.load_all_time:.1f}"
        )


def picture(
    wrong: int = 0,
    capacity: int = 24,
    batch: int = 8,
    transfer: float = 1.0,
    ahead: str = "6 layers",
    queue: str = QUEUES[0],
) -> Picture:
    """Recorded times and hits of a setting, and the jobs of one step."""
    knobs = capacity, batch, transfer, ahead, queue
    baseline = lru(0, batch, capacity, transfer, SHOWN)
    needs = needed(0, batch, SHOWN)

    def found(name: str | int) -> list[float]:
        each = [sums(name, c, *knobs[1:])[0] for c in CAPACITIES]
        return [100 * hits / baseline.needs for hits in each]

    def flat(time: float) -> list[float]:
        return [time] * len(WRONG)

    by_slots, own = lru_hits(0, batch, SHOWN), found(wrong)
    return Picture(
        wrong,
        times={
            "mistakes": [sums(w, *knobs)[2] for w in WRONG],
            "learned": flat(sums("learned", *knobs)[2]),
            "table": flat(sums("table", *knobs)[2]),
            "LRU": flat(baseline.layer_time),
        },
        hits={
            "mistakes": own,
            "learned": found("learned"),
            "table": found("table"),
            "LRU": [by_slots[c // LAYERS - 1] for c in CAPACITIES],
        },
        jobs=jobs(wrong, *knobs),
        time=sums(wrong, *knobs)[2],
        lru_time=baseline.layer_time,
        hit_ratio=own[CAPACITIES.index(capacity)],
        lru_hit_ratio=100 * baseline.ratio,
        load_all_time=load_all(needs, EXPERTS, Costs(transfer)).layer_time,
    )


def jobs(wrong: int, capacity, batch, transfer, ahead, queue) -> dict:
    """What link and GPU do in one step, the sixteenth."""
    run = served(0, wrong, batch, capacity, transfer, ahead, queue, steps=FEW)
    begins = [job.start for job in run.jobs if job.kind == "attention"]
    start = begins[-LAYERS]
    lanes = {"link": [], "GPU": []}
    for job in run.jobs:
        if job.end <= start or job.start >= run.time:
            continue
        on_gpu = job.kind in ("attention", "expert")
        layer, e = divmod(job.expert, EXPERTS)
        words = f"layer {layer}, expert {e}" if job.expert >= 0 else ""
        lanes["GPU" if on_gpu else "link"].append(
            (job.kind, job.start - start, job.end - start, words)
        )
    return lanes
