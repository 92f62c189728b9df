"""Model Breadcrumbs: keep the middle of every change (chapter 23).

Davari, Belilovsky, "Model Breadcrumbs: Scaling Multi-Task Model Merging with
Sparse Masks", ECCV 2024. Several models are fine-tuned from one base, theta_0.
Of what task t changed in layer l, tau_t,l, only a band of magnitudes is kept,
without the many small changes and without the few largest ones:

    m_t,l[w] = 1 if Q_beta(|tau_t,l|) <= |tau_t,l[w]| < Q_gamma(|tau_t,l|)
    theta*   = theta_0 + alpha sum of m_t * tau_t over the tasks

Q_beta is the magnitude that a share beta of the layer lies below. Nothing is
divided by the number of tasks or by the density gamma - beta. beta = 0 and
gamma = 1 keep everything, which is task arithmetic (see `merging`).

The authors' code (rezazzr/breadcrumbs, `TaskVectorMiddleKeep`) ranks the
entries of each row of a matrix, not of a layer, and its beta and gamma are the
shares kept and removed. Its search starts at alpha 0.2 with 15 % kept and
0.6 % removed: here beta = 0.844, gamma = 0.994. We rank by layer, as in the
paper; `per` = "row" does as the code.

Different here: both ends are in the band (see `bands`), so that gamma = 1
keeps the largest entry. The models are small networks that read digits (see
`digit_tasks`), in place of CLIP and T5. Settings are tuned on two of eight
tasks and kept for the others (see `merge_settings`). The paper's text was not
at hand beyond its abstract.
"""

from collections.abc import Callable
from functools import cache, partial
from typing import NamedTuple

import torch
from torch import Tensor

from lab.claims import Claim, second_look
from lab.exercises import Exercise
from lab.weights import merging
from lab.weights.bands import band, breadcrumbs
from lab.weights.digit_tasks import BASE_STEPS, STEPS, TASKS, Weights
from lab.weights.merge_settings import (
    NONE_CUT,
    SETTINGS,
    TENTH_CUT,
    WIDER,
    Setting,
    added,
    measured,
    trained,
    tune,
    tuned_on_all,
)

ALPHA, BETA, GAMMA = 0.3, 0.85, 0.993  # where no search is meant


class Result(NamedTuple):
    """One seed: % of the fine-tuned accuracy that merging leaves, by way.

    "outliers too" is breadcrumbs' own setting with gamma = 1; "as short", each
    layer of each task is as long as its band. "same length" has all entries,
    as short, and "plain average" is task arithmetic with alpha = 1 / T.
    """

    kept: dict[str, list[float]]  # 1 to 8 tasks, settings of the first few
    retuned: dict[str, float]  # 8 tasks, settings of all 8
    fixed: dict[str, list[float]]  # 1 to 8 tasks at ALPHA, BETA, GAMMA
    settings: dict[str, Setting]  # of the first few


@cache
def experiment(
    seed: int,
    base_steps: int = BASE_STEPS,
    steps: int = STEPS,
    few: int = 2,
) -> Result:
    """Train eight tasks, tune each way on the first few, and merge more."""
    one = trained(seed, base_steps, steps)
    counts = range(1, len(TASKS) + 1)

    def curve(alpha: float, what: Callable[[int], Weights]) -> list[float]:
        return [measured(one, alpha, what(tasks), tasks) for tasks in counts]

    def by_way(way: str, setting: Setting) -> Callable[[int], Weights]:
        return lambda tasks: added(way, one.vectors, setting, tasks, seed)

    settings = {way: tune(one, way, few) for way in SETTINGS}
    kept = {w: curve(s.alpha, by_way(w, s)) for w, s in settings.items()}
    alpha, density, removed = settings["breadcrumbs"]
    whole = breadcrumbs(one.vectors, 1 - removed - density, 1.0)
    kept["outliers too"] = curve(alpha, partial(merging.first, whole))
    crumbs = breadcrumbs(one.vectors, 1 - removed - density, 1 - removed)
    short = merging.shortened(whole, crumbs)
    kept["outliers, as short"] = curve(alpha, partial(merging.first, short))
    kept["plain average"] = [
        measured(one, 1 / tasks, merging.first(one.vectors, tasks), tasks)
        for tasks in counts
    ]
    retuned = {way: tuned_on_all(one, way) for way in SETTINGS}
    crumbs = breadcrumbs(one.vectors, BETA, GAMMA)
    short = merging.shortened(one.vectors, crumbs)
    fixed = {
        way: curve(ALPHA, partial(merging.first, vectors))
        for way, vectors in (
            ("breadcrumbs", crumbs),
            ("task arithmetic", one.vectors),
            ("same length", short),
        )
    }
    return Result(kept, retuned, fixed, settings)


