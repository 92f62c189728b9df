"""What the pictures of chapter 08 show: requests for the experts of a trace.

The trace is the recorded one of seed 0's router, or synthetic and as sticky
as wanted.
"""

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import numpy as np

from lab.atomic import write_arrays
from lab.data import DATA, read_arrays
from lab.tokens import dense_lm
from lab.tokens.choosing_experts import Result, measure
from lab.tokens.domains import DOMAINS
from lab.tokens.expert_batching import serve
from lab.tokens.expert_cache import (
    POLICIES,
    interleave,
    simulate,
    sticky_traces,
)
from lab.tokens.read_me import requests

RECORDED = "read_me/seed-0.npz"
TRACES = ("router", "0", "0.3", "0.5", "0.7", "0.9")  # or made that sticky
SHOWN = 1600  # tokens that a picture simulates


class Picture(NamedTuple):
    """Requests served together, for a picture."""

    hits: dict[str, float]  # policy: % of the tokens
    steps: dict[str, list[list[int | None]]]  # policy: [expert][first tokens]
    experts: dict[str, float]  # order of the batches: different experts in one
    batch: int  # tokens of the largest batch, at most one per request
    longest_wait: int  # most batches that a token waited, by expert
    tokens: int


def picture(
    number: int = 8,
    capacity: int = 3,
    trace: str = "router",
    window: int = 8,
    batch: int = 16,
    shown: int = 40,
) -> Picture:
    """Serve ``number`` requests of a trace by all policies and batch orders.

    In ``steps``, 0 is an expert that lies in the cache, 1 an expert that was
    asked for and was there, 2 an expert that had to be loaded.
    """
    length = max(1, SHOWN // number)
    if trace == "router":
        texts = [t[:length] for t in requests(recorded().trace, number)]
    else:
        texts = sticky_traces(number, length, len(DOMAINS), float(trace))
    stream = interleave(texts)
    runs = {p: simulate(stream, capacity, p, window) for p in POLICIES}
    served = [serve(texts, batch, order) for order in ("arrival", "expert")]
    return Picture(
        hits={policy: 100 * run.ratio for policy, run in runs.items()},
        steps={
            policy: _steps(stream[:shown], runs[policy])
            for policy in ("LRU", "window")
        },
        experts={
            "by arrival": served[0].experts,
            "by expert": served[1].experts,
        },
        batch=max(map(len, served[1].batches)),
        longest_wait=max(served[1].waits),
        tokens=len(stream),
    )


def _steps(stream, run):
    table = []
    for expert in range(len(DOMAINS)):
        row = [0 if expert in c else None for c in run.content[: len(stream)]]
        for now, asked in enumerate(stream):
            if asked == expert:
                row[now] = 1 if run.hits[now] else 2
        table.append(row)
    return table


@cache
def recorded() -> Result:
    """The result of `train_checkpoints`, seed 0, without training."""
    arrays = read_arrays(RECORDED)
    found = {name: array.tolist() for name, array in arrays.items()}
    return Result(**found | {"agreement": tuple(found["agreement"])})


def train_checkpoints(progress: Callable = iter) -> None:
    """Train and record dense model and router, seed 0: half a minute."""
    dense_lm.record(progress)
    result = measure(dense_lm.recorded(), 0, progress=progress)._asdict()
    trace = np.array(result.pop("trace"), dtype=np.int8)
    write_arrays(DATA / RECORDED, trace=trace, **result)


def train_anew(loss: str, seed: int, progress: Callable = iter) -> str:
    """Distil a router again from the recorded model, and report its bits."""
    new = measure(dense_lm.recorded(), seed, loss=loss, progress=progress)
    return (
        f"{loss} loss, seed {seed}: {new.router:.3f} bits per character,"
        f" {new.label:.3f} with the true domain,"
        f" {new.random:.3f} with random experts"
    )
