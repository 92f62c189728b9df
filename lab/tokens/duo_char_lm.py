"""A character model whose layers have a big and a small network each.

It is the model of `char_lm` with other layers: six blocks, each with a network
of 192 hidden units and one of 12. Every token may take either:

    x + big(norm x)    or    x + small(norm x),  GELU in between

It is trained as in Duo-LLM (Alizadeh et al. 2024): in every layer a fair coin
sends each token to one of the two, with weight 1, so that each network learns
to replace the other. Tokens never look at each other here, so the route of
one token cannot change another's loss.
"""

import math
from collections.abc import Callable
from functools import cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lab.kernels.duo_ffn import duo_ffn
from lab.tokens.char_lm import DIM, CharLM, train

LAYERS = 6
BIG, SMALL = 192, 12  # hidden units, 16 to 1 as in the paper
STEPS = 600
MOST_LAYERS = 14  # with more, there are too many routes to try


class DuoLayer(nn.Module):
    """One block: x + the big or the small network of norm(x)."""

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(DIM)

        def drawn(fan_in: int, fan_out: int) -> nn.Parameter:
            weight = torch.empty(fan_in, fan_out)
            scale = (3 * fan_in) ** -0.5
            nn.init.normal_(weight, std=scale, generator=generator)
            return nn.Parameter(weight)

        self.big_up, self.big_down = drawn(DIM, BIG), drawn(BIG, DIM)
        self.small_up, self.small_down = drawn(DIM, SMALL), drawn(SMALL, DIM)

    def forward(self, x: Tensor, big: Tensor) -> Tensor:
        """Each token of x [T, D] through the network that big [T] chooses."""
        w_up = torch.cat([self.big_up, self.small_up], dim=1)
        w_down = torch.cat([self.big_down, self.small_down])
        return x + duo_ffn(self.norm(x), big, w_up, w_down, SMALL)

    def big(self, x: Tensor) -> Tensor:
        """What the big network adds to x [..., D]."""
        return F.gelu(self.norm(x) @ self.big_up) @ self.big_down

    def small(self, x: Tensor) -> Tensor:
        """What the small network adds to x [..., D]."""
        return F.gelu(self.norm(x) @ self.small_up) @ self.small_down


class DuoCharLM(CharLM):
    """The character model with a big and a small network in every layer."""

    def __init__(self, seed: int = 0, layers: int = LAYERS) -> None:
        if not 1 <= layers <= MOST_LAYERS:
            raise ValueError(
                f"layers={layers} is not within 1 to {MOST_LAYERS}; each layer"
                " doubles the number of routes"
            )
        super().__init__(make_router=None, seed=seed, layers=0)
        generator = torch.Generator().manual_seed(seed)
        self.layers = nn.ModuleList(DuoLayer(generator) for _ in range(layers))

    def start(self, context: Tensor) -> Tensor:
        """The input [T, D] of the first layer for context [T, 12]."""
        return self.enter(self.embedding(context).flatten(1))

    def finish(self, x: Tensor) -> Tensor:
        """Scores of the symbols after the last layer's x [..., D]."""
        return self.leave(self.norm(x))

    def forward(self, context: Tensor, big: Tensor) -> Tensor:
        """Scores [T, symbols]; token t is big in layer l where big[l, t]."""
        x = self.start(context)
        for layer, chosen in zip(self.layers, big, strict=True):
            x = layer(x, chosen)
        return self.finish(x)


def bits(logits: Tensor, target: Tensor) -> Tensor:
    """Loss of each token in bits, [..., T] from [..., T, symbols]."""
    scores = logits.log_softmax(dim=-1)
    wanted = target.expand(logits.shape[:-1])[..., None]
    return scores.gather(-1, wanted)[..., 0] / -math.log(2)


@cache
def trained(seed: int, steps: int = STEPS, layers: int = LAYERS) -> DuoCharLM:
    """The model after training by coin flips. Copy it before changing it."""
    return train_by_coin(DuoCharLM(seed, layers), steps, seed).eval()


def train_by_coin(
    model: DuoCharLM, steps: int, seed: int, progress: Callable = iter
) -> DuoCharLM:
    """Train in place on prose; a coin sends each token to big or small."""
    coin = torch.Generator().manual_seed(seed)
    objective = partial(_by_coin, coin=coin)
    return train(
        model, "prose", steps, seed, progress=progress, objective=objective
    )


def _by_coin(
    model: DuoCharLM, context: Tensor, target: Tensor, coin: torch.Generator
) -> tuple[None, Tensor]:
    shape = len(model.layers), len(context)
    big = torch.rand(shape, generator=coin) < 0.5
    logits = model(context, big.to(context.device))
    return None, F.cross_entropy(logits, target)
