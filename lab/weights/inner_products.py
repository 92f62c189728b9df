"""Inner products from few numbers: folded vectors against pruned ones.

A vector of d numbers is kept as m. Sharing adds up, with signs, the numbers
that stand on one cell; pruning keeps m of them at random, and multiplies the
product by d / m. Both are right on average. Their mean squared errors, with
independent cells and choices, are about

    sharing   (|x|^2 |y|^2 + (x y)^2 - 2 sum of x_i^2 y_i^2) / m
    pruning   (d / m - 1) sum of x_i^2 y_i^2

so sharing wins where few numbers hold most of a product, and pruning where
all hold alike.
"""

import torch
from torch import Tensor

from lab.weights.shared_array import share


def products_after(
    x: Tensor, y: Tensor, m: int, way: str, seed: int
) -> Tensor:
    """Inner products [N] of rows x and y [N, d] from m numbers of each, for
    one key: "sharing" by RandomFold, or "pruning" at random and rescaled."""
    d = x.shape[1]
    if way == "sharing":
        one = share(((1, d),), m, "RandomFold", seed)
        zeros = x.new_zeros(len(x), m)
        x, y = (
            zeros.index_add(1, one.cells, one.signs * part) for part in (x, y)
        )
        return (x * y).sum(dim=1)
    generator = torch.Generator().manual_seed(seed)
    kept = torch.randperm(d, generator=generator)[:m]
    return d / m * (x[:, kept] * y[:, kept]).sum(dim=1)
