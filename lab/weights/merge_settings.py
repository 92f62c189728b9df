"""Settings of a merger: what is tuned, on which digits, and what is measured.

Every way to merge chooses among 40 settings, by the validation digits of the
tasks that are there. Test digits are for measuring alone.
"""

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from lab.weights import merging
from lab.weights.bands import breadcrumbs
from lab.weights.digit_tasks import (
    BASE_STEPS,
    STEPS,
    TASKS,
    FineTuned,
    Weights,
    accuracy,
    fine_tune,
    shown,
)


class Setting(NamedTuple):
    """What is tuned: the coefficient, and which entries are kept."""

    alpha: float
    density: float = 1.0
    removed: float = 0.0  # share of the largest entries; breadcrumbs alone


STEPPED = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0)
_FINE = [(step + 1) / 40 for step in range(40)]
_SPARSE = [Setting(a, d) for d in (0.05, 0.1, 0.2, 0.4) for a in STEPPED]
# 40 settings for everyone, about the ranges of the authors' search
SETTINGS = {
    "breadcrumbs": [
        Setting(a, d, r)
        for d in (0.1, 0.2)
        for r in (0.001, 0.01)
        for a in STEPPED
    ],
    "task arithmetic": [Setting(alpha) for alpha in _FINE],
    "TIES": _SPARSE,
    "random entries": _SPARSE,
}
# three more lists of 40 for breadcrumbs: past the ends of the first search,
# and with a single band, the authors' example, with and without its outliers
WIDER = [
    Setting(a, d, r) for d in (0.2, 0.4) for r in (0.01, 0.1) for a in STEPPED
]
TENTH_CUT = [Setting(a, 0.2, 0.1) for a in _FINE]
NONE_CUT = [Setting(a, 0.2, 0.0) for a in _FINE]


def added(
    way: str, vectors: Weights, setting: Setting, tasks: int, seed: int = 0
) -> Weights:
    """What a way adds to the base for its first few tasks, before alpha."""
    _, density, removed = setting
    if way == "TIES":
        return merging.ties(merging.first(vectors, tasks), density)
    if way == "random entries":
        vectors = merging.at_random(vectors, density, seed)
    elif way == "breadcrumbs":
        gamma = 1 - removed
        vectors = breadcrumbs(vectors, gamma - density, gamma)
    elif way != "task arithmetic":
        raise ValueError(f"way={way!r} is not one of {', '.join(SETTINGS)}")
    return merging.first(vectors, tasks)


class Trained(NamedTuple):
    """One seed's models, with the tasks in the order of their arrival."""

    models: FineTuned
    vectors: Weights  # [8, ...]
    order: Tensor  # [8]
    seed: int


@cache
def trained(
    seed: int, base_steps: int = BASE_STEPS, steps: int = STEPS
) -> Trained:
    """Train one seed's models; the seed also deals out the order."""
    models = fine_tune(seed, base_steps=base_steps, steps=steps)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(TASKS), generator=generator)
    vectors = merging.task_vectors(models.base, models.tasks)
    return Trained(models, merging.first(vectors, order), order, seed)


def normalised(
    one: Trained, added: Weights, alphas: Tensor, tasks: int, part: str
) -> Tensor:
    """What is left of the fine-tuned models' accuracy, in % [M], by alpha.

    The mean over the tasks of merged accuracy over fine-tuned accuracy.
    """
    merged = merging.merge(one.models.base, added, alphas)
    at, M = one.order[:tasks], len(alphas)
    images, labels = shown(part, one.seed)
    alone = accuracy(
        merging.first(one.models.tasks, at), one.models.head, images[at],
        labels,
    )  # fmt: skip
    # every model reads every task
    pairs = Weights(*(w.repeat_interleave(tasks, dim=0) for w in merged))
    found = accuracy(
        pairs, one.models.head, images[at].repeat(M, 1, 1), labels
    )
    return 100 * (found.view(M, tasks) / alone).mean(dim=1)


def tune(
    one: Trained, way: str, tasks: int, settings: list[Setting] | None = None
) -> Setting:
    """The setting that is best on validation digits of the first tasks; the
    first of equals. `settings` are by default the way's own."""
    settings, found = settings or SETTINGS[way], []
    for kind in dict.fromkeys(setting[1:] for setting in settings):
        alphas = [s.alpha for s in settings if s[1:] == kind]
        what = added(way, one.vectors, Setting(1.0, *kind), tasks, one.seed)
        scores = normalised(
            one, what, torch.tensor(alphas), tasks, "validation"
        )
        found += scores.tolist()
    return settings[found.index(max(found))]


def measured(one: Trained, alpha: float, what: Weights, tasks: int) -> float:
    """What merging leaves on the test digits of the first tasks, in %."""
    alphas = torch.tensor([alpha])
    return normalised(one, what, alphas, tasks, "test").item()


def tuned_on_all(
    one: Trained, way: str, settings: list[Setting] | None = None
) -> float:
    """What a way leaves at 8 tasks, in %, with the settings best for all 8."""
    most = len(TASKS)
    best = tune(one, way, most, settings)
    what = added(way, one.vectors, best, most, one.seed)
    return measured(one, best.alpha, what, most)
