"""What the pictures of chapter 49 show: recorded models and their paths."""

from collections.abc import Callable
from functools import cache
from itertools import product
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lab.atomic import write_arrays
from lab.data import DATA, read_arrays
from lab.paths.alpine import DENSITY, MODELS, NODES, learned, task
from lab.paths.path_data import LAST, degrees, network, reachability
from lab.paths.two_tables import arrival, planner, separation

RECORDED = "alpine/recorded.npz"
FRACTIONS = (0.0, 0.05, 0.1, 0.2, 0.5)
SEEDS = (0, 1, 2)
TABLES = ("reachability", "edges")
WRITING = ("drawn", "greedy")
STEP = 1 / 40  # of a recorded weight, in standard deviations of its row


class Picture(NamedTuple):
    """One recorded model and the network that it learned, for a picture."""

    truth: Tensor  # [V, V] 1 true and shown, 0.5 true and not shown, else 0
    weights: Tensor  # [V, V] the learned table, each row standardised
    shown: float  # area under the ROC curve: 1 against the others
    hidden: float | None  # 0.5 against 0; None if nothing is 0.5
    pairs: dict[int, int]  # degree: test pairs
    right: dict[str, list[float]]  # who: percent of them, by degree
    joined: int  # test pairs of degree 2 and more
    joined_right: float  # percent of them


def picture(
    fraction: float = 0.0,
    kind: str = "two tables",
    table: str = "reachability",
    writing: str = "drawn",
    seed: int = 0,
) -> Picture:
    """What a recorded model knows, and which paths it gets right."""
    one = shown(seed, fraction)
    at = SEEDS.index(seed), FRACTIONS.index(fraction), MODELS.index(kind)
    arrays = recorded()
    weights = torch.from_numpy(arrays["tables"][at][TABLES.index(table)])
    chances = torch.from_numpy(arrays["chances"][at][WRITING.index(writing)])
    if table == "edges":
        truth = one.edges.float()
    else:
        truth = one.reach / 2 + one.seen / 2
    of_self = torch.eye(NODES, dtype=torch.bool)
    high, middle = truth == 1, truth == 0.5
    low = ~of_self & (truth < 1)
    right = {kind: chances / 100} | one.planners
    return Picture(
        truth.fill_diagonal_(0),
        (weights * STEP).masked_fill(of_self, 0),
        separation(weights, high & ~of_self, low),
        separation(weights, middle, low & ~middle) if middle.any() else None,
        {degree: int(some.sum()) for degree, some in one.groups.items()},
        {
            who: [100 * c[some].mean().item() for some in one.groups.values()]
            for who, c in right.items()
        },
        int(one.joined.sum()),
        chances[one.joined].float().mean().item() if one.joined.any() else 0,
    )


class Shown(NamedTuple):
    """The recorded training of one seed and fraction; tables are [t, k]."""

    edges: Tensor  # [V, V] bool, [i, k]
    reach: Tensor  # [V, V] bool
    seen: Tensor  # [V, V] bool
    groups: dict[int, Tensor]  # degree: [V, V] bool, test pairs [t, s]
    joined: Tensor  # [V, V] bool, test pairs of degree 2 and more
    planners: dict[str, Tensor]  # who: [V, V] chance to arrive


@cache
def shown(seed: int, fraction: float) -> Shown:
    """Networks, training pairs and planners, without drawing a path."""
    at = SEEDS.index(seed), FRACTIONS.index(fraction)
    edges, trained, seen = (
        torch.from_numpy(np.unpackbits(recorded()[name][i], axis=-1)).bool()
        for name, i in (("edges", at[:1]), ("trained", at), ("seen", at))
    )
    edges, trained, seen = (x[:, :NODES] for x in (edges, trained, seen))
    reach = reachability(edges)
    degree = degrees(edges, seen).clamp_max(LAST)
    tested = reach & ~trained
    groups = {d: tested & (degree == d) for d in range(LAST + 1)}
    walk = torch.ones_like(seen)
    return Shown(
        edges, reach, seen,
        {d: some for d, some in groups.items() if some.any()},
        tested & (degree >= 2),
        {
            "planner, what was shown": arrival(planner(edges, seen), edges),
            "random walk": arrival(planner(edges, walk), edges),
        },
    )  # fmt: skip


@cache
def recorded() -> dict[str, np.ndarray]:
    return read_arrays(RECORDED)


def train_checkpoints(progress: Callable = iter) -> None:
    """Train every recorded model again: about five minutes."""
    sizes = len(SEEDS), len(FRACTIONS)
    square = NODES, NODES
    bits = *sizes, NODES, -(-NODES // 8)
    arrays = {
        "edges": np.zeros((sizes[0], *bits[2:]), np.uint8),
        "trained": np.zeros(bits, np.uint8),
        "seen": np.zeros(bits, np.uint8),
        "tables": np.zeros((*sizes, len(MODELS), 2, *square), np.int8),
        "chances": np.zeros((*sizes, len(MODELS), 2, *square), np.uint8),
    }
    for (s, seed), (f, fraction) in progress(
        list(product(enumerate(SEEDS), enumerate(FRACTIONS)))
    ):
        one = task(seed, fraction)
        arrays["edges"][s] = np.packbits(network(NODES, DENSITY, seed), -1)
        arrays["trained"][s, f] = np.packbits(one.paths.trained, -1)
        arrays["seen"][s, f] = np.packbits(one.seen, -1)
        for m, kind in enumerate(MODELS):
            found = learned(kind, seed, fraction)
            for i, weights in enumerate((found.by_target, found.by_current)):
                arrays["tables"][s, f, m, i] = in_steps(weights)
            for i, chances in enumerate((found.drawn, found.greedy)):
                chances = chances.where(one.tested, 0)
                arrays["chances"][s, f, m, i] = (100 * chances).round()
    write_arrays(DATA / RECORDED, **arrays)


def in_steps(weights: Tensor) -> np.ndarray:
    """Each row with mean 0 and deviation 1, in steps of `STEP`, int8."""
    rows = weights - weights.mean(dim=1, keepdim=True)
    rows = rows / rows.std(dim=1, keepdim=True).clamp_min(1e-9)
    return (rows / STEP).round().clamp(-127, 127).numpy().astype(np.int8)
