"""The survey's families of routers, trained on a recorded benchmark.

`predicted` gives each model's predicted score for the prompts held out. Which
model is then called, and at what price, is decided in the chapters.
"""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from lab.models import judging, recorded, routers

STRATEGIES = (
    "classifier",  # learns from the scores
    "cascade",  # the same, but reads the first model's answer
    "similarity",  # remembers the nearest prompts
    "preference",  # learns from wins and losses
    "bandit",  # learns from its own calls
    "table",  # knows the task or subject
    "oracle",  # knows the score
)
DATA = ("gsm8k", "nine", "mmlu")
TRAIN = {"nine": 3498, "gsm8k": 800, "mmlu": 2793}  # the rest is for tests
NEIGHBOURS = 40
RATIO = 40  # GPT-4's price over Mixtral's, an estimate
L2 = (1.0, 5.0, 25.0, 125.0, 625.0)
BANDIT_SIZE, BANDIT_ALPHA = 32, 0.5


def available(data: str) -> tuple[str, ...]:
    """The strategies that the recorded data allow."""
    known = recorded.load(data)
    missing = {"cascade"} if not known.answers else set()
    missing |= {"table"} if len(known.groups) == 1 else set()
    return tuple(s for s in STRATEGIES if s not in missing)


def prices(data: str, ratio: float = RATIO) -> Tensor:
    """What a call to each model costs [M]; the dearest call costs 1."""
    listed = recorded.load(data).prices
    if listed is not None:
        return listed / listed.max()
    if not 1 <= ratio <= 100:
        raise ValueError(
            f"ratio={ratio}, the large model's price over the small one's, is"
            " not within 1 to 100"
        )
    return torch.tensor([1 / ratio, 1.0], dtype=torch.float64)


@cache
def split(data: str, broken: bool, seed: int) -> tuple[Tensor, Tensor]:
    """Rows to learn from and rows to test on, in a random order."""
    known = recorded.load(data)
    rows = torch.arange(len(known.scores))
    if not broken and recorded.BROKEN_SUBJECT in known.groups:
        rows = rows[known.group != known.groups.index(recorded.BROKEN_SUBJECT)]
    generator = torch.Generator().manual_seed(seed)
    rows = rows[torch.randperm(len(rows), generator=generator)]
    return rows[: TRAIN[data]], rows[TRAIN[data] :]


@cache
def predicted(
    strategy: str, data: str, neighbours: int, broken: bool, seed: int
) -> Tensor:
    """The scores [N, M] that a strategy predicts for the test prompts.

    ``neighbours`` matters only to "similarity". Without ``broken``, the
    subject whose answers were not parsed is left out.
    """
    if strategy not in available(data):
        raise ValueError(
            f"{strategy} is not possible on {data}, where no answers or no"
            f" groups are recorded; use one of {', '.join(available(data))}"
        )
    known, (train, test) = recorded.load(data), split(data, broken, seed)
    scores, x = known.scores[train], known.embeddings
    if strategy == "oracle":
        return known.scores[test]
    if strategy == "similarity":
        return routers.nearest(x[train], scores, x[test], neighbours)
    if strategy == "table":
        group = known.group
        return routers.table(
            group[train], scores, group[test], len(known.groups)
        )
    if strategy == "bandit":
        old, new = routers.principal(x[train], x[test], BANDIT_SIZE)
        return routers.lin_ucb(old, scores, new, BANDIT_ALPHA, seed)
    if strategy == "preference":
        wins = routers.preferences(scores)
        return tuned(routers.ridge, x[train], wins, x[test])
    features = _seen(data, strategy)
    # the cascade's judge and its rival must be fitted in the same way
    fit = routers.logistic if known.answers else routers.ridge
    return tuned(fit, features[train], scores, features[test])


@cache
def _seen(data: str, strategy: str) -> Tensor:
    """What the classifier sees of the prompt, or the cascade of the answer."""
    known = recorded.load(data)
    if strategy == "cascade":
        return judging.answer_features(known.prompts, known.answers)
    if known.answers:
        counts = judging.prompt_features(known.prompts)
        return torch.cat([known.embeddings.double(), counts], dim=1)
    return known.embeddings


def tuned(fit: Callable, x: Tensor, y: Tensor, new: Tensor) -> Tensor:
    """Fit with the penalty of `L2` that does best on a fifth held out."""
    cut = len(x) - len(x) // 5
    errors = [
        (fit(x[:cut], y[:cut], x[cut:], l2) - y[cut:]).square().mean().item()
        for l2 in L2
    ]
    return fit(x, y, new, L2[errors.index(min(errors))])
