"""Rivals of parameter sharing: networks with fewer weights to begin with.

Four ways score the weights of a network before it learns, and keep those with
the highest scores, over all layers together:

MAG      the size |w|
SNIP     how much the loss depends on it, |w dL/dw|
GraSP    how much the squared gradient depends on it, w (H g), g = dL/dw
SynFlow  its part in all paths, |w| dR/d|w|, without a single digit: R is the
         sum of the scores of an image of ones in the network of |w|; it keeps
         a little fewer weights in each of 100 rounds

Lottery ticket rewinding first learns, then keeps the largest weights, goes
back to their values after some steps, and learns again, in several rounds.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from lab.weights.shared_array import size
from lab.weights.shared_network import (
    STEPS,
    Dense,
    learn,
    shapes_of,
    shown,
)

WAYS = ("MAG", "SNIP", "GraSP", "SynFlow")
ROUNDS = 100  # of SynFlow
TEMPERATURE = 200  # of GraSP's loss, as in its authors' code
REWOUND = 30  # steps after which a lottery ticket starts again
EACH_ROUND = 4  # of lottery tickets: keep a quarter


def scores(network: Dense, way: str, known: int) -> list[Tensor]:
    """The score of every weight, by layer."""
    weights = [*network.weights]
    if way == "MAG":
        return [w.detach().abs() for w in weights]
    if way == "SynFlow":
        return _flow(network)
    if way not in WAYS:
        raise ValueError(f"way={way!r} is not one of {', '.join(WAYS)}")
    images, labels = shown("train", slice(known))
    found = network(images)
    if way == "SNIP":
        grads = torch.autograd.grad(F.cross_entropy(found, labels), weights)
        pairs = zip(weights, grads, strict=True)
        return [(w * g).detach().abs() for w, g in pairs]
    loss = F.cross_entropy(found / TEMPERATURE, labels)
    grads = torch.autograd.grad(loss, weights, create_graph=True)
    squared = sum((g.detach() * g).sum() for g in grads)
    curved = torch.autograd.grad(squared, weights)
    return [(w * h).detach() for w, h in zip(weights, curved, strict=True)]


def _flow(network: Dense) -> list[Tensor]:
    """SynFlow's scores, with what the masks have left."""
    masks = network.masks or [1.0] * len(network.weights)
    sizes = [
        (w.detach().abs() * m).double().requires_grad_()
        for w, m in zip(network.weights, masks, strict=True)
    ]
    x = sizes[0].new_ones(1, sizes[0].shape[1])
    for w in sizes:
        x = x @ w.T
    grads = torch.autograd.grad(x.sum(), sizes)
    pairs = zip(sizes, grads, strict=True)
    return [(w * g).detach() for w, g in pairs]


def keep(scored: list[Tensor], count: int) -> list[Tensor]:
    """Masks of the ``count`` highest scores; of equal ones the first."""
    flat = torch.cat([s.flatten() for s in scored])
    order = flat.sort(descending=True, stable=True).indices
    mask = torch.zeros(len(flat), device=flat.device)
    mask[order[:count]] = 1
    parts = mask.split([s.numel() for s in scored])
    return [p.view(s.shape) for p, s in zip(parts, scored, strict=True)]


def prune(network: Dense, way: str, count: int, known: int) -> Dense:
    """Leave the network ``count`` weights, before it has learned."""
    n = sum(w.numel() for w in network.weights)
    rounds = ROUNDS if way == "SynFlow" else 1
    for number in range(1, rounds + 1):
        left = round(n * (count / n) ** (number / rounds))
        network.masks = keep(scores(network, way, known), left)
    return network


def rewind(
    width: int, count: int, rate: float, seed: int, known: int,
    steps: int = STEPS,
) -> Dense:  # fmt: skip
    """A lottery ticket of ``count`` weights, trained: rounds of learning with
    a quarter of the weights kept each time, the last one with ``count``."""
    network = Dense(width, seed)
    n = left = sum(w.numel() for w in network.weights)
    early: list[Tensor] = []
    while True:
        for step, _ in enumerate(
            learn(network, rate, seed, steps, known=known)
        ):
            if left == n and step == min(REWOUND, steps) - 1:
                early = [p.detach().clone() for p in network.parameters()]
        if left == count:
            return network
        left = max(count, left // EACH_ROUND)
        masks = network.masks or [1.0] * len(network.weights)
        network.masks = keep(
            [
                w.detach().abs() * m
                for w, m in zip(network.weights, masks, strict=True)
            ],
            left,
        )
        with torch.no_grad():
            for now, then in zip(network.parameters(), early, strict=True):
                now.copy_(then)


def narrower(budget: int, biases: bool) -> tuple[int, int]:
    """Units of both hidden layers of the largest smaller network with at most
    ``budget`` numbers, its biases counted or not; the first hidden layer may
    have one unit more."""
    found = (0, 0)
    for first in range(1, budget // 64 + 2):
        for second in (max(1, first - 1), first):
            numbers = size(shapes_of(first, second))
            numbers += biases * (first + second + 10)
            if numbers <= budget:
                found = first, second
    if found == (0, 0):
        raise ValueError(f"budget={budget} is too small for any network")
    return found
