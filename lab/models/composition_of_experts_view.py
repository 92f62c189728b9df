"""What the pictures of chapter 30 show: one budget, one policy, seed 0."""

from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F

from lab.models import composition_of_experts as coe
from lab.models.composition_of_experts import (
    COMPOSITION,
    KNOWN,
    LABEL,
    NEVER,
    SCORES,
    SHARED,
)
from lab.models.expert_pool import pool, setting
from lab.models.expert_table import Table
from lab.models.pareto import hull

SHOWN = (COMPOSITION, SCORES, SHARED, LABEL, KNOWN)
NOTHING = "nothing"  # is hidden
# written out, so that a wrong parameter is refused before data are read
CATEGORIES = (
    "agentverse-logicgrid",
    "agentverse-mgsm",
    "commongen",
    "natural_qa",
    "trivia_qa",
    "openbook_qa",
    "arc_challenge",
    "mbpp",
    "human_eval",
    "gsm8k",
    "commonsense_qa",
    "math",
)
HIDDEN = (NOTHING, *CATEGORIES)
# in the order of `pool`; two lines, so that nine stand beside each other
SHORT = {
    "codegemma-7b": "codegemma<br>7B",
    "mistral-7b-instruct-v0.3": "mistral<br>7B",
    "qwen2.5-7b-instruct": "qwen2.5<br>7B",
    "llama-3.1-8b-instruct": "llama-3.1<br>8B",
    "llama3-chatqa-1.5-8b": "chatqa<br>8B",
    "gemma-2-9b-it": "gemma-2<br>9B",
    "llama-3.3-nemotron-super-49b-v1": "nemotron<br>49B",
    "llama-3.1-nemotron-51b-instruct": "nemotron<br>51B",
    "llama3-chatqa-1.5-70b": "chatqa<br>70B",
}
COLUMNS = list(SHORT.values())


def spoken(name: str) -> str:
    """A model's short name on one line."""
    return SHORT[name].replace("<br>", " ")


class Point(NamedTuple):
    """One policy with one pool, on the test prompts."""

    size: float  # billions of parameters in memory
    active: float  # mean billions of the chosen experts
    score: float
    chosen: torch.Tensor  # [N]


class Picture(NamedTuple):
    """What the chapter's picture shows, as plain lists."""

    curves: dict[str, tuple[list[float], list[float]]]  # `reached`
    models: dict[str, tuple[float, float]]  # one for all
    mixing: tuple[list[float], list[float]]  # calling them at random
    here: Point
    single: tuple[str, float, float]  # best in training: name, size, score
    work: list[list[float | None]]  # percent of a category's prompts
    members: list[str]  # of the pool
    budget: float

    @property
    def here_at(self) -> tuple[float, float]:
        """The chosen policy's place in the plane."""
        return self.here.active, self.here.score

    @property
    def title(self) -> str:
        """What the policy is worth, beside one expert for all, in words."""
        name, _, score = self.single
        words = f"Budget {self.budget:g}: {self.here.score:.3f} with"
        words += f" {self.here.active:.1f} billion active;"
        return f"{words} {name} alone: {score:.3f}"

    @property
    def note(self) -> str:
        """Who is in memory."""
        names = ", ".join(self.members)
        return f"in memory, {self.here.size:.0f} billion: {names}"


@cache
def steps(hidden: str) -> list[Table]:
    """The pools that the programme chooses, one for each range of budgets."""
    return coe.every_table(0, hidden, False)


@cache
def curve(policy: str, k: int, unsure: float, hidden: str) -> list[Point]:
    """One policy with each of the pools of `steps`."""
    known = pool()
    scores = known.scores[setting(0, hidden).new]
    found = []
    for table in steps(hidden):
        chosen = coe.route(policy, 0, table.size, k, unsure, hidden)
        found.append(
            Point(
                table.size,
                known.sizes[chosen].mean().item(),
                scores.gather(1, chosen[:, None]).mean().item(),
                chosen,
            )
        )
    return found


def reached(line: list[Point]) -> tuple[list[float], list[float]]:
    """The best score with at most so many active parameters, a staircase.

    It ends at the size of the largest expert.
    """
    x, y = [], []
    for point in sorted(line, key=lambda p: (p.active, -p.score)):
        if not y or point.score > y[-1]:
            x += [point.active] * (2 if y else 1)
            y += [y[-1], point.score] if y else [point.score]
    return [*x, pool().sizes[-1].item()], [*y, y[-1]]


def picture(
    budget: float = 216,
    policy: str = COMPOSITION,
    neighbours: int = coe.NEIGHBOURS,
    unsure: float = NEVER,
    hidden: str = NOTHING,
) -> Picture:
    """What every policy reaches, and one policy at one budget.

    Only two steps hear ``unsure``. With a ``hidden`` category, which is not
    remembered, the test prompts are those of this category.
    """
    known = pool()
    hidden = "" if hidden == NOTHING else hidden
    # what does not hear `unsure` is kept while it moves
    heard = {COMPOSITION: unsure}
    curves = {
        name: curve(name, neighbours, heard.get(name, NEVER), hidden)
        for name in SHOWN
    }
    at = [place for place, t in enumerate(steps(hidden)) if t.size <= budget]
    here, table = curves[policy][at[-1]], steps(hidden)[at[-1]]
    new = setting(0, hidden).new
    mean = known.scores[new].mean(dim=0)
    best = coe.general(0, torch.ones_like(table.pool), hidden)
    lots = hull(known.sizes, mean)
    points = zip(known.sizes.tolist(), mean.tolist(), strict=True)
    return Picture(
        curves={name: reached(line) for name, line in curves.items()},
        models=dict(zip(map(spoken, known.names), points, strict=True)),
        mixing=(lots.cost.tolist(), lots.quality.tolist()),
        here=here,
        single=(
            spoken(known.names[best]),
            known.sizes[best].item(),
            mean[best].item(),
        ),
        work=_work(here.chosen, known.category[new].long(), table),
        members=[
            spoken(name)
            for name, is_in in zip(known.names, table.pool, strict=True)
            if is_in
        ],
        budget=budget,
    )


def _work(chosen, category, table) -> list[list[float | None]]:
    """Percent of each category's prompts that each expert of the pool got."""
    M, C = len(table.pool), len(pool().categories)
    got = F.one_hot(chosen, M).double()
    member = F.one_hot(category, C).double()
    count = member.sum(dim=0)
    share = 100 * (member.T @ got) / count.clamp_min(1)[:, None]
    return [
        [
            value if is_in and count[c] else None
            for value, is_in in zip(row, table.pool.tolist(), strict=True)
        ]
        for c, row in enumerate(share.tolist())
    ]


class Alike(NamedTuple):
    """Which neighbours have the same label as one prompt per category."""

    rows: list[list[int]]  # [C, k], 1 for the same
    equal: float  # percent of all test prompts' neighbours
    chance: float  # the same for pairs at random


def alike(label: str, k: int = coe.NEIGHBOURS) -> Alike:
    """The k nearest of each category's first test prompt, by their labels.

    ``label`` is "category" or "best expert", the smallest of several.
    """
    known, here = pool(), setting(0)
    labels = known.category.long()
    if label != "category":
        labels = known.scores.argmax(dim=1)
    mine = labels[here.new]
    same = here.near(labels, k) == mine[:, None]
    category = known.category[here.new]
    first = [
        int((category == c).nonzero()[0, 0])
        for c in range(len(known.categories))
    ]
    pair = mine[:, None] == labels[here.memory]
    return Alike(
        same[first].int().tolist(),
        100 * same.double().mean().item(),
        100 * pair.double().mean().item(),
    )
