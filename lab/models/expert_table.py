"""Which experts to keep in memory, and which of them serves which category.

From the mean score G [C, M] of each expert in each category, the categories'
shares w [C] and the experts' sizes |E_m|, within a budget B:

    max over z, x of  sum over c, m of  w_c G_cm x_cm
    subject to        sum over m of x_cm = 1,   x_cm <= z_m,
                      sum over m of |E_m| z_m <= B,   all x and z 0 or 1

z says who is in memory, x who serves whom. For fixed z the best x is known:
every category takes its best expert. So only the pools z are left to search,

    V(z) = sum over c of  w_c max over m in z of G_cm

and 2^M of them are few enough to try them all.
"""

from typing import NamedTuple

import torch
from torch import Tensor

MOST_EXPERTS = 16
EQUAL = 1e-12  # values that differ by less are those of equal pools


class Table(NamedTuple):
    """The expert of each category, and the pool that holds them."""

    expert: Tensor  # [C] int64
    pool: Tensor  # [M] bool, the experts in memory
    value: float  # mean score by G
    size: float  # of the pool


def every_pool(experts: int) -> Tensor:
    """All pools of one expert or more, [2^M - 1, M] bool."""
    if not 1 <= experts <= MOST_EXPERTS:
        raise ValueError(
            f"{experts} experts have too many pools to try, or none; use 1 to"
            f" {MOST_EXPERTS}"
        )
    number = torch.arange(1, 2**experts)
    return (number[:, None] >> torch.arange(experts) & 1).bool()


def tables(gains: Tensor, weights: Tensor, sizes: Tensor) -> list[Table]:
    """The best table of every budget, from the smallest to the largest pool.

    Gains are [C, M], weights [C] and sizes [M]. A pool is listed if it beats
    all that are as small or smaller. Of equally good pools the smallest is
    taken, and of equally good experts the first. O(2^M C M).
    """
    if not gains.isfinite().all():
        raise ValueError(
            "a category has an expert without a score; measure all, or leave"
            " the category out"
        )
    pools = every_pool(len(sizes))
    total = pools.double() @ sizes.double()
    value = values(gains, weights, pools)
    # of pools of one size the best first
    rows = sorted(
        zip(total.tolist(), (-value).tolist(), pools, strict=True),
        key=lambda row: row[:2],
    )
    found: list[Table] = []
    for size, below, pool in rows:
        if not found or -below > found[-1].value + EQUAL:
            expert = within(gains, pool).argmax(dim=1)
            found.append(Table(expert, pool, -below, size))
    return found


def affordable(every: list[Table], budget: float) -> Table:
    """The best of `tables` whose pool fits into the budget."""
    if not budget >= every[0].size:
        raise ValueError(
            f"a budget of {budget:g} holds no expert; the smallest needs"
            f" {every[0].size:g}"
        )
    return [table for table in every if table.size <= budget][-1]


def values(gains: Tensor, weights: Tensor, pools: Tensor) -> Tensor:
    """V of each of the pools [P, M], where every category is served best."""
    served = within(gains, pools[:, None, :]).amax(dim=2)  # [P, C]
    return served.double() @ weights.double()


def greedy_value(
    gains: Tensor, weights: Tensor, sizes: Tensor, budget: float
) -> float:
    """V of the pool that grows by the expert that adds most and still fits.

    It ends when nobody fits or adds anything, with 0 if no expert fits; of
    equals the first goes in.
    """
    pool = torch.zeros(len(sizes), dtype=torch.bool)
    reached = 0.0
    while True:
        tried = pool | torch.eye(len(sizes), dtype=torch.bool)
        value = values(gains, weights, tried)
        fits = tried.double() @ sizes.double() <= budget
        value[~fits] = -torch.inf
        if value.max() <= reached + EQUAL:
            return reached
        pool, reached = tried[value.argmax()], value.max().item()


def within(gains: Tensor, pool: Tensor) -> Tensor:
    """The gains, and -inf for experts outside the pool."""
    return gains.masked_fill(~pool, -torch.inf)
