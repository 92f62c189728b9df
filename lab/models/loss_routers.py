"""Routers that read a prompt and value every expert, the lowest being best.

The features of a prompt are its character trigrams, hashed into 1024 buckets:
the square roots of their counts, scaled to length 1. A small network turns
them into one value per expert. What it learns from the losses [n, K] of its
training prompts is the only difference between the kinds:

    losses          v = the loss; squared error
    centred losses  v = the loss minus the mean over the experts
    best expert     softmax(-v) = the chance of being best; cross entropy
    model card      v = minus the cosine with a card; nothing is trained

A card is the mean of an expert's own sample prompts. No loss is needed for it.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lab.tokens.text import ALPHABET

KINDS = ("losses", "centred losses", "best expert", "model card")
BUCKETS, WIDTH = 1024, 32
EPOCHS, BATCH, RATE = 60, 128, 3e-3
# Knuth's multiplier: neighbouring numbers land far apart
SPREAD, WORD = 2654435761, 2**32


class Router(NamedTuple):
    """A trained router; what it keeps of a prompt are its hidden states."""

    inner: Tensor  # [WIDTH, BUCKETS], empty for cards
    offset: Tensor  # [WIDTH], empty for cards
    head: Tensor  # [K, WIDTH], or the cards [K, BUCKETS] negated
    bias: Tensor  # [K]

    def hidden(self, features: Tensor) -> Tensor:
        """The hidden states [N, WIDTH] of features [N, BUCKETS]."""
        if not len(self.inner):
            return features
        return F.gelu(F.linear(features, self.inner, self.offset))

    def values(self, features: Tensor) -> Tensor:
        """What each expert is worth [N, K]; less is better."""
        return F.linear(self.hidden(features), self.head, self.bias)


def features(prompts: Tensor) -> Tensor:
    """The hashed trigrams of prompts [N, S], unit rows [N, BUCKETS]."""
    A = len(ALPHABET)
    a, b, c = prompts[:, :-2], prompts[:, 1:-1], prompts[:, 2:]
    bucket = ((a * A + b) * A + c) * SPREAD % WORD * BUCKETS // WORD
    counts = torch.zeros(len(prompts), BUCKETS)
    counts.scatter_add_(1, bucket, torch.ones(bucket.shape))
    return F.normalize(counts.sqrt())


def centred(losses: Tensor) -> Tensor:
    """Losses [n, K] minus each prompt's mean: how hard it is for everybody."""
    return losses - losses.mean(dim=1, keepdim=True)


def train(
    kind: str,
    features: Tensor,
    losses: Tensor,
    seed: int,
    epochs: int = EPOCHS,
) -> Router:
    """Train a router of one of the first three `KINDS` by AdamW."""
    if kind not in KINDS[:3]:
        raise ValueError(f"{kind!r} is not one of {', '.join(KINDS[:3])}")
    K = losses.shape[1]
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape, fan):
        return (2 * torch.rand(*shape, generator=generator) - 1) / fan**0.5

    target = losses.float()
    if kind == "centred losses":
        target = centred(target)
    best = target.argmin(dim=1)
    router = Router(
        uniform(WIDTH, BUCKETS, fan=BUCKETS), torch.zeros(WIDTH),
        uniform(K, WIDTH, fan=WIDTH), torch.zeros(K),
    )  # fmt: skip
    if kind != "best expert":
        # begin with the means, so that no step is spent on finding them
        router = router._replace(bias=target.mean(dim=0))
    for weight in router:
        weight.requires_grad_()
    optimiser = torch.optim.AdamW(router, lr=RATE)
    for _ in range(epochs):
        order = torch.randperm(len(features), generator=generator)
        for rows in order.split(BATCH):
            value = router.values(features[rows])
            if kind == "best expert":
                loss = F.cross_entropy(-value, best[rows])
            else:
                loss = F.mse_loss(value, target[rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return Router(*(weight.detach() for weight in router))


def from_cards(samples: list[Tensor]) -> Router:
    """A router that compares with cards, from the features of K samples."""
    cards = F.normalize(torch.stack([rows.mean(dim=0) for rows in samples]))
    nothing = torch.empty(0)
    return Router(nothing, nothing, -cards, torch.zeros(len(cards)))
