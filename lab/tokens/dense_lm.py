"""A dense character model of seven domains, whose neurons can be masked.

It starts like the model of `lab.tokens.char_lm`, but each of its three layers
is one network of F = 192 hidden units, u = relu(norm(x) W_up), not a mixture:

    x + (mask * u) W_down

A mask of zeros and ones switches hidden units off, for all tokens or token
by token. Chapters 08 and 09 find out what the units do.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lab.descent import one_cycle_adam
from lab.half_precision import read_halves, write_halves
from lab.tokens.char_lm import (
    CONTEXT,
    DIM,
    EMBEDDING,
    LAYERS,
    draw_weights,
)
from lab.tokens.domains import mixture
from lab.tokens.text import ALPHABET

HIDDEN = 192  # F, hidden units of a layer
STEPS = 1000
EACH = 73  # characters of every domain in one training step
RECORDED = "domains/dense-seed-0.npz"


class Reading(NamedTuple):
    logits: Tensor  # [T, symbols]
    hidden: list[Tensor]  # per layer [T, F], before the mask


class Block(nn.Module):
    """One layer: x + (mask * relu(norm(x) W_up)) W_down."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(DIM)
        self.w_up = nn.Parameter(torch.empty(DIM, HIDDEN))
        self.w_down = nn.Parameter(torch.empty(HIDDEN, DIM))

    def forward(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        u = (self.norm(x) @ self.w_up).relu()
        kept = u if mask is None else u * mask
        return x + kept @ self.w_down, u


class DenseLM(nn.Module):
    """The dense model, its matrices drawn from the seed as in `CharLM`."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.embedding = nn.Embedding(len(ALPHABET), EMBEDDING)
        self.enter = nn.Linear(CONTEXT * EMBEDDING, DIM)
        self.layers = nn.ModuleList(Block() for _ in range(LAYERS))
        self.norm = nn.LayerNorm(DIM)
        self.leave = nn.Linear(DIM, len(ALPHABET))
        draw_weights(self, seed)

    def forward(
        self,
        context: Tensor,
        mask: Sequence[Tensor | None] | None = None,
    ) -> Reading:
        """Read contexts [T, 12]; ``mask`` has a mask or None per layer.

        A mask holds 0 and 1: [F], for all tokens, or [T, F].
        """
        masks = [None] * len(self.layers) if mask is None else mask
        x, hidden = self.enter(self.embedding(context).flatten(1)), []
        for layer, kept in zip(self.layers, masks, strict=True):
            x, u = layer(x, kept)
            hidden.append(u)
        return Reading(self.leave(self.norm(x)), hidden)


@cache
def trained(seed: int, steps: int = STEPS) -> DenseLM:
    """A model trained on equal parts of the seven domains; copy to change it.

    Adam with a one-cycle learning rate, as for all character models.
    """
    return train(DenseLM(seed), seed, steps)


def train(
    model: DenseLM, seed: int, steps: int, progress: Callable = iter
) -> DenseLM:
    """Train ``model`` in place on batches that the seed draws."""
    if steps < 1:
        raise ValueError(f"steps={steps} trains nothing; use 1 or more")
    generator = torch.Generator().manual_seed(seed)

    def loss(_: int) -> Tensor:
        context, target, _ = mixture(EACH, generator)
        return F.cross_entropy(model(context).logits, target)

    one_cycle_adam(model.parameters(), loss, steps, 1e-2, progress, fused=True)
    return model.eval()


@cache
def recorded() -> DenseLM:
    """The model of `record`, seed 0, without training."""
    model = DenseLM()
    model.load_state_dict(read_halves(RECORDED))
    return model.eval()


def record(progress: Callable = iter) -> None:
    """Train seed 0 again and keep its weights in half precision."""
    model = train(DenseLM(0), 0, STEPS, progress)
    write_halves(RECORDED, model.state_dict(), seed=0, steps=STEPS)
