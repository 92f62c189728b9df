"""How chapter 20 chose the rates at which new tasks are adapted.

One rule for every method and mode: of the rates in `GRID` the one with the
highest mean, over seeds 100 to 107, of right answers on 12 new tasks. Nothing
of this sees a test digit or a seed of the claims: networks, inventories and
few examples come from the first 800 training digits, and answers are counted
on the other 200. Adapters try the lower seven rates of the grid. Logits, where
they learn alone (z), try the upper seven.

    python -m lab.weights.multi_head_routing_rates

prints the means; some minutes.
"""

import torch

from lab.kernels.runtime import device
from lab.weights.digit_questions import (
    BASE_STEPS,
    KNOWN,
    Base,
    Tasks,
    split_tasks,
    train_base,
)
from lab.weights.inventory import LOGIT_RATE, adapter
from lab.weights.multi_head_routing import (
    METHODS,
    SHOT_STEPS,
    SHOTS,
    STEPS,
    Adapted,
    adapt,
    pretrain,
)

SEEDS = range(100, 108)
KEPT = 800  # training digits that are learned from
GRID = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


def grid(mode: str) -> tuple[float, ...]:
    """The rates that a mode tries."""
    return GRID[4:] if mode == "z" else GRID[:7]


@torch.no_grad()
def held_back(base: Base, tasks: Tasks, adapted: Adapted) -> float:
    """Percent of right answers on the training digits held back."""
    examples = torch.arange(KEPT, KNOWN, device=device())
    examples = examples.expand(len(tasks.numbers), -1)
    x = tasks.inputs("train", examples).flatten(0, 1)
    add = adapter(adapted.inventory, KNOWN - KEPT, adapted.weigh)
    found = base.answer(x, add).argmax(dim=1)
    right = found == tasks.answers("train", examples).flatten()
    return 100 * right.double().mean().item()


def validate(
    seed: int,
    base_steps: int = BASE_STEPS,
    steps: int = STEPS,
    shot_steps: int = SHOT_STEPS,
    shots: int = SHOTS,
) -> dict[str, list[float]]:
    """One seed: percent right of each method and mode, over its rates."""
    base = train_base(seed, base_steps, KEPT)
    tasks, others = split_tasks(seed)
    found = {}
    for name, method in METHODS.items():
        *_, inventory = pretrain(base, tasks, method, steps, seed, known=KEPT)
        for mode in method.shot_rates:
            found[f"{name} {mode}"] = [
                held_back(base, others, adapt(
                    base, others, inventory, mode, rate, shots, shot_steps,
                    seed, rate if mode == "z" else LOGIT_RATE, KEPT,
                ))
                for rate in grid(mode)
            ]  # fmt: skip
    return found


if __name__ == "__main__":
    seeds = [validate(seed) for seed in SEEDS]
    for name in seeds[0]:
        means = torch.tensor([one[name] for one in seeds]).mean(dim=0)
        shown = " ".join(f"{x:.2f}" for x in means.tolist())
        best = grid(name.split()[1])[means.argmax()]
        print(f"{name:9} {best:6}   {shown}")
