"""Which number of a short array stands at each weight of a network.

The layers of a network are laid end to end, n weights in all. A mapping says
at which of m cells a weight is found, and a hash gives it a sign:

RandomFold   pieces of m weights, each turned by a hash of its number
one hash per layer   the same, but every layer hashes anew
ROAST        blocks of 8 x 8 weights, each placed by a hash of its number
HashedNet    every weight by a hash of its position

A layer has one scale more, its initial spread divided by the array's. So one
step on the array moves a weight by the square of that scale, about 1 / s0^2,
unless the array's gradient is divided by what `divisors` gives.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from lab.kernels.hashed_matmul import cells as folded
from lab.kernels.hashed_matmul import scrambled, signs
from lab.kernels.runtime import cdiv

MAPPINGS = ("RandomFold", "one hash per layer", "ROAST", "HashedNet")
SCALERS = ("none", "v4", "v1")
BLOCK = 8  # rows and columns of a block of ROAST; the authors' are of 32


class Sharing(NamedTuple):
    """A mapping of n weights on m cells."""

    cells: Tensor  # [n] int64
    signs: Tensor  # [n] float, 1 or -1
    m: int
    key: int  # of the signs
    turns: Tensor | None  # [pieces] int32, of RandomFold


def size(shapes: tuple[tuple[int, int], ...]) -> int:
    """How many weights layers of these shapes [rows, columns] have."""
    return sum(rows * columns for rows, columns in shapes)


def key_of(seed: int, layer: int = 0) -> int:
    """A key from 0 to 2^31 - 1 for each seed and layer."""
    return scrambled(torch.tensor(64 * seed + layer)).item() >> 1


def turns_of(pieces: int, m: int, key: int) -> Tensor:
    """By how many cells each piece is turned, [pieces] int32."""
    return (scrambled(torch.arange(pieces) ^ key) % m).int()


def share(
    shapes: tuple[tuple[int, int], ...], m: int, mapping: str, seed: int
) -> Sharing:
    """Find a cell of m, and a sign, for every weight of layers ``shapes``."""
    if mapping not in MAPPINGS:
        raise ValueError(
            f"mapping={mapping!r} is not one of {', '.join(MAPPINGS)}"
        )
    n, key = size(shapes), key_of(seed)
    least = BLOCK * BLOCK + 1 if mapping == "ROAST" else 1
    if not least <= m <= n:
        raise ValueError(
            f"m={m} cells are not within {least} to {n}, for {n} weights by"
            f" {mapping}"
        )
    turns = None
    if mapping == "RandomFold":
        turns = turns_of(cdiv(n, m), m, key)
        cells = folded(turns, m, 0, n)
    elif mapping == "ROAST":
        cells = _blocks(shapes, m, key)
    elif mapping == "HashedNet":
        cells = scrambled(torch.arange(n) ^ key) % m
    else:
        cells = _by_layer(shapes, m, seed)
    return Sharing(cells.long(), signs(0, n, key).float(), m, key, turns)


def _by_layer(shapes, m: int, seed: int) -> Tensor:
    """Pieces as of RandomFold, turned anew by each layer's own hash."""
    found, offset = [], 0
    for layer, (rows, columns) in enumerate(shapes):
        count = rows * columns
        turns = turns_of(cdiv(offset + count, m), m, key_of(seed, layer + 1))
        found.append(folded(turns, m, offset, count))
        offset += count
    return torch.cat(found)


def _blocks(shapes, m: int, key: int) -> Tensor:
    """Every block of every layer from a cell of its own on, row by row."""
    found, before = [], 0
    for rows, columns in shapes:
        r, k = torch.arange(rows)[:, None], torch.arange(columns)
        wide = cdiv(columns, BLOCK)
        number = before + r // BLOCK * wide + k // BLOCK
        start = scrambled(number ^ key) % (m - BLOCK * BLOCK)
        found.append((start + r % BLOCK * BLOCK + k % BLOCK).flatten())
        before += cdiv(rows, BLOCK) * wide
    return torch.cat(found)


def sharers(sharing: Sharing) -> Tensor:
    """How many weights stand on each cell, [m]."""
    return torch.bincount(sharing.cells, minlength=sharing.m)


def divisors(sharing: Sharing, scales: Tensor, scaler: str) -> Tensor:
    """What the gradient of each cell is divided by, [m].

    ``scales`` [n] are those of the weights' layers. With l the scales of the
    weights on a cell: "v1" is (sum l)^2 / count, the sum of l^2 if they are
    equal; "v4" is the root of the sum of l^2; "none" is 1. So is that of a
    cell without weights.
    """
    if scaler not in SCALERS:
        raise ValueError(
            f"scaler={scaler!r} is not one of {', '.join(SCALERS)}"
        )

    def total(values: Tensor) -> Tensor:
        zeros = torch.zeros(sharing.m, dtype=values.dtype)
        return zeros.index_add(0, sharing.cells, values)

    count = sharers(sharing)
    found = torch.ones(sharing.m)
    if scaler == "v1":
        found = total(scales).square() / count.clamp(min=1)
    elif scaler == "v4":
        found = total(scales.square()).sqrt()
    return torch.where(count > 0, found, 1.0)


def effective_rank(w: Tensor) -> float:
    """How many directions a matrix uses: e to the entropy of its singular
    values' shares of their sum. Equal ones count fully; 0 for zeros."""
    values = torch.linalg.svdvals(w)
    shares = values / values.sum().clamp(min=1e-30)
    return torch.special.entr(shares).sum().exp().item() if w.any() else 0.0
