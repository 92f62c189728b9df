"""What a batch costs in a mixture of experts: a cost model (chapter 10).

Liu, Tang, Wang, Ren, Hou, Heng, Guo, Li, "A Survey on Inference Optimization
Techniques for Mixture of Experts Models", 2024. The survey is a map: model,
system and hardware. Its computable core is one question: how many distinct
experts does a batch touch, where do their weights lie, and which wire do they
cross? The formulas for it, U(B) in `coverage` and seconds in
`inference_cost`, are standard roofline arguments, ours and not the paper's.

Left out: attention, the router, the cache of keys and values, launches. Times
are averaged over sampled loads n_i, since the mean of a maximum is not the
maximum of the means. What is *measured* here: the coverage of real routers,
and one layer's time on the machine at hand, by the kernels of this lab.
"""

import math
from collections.abc import Callable
from functools import cache, partial
from typing import NamedTuple

import torch
from torch import Tensor

from lab.claims import Claim
from lab.exercises import Exercise
from lab.tokens import adamoe, checkpoints, top_p_routing
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
from lab.tokens.expert_timing import wall_clock
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
from lab.tokens.routers import TopKRouter

EXPERTS, TOP_K = 16, 2
BATCH = 16  # of the claims about one batch size
STEPS = 200  # of a training
COUNT = 256  # batches that a mean is taken over
DEVICES = 4
ADAMOE_LOAD = 1.66  # of 2 choices that AdaMoE makes on Mixtral (chapter 02)


class Arm(NamedTuple):
    """One trained model; means over its layers, on the text's second half."""

    unrelated: dict[int, float]  # distinct experts by batch size
    neighbours: dict[int, float]
    predicted: dict[int, float]  # U(B), with rates of the first half
    uniform: dict[int, float]  # U(B), as if all were chosen alike
    hits: float  # share of choices in a cache of half of the experts
    hits_shuffled: float  # the same tokens in random order
    saved_reads: float  # share of the reads that skipping saves at BATCH
    imbalance: float  # load of the fullest device by its mean, by index
    imbalance_greedy: float  # and placed by the rates of the first half


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
    """Train two character models and see what their routers read."""
    return Result(
        balanced=arm(seed, experts, top_k, steps, 0.01),
        free=arm(seed, experts, top_k, steps, 0.0),
    )


