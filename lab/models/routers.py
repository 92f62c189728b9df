"""Ways to guess how well each model would answer, before asking it.

Every function learns from features [n, D] (or groups [n]) and the scores
[n, M] that the models got there, and returns its guess for new prompts,
[q, M] float64. The decision that follows is the same for all: take the model
with the best guess, minus what it costs.
"""

import math

import numpy as np
import torch
from torch import Tensor

REFRESH = 256  # steps after which the bandit's inverses are recomputed


def nearest(
    features: Tensor, scores: Tensor, new: Tensor, k: int, block: int = 1024
) -> Tensor:
    """Similarity: mean score of the k most similar prompts (unit rows).

    Among equally similar prompts, `torch.topk` decides which of them count.
    """
    if not 1 <= k <= len(features):
        raise ValueError(
            f"k={k} neighbours are not within 1 to {len(features)}, the"
            " number of remembered prompts"
        )
    guesses = []
    for rows in new.split(block):
        neighbours = (rows @ features.T).topk(k, dim=1).indices
        guesses.append(scores[neighbours].mean(dim=1))
    return torch.cat(guesses)


def ridge(features: Tensor, scores: Tensor, new: Tensor, l2: float) -> Tensor:
    """Supervised: least squares with the penalty l2 |w|^2, per model.

    The features are centred, so the mean score is not penalised.
    """
    x, mean = features.double(), features.double().mean(dim=0)
    centre = scores.mean(dim=0)
    gram = (x - mean).T @ (x - mean)
    gram.diagonal().add_(l2)
    weight = torch.linalg.solve(gram, (x - mean).T @ (scores - centre))
    return (new.double() - mean) @ weight + centre


def logistic(
    features: Tensor,
    scores: Tensor,
    new: Tensor,
    l2: float,
    steps: int = 8,
) -> Tensor:
    """Supervised: sigmoid(w x + b) per model, by Newton's method.

    The features are brought to mean 0 and deviation 1; l2 |w|^2 / 2, without
    the intercept, is added to the cross entropy. Scores between 0 and 1 count
    as that share of a right answer.
    """
    x, mean = features.double(), features.double().mean(dim=0)
    spread = x.std(dim=0).clamp_min(1e-9)
    x = _with_ones((x - mean) / spread)
    penalty = torch.full((x.shape[1],), float(l2), dtype=torch.float64)
    penalty[-1] = 1e-9
    weight = torch.zeros(x.shape[1], scores.shape[1], dtype=torch.float64)
    for _ in range(steps):
        guess = torch.sigmoid(x @ weight)
        slope = x.T @ (guess - scores) + penalty[:, None] * weight
        for m in range(scores.shape[1]):
            sure = guess[:, m] * (1 - guess[:, m])
            curve = x.T @ (sure[:, None] * x) + penalty.diag()
            weight[:, m] -= torch.linalg.solve(curve, slope[:, m])
    return torch.sigmoid(_with_ones((new.double() - mean) / spread) @ weight)


def preferences(scores: Tensor) -> Tensor:
    """What is left of the scores [n, M] if only comparisons are recorded.

    Model m's share of wins minus losses against the M - 1 others.
    """
    M = scores.shape[1]
    wins = (scores[:, :, None] - scores[:, None, :]).sign()  # [n, M, M]
    return wins.sum(dim=2) / max(1, M - 1)


def table(group: Tensor, scores: Tensor, new: Tensor, groups: int) -> Tensor:
    """A table: each model's mean score in the prompt's group.

    A group without a remembered prompt gets the mean over all.
    """
    member = torch.nn.functional.one_hot(group, groups).double()
    count = member.sum(dim=0)[:, None]
    means = member.T @ scores / count.clamp_min(1)
    return torch.where(count > 0, means, scores.mean(dim=0))[new]


def lin_ucb(
    features: Tensor,
    scores: Tensor,
    new: Tensor,
    alpha: float,
    seed: int,
) -> Tensor:
    """A bandit, which sees only the scores of the models that it called.

    LinUCB sees the prompts once, in an order that the seed fixes, and calls
    argmax theta_m x + alpha sqrt(x A_m^-1 x). The guess for new prompts is
    theta_m x, without the bonus.
    """
    x, y = _with_ones(features.double()).numpy(), scores.numpy()
    (n, D), M = x.shape, y.shape[1]
    inverse = np.stack([np.eye(D)] * M)
    total, theta = np.zeros((M, D)), np.zeros((M, D))
    matrix = inverse.copy()
    order = np.random.default_rng(seed).permutation(n)
    for step, i in enumerate(order):
        reach = inverse @ x[i]  # [M, D]
        bonus = alpha * np.sqrt(np.maximum(0, reach @ x[i]))
        m = int(np.argmax(theta @ x[i] + bonus))
        matrix[m] += np.outer(x[i], x[i])
        total[m] += y[i, m] * x[i]
        # the Sherman-Morrison formula; its rounding errors add up
        inverse[m] -= np.outer(reach[m], reach[m]) / (1 + reach[m] @ x[i])
        if step % REFRESH == REFRESH - 1:
            inverse = np.linalg.inv(matrix)
        theta[m] = inverse[m] @ total[m]
    return _with_ones(new.double()) @ torch.from_numpy(theta).T


def principal(features: Tensor, new: Tensor, size: int) -> list[Tensor]:
    """Both matrices in the first principal directions of ``features``.

    The deviation along the first direction is 1; no score is looked at.
    """
    mean = features.double().mean(dim=0)
    x = features.double() - mean
    # the eigenvectors of a small matrix, so that one seed gives the same bits
    values, directions = torch.linalg.eigh(x.T @ x)
    basis = directions[:, -size:].flip(1) / math.sqrt(values[-1] / len(x))
    return [(rows.double() - mean) @ basis for rows in (features, new)]


def _with_ones(x: Tensor) -> Tensor:
    return torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], dim=1)
