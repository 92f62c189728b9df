"""ExFlow: experts that follow each other share a GPU (chapter 12).

Yao, Anthony, Shafi, Subramoni, Panda, "Exploiting Inter-Layer Expert Affinity
for Accelerating Mixture-of-Experts Model Inference", IPDPS 2024. The expert
of a token in layer l says much about its expert in layer l + 1. An integer
program places experts so that likely pairs share a GPU; with the context of
all tokens on all GPUs, a token stays where its expert is, and one of the two
all-to-alls of a layer falls away.

    affinity  P(E_p of layer l + 1 | E_i of layer l)
    x_ec = 1 if expert e sits on GPU c;   z_kl = 1 if token k moves after l
    minimise sum of z_kl  with  z_kl >= +-(x_(R_kl) c - x_(R_k,l+1) c),
    each expert on one GPU, E / G experts of each layer on each

The token moves of an iteration, for N tokens on each of G GPUs, L layers, and
a share p of steps that cross (p* after placement), change from 2 G N L p to
G N (L p* + G).

The authors give Gurobi one z for each token, layer and sample of tokens,
split the GPUs in two again and again, and stop at 60 s. With several nodes
they place in stages, first which experts share a node and then which share a
GPU, as in `placement.staged`. Their script judges a placement on the tokens
that it was planned on; here it is judged on new tokens. The tokens enter only
through counts, so `lab.serving.placement` solves the same objective on counts:
exactly where a layer has at most 10 000 set partitions, else by descent. Their
relaxed balance and their fused objective are left out. Their traces keep the
first expert of a top-2 model, ours come from a top-1 router. What the widget
shows is in `exflow_view`.
"""

from collections.abc import Callable
from functools import cache, partial
from typing import NamedTuple

import torch
from torch import Tensor

from lab.claims import Claim
from lab.exercises import Exercise
from lab.kernels.transition_counts import transition_counts
from lab.serving import placement, routing_traces
from lab.serving.expert_parallel import traffic
from lab.serving.placement import (
    SOLVERS,
    crossing,
    independent,
    states,
    vanilla,
)
from lab.serving.routing_traces import STEPS, TOKENS, recorded


class Result(NamedTuple):
    """One seed: crossings as shares of the steps between layers."""

    train: float  # solved, on the tokens it was solved for
    test: float  # solved, on text new to the model and the plan
    vanilla: float  # expert i on GPU floor(i G / E), on the test text
    random: float  # 1 - 1/G, the mean over all balanced placements
    control: float  # solved and judged on layers without affinity
    load: float  # largest share of the test tokens on one GPU, times G


def experiment(
    seed: int, experts: int = 8, gpus: int = 4, tokens: int = TOKENS
) -> Result:
    """Plan on ``tokens`` of a recorded trace, judge on its test half."""
    trace = recorded(experts, seed)
    plan = transition_counts(trace.train[:tokens], experts)
    test = transition_counts(trace.test, experts)
    placed = solve(plan, gpus)
    blind = solve(independent(plan), gpus)
    return Result(
        train=crossing(placed, plan),
        test=crossing(placed, test),
        vanilla=crossing(vanilla(plan, gpus), test),
        random=1 - 1 / gpus,
        control=crossing(blind, independent(test)),
        load=largest_load(trace.test, placed, gpus),
    )


def solve(counts: Tensor, gpus: int) -> Tensor:
    """The best placement known: exact if that is possible, else by descent."""
    within = states(counts.shape[1], gpus) <= placement.MOST_STATES
    return SOLVERS["exact" if within else "descent"](counts, gpus)


def largest_load(routes: Tensor, placed: Tensor, gpus: int) -> float:
    """Tokens on the fullest GPU over the fair share, mean over the layers."""
    at = placed[torch.arange(placed.shape[0]), routes.long()].long()
    loads = [
        torch.bincount(layer, minlength=gpus).max().item() for layer in at.T
    ]
    return gpus * sum(loads) / (len(loads) * max(1, len(routes)))


def moves(gpus: int, layers: int, crossing: float, flow: str = "one") -> float:
    """Token moves of one iteration, per token, by the paper's formula."""
    if flow == "two":
        return 2 * layers * crossing
    return layers * crossing + gpus


