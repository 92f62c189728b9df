"""The middle of every change: which entries of a task vector are kept.

    kept if Q_beta(|tau|) <= |tau[w]| <= Q_gamma(|tau|), by layer or by row

Both ends are entries, found by `two_sided_quantile`, and both are kept. Ties
with an end stay, so a layer of equal entries is kept whole.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from lab.kernels.runtime import device
from lab.kernels.two_sided_quantile import two_sided_quantile
from lab.weights.digit_tasks import Weights

PER = ("layer", "row")


class Cut(NamedTuple):
    below: int  # entries cut because they are small
    above: int  # entries cut because they are large


def cut(n: int, beta: float, gamma: float) -> Cut:
    """How many of n entries are cut at either end.

    The shares removed above and kept are rounded down to whole entries; the
    others are small.
    """
    if not 0 <= beta < gamma <= 1:
        raise ValueError(
            f"beta={beta} and gamma={gamma} are no band; use"
            " 0 <= beta < gamma <= 1"
        )
    # 0.1 of 10 is 1, and 1 - 0.9 is a little less than 0.1
    above, kept = (
        int(round(share * n, 6)) for share in (1 - gamma, gamma - beta)
    )
    return Cut(n - above - kept, above)


def band(
    tau: Tensor, beta: float, gamma: float, per: str = PER[0]
) -> Tensor:  # fmt: skip
    """The task vectors of one layer, tau [T, ...], with 0 outside the band.

    The entries are ranked by layer, or as in the authors' code by row.
    """
    if per not in PER:
        raise ValueError(f"per={per!r} is not one of {', '.join(PER)}")
    rows = tau.flatten(1) if per == "layer" else tau.flatten(0, -2)
    below, above = cut(rows.shape[1], beta, gamma)
    if below + above == rows.shape[1]:
        # so few entries that the share kept is less than one
        return torch.zeros_like(tau)
    ends = two_sided_quantile(rows.to(device()), below, above).to(tau.device)
    size = rows.abs()
    kept = (ends[:, :1] <= size) & (size <= ends[:, 1:])
    return torch.where(kept, rows, 0).view_as(tau)


def breadcrumbs(
    vectors: Weights, beta: float, gamma: float, per: str = PER[0]
) -> Weights:
    """The task vectors [T, ...] with the band of each layer alone."""
    return Weights(*(band(v, beta, gamma, per) for v in vectors))
