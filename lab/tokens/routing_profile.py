"""What a routing looks like: loads, kinds of character, pairs of layers.

Only counts over the test characters are used, so that routers of every kind
can be compared: the load of each expert, which kinds of character it takes,
and what one layer's choice tells about that of the next.
"""

import re
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from lab.tokens.char_lm import Evaluation
from lab.tokens.text import ALPHABET

# the first kind that fits the character just read, given the one before it
KINDS = {
    "line break": r".\n",
    "space": r". ",
    "digit": r".[0-9]",
    "capital": r".[A-Z]",
    "first letter": r"[^A-Za-z][a-z]",
    "vowel": r".[aeiou]",
    "consonant": r".[a-z]",
    "sign": r"..",
}


class Profile(NamedTuple):
    """Counts over T test characters, L layers, E experts."""

    load: Tensor  # [L, E] share of the characters that each expert took
    kinds: Tensor  # [L, kinds, E] share of each kind's choices, rows sum to 1
    pairs: Tensor  # [L, E + 1, E + 1] share of the characters by the first
    # choices in a layer and in the next; the last layer pairs with the
    # first, and the last row and column stand for no choice at all
    told: Tensor  # [L] nats that a choice tells about the kind
    depth: Tensor  # [L] nats that a layer's choice tells about the next's


@cache
def _table() -> Tensor:
    """The kind of the second of two characters, [symbols, symbols]."""
    kinds = [
        [
            next(
                place
                for place, pattern in enumerate(KINDS.values())
                if re.fullmatch(pattern, before + read, re.S)
            )
            for read in ALPHABET
        ]
        for before in ALPHABET
    ]
    return torch.tensor(kinds)


def kinds_of(context: Tensor) -> Tensor:
    """The kind of character that each context [T, 12] ends in, [T]."""
    table = _table().to(context.device)
    return table[context[:, -2], context[:, -1]]


def profile(evaluation: Evaluation, context: Tensor) -> Profile:
    """Count what ``evaluation`` chose for the contexts [T, 12]."""
    kinds = kinds_of(context)
    E = evaluation.load.shape[1]
    choices = [_by_kind(chosen, kinds, E) for chosen in evaluation.chosen]
    first = [_first(chosen, E) for chosen in evaluation.chosen]
    pairs = [
        _joint(one, other, E + 1)
        for one, other in zip(first, [*first[1:], first[0]], strict=True)
    ]
    return Profile(
        load=evaluation.load,
        kinds=torch.stack([_rows(c) for c in choices]),
        pairs=torch.stack(pairs),
        told=torch.stack([information(c) for c in choices]),
        depth=torch.stack([information(p) for p in pairs]),
    )


def information(joint: Tensor) -> Tensor:
    """Nats that the row tells about the column, from counts [N, M]."""
    joint = joint.double() / joint.sum().clamp_min(1)
    alone = joint.sum(1, keepdim=True) * joint.sum(0, keepdim=True)
    # 0 log 0 is 0
    ratio = torch.where(joint > 0, joint / alone, 1.0)
    return (joint * ratio.log()).sum()


def _by_kind(chosen: Tensor, kinds: Tensor, experts: int) -> Tensor:
    """How often characters of each kind chose each expert, [kinds, E]."""
    real = chosen >= 0
    at = kinds[:, None] * experts + chosen.long()
    counts = torch.bincount(at[real], minlength=len(KINDS) * experts)
    return counts.reshape(len(KINDS), experts)


def _first(chosen: Tensor, experts: int) -> Tensor:
    """The expert in the first slot that holds one, [T], else ``experts``."""
    real = chosen >= 0
    slot = real.int().argmax(dim=1, keepdim=True)
    best = chosen.long().gather(1, slot).squeeze(1)
    return best.where(real.any(dim=1), experts)


def _joint(one: Tensor, other: Tensor, values: int) -> Tensor:
    counts = torch.bincount(one * values + other, minlength=values**2)
    return counts.reshape(values, values) / max(1, len(one))


def _rows(counts: Tensor) -> Tensor:
    return counts / counts.sum(dim=1, keepdim=True).clamp_min(1)
