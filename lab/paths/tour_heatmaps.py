"""Heatmaps for tours: how likely is each edge to be in the best tour?

A heatmap H [n, n] is symmetric and at least 0. From none to a perfect one:

    zero      no opinion
    flat      1/5 for each of the five nearest cities
    softdist  softmax(-d / tau) over the other cities (Xia et al. 2024)
    prior     p_r for the r-th nearest city, p counted on solved instances
    learned   a small network looks at each edge's surroundings
    oracle    the edges of an optimal tour

Before use, H becomes (H + H^T) / 2, as in the solver. The learned heatmap
replaces the published networks, whose weights are not available. It learns
from nine TSPLIB instances. No claim searches any of them, but `tsp_mcts.tune`
does: rd100 and kroC100 are used for learning and for tuning. A network that
learned from the seven others was given the same settings.
"""

from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from lab.kernels.knn_prior import knn_prior
from lab.paths.tours import Instance, tsplib, whole

# share of optimal edges that go to the r-th neighbour, counted on 64 uniform
# instances of 500 cities: the authors' `batch_generate_heatmap.py`
PRIOR = (
    0.440078125, 0.256265625, 0.13275, 0.073265625, 0.0408125, 0.02359375,
    0.01340625, 0.00775, 0.004484375, 0.002734375, 0.00178125, 0.0011875,
    0.0006875, 0.000375, 0.000375, 0.0001875, 0.000078125, 0.000015625,
    0.000046875, 0.000015625, 0.000046875, 0.00003125, 0.000015625,
    0.000015625,
)  # fmt: skip
TRAINED_ON = (
    "eil51", "st70", "eil76", "pr76", "rd100", "kroC100", "kroD100",
    "eil101", "lin105",
)  # fmt: skip
NEIGHBOURS = 10  # edges per city that the network looks at
FEATURES = 6
KINDS = ("zero", "flat", "softdist", "prior", "learned", "oracle")


def heatmap(kind: str, instance: Instance) -> Tensor:
    """The symmetric heatmap [n, n] of this kind, float32."""
    if kind == "zero":
        heat = torch.zeros(instance.distances.shape)
    elif kind == "flat":
        heat = by_rank(instance, [1 / 5] * 5)
    elif kind == "softdist":
        heat = soft_distances(instance)
    elif kind == "prior":
        heat = by_rank(instance, PRIOR)
    elif kind == "learned":
        heat = learned(instance)
    elif kind == "oracle":
        heat = optimal_edges(instance).float()
    else:
        raise ValueError(f"kind={kind!r} is not one of {', '.join(KINDS)}")
    return (heat + heat.T) / 2


def by_rank(instance: Instance, shares) -> Tensor:
    """H [n, n] with ``shares[r]`` for the r-th nearest city of each row."""
    n = len(instance.points)
    shares = torch.tensor(shares[: n - 1])
    if not (shares.isfinite().all() and (shares >= 0).all()):
        raise ValueError("a share is negative, infinite or NaN; use 0 to 1")
    near = knn_prior(whole(instance.points)[None], len(shares))[0]
    heat = torch.zeros(n, n)
    return heat.scatter_(1, near.long(), shares.expand(n, -1))


def soft_distances(instance: Instance, tau: float = 0.0) -> Tensor:
    """softmax(-d / tau); by default tau is half the mean nearest distance.

    Xia et al. search tau for each size: 0.0066, 0.0051 and 0.0018 for 500,
    1000 and 10 000 cities in the unit square, about a third of that distance.
    The nearest other place counts, since cities may stand on one another.
    """
    points = instance.points
    d = torch.cdist(points, points)
    d.fill_diagonal_(torch.inf)
    same = (points[:, None] == points).all(2)
    tau = tau or d.masked_fill(same, torch.inf).amin(1).mean().item() / 2
    return (-d / tau).softmax(1).float()


def optimal_edges(instance: Instance) -> Tensor:
    """Whether each edge [n, n] is in the published optimal tour."""
    n, tour = len(instance.points), instance.best_tour
    edges = torch.zeros(n, n, dtype=torch.bool)
    edges[tour, tour.roll(-1)] = True
    return edges | edges.T


def shares_by_rank(instance: Instance, ranks: int = len(PRIOR)) -> Tensor:
    """The share of optimal edges that go to the r-th neighbour [ranks]."""
    near = knn_prior(whole(instance.points)[None], ranks)[0].long()
    return optimal_edges(instance).gather(1, near).double().mean(0) / 2


def learned(instance: Instance) -> Tensor:
    """H [n, n]: what the network thinks of the nearest edges of each city."""
    near, features = edge_features(instance)
    n = len(near)
    heat = torch.zeros(n, n)
    chance = _scores(features, network()).sigmoid()
    return heat.scatter_(1, near, chance)


def edge_features(instance: Instance) -> tuple[Tensor, Tensor]:
    """Neighbours [n, K] and what surrounds each edge [n, K, FEATURES].

    Ranks from both ends, length relative to the neighbourhoods of both ends,
    and how many cities lie nearer to both ends than the ends to each other.
    """
    K = NEIGHBOURS
    near = knn_prior(whole(instance.points)[None], K)[0].long()
    n = len(near)
    d = torch.cdist(instance.points, instance.points)
    order = d.clone().fill_diagonal_(-1).argsort(dim=1, stable=True)
    rank = order.argsort(1)  # the city itself has rank 0
    local = d.gather(1, near).mean(1) + 1e-9  # [n]
    city = torch.arange(n)[:, None]
    length = d[city, near]
    farther = torch.maximum(d[:, None, :], d[near])  # [n, K, n]
    between = (farther < length[:, :, None] - 1e-9).sum(2)
    columns = (
        rank[city, near] / K,
        rank[near, city] / K,
        length / local[:, None],
        length / local[near],
        between.clamp_max(2 * K) / K,
        (between == 0).double(),
    )
    return near, torch.stack(columns, dim=2).float()


@cache
def network(steps: int = 300, width: int = 16) -> list[Tensor]:
    """Train two layers on `TRAINED_ON`: about a second, always the same."""
    rows, wanted = [], []
    for name in TRAINED_ON:
        near, features = edge_features(tsplib(name))
        rows.append(features.flatten(0, 1))
        wanted.append(optimal_edges(tsplib(name)).gather(1, near).flatten())
    rows, wanted = torch.cat(rows), torch.cat(wanted).float()
    generator = torch.Generator().manual_seed(0)
    shapes = ((FEATURES, width), (width,), (width, 1), (1,))
    weights = [
        (0.5 * torch.randn(shape, generator=generator)).requires_grad_()
        for shape in shapes
    ]
    optimizer = torch.optim.Adam(weights, lr=0.03)
    for _ in range(steps):
        optimizer.zero_grad()
        scores = _scores(rows, weights)
        F.binary_cross_entropy_with_logits(scores, wanted).backward()
        optimizer.step()
    return [weight.detach() for weight in weights]


def _scores(features: Tensor, weights: list[Tensor]) -> Tensor:
    w1, b1, w2, b2 = weights
    return ((features @ w1 + b1).relu() @ w2 + b2)[..., 0]
