"""What the choices of one layer tell about those of another, in nats.

Mutual information between layers, over the tokens of a text (chapter 05).
"""

from itertools import pairwise

import torch
from torch import Tensor

from lab.tokens.char_lm import Evaluation
from lab.tokens.routing_profile import information


def mutual_information(one: Tensor, other: Tensor, values: int) -> float:
    """How many nats ``one`` [T] tells about ``other`` [T], 0 if nothing.

    Both hold whole numbers below ``values``. Over few tokens the estimate is
    biased upward, by about (values - 1)^2 / 2T.
    """
    pairs = torch.bincount(one * values + other, minlength=values**2)
    return information(pairs.reshape(values, values)).item()


def information_map(evaluation: Evaluation) -> list[list[float | None]]:
    """Mutual information between the first choices of every two layers.

    It is measured over the tokens; the diagonal is None. The paper measures
    it within one token, between two vectors of N scores cut into 100 bins.
    With so few values nearly every bin holds one score, and the result is
    close to log N whatever the router does (`binned_information`).
    """
    first = [chosen[:, 0].long() for chosen in evaluation.chosen]
    experts = evaluation.load.shape[1]
    table = [[None] * len(first) for _ in first]
    for i, one in enumerate(first):
        for j, other in enumerate(first[:i]):
            value = mutual_information(one, other, experts)
            table[i][j] = table[j][i] = value
    return table


def adjacent(table: list[list[float | None]]) -> float:
    """Mean of a map's entries between neighbouring layers."""
    pairs = list(pairwise(range(len(table))))
    return sum(table[i][j] for i, j in pairs) / len(pairs)


def by_distance(table: list[list[float | None]]) -> list[float]:
    """Mean of a map's entries for layers 1, 2, ... apart."""
    layers = len(table)
    return [
        sum(table[i][i + apart] for i in range(layers - apart))
        / (layers - apart)
        for apart in range(1, layers)
    ]


def binned_information(one: Tensor, other: Tensor, bins: int = 100) -> float:
    """The paper's measure for one token: two score vectors [N], binned."""
    low = torch.minimum(one.min(), other.min())
    high = torch.maximum(one.max(), other.max())
    scale = bins / (high - low).clamp_min(1e-12)
    cut = [((v - low) * scale).long().clamp(0, bins - 1) for v in (one, other)]
    return mutual_information(*cut, bins)


def gate_entropy(scores: list[Tensor]) -> Tensor:
    """Entropy in nats of the scores of every layer [T, N], [layers, T]."""
    return torch.stack([torch.special.entr(s).sum(dim=1) for s in scores])