class Growth(NamedTuple):
    """The affinity while a model learns, one value for each snapshot."""

    steps: list[int]
    optimum: list[float]  # crossings after the exact placement
    control: list[float]  # the same if layers knew nothing of each other
    fullest: list[float]  # share of the tokens on the fullest expert


@cache
def growth(seed: int, experts: int = 8, gpus: int = 4) -> Growth:
    """Solve the counts of every snapshot of a training."""
    rows = []
    for counts in recorded(experts, seed).early:
        blind = independent(counts)
        load = counts.sum(dim=2).max() / counts[0].sum()
        rows.append(
            (
                crossing(solve(counts, gpus), counts),
                crossing(solve(blind, gpus), blind),
                load.item(),
            )
        )
    optimum, control, fullest = map(list, zip(*rows, strict=True))
    return Growth(list(routing_traces.SNAPSHOTS), optimum, control, fullest)


def train_checkpoints(progress: Callable = iter) -> None:
    """Train the models and record their traces: two or three minutes."""
    routing_traces.record_all(progress)


def _fewer(seed: int, **parameters) -> float:
    """Percent of a random placement's crossings that are avoided."""
    result = experiment(seed, **parameters)
    return 100 * (1 - result.test / result.random)


def _affinity(seed: int, **parameters) -> float:
    """Points of crossings that the true pairs save beyond imbalance."""
    result = experiment(seed, **parameters)
    return 100 * (result.control - result.test)


def _early(seed: int, step: int) -> float:
    """The affinity after ``step`` steps, in percent of that at the end."""
    gap = _gaps(seed)
    return 100 * gap[step] / gap[STEPS]


def _learned(seed: int, step: int) -> float:
    """Points of affinity that training adds to the untrained model's."""
    gap = _gaps(seed)
    return 100 * (gap[STEPS] - gap[step])


def _gaps(seed: int) -> dict[int, float]:
    shown = growth(seed)
    gaps = [c - o for c, o in zip(shown.control, shown.optimum, strict=True)]
    return dict(zip(shown.steps, gaps, strict=True))


def _profiling(seed: int, tokens: int) -> float:
    """Points lost on new tokens by planning on few tokens, not on all."""
    few = experiment(seed, tokens=tokens).test
    return 100 * (few - experiment(seed).test)


def _bytes(seed: int, context: str, tokens: int) -> float:
    """Percent of the bytes of two all-to-alls that ExFlow saves."""
    trace = recorded(8, seed)
    plan = transition_counts(trace.train, 8)
    placed, routes = solve(plan, 4), trace.test[:tokens]
    two = traffic(routes, vanilla(plan, 4), 4, "two")
    one = traffic(routes, placed, 4, "one", context)
    return 100 * (1 - sum(one.values()) / sum(two.values()))


FULL = {"experts": 8, "gpus": 4, "tokens": TOKENS}
SMALL = (
    "A character model of six layers and 8 or 16 experts, tokens of Python"
    " code; the paper has 8 to 64 experts a layer and text of the Pile."
)

_claim = partial(
    Claim,
    chapter="12",
    parameters=FULL,
    reduced={**FULL, "tokens": 3000},
    seeds=5,
    limits=SMALL,
)