@cache
def arm(
    seed: int, experts: int, top_k: int, steps: int, balance: float
) -> Arm:
    """The arm with this weight of the balance loss."""
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
    """Rates from the first half of one layer's trace, the rest from the
    second, so that nothing is predicted from itself."""
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
    """The choices without those of least weight: ``keep`` of them stay.

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
BITS = (16, 8, 4)


class Picture(NamedTuple):
    """Curves over `BATCHES`, and the words about one batch size."""

    title: str
    reads: dict[str, list[float]]  # distinct experts
    times: dict[str, list[float]]  # microseconds of one layer, model output
    ridge: float  # tokens at which a dense layer is bound by arithmetic
    mixture_ridge: float  # and the mixture
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

    ``cached`` is the share of the experts in fast memory, in percent, and
    without locality the share of the choices found there. Four devices hold
    all experts, placed by popularity.
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
        "formula, all alike": [coverage(alike, B) for B in BATCHES],
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
    """The middle layer of a model of `ROUTERS`, reading unknown prose."""
    if router == "no balance loss":
        model = untrained(0, EXPERTS, TOP_K, 0.0)
        model = checkpoints.load(UNBALANCED, model)
    elif router == "AdaMoE":
        model = adamoe.recorded(8, "null", "annealed")
    elif router == "top-p of 16":
        model = top_p_routing.recorded("top-p", 16, 1e-4)
    elif router in ROUTERS:
        name, _, experts = router.split()
        model = top_p_routing.recorded(name, int(experts))
    else:
        raise ValueError(f"router={router!r} is none of {', '.join(ROUTERS)}")
    return read(model)[1]


def train_checkpoints(progress: Callable = iter, steps: int = 600) -> None:
    """Train the model without a balance loss anew: half a minute."""
    for balance in progress([0.0]):
        model = untrained(0, EXPERTS, TOP_K, balance)
        train(model, "prose", steps, seed=0)
        checkpoints.save(UNBALANCED, model, steps=steps, seed=0)


def _gap(seed: int, **parameters) -> float:
    """Percent by which U(B) misses, worst of two routers, three batches."""
    return 100 * max(
        abs(found.predicted[b] / counted - 1)
        for found in experiment(seed, **parameters)
        for b, counted in found.unrelated.items()
    )


def _text(seed: int, **parameters) -> float:
    """Percent of the reads that contiguous text saves, balanced router."""
    found = experiment(seed, **parameters).balanced
    return 100 * (1 - found.neighbours[BATCH] / found.unrelated[BATCH])


def _skew(seed: int, **parameters) -> float:
    """Percent by which the uniform formula is too high, no balance loss."""
    found = experiment(seed, **parameters).free
    return 100 * (found.uniform[BATCH] / found.unrelated[BATCH] - 1)


def _locality(seed: int, **parameters) -> float:
    """Points of the hit ratio that the order of the text brings."""
    found = experiment(seed, **parameters).balanced
    return 100 * (found.hits - found.hits_shuffled)


def _placement(seed: int, **parameters) -> float:
    """How much less the fullest device carries, in mean loads."""
    found = experiment(seed, **parameters).balanced
    return found.imbalance - found.imbalance_greedy


def _skipping(seed: int, **parameters) -> float:
    """Percent: reads saved by each choice that is saved."""
    saved = experiment(seed, **parameters).balanced.saved_reads
    return 100 * saved / (1 - ADAMOE_LOAD / 2)


def _free_batch(seed: int, samples: int, copies: int) -> float:
    """The mixture's growth from B = 1 to 4 by that of a dense layer."""
    times = clocked(seed, samples, copies)
    first, last = times.batches.index(1), times.batches.index(4)
    moe = times.moe_ms[last] / times.moe_ms[first]
    return moe / (times.dense_ms[last] / times.dense_ms[first])


def _follows(seed: int, samples: int, copies: int) -> float:
    """0: time grows as the distinct experts do from B = 1 to 16; 1: as the
    tokens do; on a logarithmic scale."""
    times = clocked(seed, samples, copies)
    first, last = times.batches.index(1), times.batches.index(16)
    experts = times.distinct[last] / times.distinct[first]
    time = times.moe_ms[last] / times.moe_ms[first]
    return math.log(time / experts) / math.log(16 / experts)


@cache
def clocked(seed: int, samples: int, copies: int):
    """`wall_clock` once a seed, for both claims about it."""
    return wall_clock(seed, (1, 4, 16), samples, copies)


FULL = {"experts": EXPERTS, "top_k": TOP_K, "steps": STEPS}
TIMED = {"samples": 25, "copies": 8}
SMALL = (
    "Character models of three layers and 16 experts, trained for seconds; a"
    " large model's routers may be more or less skewed."
)

_claim = partial(
    Claim,
    chapter="10",
    parameters=FULL,
    reduced={**FULL, "steps": 60},
    seeds=5,
    limits=SMALL,
)
_timed = partial(
    Claim,
    chapter="10",
    parameters=TIMED,
    reduced={"samples": 7, "copies": 2},
    seeds=5,
    limits="One layer of 16 experts in fp32 on the machine named. Other"
    " programs ran beside it; medians of processor time, layers in turn.",
)

