"""The time of one expert layer on the machine at hand.

The kernels of this lab run a mixture of 16 experts and a dense layer of the
same active size, alternating round by round, so that a slow minute hits both.
Both walk through the same large memory, more than a small cache holds. On a
CPU the clock is the processor time of the process.
"""

from collections.abc import Callable, Iterable
from functools import cache
from itertools import cycle
from typing import NamedTuple

import torch
from torch import Tensor

from lab.bench.timing import in_turn
from lab.kernels.moe_layer import moe_layer
from lab.kernels.runtime import device
from lab.kernels.topk_gate import Gate
from lab.tokens import top_p_routing_recorded
from lab.tokens.coverage import read, unrelated

EXPERTS, TOP_K = 16, 2  # of the recorded model that routes
DIM, HIDDEN = 512, 640  # 4 MB an expert in fp32
BATCHES = (1, 2, 4, 8, 16, 32, 64)


class Clocked(NamedTuple):
    """Medians, one for each batch size."""

    batches: tuple[int, ...]  # B
    distinct: list[float]  # experts that had tokens, mean of the samples
    moe_ms: list[float]  # the mixture
    dense_ms: list[float]  # a dense layer of the same active size


def wall_clock(
    seed: int,
    batches: Iterable[int] = BATCHES,
    samples: int = 15,
    copies: int = 8,
) -> Clocked:
    """Milliseconds of the layer for each batch size, routed as in a text.

    Every sample takes the choices of other tokens of the recorded top-2
    model, at random positions, and the weights of the next of ``copies``
    layers, 63 MB each.
    """
    batches = tuple(batches)
    w_up, w_down = _weights(seed, copies)
    chosen = _choices().to(device())
    generator = torch.Generator().manual_seed(seed)
    seen = {B: [] for B in batches}
    providers = {}
    for B in batches:
        x = torch.randn(B, DIM, generator=generator).to(device())
        drawn = unrelated(len(chosen), B, samples + 2, seed).to(device())
        providers["moe", B] = _mixture(
            x, chosen, cycle(drawn), cycle(zip(w_up, w_down, strict=True)),
            seen[B],
        )  # fmt: skip
        providers["dense", B] = _dense(x, w_up, w_down)
    times = in_turn(providers, device(), samples, seconds=60.0)
    return Clocked(
        batches,
        [sum(seen[B]) / len(seen[B]) for B in batches],
        [times["moe", B].ms for B in batches],
        [times["dense", B].ms for B in batches],
    )


def _weights(seed: int, copies: int) -> tuple[Tensor, Tensor]:
    """``copies`` layers of experts, [copies, E, ...], all equal."""
    generator = torch.Generator().manual_seed(seed)
    up = torch.randn(EXPERTS, DIM, 2 * HIDDEN, generator=generator)
    down = torch.randn(EXPERTS, HIDDEN, DIM, generator=generator)
    pair = (up / DIM**0.5, down / HIDDEN**0.5)
    return tuple(w.to(device()).repeat(copies, 1, 1, 1) for w in pair)


@cache
def _choices() -> Tensor:
    """The middle layer's experts in the recorded top-2 model, [T, 2]."""
    return read(top_p_routing_recorded.recorded("top-2", EXPERTS))[1].chosen


def _mixture(x, chosen, drawn, layers, seen) -> Callable:
    def prepare():
        experts = chosen[next(drawn)]
        weights = torch.full(experts.shape, 1 / TOP_K, device=x.device)
        up, down = next(layers)
        seen.append(len(experts.unique()))
        return lambda: moe_layer(x, Gate(experts, weights), up, down)

    return prepare


def _dense(x, w_up, w_down) -> Callable:
    """A dense layer: two experts' memory, seen as one twice as wide."""
    ups = w_up.view(-1, 1, DIM, 2 * TOP_K * HIDDEN)
    downs = w_down.view(-1, 1, TOP_K * HIDDEN, DIM)
    layers = cycle(zip(ups, downs, strict=True))
    gate = Gate(
        torch.zeros(len(x), 1, dtype=torch.int32, device=x.device),
        torch.ones(len(x), 1, device=x.device),
    )

    def prepare():
        up, down = next(layers)
        return lambda: moe_layer(x, gate, up, down)

    return prepare
