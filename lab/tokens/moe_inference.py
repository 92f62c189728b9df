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
in `expert_reads`, and one layer's time on the machine at hand, by the
kernels of this lab, in `expert_timing`. What the pictures show is in
`moe_inference_recorded`.
"""

import math
from functools import cache, partial

import torch

from lab.claims import Claim
from lab.exercises import Exercise
from lab.tokens.coverage import coverage
from lab.tokens.expert_reads import (
    ADAMOE_LOAD,
    BATCH,
    EXPERTS,
    STEPS,
    TOP_K,
    experiment,
)
from lab.tokens.expert_timing import wall_clock


def _gap(seed: int, **parameters) -> float:
    """Percent by which U(B) misses: worst of two routers, three batches."""
    return 100 * max(
        abs(found.predicted[b] / counted - 1)
        for found in experiment(seed, **parameters)
        for b, counted in found.unrelated.items()
    )


def _text(seed: int, **parameters) -> float:
    """Percent of the reads that contiguous text saves; balanced router."""
    found = experiment(seed, **parameters).balanced
    return 100 * (1 - found.neighbours[BATCH] / found.unrelated[BATCH])


def _skew(seed: int, **parameters) -> float:
    """Percent by which the uniform formula is too high; no balance loss."""
    found = experiment(seed, **parameters).free
    return 100 * (found.uniform[BATCH] / found.unrelated[BATCH] - 1)


def _locality(seed: int, **parameters) -> float:
    """Points that the order of the text adds to the hit ratio."""
    found = experiment(seed, **parameters).balanced
    return 100 * (found.hits - found.hits_shuffled)


def _placement(seed: int, **parameters) -> float:
    """Mean loads that placing by popularity takes off the fullest device."""
    found = experiment(seed, **parameters).balanced
    return found.imbalance - found.imbalance_greedy


def _skipping(seed: int, **parameters) -> float:
    """Share of reads saved by share of choices skipped, in percent."""
    saved = experiment(seed, **parameters).balanced.saved_reads
    return 100 * saved / (1 - ADAMOE_LOAD / 2)


def _free_batch(seed: int, samples: int, copies: int) -> float:
    """Growth of the mixture's time from B = 1 to 4 over a dense layer's."""
    times = clocked(seed, samples, copies)
    first, last = times.batches.index(1), times.batches.index(4)
    moe = times.moe_ms[last] / times.moe_ms[first]
    return moe / (times.dense_ms[last] / times.dense_ms[first])


def _follows(seed: int, samples: int, copies: int) -> float:
    """How time grows from B = 1 to 16, on a logarithmic scale.

    0 if it grows as the distinct experts do, 1 if it grows as the tokens do.
    """
    times = clocked(seed, samples, copies)
    first, last = times.batches.index(1), times.batches.index(16)
    experts = times.distinct[last] / times.distinct[first]
    time = times.moe_ms[last] / times.moe_ms[first]
    return math.log(time / experts) / math.log(16 / experts)


@cache
def clocked(seed: int, samples: int, copies: int):
    """Run `wall_clock` once for a seed; two claims use its times."""
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
    limits=(
        "One layer of 16 experts in fp32 on the machine named. Other programs"
        " ran beside it; medians of processor time, the two layers "
        "alternating."
    ),
)

CLAIMS = (
    _timed(
        slug="no-free-batch",
        sentence=(
            "Decoding is bound by memory, and a mixture makes it worse: a "
            "dense layer serves more tokens at no cost, but in a mixture new "
            "tokens bring new experts."
        ),
        source="premise (i); our cost model",
        effect=(
            "growth of the mixture's time from 1 to 4 tokens, divided by that"
            " of a dense layer"
        ),
        unit="x",
        experiment=_free_batch,
        threshold=1.0,
        side="above",
    ),
    _timed(
        slug="time-follows-experts",
        sentence=(
            "At small batches a layer's time follows its distinct experts, "
            "not its tokens."
        ),
        source="our cost model, t_experts",
        effect=(
            "growth of time from 1 to 16 tokens, on a scale from 0 (as the "
            "distinct experts) to 1 (as the tokens)"
        ),
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
        effect=(
            "excess of the uniform formula over the count for 16 unrelated "
            "tokens"
        ),
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
        effect=(
            "load of the fullest of 4 devices, placed by index minus by "
            "popularity, 64 tokens"
        ),
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
