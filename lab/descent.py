"""Adam with a one-cycle learning rate, used to train every model here."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor


def one_cycle_adam(
    weights: Iterable[Tensor],
    loss: Callable[[int], Tensor],
    steps: int,
    peak_rate: float,
    progress: Callable[[Iterable], Iterable] = iter,
    fused: bool = False,
) -> None:
    """Change ``weights`` in place, ``steps`` times, to lower ``loss(step)``.

    The rate rises to ``peak_rate`` and falls to almost nothing. ``progress``
    wraps the steps (a progress bar). ``fused`` uses PyTorch's single kernel
    for all weights, which rounds differently.
    """
    optimizer = torch.optim.Adam(weights, lr=peak_rate, fused=fused or None)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, peak_rate, total_steps=steps + 1
    )
    for step in progress(range(steps)):
        value = loss(step)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        schedule.step()