def _kept(way: str, rival: str) -> Callable[..., float]:
    """Points at 8 tasks, way minus rival, with settings of the first few."""

    def effect(seed: int, **parameters) -> float:
        kept = experiment(seed, **parameters).kept
        return kept[way][-1] - kept[rival][-1]

    return effect


def _retuned(seed: int, **parameters) -> float:
    """Points at 8 tasks over task arithmetic, both tuned on all 8."""
    found = experiment(seed, **parameters).retuned
    return found["breadcrumbs"] - found["task arithmetic"]


def _loss(way: str, seed: int, **parameters) -> float:
    """Points at 8 tasks that a way loses by keeping its settings."""
    found = experiment(seed, **parameters)
    return found.retuned[way] - found.kept[way][-1]


def _loses_less(seed: int, **parameters) -> float:
    """The same loss, breadcrumbs' minus task arithmetic's."""
    return _loss("breadcrumbs", seed, **parameters) - _loss(
        "task arithmetic", seed, **parameters
    )


def _same_length(seed: int, **parameters) -> float:
    """Points at 8 tasks over all entries, made as short, at one alpha."""
    fixed = experiment(seed, **parameters).fixed
    return fixed["breadcrumbs"][-1] - fixed["same length"][-1]


def _wider(
    seed: int, base_steps: int = BASE_STEPS, steps: int = STEPS
) -> float:
    """Points at 8 tasks over task arithmetic, both tuned on all 8, the band
    in wider ranges."""
    one = trained(seed, base_steps, steps)
    crumbs = tuned_on_all(one, "breadcrumbs", WIDER)
    return crumbs - tuned_on_all(one, "task arithmetic")


def _tenth_cut(
    seed: int, base_steps: int = BASE_STEPS, steps: int = STEPS
) -> float:
    """Points at 8 tasks of 20 % below the largest tenth over the largest
    20 %, each with the alpha that is best on all 8."""
    one = trained(seed, base_steps, steps)
    crumbs = tuned_on_all(one, "breadcrumbs", TENTH_CUT)
    return crumbs - tuned_on_all(one, "breadcrumbs", NONE_CUT)


TRAINING = {"base_steps": BASE_STEPS, "steps": STEPS}
FULL = {**TRAINING, "few": 2}
SHORT = {"base_steps": 60, "steps": 40}
SMALL = (
    "Networks of 26 000 weights that read digits of 8 x 8 pixels in eight"
    " ways; the paper fine-tunes CLIP and T5 on tasks that differ more. Points"
    " are % of the fine-tuned models' accuracy, mean of eight tasks."
)

_claim = partial(
    Claim,
    chapter="23",
    source="abstract",
    unit="points",
    threshold=0.0,
    side="above",
    parameters=FULL,
    reduced=SHORT,
    seeds=20,
    limits=SMALL,
)
TWO = " Two tasks are few: settings of four last longer."
RANGES = (
    " Breadcrumbs choose within about the ranges of the authors' search, and"
    " mostly at their ends: 20 % kept, 1 % cut as outliers. With wider ranges,"
    " such as the tenth cut in the authors' example, the verdict may differ."
)
SAME_ALPHA = " Alpha was tuned without the outliers, and not again with them."
ADDED = (
    " This claim was added when the others had been seen, after trials on"
    " seeds 0 to 39, and is measured on seeds that nobody had seen, 40 to 59: "
)
_EIGHT = "accuracy kept by eight tasks, "
_FEW = " (settings of two tasks)"

