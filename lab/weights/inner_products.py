"""Inner products from few numbers: folded vectors against pruned ones.

A vector of d numbers is kept as m. Sharing adds up, with signs, the numbers
that stand on one cell; pruning keeps exactly m of them at random, and
multiplies the product by d / m. Both are right on average. With p_i = x_i y_i,
their mean squared errors are

    sharing   about (|x|^2 |y|^2 + (x y)^2 - 2 sum of p_i^2) / m
    pruning   (d / m - 1) (sum of p_i^2 - (x y)^2 / d) d / (d - 1)

(for sharing if cells are independent; numbers of one piece never collide). If
pruning keeps each number by chance, m on average, its error is (d / m - 1)
times the sum of p_i^2, which is larger. So sharing wins where few numbers hold
most of a product, and pruning where all hold alike.
"""

import torch
from torch import Tensor

from lab.weights.shared_array import share

WAYS = ("sharing", "pruning", "pruning by chance")


def products_after(
    x: Tensor, y: Tensor, m: int, way: str, seed: int
) -> Tensor:
    """Inner products [N] of rows x and y [N, d] from m numbers of each, for
    one key: "sharing" by RandomFold, "pruning" to exactly m, or "pruning by
    chance", which keeps each number with probability m / d."""
    d = x.shape[1]
    if way not in WAYS:
        raise ValueError(f"way={way!r} is not one of {', '.join(WAYS)}")
    if way == "sharing":
        one = share(((1, d),), m, "RandomFold", seed)
        zeros = x.new_zeros(len(x), m)
        x, y = (
            zeros.index_add(1, one.cells, one.signs * part) for part in (x, y)
        )
        return (x * y).sum(dim=1)
    generator = torch.Generator().manual_seed(seed)
    kept = torch.randperm(d, generator=generator)[:m]
    if way == "pruning by chance":
        kept = torch.rand(d, generator=generator) < m / d
    return d / m * (x[:, kept] * y[:, kept]).sum(dim=1)
