"""Goodput: the most requests per second and GPU within both limits.

A placement says how many instances prefill and decode, and on how many GPUs
each. Its attainment is the share of requests whose TTFT and TPOT are both
within the limits, and its goodput the largest rate per GPU at which the
attainment is 90 %. The search tries all placements (as algorithm 2
of DistServe does within a node; replicas are in place of pipeline stages).
"""

from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from lab.kernels.runtime import device
from lab.kernels.serve_sim import Served, serve_sim
from lab.serving.engine_profiles import (
    MEMORY,
    NVLINK,
    SPLITS,
    decode_costs,
    moving,
    prefill_costs,
)
from lab.serving.request_traces import Stream

GOAL = 0.9  # of the requests
SLOWEST, FASTEST = 0.05, 16.0  # requests per second and GPU that are tried
WARM_UP = 4  # a stream's first quarter is served and not counted
NODE = 6  # GPUs
BATCHES = (512, 2048)  # tokens of a prefill batch that are tried


class Placement(NamedTuple):
    """Instances of two pools, or of one pool that does both."""

    prefill: int = 1  # instances; they decode as well if ``decode`` is 0
    decode: int = 1
    prefill_gpus: int = 1  # of an instance
    decode_gpus: int = 1
    engine: str = "DistServe"
    batch: int = 512  # tokens of a prefill batch
    in_turn: bool = False  # colocated: prefills in turn with decode steps

    @property
    def gpus(self) -> int:
        """GPUs in all."""
        return (
            self.prefill * self.prefill_gpus + self.decode * self.decode_gpus
        )

    def __str__(self) -> str:
        def pool(count: int, gpus: int, what: str) -> str:
            return f"{count} {what}" + (f" of {gpus} GPUs" if gpus > 1 else "")

        if not self.decode:
            return pool(self.prefill, self.prefill_gpus, "colocated")
        return (
            pool(self.prefill, self.prefill_gpus, "prefill")
            + " + "
            + pool(self.decode, self.decode_gpus, "decode")
        )


class Limits(NamedTuple):
    """What a request may wait, in milliseconds."""

    ttft: float
    tpot: float


def colocated(gpus: int = NODE, engine: str = "DistServe") -> list[Placement]:
    """All placements of one pool on up to ``gpus`` GPUs, all ways to batch."""
    return [
        Placement(count, 0, split, split, engine, batch, in_turn)
        for split in SPLITS
        for count in range(1, gpus // split + 1)
        for batch, in_turn in product(BATCHES, (False, True))
    ]


def disaggregated(gpus: int = NODE) -> list[Placement]:
    """All placements of two pools on up to ``gpus`` GPUs."""
    found = [
        Placement(p, d, gp, gd, batch=batch)
        for gp, gd, batch in product(SPLITS, SPLITS, BATCHES)
        for p, d in product(range(1, gpus + 1), repeat=2)
    ]
    return [one for one in found if one.gpus <= gpus]


def columns(one: Placement, rate: float, move: float) -> tuple[list, list]:
    """A placement as `serve_sim` takes it, at a rate per second and GPU.

    ``move`` is the time in milliseconds to move a token.
    """
    gpus = one.decode_gpus if one.decode else one.prefill_gpus
    pool = [one.prefill, one.decode, one.batch, MEMORY[gpus], one.in_turn]
    cost = [
        rate * one.gpus,
        move,
        *prefill_costs(one.engine, one.prefill_gpus),
        *decode_costs(one.engine, gpus),
    ]
    return pool, cost


def served(
    placements: list[Placement],
    rates: list[float],
    stream: Stream,
    gbits: float = NVLINK,
) -> Served:
    """Serve streams with placements, each at its rate per second and GPU."""
    pairs = zip(placements, rates, strict=True)
    rows = [columns(one, rate, moving(gbits)) for one, rate in pairs]
    pools, costs = zip(*rows, strict=True)
    there = device()
    return serve_sim(
        *(tensor.to(there) for tensor in stream),
        torch.tensor(pools, dtype=torch.int32, device=there),
        torch.tensor(costs, dtype=torch.float32, device=there),
    )


def within(waits: Served, limits: Limits) -> tuple[Tensor, Tensor]:
    """Which requests get their first token late, and which the others slowly.

    Both [C, S, N'], without the first quarter of each stream.
    """
    counted = (wait[:, :, wait.shape[2] // WARM_UP :] for wait in waits)
    ttft, tpot = counted
    # what was never served has NaN, which is not within any limit
    return ~(ttft <= limits.ttft), ~(tpot <= limits.tpot)


def attainment(waits: Served, limits: Limits) -> Tensor:
    """Share of requests within both limits, of each placement [C]."""
    late, slow = within(waits, limits)
    return (~(late | slow)).double().mean((1, 2))


def goodput(
    placements: list[Placement],
    stream: Stream,
    limits: Limits,
    gbits: float = NVLINK,
    tries: int = 10,
) -> list[float]:
    """The goodput of every placement, found by halving; 0 if it has none.

    A try halves the logarithm of the span, so all are known equally well.
    """
    low = torch.full((len(placements),), SLOWEST, dtype=torch.float64)
    high = torch.full_like(low, FASTEST)
    enough = attainment(
        served(placements, low.tolist(), stream, gbits), limits
    ).cpu()
    for _ in range(tries):
        middle = (low * high).sqrt()
        waits = served(placements, middle.tolist(), stream, gbits)
        good = attainment(waits, limits).cpu() >= GOAL
        low, high = middle.where(good, low), high.where(good, middle)
    return low.where(enough >= GOAL, 0.0).tolist()


def tightest(waits: Served, limits: Limits) -> Tensor:
    """The smallest factor on both limits that 90 % keep within [C]."""
    factor = torch.maximum(waits.ttft / limits.ttft, waits.tpot / limits.tpot)
    counted = factor[:, :, factor.shape[2] // WARM_UP :].double()
    return counted.flatten(1).quantile(GOAL, dim=1)