CLAIMS = (
    _claim(
        slug="no-retuning",
        sentence="Breadcrumbs does not require hyperparameter tuning for each"
        " new task added.",
        effect=_EIGHT + "settings of all eight minus settings of two",
        experiment=partial(_loss, "breadcrumbs"),
        threshold=2.0,
        side="below",
        limits=SMALL + TWO,
    ),
    _claim(
        slug="loses-less",
        sentence="Previous proposals do require it (breadcrumbs lose less by"
        " keeping their settings than task arithmetic does).",
        effect=_EIGHT + "the same loss, breadcrumbs' minus task arithmetic's",
        experiment=_loses_less,
        side="below",
        limits=SMALL + TWO,
    ),
    _claim(
        slug="beats-arithmetic",
        sentence="It merges many tasks better than task arithmetic does.",
        source="experiments, as notes on the paper give them",
        effect=_EIGHT + "breadcrumbs minus task arithmetic" + _FEW,
        experiment=_kept("breadcrumbs", "task arithmetic"),
        limits=SMALL + TWO + RANGES,
    ),
    _claim(
        slug="beats-arithmetic-retuned",
        sentence="It merges many tasks better than task arithmetic does, also"
        " if both are tuned on all of them.",
        source="experiments, as notes on the paper give them",
        effect=_EIGHT + "breadcrumbs minus task arithmetic (settings of all"
        " eight)",
        experiment=_retuned,
        limits=SMALL + RANGES,
    ),
    _claim(
        slug="beats-ties",
        sentence="It is better than TIES, a rival in the authors' code"
        " (implied).",
        source="merging_trend_eval.py",
        effect=_EIGHT + "breadcrumbs minus TIES" + _FEW,
        experiment=_kept("breadcrumbs", "TIES"),
        limits=SMALL + TWO,
    ),
    _claim(
        slug="outliers-hurt",
        sentence="The masks eliminate weight outliers (implied: keeping them"
        " costs accuracy).",
        effect=_EIGHT + "breadcrumbs minus the same with outliers" + _FEW,
        experiment=_kept("breadcrumbs", "outliers too"),
        limits=SMALL + SAME_ALPHA,
    ),
    _claim(
        slug="outliers-hurt-as-short",
        sentence="The masks eliminate weight outliers (implied: they cost"
        " accuracy, not only length).",
        effect=_EIGHT + "breadcrumbs minus the same with outliers, at equal"
        " length" + _FEW,
        experiment=_kept("breadcrumbs", "outliers, as short"),
        limits=SMALL + SAME_ALPHA + " This claim was added when the others had"
        " been seen: cutting outliers also shortens what is added.",
    ),
    _claim(
        slug="not-only-shorter",
        sentence="The middle entries are better than all entries made as short"
        " (implied by a mask in place of a smaller alpha).",
        effect=_EIGHT + "breadcrumbs minus all entries at equal length (alpha"
        " = 0.3)",
        experiment=_same_length,
        limits=SMALL + " Here alpha = 0.3, beta = 0.85 and gamma = 0.993 are"
        " not tuned.",
    ),
    _claim(
        slug="beats-arithmetic-wider",
        sentence="It merges many tasks better than task arithmetic does, also"
        " if both are tuned on all of them (the band in wider ranges).",
        source="experiments, as notes on the paper give them",
        effect=_EIGHT + "breadcrumbs (20 or 40 % kept, 1 or 10 % cut as"
        " outliers) minus task arithmetic (settings of all eight)",
        experiment=_wider,
        parameters=TRAINING,
        seeds=range(40, 60),
        limits=SMALL + ADDED + "the first search ended at 20 % kept and 1 %"
        " cut, and most seeds chose both.",
    ),
    _claim(
        slug="outliers-hurt-tuned",
        sentence="The masks eliminate weight outliers (implied: keeping them"
        " costs accuracy, also if alpha is tuned with them).",
        effect=_EIGHT + "20 % kept below the largest tenth minus the largest"
        " 20 % kept (each with its own alpha, of all eight)",
        experiment=_tenth_cut,
        parameters=TRAINING,
        seeds=range(40, 60),
        limits=SMALL + ADDED + "the outliers had been put back at an alpha"
        " tuned without them. Both keep as many entries, so the first takes"
        " smaller ones.",
    ),
    _claim(
        slug="no-retuning-four",
        sentence="Breadcrumbs does not require hyperparameter tuning for each"
        " new task added (four to begin with).",
        effect=_EIGHT + "settings of all eight minus settings of four",
        experiment=partial(_loss, "breadcrumbs"),
        threshold=2.0,
        side="below",
        parameters={**FULL, "few": 4},
        **second_look(
            "4.1 points (1.4 to 6.8)",
            SMALL + " This claim was added when the others had been seen: two"
            " tasks are few to tune on.",
            range(60, 120),
            range(40, 60),
        ),
    ),
    _claim(
        slug="clip-and-t5",
        sentence="This holds for various models, tasks and modalities.",
        effect="accuracy kept, breadcrumbs minus task arithmetic",
        experiment=None,
        out_of_reach="it needs CLIP and T5, fine-tuned on real data sets",
    ),
)


def _one_band(tau: Tensor, beta: float, gamma: float) -> Tensor:
    """The band of a single vector."""
    return band(tau[None], beta, gamma)[0]


_TAU = torch.tensor([0.5, -4.0, 3.0, -2.0, 1.0, 5.0, 0.2, -0.1, 7.0, -6.0])

EXERCISES = {
    "exercise-1": Exercise(
        slug="exercise-1",
        answer=[0.0, -2.0, 1.5, -1.0, 0.5, 0.0, 0.0, 0.0, 0.0, 0.0],
    ),
    "exercise-2": Exercise(
        slug="exercise-2",
        answer=_one_band,
        cases=[
            (_TAU, 0.5, 0.9),
            (_TAU, 0.0, 1.0),
            (_TAU, 0.3, 1.0),
            (_TAU[:7], 0.25, 0.75),
            (_TAU[:3], 0.9, 0.95),
        ],
    ),
    "exercise-3": Exercise(slug="exercise-3", answer=167),
}
