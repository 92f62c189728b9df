"""How chapter 25 chose the rates of learning.

One rule for every method and compression: of the six rates in its grid the one
with the highest mean, over seeds 100 to 102, of right answers. Nothing of this
sees a test digit or a seed of the claims: networks learn from, and are pruned
by, the first 800 training digits, and answers are counted on the other 200.

    python -m lab.weights.parameter_sharing_rates

prints the means; some minutes.
"""

import torch

from lab.weights.shared_network import STEPS, accuracy
from lab.weights.sharing_methods import ARMS, Arm, trained

SEEDS = range(100, 103)
KEPT = 800  # training digits that are learned from
SMALL = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05)
MIDDLE = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
LARGE = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


def grid(arm: Arm) -> tuple[float, ...]:
    """The rates that a method tries: a scaler makes gradients smaller where
    many weights share a cell, and none lets them grow."""
    if arm.method == "ROAST, no scaler":
        return SMALL
    shared = arm.method in ("STABLE-RPS", "ROAST")
    return LARGE if shared and arm.compression > 1 else MIDDLE


def validate(arm: Arm, seed: int, steps: int = STEPS) -> list[float]:
    """One seed: percent right on the digits held back, for each rate."""
    held_back = slice(KEPT, None)
    return [
        accuracy(trained(arm, seed, steps, rate, KEPT), "train", held_back)
        for rate in grid(arm)
    ]


if __name__ == "__main__":
    for arm in ARMS:
        found = torch.tensor([validate(arm, seed) for seed in SEEDS])
        means = found.mean(dim=0)
        shown = " ".join(f"{x:5.1f}" for x in means.tolist())
        best = grid(arm)[means.argmax()]
        print(f"{arm.method:18} {arm.compression:3}x  {best:5}  {shown}",
              flush=True)  # fmt: skip
