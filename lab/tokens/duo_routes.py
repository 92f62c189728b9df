"""Every route through the layers, and who may choose among them.

A route says for each layer whether a token takes the big or the small
network. Route r is a binary number: bit l is 1 if layer l is big, so L layers
have 2^L routes. Its budget is the number of its ones, and the routes of one
budget are a menu. One after the other, all routes need L 2^L evaluations of a
network; if routes that begin alike share their beginning,
2 + 4 + ... + 2^L = 2^(L+1) - 2 are enough.

The choosers, all on losses [routes, tokens] in bits:

    oracle        min over the routes of a budget, for each token separately:
                  needs to know the character that is to be predicted
    best fixed    min over the routes of the mean over all tokens
    mean fixed    mean over the routes too: a route without a choice
    null oracle   min over copies of the all-big model that differ by dropout
                  noise alone: the same choice, but no routes to choose from

The minimum of n noisy numbers lies below their mean: the more numbers there
are and the wider they scatter, the lower it lies. So the null oracle is given
as many copies as the menu has routes, and enough noise to scatter as widely.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lab.kernels.min_by_budget import Best, min_by_budget
from lab.tokens.duo_char_lm import LAYERS, MOST_LAYERS, DuoCharLM, bits

OPTIONS = ("small", "big")
CHUNK = 512  # tokens at a time: 64 routes of them fill 13 MB
TRIES = 5  # steps towards the dropout rate with the wanted scatter


def budgets(layers: int, options: Sequence[str] = OPTIONS) -> Tensor:
    """How many layers of each route are big, [options^layers] int32."""
    if not 1 <= layers <= MOST_LAYERS:
        raise ValueError(f"layers={layers} is not within 1 to {MOST_LAYERS}")
    count = torch.zeros(1, dtype=torch.int32)
    for _ in range(layers):
        count = torch.cat([count + (name == "big") for name in options])
    return count


@torch.no_grad()
def route_losses(
    model: DuoCharLM,
    context: Tensor,
    target: Tensor,
    options: Sequence[str] = OPTIONS,
) -> Tensor:
    """Bits of each route for each token, [options^L, T].

    With three ``options``, ("skip", "small", "big"), a layer may also be left
    out, and the routes are numbers in base 3. O(routes T).
    """
    if not set(options) <= {"skip", "small", "big"}:
        raise ValueError(
            f"options={tuple(options)} are not all among skip, small and big"
        )
    parts = zip(context.split(CHUNK), target.split(CHUNK), strict=True)
    return torch.cat([tree(model, *part, options) for part in parts], dim=1)


def tree(
    model: DuoCharLM, context: Tensor, target: Tensor, options: Sequence[str]
) -> Tensor:
    """Bits of all routes at once; a shared beginning is computed once."""
    x = model.start(context)[None]  # [routes so far, T, D]
    for layer in model.layers:
        add = {"skip": torch.zeros_like, "small": layer.small}
        add["big"] = layer.big
        # concatenated, so that an earlier layer stays the lower digit
        x = torch.cat([x + add[name](x) for name in options])
    return bits(model.finish(x), target)


def layers_of(routes: Tensor, layers: int = LAYERS) -> Tensor:
    """Which layers of the routes [...] are big, [layers, ...] bool."""
    return torch.stack([(routes >> place) & 1 for place in range(layers)]) > 0


class Choice(NamedTuple):
    """What the choosers reach, by budget 0 .. L, in bits."""

    oracle: Tensor  # [L + 1]
    best_fixed: Tensor  # [L + 1]
    mean_fixed: Tensor  # [L + 1]
    routes: Tensor  # [L + 1, T] int32, the oracle's


def choose(losses: Tensor, budget: Tensor) -> Choice:
    """Apply all choosers to losses [R, T] with budget [R] int32."""
    menus = int(budget.max()) + 1
    best = min_by_budget(losses, budget, menus)
    mean = losses.double().mean(dim=1)
    sums = mean.new_zeros(menus).index_add(0, budget.long(), mean)
    return Choice(
        oracle=best.loss.double().mean(dim=1),
        best_fixed=min_by_budget(mean[:, None], budget, menus).loss[:, 0],
        mean_fixed=sums / budget.bincount(minlength=menus),
        routes=best.route,
    )


def shortened(
    losses: Tensor, budget: Tensor, most: int, seed: int = 0
) -> Best:
    """The oracle with ``most`` routes of each menu, drawn for each token."""
    generator = torch.Generator().manual_seed(seed)
    draw = torch.rand(losses.shape, generator=generator).to(losses.device)
    kept = torch.full_like(losses, float("inf"))
    for menu in budget.unique():
        rows = (budget == menu).nonzero().flatten()
        rank = draw[rows].argsort(dim=0).argsort(dim=0)
        kept[rows] = losses[rows].masked_fill(rank >= most, float("inf"))
    return min_by_budget(kept, budget, int(budget.max()) + 1)


@torch.no_grad()
def noisy_losses(
    model: DuoCharLM,
    context: Tensor,
    target: Tensor,
    rate: float,
    copies: int,
    seed: int = 0,
) -> Tensor:
    """Bits of ``copies`` noisy all-big models on each token, [copies, T].

    Dropout of ``rate`` is applied to the output of each network. With the
    same seed, a higher rate drops the same entries and a few more.
    """
    if not 0 <= rate < 1:
        raise ValueError(
            f"rate={rate} is out of range; use 0 or more, less than 1"
        )
    generator = torch.Generator().manual_seed(seed)
    x = model.start(context).expand(copies, -1, -1)
    for layer in model.layers:
        y = layer.big(x)
        kept = torch.rand(y.shape, generator=generator).to(x.device) >= rate
        x = x + y * kept / (1 - rate)
    return bits(model.finish(x), target)


def scatter(losses: Tensor) -> float:
    """Mean over tokens of the standard deviation of losses [n, T], in bits."""
    return losses.double().std(dim=0).mean().item()


def matched_rate(
    model: DuoCharLM,
    context: Tensor,
    target: Tensor,
    wanted: float,
    copies: int,
    seed: int = 0,
) -> float:
    """The dropout rate that makes the copies scatter by ``wanted`` bits."""
    rate = 0.15
    for _ in range(TRIES):
        noisy = noisy_losses(model, context, target, rate, copies, seed)
        # the variance of dropout's noise grows with rate / (1 - rate)
        odds = rate / (1 - rate) * (wanted / scatter(noisy)) ** 2
        rate = odds / (1 + odds)
    return rate


def taken(losses: Tensor, routes: Tensor) -> Tensor:
    """The losses [R, T] of the routes [T] that were taken, [T]."""
    return losses.gather(0, routes[None].long())[0]


def shuffled(routes: Tensor, layers: int, seed: int = 0) -> Tensor:
    """The routes [T] with each layer's choices given to random tokens.

    Every layer is big as often as before, but not for the same tokens.
    """
    generator = torch.Generator().manual_seed(seed)
    dealt = torch.zeros_like(routes)
    for place, big in enumerate(layers_of(routes, layers)):
        order = torch.randperm(len(routes), generator=generator)
        dealt += big[order.to(routes.device)].long() << place
    return dealt