CLAIMS = (
    _claim(
        slug="fifth-fewer-crossings",
        sentence="Placing experts by affinity cuts the tokens that change"
        " GPUs (by 25 % with 64 experts on 32 GPUs, by 40 % on 4).",
        source="evaluation; our threshold, well below the paper's figures",
        effect="fewer crossings than random on new tokens, 8 experts on 4"
        " GPUs",
        unit="%",
        experiment=_fewer,
        threshold=20.0,
        side="above",
    ),
    _claim(
        slug="two-fifths-fewer-crossings",
        sentence="On 4 GPUs the crossings fall by 40 % (64 experts).",
        source="evaluation",
        effect="fewer crossings than random on new tokens, 16 experts on 4"
        " GPUs",
        unit="%",
        experiment=_fewer,
        threshold=40.0,
        side="above",
        parameters={**FULL, "experts": 16},
        reduced={**FULL, "experts": 16, "tokens": 3000},
        seeds=3,
    ),
    _claim(
        slug="affinity-is-real",
        sentence="The saving comes from affinity between layers (implied;"
        " part of it could be uneven load alone).",
        source="our control",
        effect=(
            "crossings of the control without affinity minus crossings of the"
            " true pairs"
        ),
        unit="points",
        experiment=_affinity,
        threshold=0.0,
        side="above",
    ),
    _claim(
        slug="affinity-comes-early",
        sentence="Affinity appears very early in training and stabilises.",
        source="abstract; training curves",
        effect="affinity after a sixth of the training, in percent of that"
        " at its end",
        unit="%",
        experiment=_early,
        threshold=80.0,
        side="above",
        parameters={"step": 100},
        reduced={"step": 100},
    ),
    _claim(
        slug="affinity-is-learned",
        sentence="Affinity grows out of the training (a reading of the"
        " sentence above).",
        source="our reading",
        effect="affinity at the end minus affinity of the untrained model",
        unit="points",
        experiment=_learned,
        threshold=0.0,
        side="above",
        parameters={"step": 0},
        reduced={"step": 0},
    ),
    _claim(
        slug="few-tokens-suffice",
        sentence="1000 to 3000 profiling tokens suffice.",
        source="section on profiling",
        effect="crossings when planned on 3000 tokens minus when planned on"
        " 24 576, on new tokens",
        unit="points",
        experiment=_profiling,
        threshold=1.0,
        side="below",
        parameters={"tokens": 3000},
        reduced={"tokens": 3000},
    ),
    _claim(
        slug="fewer-bytes",
        sentence="One all-to-all a layer and an all-gather of the tokens"
        " send less than two all-to-alls.",
        source="section on context-coherent parallelism",
        effect="bytes saved between 4 GPUs, one hidden vector a token"
        " gathered",
        unit="%",
        experiment=_bytes,
        threshold=0.0,
        side="above",
        parameters={"context": "hidden", "tokens": TOKENS},
        reduced={"context": "hidden", "tokens": 3000},
    ),
    _claim(
        slug="fewer-bytes-with-all-layers",
        sentence=(
            "The same, if attention needs the input of every layer, as keys "
            "and values do."
        ),
        source="our reading",
        effect="bytes saved between 4 GPUs, six hidden vectors a token"
        " gathered",
        unit="%",
        experiment=_bytes,
        threshold=0.0,
        side="above",
        parameters={"context": "layers", "tokens": TOKENS},
        reduced={"context": "layers", "tokens": 3000},
    ),
    _claim(
        slug="latency-and-throughput",
        sentence="Up to 67 % less cross-GPU routing latency and up to 2.2"
        " times the throughput.",
        source="abstract",
        effect="latency of the all-to-alls",
        unit="%",
        experiment=None,
        threshold=67.0,
        side="above",
        out_of_reach="it needs nodes of real GPUs with NVLink and InfiniBand"
        " between them; processes on one machine share its memory",
    ),
)


def _crossing(routes: list, placed: list) -> float:
    """Share of the routes' steps that change the GPU, counted with loops."""
    apart = steps = 0
    for token in routes:
        at = [placed[layer][expert] for layer, expert in enumerate(token)]
        apart += sum(a != b for a, b in zip(at, at[1:], strict=False))
        steps += len(at) - 1
    return apart / steps


EXERCISES = {
    "exercise-1": Exercise(slug="exercise-1", answer=(2520, 105)),
    "exercise-2": Exercise(
        slug="exercise-2",
        answer=moves(4, 24, 0.45) / moves(4, 24, 0.75, "two"),
        tolerance=5e-3,
    ),
    "exercise-3": Exercise(
        slug="exercise-3",
        answer=_crossing,
        cases=[
            ([[0, 1, 2], [3, 3, 3], [0, 2, 0]], [[0, 0, 1, 1]] * 3),
            ([[0, 1]], [[0, 1], [1, 0]]),
            ([[0, 0, 0], [1, 0, 1]], [[0, 1], [1, 0], [0, 1]]),
        ],
    ),
}
