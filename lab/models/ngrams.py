"""Character n-gram models: experts small enough to train eleven in a second.

A model counts which character follows which. The counts of longer contexts
are few, so each order leans on the one below, the more the fewer it has
(interpolation after Witten and Bell, with fixed weights):

    p1(c)       = (n(c) + 1/2) / (n + A / 2)
    p2(c | b)   = (n(bc)  + 8 p1(c))      / (n(b)  + 8)
    p3(c | ab)  = (n(abc) + 6 p2(c | b))  / (n(ab) + 6)

where A is the size of the alphabet. So no character has probability 0. The
size of a model is how many of its counts are not 0: what it has to keep.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from lab.tokens.text import ALPHABET

A = len(ALPHABET)
WEIGHTS = (0.5, 8.0, 6.0)  # of the order below: a uniform one, p1, p2
ORDERS = {"unigram": 1, "bigram": 2, "trigram": 3}
LEAST = 3  # characters of a prompt, two of which are only context


class NGram(NamedTuple):
    """A trained model."""

    bits: Tensor  # [A, A, A] float32, -log2 p3(c | ab)
    size: int  # counts that are not 0


def train(ids: Tensor, order: int = 3) -> NGram:
    """Count the characters of texts [N, S]; a row ends at its first -1."""
    if order not in ORDERS.values():
        raise ValueError(f"order={order} is not one of 1, 2 and 3")
    p = torch.full((A,), 1 / A, dtype=torch.float64)
    size = 0
    for n in range(1, order + 1):
        count = _counts(ids, n)  # [A] * n
        size += int((count > 0).sum())
        weight = WEIGHTS[n - 1] * (A if n == 1 else 1)
        p = (count + weight * p) / (count.sum(dim=-1, keepdim=True) + weight)
    return NGram((-p.log2()).float().expand(A, A, A), size)


def losses(models: list[NGram], prompts: Tensor) -> Tensor:
    """Mean bits per character [N, K] of K models on prompts [N, S].

    The first two characters are context only.
    """
    if prompts.shape[1] < LEAST:
        raise ValueError(
            f"a prompt of length {prompts.shape[1]} has no loss; write at"
            f" least {LEAST} characters"
        )
    a, b, c = prompts[:, :-2], prompts[:, 1:-1], prompts[:, 2:]
    return torch.stack([m.bits[a, b, c].mean(dim=1) for m in models], dim=1)


def _counts(ids: Tensor, n: int) -> Tensor:
    """How often each run of n characters occurs, [A] * n float64."""
    width = ids.shape[1] - n + 1
    code = sum(ids[:, i : i + width] * A ** (n - 1 - i) for i in range(n))
    # a text ends once, so a run lies inside it if its last character does
    code = code[ids[:, n - 1 :] >= 0]
    return torch.bincount(code, minlength=A**n).double().view([A] * n)
