"""What the pictures of chapter 20 show: recorded inventories and accuracies.

Seed 0: inventories of 8 adapters of rank 2 in 1 to 16 blocks, with logits that
learned at three rates, and what 12 new tasks made of each.
"""

from collections.abc import Callable
from functools import cache
from itertools import product
from typing import NamedTuple

import numpy as np
import torch

from lab.atomic import write_arrays
from lab.data import DATA, read_arrays
from lab.weights.digit_questions import (
    LAYERS,
    QUESTIONS,
    SYMMETRIES,
    split_tasks,
    train_base,
)
from lab.weights.inventory import route
from lab.weights.multi_head_routing import (
    METHODS,
    MODES,
    SHOT_STEPS,
    SHOTS,
    STEPS,
    Adapted,
    adapt,
    pretrain,
)

BLOCKS = (1, 2, 4, 8, 16)
LOGIT_RATES = (0.001, 0.01, 0.1)
FEW = (4, 16, 64)  # examples of each answer
SKILLS = METHODS["MHR"].skills
RECORDED = "multi_head_routing/recorded.npz"


def train_checkpoints(progress: Callable = iter) -> None:
    """Train the recorded inventories again, seed 0: some minutes."""
    base, (tasks, others) = train_base(0), split_tasks(0)
    grid = len(BLOCKS), len(LOGIT_RATES)
    learned = np.zeros(grid, dtype=np.float32)
    adapted = np.zeros((*grid, len(MODES), len(FEW), 12), dtype=np.float32)
    lora = np.zeros((len(FEW), 12), dtype=np.float32)
    arrays = {}

    def few(inventory, mode, shots, method, rate):
        return adapt(
            base, others, inventory, mode, method.shot_rates[mode], shots,
            SHOT_STEPS, 0, rate,
        )  # fmt: skip

    *_, alone = pretrain(base, tasks, METHODS["LoRA"], STEPS, 0)
    for at, shots in enumerate(FEW):
        found = few(alone, "full", shots, METHODS["LoRA"], LOGIT_RATES[-1])
        lora[at] = found.each(base, others)
    for place in progress([*np.ndindex(grid)]):
        blocks, rate = BLOCKS[place[0]], LOGIT_RATES[place[1]]
        method = METHODS["MHR"]._replace(blocks=blocks)
        *_, inventory = pretrain(base, tasks, method, STEPS, 0, rate)
        learned[place] = Adapted(inventory, route).accuracy(base, tasks)
        for (m, mode), (s, shots) in product(enumerate(MODES), enumerate(FEW)):
            found = few(inventory, mode, shots, method, rate)
            adapted[*place, m, s] = found.each(base, others)
            if (mode, shots) == ("z", SHOTS):
                logits = zip(
                    inventory.logits, found.inventory.logits, strict=True
                )
                rows = torch.stack([torch.cat(pair) for pair in logits])
                key = f"logits {blocks} {rate}"
                arrays[key] = rows.detach().cpu().numpy().astype(np.float16)
    arrays |= {"learned": learned, "adapted": adapted, "lora": lora}
    write_arrays(DATA / RECORDED, **arrays)


@cache
def _recorded() -> dict[str, np.ndarray]:
    """learned [h, rate], adapted [h, rate, mode, shots, task], lora [shots,
    task], and logits [layer, task, block, adapter] of 36 learned and then 12
    new tasks by z."""
    return read_arrays(RECORDED)


class Picture(NamedTuple):
    """What the chapter's picture shows, as plain lists."""

    curves: dict[str, list[float]]  # % of right answers, over BLOCKS
    accuracy: float  # of the new tasks in this mode
    new: list[list[float | None]]  # the same, [symmetry][question]
    weights: list[list[float]]  # [48 tasks][adapter], new ones by z
    rows: list[str]  # the questions, at the first of their 8 tasks
    block: int  # that is shown
    spread: float  # of all weights around 1 / S, in percent of it
    said: str  # the setting in words

    @property
    def adapters(self) -> list[str]:
        return [str(s + 1) for s in range(SKILLS)]

    @property
    def title(self) -> str:
        return f"{self.said}: {self.accuracy:.1f} % right on new tasks"

    @property
    def note(self) -> str:
        return (
            f"all weights lie {self.spread:.0f} % away from 1/{SKILLS} (root"
            " mean square)"
        )


def picture(
    blocks: int = 1,
    mode: str = "z",
    shots: int = SHOTS,
    logit_rate: float = 0.1,
    layer: int = 1,
    block: int = 1,
) -> Picture:
    """The accuracies of new tasks, and one block's weights of all tasks.

    The new tasks' weights are always those of z after 16 examples.
    """
    known = (
        ("blocks", blocks, BLOCKS), ("mode", mode, MODES),
        ("shots", shots, FEW), ("logit_rate", logit_rate, LOGIT_RATES),
        ("layer", layer, tuple(range(1, LAYERS + 1))),
        ("block", block, tuple(range(1, BLOCKS[-1] + 1))),
    )  # fmt: skip
    for name, value, allowed in known:
        if value not in allowed:
            raise ValueError(
                f"{name}={value!r} was not recorded; use one of"
                f" {', '.join(map(str, allowed))}"
            )
    at, rate = BLOCKS.index(blocks), LOGIT_RATES.index(logit_rate)
    few, arrays = FEW.index(shots), _recorded()
    means = arrays["adapted"][:, rate, :, few].mean(axis=-1)  # [h, mode]
    curves = {"learned": arrays["learned"][:, rate].tolist()}
    for m, name in enumerate(MODES):
        curves[f"new, {name}"] = means[:, m].tolist()
    lora = float(arrays["lora"][few].mean())
    curves["new, LoRA"] = [lora] * len(BLOCKS)
    new = [[None] * len(QUESTIONS) for _ in SYMMETRIES]
    tasks, others = split_tasks(0)
    row = arrays["adapted"][at, rate, MODES.index(mode), few]
    for number, value in zip(others.numbers, row.tolist(), strict=True):
        new[number % 8][number // 8] = value
    weights = shares(blocks, logit_rate)[layer - 1]
    shown = min(block, blocks)
    order = np.argsort([*tasks.numbers, *others.numbers])
    mine = weights[order, shown - 1]
    return Picture(
        curves=curves,
        accuracy=float(row.mean()),
        new=new,
        weights=mine.tolist(),
        rows=[q if not s else "" for q in QUESTIONS for s in range(8)],
        block=shown,
        spread=spread(blocks, logit_rate),
        said=f"h = {blocks}, {mode}, {shots} examples of each answer",
    )


@cache
def shares(blocks: int, logit_rate: float) -> np.ndarray:
    """The weights [layer, task, block, adapter]: 36 learned, then 12 new."""
    logits = _recorded()[f"logits {blocks} {logit_rate}"].astype(np.float32)
    return route(torch.from_numpy(logits)).numpy()


def spread(blocks: int, logit_rate: float) -> float:
    """How far weights lie from 1 / S, in percent of it: root mean square."""
    away = SKILLS * shares(blocks, logit_rate) - 1
    return 100 * float(np.sqrt((away**2).mean()))
