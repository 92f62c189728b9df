"""Two batches from one: tokens whose predicted paths agree stay together.

A batch must have every expert that one of its tokens takes. So 2 T tokens are
regrouped into two batches of T, by balanced 2-means on their paths r:

    S(i, j) = share of the layers in which i and j take the same expert
    start   = the two tokens that agree least
    assign  = each token to the more similar centre, T to each of the two
    centre  = the member with the largest mean similarity in its batch

until nothing changes. The paper compares the paths bit by bit, as
1 - Ham / (L E); with one expert a layer that gives the same order. The
authors' code starts with two random tokens, and where more than T lean to a
centre, those most similar to it stay. Left out: what it costs to move the keys
and values of a token along with it.
"""

import torch
from torch import Tensor

ROUNDS = 20  # at most; a fixed point comes after two or three


def regroup(paths: Tensor) -> Tensor:
    """The batch, 0 or 1, of each of 2 T tokens with paths [2 T, L].

    Ties go to the lowest index.
    """
    tokens = len(paths)
    if tokens < 2 or tokens % 2:
        raise ValueError(
            f"{tokens} tokens make no two batches of equal size; use an even"
            " number"
        )
    similar = (paths[:, None] == paths[None, :]).sum(2)  # [2 T, 2 T]
    least = int(similar.argmin())
    centres, batch = [least // tokens, least % tokens], None
    for _ in range(ROUNDS):
        # the first half of those that lean most to centre 0
        lean = similar[centres[0]] - similar[centres[1]]
        order = lean.argsort(descending=True, stable=True)
        new = torch.ones(tokens, dtype=torch.long)
        new[order[: tokens // 2]] = 0
        if batch is not None and torch.equal(new, batch):
            break
        batch = new
        centres = [_medoid(similar, batch == b) for b in (0, 1)]
    return batch


def _medoid(similar: Tensor, member: Tensor) -> int:
    """The member with the largest sum of similarities inside its batch."""
    inside = (similar * member).sum(1).masked_fill(~member, -1)
    return int(inside.argmax())


def distinct(paths: Tensor, batch: Tensor) -> int:
    """Experts that two batches must have, summed over layers and batches."""
    total = 0
    for b in (0, 1):
        for layer in paths[batch == b].T:
            total += len(layer.unique())
    return total