CLAIMS = (
    _timed(
        slug="no-free-batch",
        sentence="Decoding is bound by memory, and a mixture makes it worse:"
        " a dense layer takes more tokens for nothing, new tokens bring new"
        " experts.",
        source="premise (i); our cost model",
        effect="growth of the mixture's time from 1 to 4 tokens, by that of"
        " a dense layer",
        unit="x",
        experiment=_free_batch,
        threshold=1.0,
        side="above",
    ),
    _timed(
        slug="time-follows-experts",
        sentence="At small batches a layer's time is that of its distinct"
        " experts, not of its tokens.",
        source="our cost model, t_experts",
        effect="growth of time from 1 to 16 tokens, where 0 is that of the"
        " distinct experts and 1 that of the tokens",
        unit="(log scale)",
        experiment=_follows,
        threshold=0.5,
        side="below",
    ),
    _claim(
        slug="coverage-formula",
        sentence="Unrelated tokens read sum 1 - (1 - q)^B experts, with rates"
        " measured beforehand.",
        source="our cost model, U(B)",
        effect="largest error of the formula for 4, 16 and 64 tokens, with"
        " and without balance loss",
        unit="%",
        experiment=_gap,
        threshold=5.0,
        side="below",
    ),
    _claim(
        slug="text-reads-fewer",
        sentence="Routing is correlated in time: neighbours in a text share"
        " experts.",
        source="premise (ii)",
        effect="reads saved by 16 tokens in a row against 16 unrelated ones",
        unit="%",
        experiment=_text,
        threshold=0.0,
        side="above",
    ),
    _claim(
        slug="popularity-is-skewed",
        sentence="Experts are not equally popular, so the uniform formula"
        " promises too many reads (here: no balance loss).",
        source="premise (ii)",
        effect="uniform formula above the count for 16 unrelated tokens",
        unit="%",
        experiment=_skew,
        threshold=5.0,
        side="above",
    ),
    _claim(
        slug="locality-helps-a-cache",
        sentence="Temporal correlation makes a cache of experts pay.",
        source="premise (ii); offloading",
        effect="hit ratio of a cache of 8 of 16 experts, text minus the same"
        " tokens shuffled",
        unit="points",
        experiment=_locality,
        threshold=0.0,
        side="above",
    ),
    _claim(
        slug="placement-pays",
        sentence="Placing experts by popularity evens the devices' load.",
        source="premise (ii); expert parallelism",
        effect="fullest of 4 devices, placed by index minus by popularity,"
        " 64 tokens",
        unit="mean loads",
        experiment=_placement,
        threshold=0.0,
        side="above",
    ),
    _claim(
        slug="skipping-cuts-bytes",
        sentence="Skipping experts cuts the bytes read almost in proportion"
        " (we ask for 90 %, at 16 tokens).",
        source="premise (iii)",
        effect="share of reads saved for each share of choices skipped",
        unit="%",
        experiment=_skipping,
        threshold=90.0,
        side="above",
    ),
    _claim(
        slug="other-hardware",
        sentence="Prefetching, all-to-all scheduling and near-data"
        " processing speed up serving.",
        source="system and hardware levels of the survey",
        effect="tokens per second, with minus without",
        unit="tokens/s",
        experiment=None,
        threshold=0.0,
        side="above",
        out_of_reach="it needs several devices, a host link to offload over,"
        " or special memory; the chapter's figures for them are the model's",
    ),
    _claim(
        slug="mixtral-batches",
        sentence="Real batches of 56.8 tokens read 7.63 of Mixtral's 8"
        " experts, where independent ones would read 8.00 (Read-ME).",
        source="a calibration point from a paper in the survey",
        effect="distinct experts at 56.8 tokens",
        unit="experts",
        experiment=None,
        threshold=8.0,
        side="below",
        out_of_reach="it needs Mixtral and a log of real requests",
    ),
)


EXERCISES = {
    "exercise-1": Exercise(
        slug="exercise-1",
        answer=[704.643072, 146.80064],  # MB, µs
        tolerance=2e-3,
    ),
    "exercise-2": Exercise(slug="exercise-2", answer=8),
    "exercise-3": Exercise(
        slug="exercise-3",
        answer=coverage,
        cases=[
            (torch.full((8,), 0.25), 4),
            (torch.tensor([0.5, 1.0, 0.0, 0.5]), 2),
            (torch.tensor([0.9, 0.6, 0.3, 0.2]), 1),
        ],
    ),
}
