"""Who is slow, from the delays of messages alone: the C4D half of chapter 40.

Every message of a collective should take as long as its equals, so a delay
matrix (`kernels.delay_stats`) says where the slow part is:

    a hot row    what i sends is slow       a hot column  what j receives is
    a hot cell   the connection from i to j is slow

Two rules turn the matrix into a verdict. "cells" counts hot cells. "rows" is
a control: it takes the median of a whole row or column first, which has less
noise than a cell, and then asks whether it stands out among the others.
"""

import torch
from torch import Tensor

from lab.kernels.delay_stats import (
    TO_SIGMA,
    DelayStats,
    delay_stats,
    limits,
)
from lab.kernels.runtime import device
from lab.networks.delay_traces import Fault, faults, leaves, window

Z = 6.0  # standard deviations above its class from which a pair is hot
MOST = 0.6  # a row or column is to blame if more of it is hot


def watch(delays: Tensor) -> DelayStats:
    """The statistics of windows [B, T, N, N] of the rail's ranks."""
    found = delay_stats(delays.to(device()), leaves().to(device()), Z)
    return DelayStats(*(tensor.cpu() for tensor in found))


def verdicts(
    stats: DelayStats, group: Tensor, rule: str = "cells"
) -> list[Fault]:
    """The slow part of each window: a rank's sends or receives, a link, none.

    By "cells", the row or column with the largest hot share is to blame if
    that exceeds `MOST`. By "rows", it is the one whose median, in usual
    delays, exceeds that of all rows or columns most, if by more than Z sigma
    of their medians. Of equals it is the row, then the lowest rank. If nobody
    is to blame, it is the link that is hottest for its class, if any is hot.
    """
    if rule not in RULES:
        raise ValueError(
            f"rule={rule!r} is unknown; use one of {', '.join(RULES)}"
        )
    windows = zip(ratios(stats.median, group), *stats[1:], strict=True)
    return [
        RULES[rule](ratio, sends, receives) or _hottest(ratio, hot)
        for ratio, hot, sends, receives in windows
    ]


def ratios(median: Tensor, group: Tensor) -> Tensor:
    """Delays [B, N, N] in units of their class's median, NaN where none."""
    # at z = 0 the limit is that median
    ratio = median / limits(median, group, 0.0)
    return ratio.where(median > 0, torch.nan)


def _by_cells(ratio, sends, receives) -> Fault | None:
    if max(sends.max(), receives.max()) <= MOST:
        return None
    if sends.max() >= receives.max():
        return Fault("sends", int(sends.argmax()))
    return Fault("receives", int(receives.argmax()))


def _by_rows(ratio, sends, receives) -> Fault | None:
    worst, found = 0.0, None
    for kind, dim in (("sends", 1), ("receives", 0)):
        middle = ratio.nanmedian(dim).values
        off = middle - middle.nanmedian()
        limit = Z * TO_SIGMA * off.abs().nanmedian()
        most = off.nan_to_num(0.0).max()
        if most > max(limit, worst):
            worst, found = most, Fault(kind, int(off.nan_to_num(0.0).argmax()))
    return found


def _hottest(ratio, hot) -> Fault:
    if not hot.any():
        return Fault("none")
    cell, N = int(ratio.where(hot > 0, 0.0).argmax()), len(hot)
    return Fault("link", cell // N, cell % N)


RULES = {"cells": _by_cells, "rows": _by_rows}


def diagnosed(
    seed: int,
    paths: str = "planned",
    samples: int = 4,
    slowdown: float = 2.0,
    jitter: float = 0.15,
    trials: int = 10,
    past: bool = False,
    rule: str = "cells",
) -> float:
    """Percent of windows, a quarter of each kind of fault, judged rightly.

    With ``past`` every delay is divided by the median delay of the same pair
    in an earlier window of as many samples, when nothing was slow.
    """
    right = 0
    for trial in range(seed * trials, (seed + 1) * trials):
        wanted = faults(trial)
        delays = torch.stack(
            [
                window(fault, samples, slowdown, trial, paths, jitter, part)
                for part, fault in enumerate(wanted)
            ]
        )
        if past:
            before = window(Fault("none"), samples, 1.0, trial, paths, jitter)
            delays = delays / before.nanmedian(0).values
        found = verdicts(watch(delays), leaves(), rule)
        right += sum(a == b for a, b in zip(found, wanted, strict=True))
    return 100 * right / (4 * trials)
