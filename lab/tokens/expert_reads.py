"""Which experts trained routers read, batch by batch (chapter 10).

Two character models are trained, with and without the balance loss. Counted
are the distinct experts in a batch, the hits of a cache, and the load of the
fullest device. Rates come from the first half of the text, all counts from the
second.
"""

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from lab.tokens.char_lm import DIM, CharLM, train
from lab.tokens.coverage import (
    Trace,
    coverage,
    distinct,
    loads,
    lru_hits,
    neighbours,
    read,
    uniform_rates,
    unrelated,
)
from lab.tokens.inference_cost import by_device, place
from lab.tokens.routers import BALANCE, TopKRouter

EXPERTS, TOP_K = 16, 2
BATCH = 16  # of the claims about one batch size
STEPS = 200  # of a training
COUNT = 256  # batches that a mean is taken over
DEVICES = 4
ADAMOE_LOAD = 1.66  # choices, of 2, that AdaMoE makes on Mixtral (chapter 02)


class Arm(NamedTuple):
    """One trained model; means over its layers, on the text's second half."""

    unrelated: dict[int, float]  # distinct experts by batch size
    neighbours: dict[int, float]  # the same for tokens in a row
    predicted: dict[int, float]  # U(B), with rates of the first half
    uniform: dict[int, float]  # U(B), as if all were chosen equally often
    hits: float  # share of choices in a cache of half of the experts
    hits_shuffled: float  # the same tokens in random order
    saved_reads: float  # share of the reads that skipping saves at BATCH
    imbalance: float  # fullest device over the mean, placed by index
    imbalance_greedy: float  # the same, placed by the first half's rates


class Result(NamedTuple):
    """One seed: the same training with and without the balance loss."""

    balanced: Arm
    free: Arm


def experiment(
    seed: int,
    experts: int = EXPERTS,
    top_k: int = TOP_K,
    steps: int = STEPS,
) -> Result:
    """Train two character models and count what their routers read."""
    return Result(
        balanced=arm(seed, experts, top_k, steps, BALANCE),
        free=arm(seed, experts, top_k, steps, 0.0),
    )


@cache
def arm(
    seed: int, experts: int, top_k: int, steps: int, balance: float
) -> Arm:
    """Train and count one model, with this weight of the balance loss."""
    model = untrained(seed, experts, top_k, balance)
    found = [
        describe(trace, seed)
        for trace in read(train(model, "prose", steps, seed))
    ]
    return Arm(*(_mean(values) for values in zip(*found, strict=True)))


def untrained(seed: int, experts: int, top_k: int, balance: float) -> CharLM:
    """The character model with a top-k router in every layer."""

    def router(_: int) -> TopKRouter:
        return TopKRouter(DIM, experts, top_k, balance)

    return CharLM(router, experts, seed)


def describe(trace: Trace, seed: int) -> Arm:
    """Describe one layer by its trace.

    Rates come from the first half of the trace, the rest from the second, so
    that nothing is predicted from itself.
    """
    past, here = trace.halves()
    T, N, k = len(here.chosen), trace.experts, past.rates.sum().item()
    random = {b: unrelated(T, b, COUNT, seed) for b in (4, BATCH, 64)}
    in_a_row = {b: neighbours(T, b, COUNT, seed) for b in random}
    order = torch.randperm(T, generator=torch.Generator().manual_seed(seed))
    batch_load = loads(here.chosen, N, random[64]).double()
    fullest = [
        by_device(batch_load, home, DEVICES).max(1).values.mean().item()
        for home in (
            place(past.rates, DEVICES, greedy=False),
            place(past.rates, DEVICES),
        )
    ]
    fair = batch_load.sum(1).mean().item() / DEVICES
    full = distinct(here.chosen, N, random[BATCH])
    less = distinct(skip(here), N, random[BATCH])
    return Arm(
        unrelated={b: distinct(here.chosen, N, random[b]) for b in random},
        neighbours={b: distinct(here.chosen, N, in_a_row[b]) for b in random},
        predicted={b: coverage(past.rates, b) for b in random},
        uniform={b: coverage(uniform_rates(N, k), b) for b in random},
        hits=lru_hits(here.chosen, N // 2),
        hits_shuffled=lru_hits(here.chosen[order], N // 2),
        saved_reads=1 - less / full,
        imbalance=fullest[0] / fair,
        imbalance_greedy=fullest[1] / fair,
    )


def skip(trace: Trace, keep: float = ADAMOE_LOAD / 2) -> Tensor:
    """Leave out the choices of least weight; the share ``keep`` stays.

    Only second and later choices can go; a token keeps its best expert.
    """
    chosen = trace.chosen.clone()
    slots = chosen.long().clamp(min=0)
    weight = trace.scores.gather(1, slots) * (chosen >= 0)
    weight = weight / weight.sum(1, keepdim=True).clamp(min=1e-30)
    weight[:, 0] = 2.0
    gone = round((1 - keep) * chosen.numel())
    least = weight.flatten().argsort(stable=True)[:gone]
    chosen.view(-1)[least[weight.flatten()[least] < 2]] = -1
    return chosen


def _mean(values):
    """The mean of numbers, or of dictionaries of numbers key by key."""
    if isinstance(values[0], dict):
        return {key: _mean([v[key] for v in values]) for key in values[0]}
    return sum(values) / len(values)
