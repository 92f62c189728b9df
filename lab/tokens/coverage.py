"""Coverage: how many distinct experts a batch of tokens touches.

A step reads every expert that at least one of its tokens chose, once. With
q_i the share of tokens that choose expert i, a batch of B independent tokens
reads

    U(B) = sum over i of 1 - (1 - q_i)^B

experts on average, however the choices of one token depend on each other.
Tokens of one text are not independent, and read fewer.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from lab.tokens.char_lm import CONTEXT, CharLM, measure, windows
from lab.tokens.expert_cache import simulate
from lab.tokens.routers import choice_rate
from lab.tokens.text import split


def coverage(rates: Tensor, batch: int) -> float:
    """U(B) for the choice rates q [N] and a batch of B independent tokens.

    Written with log1p and expm1, so that rates near 0 and large batches lose
    no digits.
    """
    if batch < 1:
        raise ValueError(f"batch={batch} reads no experts; use 1 or more")
    if len(rates) and not 0 <= rates.min() <= rates.max() <= 1:
        low, high = rates.min().item(), rates.max().item()
        raise ValueError(
            f"rates run from {low:g} to {high:g}; a share is 0 to 1"
        )
    # 1 - (1 - q)^B
    touched = -torch.expm1(batch * torch.log1p(-rates.double()))
    return touched.sum().item()


def uniform_rates(experts: int, k: float) -> Tensor:
    """The rates [N] if all experts are chosen equally often, k by a token."""
    if not 0 <= k <= experts:
        raise ValueError(
            f"k={k} of {experts} experts cannot be chosen; use 0 to {experts}"
        )
    return torch.full((experts,), k / experts, dtype=torch.float64)


def unrelated(tokens: int, batch: int, count: int, seed: int = 0) -> Tensor:
    """``count`` batches of random positions below ``tokens``, [count, B].

    As if B requests that know nothing of each other each decoded a token.
    """
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(tokens, (count, batch), generator=generator)


def neighbours(tokens: int, batch: int, count: int, seed: int = 0) -> Tensor:
    """``count`` batches of B positions in a row, [count, B], as in a text."""
    if batch > tokens:
        raise ValueError(
            f"batch={batch} is more than the {tokens} tokens; use fewer"
        )
    generator = torch.Generator().manual_seed(seed)
    start = torch.randint(tokens - batch + 1, (count,), generator=generator)
    return start[:, None] + torch.arange(batch)


def loads(chosen: Tensor, num_experts: int, at: Tensor) -> Tensor:
    """Tokens of every expert in every batch, [count, N].

    ``chosen`` [T, S] holds each token's experts, -1 for an empty slot, and
    ``at`` [count, B] the tokens of each batch.
    """
    count = len(at)
    columns = chosen.cpu()[at].flatten(1).long() + 1  # empty slots: column 0
    table = torch.zeros(count, num_experts + 1, dtype=torch.int64)
    table.scatter_add_(1, columns, torch.ones_like(columns))
    return table[:, 1:]


def distinct(chosen: Tensor, num_experts: int, at: Tensor) -> float:
    """Mean number of distinct experts in the batches ``at`` [count, B]."""
    touched = loads(chosen, num_experts, at) > 0
    return touched.sum(1).double().mean().item()


def lru_hits(chosen: Tensor, capacity: int) -> float:
    """Share of the choices of ``chosen`` [T, S] found in a cache of experts.

    The cache is LRU (`expert_cache`). Choices come token by token, and within
    a token slot by slot.
    """
    return simulate(chosen[chosen >= 0].tolist(), capacity, "LRU").ratio


class Trace(NamedTuple):
    """One layer's choices on text that the model has not learned."""

    chosen: Tensor  # [T, S] int32, in the order of the text, -1 if empty
    scores: Tensor  # [T, E] softmax of the router, null experts included
    experts: int  # N

    @property
    def rates(self) -> Tensor:
        """q [N]: the share of the tokens that choose each expert."""
        return choice_rate(self.chosen, self.experts).double()

    def halves(self) -> tuple["Trace", "Trace"]:
        """The first half of the text and the second."""
        T = len(self.chosen)
        first, second = slice(0, T // 2), slice(T // 2, T)
        return tuple(
            Trace(self.chosen[part], self.scores[part], self.experts)
            for part in (first, second)
        )


def read(model: CharLM, positions: int = 8192) -> list[Trace]:
    """The trace of every layer on ``positions`` characters in a row."""
    ids = split("prose").test.to(model.leave.weight.device)
    if not 2 <= positions <= len(ids) - CONTEXT:
        raise ValueError(
            f"positions={positions} is not within 2 to {len(ids) - CONTEXT}"
        )
    at = torch.arange(CONTEXT, CONTEXT + positions, device=ids.device)
    seen = measure(model, *windows(ids, at))
    N = model.layers[0].w_up.shape[0]
    return [
        Trace(chosen.cpu(), scores.cpu(), N)
        for chosen, scores in zip(seen.chosen, seen.scores, strict=True)
    ]
