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
from lab.paths.alpine import (
    DENSITY,
    JOINED,
    MODELS,
    NODES,
    Learned,
    Task,
    learned,
    table_kinds,
    task,
)
from lab.paths.path_data import LAST, degrees, network, reachability
from lab.paths.two_tables import arrival, planner, separation

RECORDED = "alpine/recorded.npz"
FRACTIONS = (0.0, 0.05, 0.1, 0.2, 0.5)
SEEDS = (0, 1, 2)
TABLES = ("reachability", "edges")
WRITING = ("drawn", "greedy")
TENS = [str(i) for i in range(0, NODES, 10)]
TICKS = {"tickvals": [int(ten) for ten in TENS], "ticktext": TENS}
NAMES = ("degree 0", "degree 1", "degree 2", "degree 3+")
AREAS = ("seen", "unseen", "edges")  # of `table_kinds`
STEPS = 40  # of a recorded weight in a standard deviation of its row


class Picture(NamedTuple):
    """One recorded model and the network that it learned, for a picture."""

    row: str  # what a row of both tables stands for
    truth: Tensor  # [V, V] 1 true and shown, 0.5 true and not shown, else 0
    weights: Tensor  # [V, V] the learned table, each row standardised
    shown: float  # area under the ROC curve: 1 against the others
    hidden: float | None  # 0.5 against 0; None if nothing is 0.5
    pairs: dict[str, int]  # all that no edge joins: trained, or the degree
    degrees: list[int]  # of the pairs that were not trained
    right: dict[str, list[float]]  # who: percent of them, by degree
    all_right: float  # percent of all ``pairs``
    far: int  # pairs of degree 2 and more that were not trained
    far_right: float  # percent of them
    share: float  # of the scores' variance that the two tables explain
    attention: float  # mean weight on the target

    @property
    def title(self) -> str:
        total = sum(self.pairs.values())
        return (
            f"{self.all_right:.0f} % of {total} pairs are right;"
            f" {self.far_right:.0f} % of the {self.far} at degree 2 and more"
        )

    @property
    def note(self) -> str:
        """How much of the model is two tables."""
        return (
            f"attention on the target: {100 * self.attention:.0f} %; of the"
            f" scores, two tables explain {100 * self.share:.0f} %"
        )

    @property
    def maps(self) -> list[tuple]:
        """Truth and weights: values, title, note, lowest, highest."""
        note = f"area {self.shown:.2f} where 1"
        if self.hidden is not None:
            note += f", {self.hidden:.2f} where ½ (against 0)"
        edges = self.row == "current node"
        what = "1 an edge" if edges else "1 shown, ½ true but not shown"
        return [
            (self.truth, "What is true", what, 0, 1),
            (self.weights, "What was learned", note, -1, 3),
        ]


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
    seen, unseen, edge = arrays["areas"][at].tolist()
    share, attention = arrays["alike"][at].tolist()
    right = {kind: chances / 100} | one.planners
    return Picture(
        "current node" if table == "edges" else "target",
        truth.fill_diagonal_(0),
        (weights.double() / STEPS).masked_fill(of_self, 0),
        edge if table == "edges" else seen,
        None if table == "edges" or np.isnan(unseen) else unseen,
        {"trained": int((one.joined & ~one.tested).sum())}
        | dict(zip(NAMES, one.numbers, strict=True)),
        list(one.groups),
        {
            who: [100 * c[some].mean().item() for some in one.groups.values()]
            for who, c in right.items()
        },
        chances[one.joined].float().mean().item(),
        int(one.far.sum()),
        chances[one.far].float().mean().item(),
        share,
        attention,
    )


class Shown(NamedTuple):
    """The recorded training of one seed and fraction; tables are [t, k]."""

    edges: Tensor  # [V, V] bool, [i, k]
    reach: Tensor  # [V, V] bool
    seen: Tensor  # [V, V] bool
    joined: Tensor  # [V, V] bool, pairs [t, s] with a path, but no edge
    tested: Tensor  # [V, V] bool, those of them that were not trained
    groups: dict[int, Tensor]  # degree: [V, V] bool, those of ``tested``
    numbers: list[int]  # how many they are, of every degree
    far: Tensor  # [V, V] bool, those of degree 2 and more
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
        edges, reach, seen, reach & ~edges.T, tested,
        {d: some for d, some in groups.items() if some.any()},
        [int(some.sum()) for some in groups.values()],
        tested & (degree >= JOINED),
        {
            "planner": arrival(planner(edges, seen), edges),
            "random walk": arrival(planner(edges, walk), edges),
        },
    )  # fmt: skip


@cache
def recorded() -> dict[str, np.ndarray]:
    return read_arrays(RECORDED)


def train_checkpoints(progress: Callable = iter) -> None:
    """Train every recorded model again: about two minutes."""
    sizes = len(SEEDS), len(FRACTIONS)
    square = NODES, NODES
    bits = *sizes, NODES, -(-NODES // 8)
    arrays = {
        "edges": np.zeros((sizes[0], *bits[2:]), np.uint8),
        "trained": np.zeros(bits, np.uint8),
        "seen": np.zeros(bits, np.uint8),
        "tables": np.zeros((*sizes, len(MODELS), 2, *square), np.int8),
        "chances": np.zeros((*sizes, len(MODELS), 2, *square), np.uint8),
        "areas": np.zeros((*sizes, len(MODELS), len(AREAS)), np.float32),
        "alike": np.zeros((*sizes, len(MODELS), 2), np.float32),
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
                arrays["chances"][s, f, m, i] = (100 * chances).round()
            arrays["areas"][s, f, m] = areas(one, found)
            arrays["alike"][s, f, m] = found.share, found.attention
    write_arrays(DATA / RECORDED, **arrays)


def areas(one: Task, found: Learned) -> list[float]:
    """How well the tables tell each of `AREAS`; NaN if there is none."""
    kinds = table_kinds(one)
    tables = found.by_target, found.by_target, found.by_current
    return [
        separation(table, *kinds[name]) if kinds[name][0].any() else np.nan
        for name, table in zip(AREAS, tables, strict=True)
    ]


def in_steps(weights: Tensor) -> np.ndarray:
    """Each row with mean 0 and deviation 1, in `STEPS` each, int8."""
    rows = weights - weights.mean(dim=1, keepdim=True)
    rows = rows / rows.std(dim=1, keepdim=True).clamp_min(1e-9)
    return (rows * STEPS).round().clamp(-127, 127).numpy().astype(np.int8)
