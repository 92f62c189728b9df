"""What the pictures of chapter 10 show: costs for recorded routers.

A trained router reads prose that it has not learned, and the formulas of
`inference_cost` say what its loads would cost on a machine.
"""

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from lab.tokens import adamoe_recorded, checkpoints, top_p_routing_recorded
from lab.tokens.char_lm import train
from lab.tokens.coverage import (
    Trace,
    coverage,
    distinct,
    loads,
    neighbours,
    read,
    uniform_rates,
    unrelated,
)
from lab.tokens.expert_reads import COUNT, DEVICES, EXPERTS, TOP_K, untrained
from lab.tokens.inference_cost import (
    MACHINES,
    SIZES,
    all_to_all_time,
    by_device,
    expert_time,
    place,
    ridge,
    transfer_time,
)

BATCHES = tuple(2**i for i in range(10))  # 1 to 512
ROUTERS = (
    "top-2 of 16",
    "no balance loss",
    "top-1 of 16",
    "top-2 of 8",
    "top-p of 16",
    "AdaMoE",
)
UNBALANCED = "top-2-of-16-no-balance"
RECORDED_STEPS = 600  # training steps of that model, as in chapter 01
BITS = (16, 8, 4)


class Picture(NamedTuple):
    """Curves over `BATCHES`, and a title about one batch size."""

    title: str
    reads: dict[str, list[float]]  # distinct experts
    times: dict[str, list[float]]  # microseconds of one layer, model output
    ridge: float  # tokens at which a dense layer is bound by arithmetic
    mixture_ridge: float  # the same for the mixture
    experts: int  # N
    memory: float  # bytes of all experts of the layer


def picture(
    batch: int = 1,
    router: str = "top-2 of 16",
    size: str = "Mixtral-like",
    machine: str = "H200",
    bits: int = 16,
    cached: int = 50,
) -> Picture:
    """What the formulas say for the loads that a recorded router makes.

    ``cached`` is the share of the experts in fast memory, in percent. Without
    locality it is also the share of the choices that are found there. Four
    devices hold all experts, placed by popularity.
    """
    layer, device, s = SIZES[size], MACHINES[machine], bits / 8
    trace, hit = recorded(router), cached / 100
    N, k = trace.experts, trace.rates.sum().item()
    home = place(trace.rates, DEVICES)
    times = {
        "dense": [],
        "experts in memory": [],
        "fetched on demand": [],
        "fetched ahead": [],
        f"on {DEVICES} devices": [],
    }
    for B, load in zip(BATCHES, sampled_loads(router), strict=True):
        each = expert_time(load, layer, device, s)
        here = each.sum(1)
        there = transfer_time((load > 0).sum(1), layer, device, s, hit)
        fullest = by_device(each, home, DEVICES).max(1).values
        sent = all_to_all_time(B, k, layer, device, DEVICES)
        dense = k * expert_time(torch.tensor([B]), layer, device, s)
        each_way = (dense, here, here + there, here.maximum(there))
        for values, seconds in zip(
            times.values(), (*each_way, fullest + sent), strict=True
        ):
            values.append(1e6 * seconds.mean().item())
    reads, at = coverage_curves(router), BATCHES.index(batch)
    dense, moe = (times[name][at] / times[name][0] for name in [*times][:2])
    tokens = "1 token reads" if batch == 1 else f"{batch} tokens read"
    return Picture(
        title=f"{tokens} {reads['unrelated tokens'][at]:.1f} of {N} experts:"
        f" {moe:.1f} x the time of 1 token (dense: {dense:.1f} x)",
        reads=reads,
        times=times,
        ridge=ridge(device, s),
        mixture_ridge=ridge(device, s) * N / k,
        experts=N,
        memory=N * layer.weights * s,
    )


@cache
def coverage_curves(router: str) -> dict[str, list[float]]:
    """Distinct experts over `BATCHES`: counted, and by the formula."""
    trace = recorded(router)
    T, N, q = len(trace.chosen), trace.experts, trace.rates
    alike = uniform_rates(N, q.sum().item())
    in_a_row = [neighbours(T, B, COUNT) for B in BATCHES]
    return {
        "uniform formula": [coverage(alike, B) for B in BATCHES],
        "formula": [coverage(q, B) for B in BATCHES],
        "unrelated tokens": [
            (load > 0).sum(1).double().mean().item()
            for load in sampled_loads(router)
        ],
        "contiguous text": [distinct(trace.chosen, N, a) for a in in_a_row],
    }


@cache
def sampled_loads(router: str) -> list[Tensor]:
    """Loads [count, N] of batches of unrelated tokens, for each batch size."""
    trace = recorded(router)
    T = len(trace.chosen)
    return [
        loads(trace.chosen, trace.experts, unrelated(T, B, COUNT))
        for B in BATCHES
    ]


@cache
def recorded(router: str) -> Trace:
    """The middle layer of a model of `ROUTERS`, on prose that is new to it."""
    if router == "no balance loss":
        model = untrained(0, EXPERTS, TOP_K, 0.0)
        model = checkpoints.load(UNBALANCED, model)
    elif router == "AdaMoE":
        model = adamoe_recorded.recorded(8, "null", "annealed")
    elif router == "top-p of 16":
        model = top_p_routing_recorded.recorded("top-p", 16, 1e-4)
    elif router in ROUTERS:
        name, _, experts = router.split()
        model = top_p_routing_recorded.recorded(name, int(experts))
    else:
        raise ValueError(
            f"router={router!r} is not one of {', '.join(ROUTERS)}"
        )
    return read(model)[1]


def train_checkpoints(progress: Callable = iter) -> None:
    """Train the model without a balance loss again: half a minute."""
    for balance in progress([0.0]):
        model = untrained(0, EXPERTS, TOP_K, balance)
        train(model, "prose", RECORDED_STEPS, seed=0)
        checkpoints.save(UNBALANCED, model, steps=RECORDED_STEPS, seed=0)
