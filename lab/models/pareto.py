"""Hulls, budgets and areas in the plane of cost and quality.

A policy is a point (mean cost, mean quality). Sending a share of the traffic
by one policy and the rest by another reaches every point on the line between
them, so what a set of policies can do is its upper hull.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

SLACK = 1e-6  # relative; for a mean of costs that is rounded in fp32


class Hull(NamedTuple):
    """The corners of an upper hull, from the cheapest to the best."""

    cost: Tensor  # [H] float64, rising
    quality: Tensor  # [H] float64, rising

    def at(self, budget: float) -> float:
        """The best mean quality within a mean cost; spare money is kept."""
        if not self._affords(budget):
            raise ValueError(
                f"a budget of {budget:g} buys nothing; the cheapest policy"
                f" costs {self.cost[0]:g}"
            )
        return float(np.interp(budget, self.cost, self.quality))

    def area(self, low: float, high: float) -> float:
        """Mean quality over the budgets from low to high.

        The range is the pool's, not the hull's, so that the figure of one
        router does not depend on the routers it is compared with. Where the
        hull has no policy that cheap, its quality counts as 0.
        """
        if low > high:
            raise ValueError(
                f"low={low:g} is above high={high:g}; swap the two budgets"
            )
        if low == high:
            return self.at(low) if self._affords(low) else 0.0
        inner = self.cost[(self.cost > low) & (self.cost < high)]
        start = max(low, float(self.cost[0]))
        if start >= high:
            return 0.0
        ends = torch.tensor([start, high], dtype=torch.float64)
        x = torch.cat([ends[:1], inner[inner > start], ends[1:]]).numpy()
        y = np.interp(x, self.cost, self.quality)
        return float(np.trapezoid(y, x)) / (high - low)

    def _affords(self, budget: float) -> bool:
        """Whether a budget pays for the cheapest policy, up to rounding."""
        return budget >= float(self.cost[0]) * (1 - SLACK)


def hull(cost: Tensor, quality: Tensor) -> Hull:
    """The upper, never falling hull of policies [P] in O(P log P)."""
    if not (torch.isfinite(cost).all() and torch.isfinite(quality).all()):
        raise ValueError(
            "a cost or quality is infinite or NaN; leave such policies out"
        )
    points = sorted(
        zip(cost.double().tolist(), quality.double().tolist(), strict=True),
        key=lambda point: (point[0], -point[1]),
    )
    kept = []
    for x, y in points:
        # dearer and no better: nobody wants it
        if kept and y <= kept[-1][1]:
            continue
        while len(kept) > 1 and _below(kept[-2], kept[-1], (x, y)):
            kept.pop()
        kept.append((x, y))
    table = torch.tensor(kept, dtype=torch.float64)
    return Hull(table[:, 0], table[:, 1])


def _below(one, middle, other) -> bool:
    """Whether the middle point lies on or below the line of the others."""
    (x0, y0), (x1, y1), (x2, y2) = one, middle, other
    return (y1 - y0) * (x2 - x0) <= (y2 - y0) * (x1 - x0)


def apgr(gain: Tensor, weak: Tensor, strong: Tensor, seed: int = 0) -> float:
    """Average performance gap recovered (RouteLLM), over all shares of calls.

    The prompts [N] with the largest predicted ``gain`` go to the strong model
    first; ``weak`` and ``strong`` are the true scores. 0.5 is what chance
    gives, and more than 1 is possible: routing may beat the strong model.
    Prompts of equal gain come in a random order that the seed fixes. A strong
    model that is as good as the weak one leaves no gap to recover.
    """
    shuffled = torch.randperm(
        len(gain), generator=torch.Generator().manual_seed(seed)
    )
    order = shuffled[gain[shuffled].argsort(descending=True, stable=True)]
    step = torch.cat([gain.new_zeros(1), (strong - weak)[order].cumsum(0)])
    if step[-1] == 0:
        raise ValueError(
            "both models have the same total score, so there is no gap to"
            " recover; compare models that differ"
        )
    recovered = step / step[-1]
    return float(np.trapezoid(recovered, dx=1 / len(gain)))


def auc(guess: Tensor, right: Tensor) -> float:
    """How often a right answer is guessed higher than a wrong one.

    A tie counts one half. Both kinds of answers must occur.
    """
    right = right.bool()
    high, low = guess[right], guess[~right].sort().values
    if not len(high) or not len(low):
        raise ValueError(
            f"{len(high)} right and {len(low)} wrong answers have no AUC; it"
            " needs both kinds"
        )
    below = torch.searchsorted(low, high.contiguous())
    upto = torch.searchsorted(low, high.contiguous(), right=True)
    pairs = (below + upto).double().sum() / 2
    return float(pairs / (len(high) * len(low)))
