"""What the pictures of chapter 23 show: one base and eight recorded changes.

Seed 0. The task vectors are kept in half precision. Masks, merged models and
their accuracy are computed live, on the first 200 test digits.
"""

from collections.abc import Callable
from functools import cache, lru_cache
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lab.half_precision import read_halves, write_halves
from lab.weights import merging
from lab.weights.bands import PER, breadcrumbs
from lab.weights.breadcrumbs import ALPHA, BETA, GAMMA
from lab.weights.digit_tasks import TASKS, Weights, accuracy, shown
from lab.weights.merge_settings import trained

RIVALS = (
    "task arithmetic",
    "same length",
    "plain average",
    "TIES",
    "random entries",
)
RECORDED = "breadcrumbs/tasks.npz"
SHOWN = 200  # test digits that the curves rest on
KEPT_BY_TIES = 0.2  # share of the entries, as in its paper
COUNTS = tuple(range(1, len(TASKS) + 1))
# edges of the picture's bins, in % of the order of size, narrower where the
# outliers are
EDGES = (*range(99), *(99 + i / 20 for i in range(21)))


def train_checkpoints(progress: Callable = iter) -> None:
    """Train the recorded models again, seed 0: a few seconds."""
    for seed in progress([0]):
        one = trained.__wrapped__(seed)
        arrays = {"head": one.models.head, "order": one.order}
        for key, base in one.models.base._asdict().items():
            arrays[f"base.{key}"] = base
            arrays[f"vector.{key}"] = getattr(one.vectors, key)
        write_halves(RECORDED, arrays)


class Recorded(NamedTuple):
    """One base and what eight tasks changed, in the order of arrival."""

    base: Weights
    head: Tensor
    vectors: Weights  # [8, ...]
    names: list[str]
    images: Tensor  # [8, SHOWN, 64]
    labels: Tensor  # [SHOWN]
    alone: Tensor  # [8], accuracy of the fine-tuned models


@cache
def recorded() -> Recorded:
    """What `train_checkpoints` has kept, and the digits that are shown."""
    arrays = read_halves(RECORDED)
    base, vectors = (
        Weights(*(arrays[f"{part}.{key}"] for key in Weights._fields))
        for part in ("base", "vector")
    )
    order = arrays["order"].long()
    images, labels = shown("test", 0)
    images, labels = images[order, :SHOWN], labels[:SHOWN]
    tuned = Weights(*(b + v for b, v in zip(base, vectors, strict=True)))
    alone = accuracy(tuned, arrays["head"], images, labels)
    names = [[*TASKS][task] for task in order.tolist()]
    return Recorded(
        base, arrays["head"], vectors, names, images, labels, alone
    )


@lru_cache(maxsize=16)
def _crumbs(beta: float, gamma: float, per: str) -> Weights:
    return breadcrumbs(recorded().vectors, beta, gamma, per)


@lru_cache(maxsize=16)
def _sums(way: str, beta: float, gamma: float, per: str) -> list[Weights]:
    """What a way adds, before alpha, for one task, two tasks, ... eight."""
    vectors = recorded().vectors
    if way == "TIES":
        first = (merging.first(vectors, tasks) for tasks in COUNTS)
        ties = [merging.ties(v, KEPT_BY_TIES) for v in first]
        return [Weights(*(w[0] for w in one)) for one in ties]
    if way == "breadcrumbs":
        vectors = _crumbs(beta, gamma, per)
    elif way == "same length":
        vectors = merging.shortened(vectors, _crumbs(beta, gamma, per))
    elif way == "random entries":
        vectors = merging.at_random(vectors, gamma - beta, seed=0)
    elif way not in RIVALS:
        raise ValueError(f"rival={way!r} is not one of {', '.join(RIVALS)}")
    running = [v.cumsum(dim=0) for v in vectors]
    return [Weights(*(v[task] for v in running)) for task in range(8)]


@lru_cache(maxsize=512)
def kept(
    way: str, alpha: float, beta: float, gamma: float, per: str
) -> tuple[tuple[float, ...], ...]:
    """% of its fine-tuned accuracy that merging leaves each task, a row for
    every number of tasks merged."""
    one = recorded()
    models = []
    for tasks, what in zip(COUNTS, _sums(way, beta, gamma, per), strict=True):
        share = 1 / tasks if way == "plain average" else alpha
        models.append(
            [b + share * w for b, w in zip(one.base, what, strict=True)]
        )
    merged = [torch.stack(layer) for layer in zip(*models, strict=True)]
    model = torch.tensor([t - 1 for t in COUNTS for _ in range(t)])
    task = torch.tensor([i for t in COUNTS for i in range(t)])
    pairs = Weights(*(layer[model] for layer in merged))
    found = accuracy(pairs, one.head, one.images[task], one.labels)
    share = (100 * found / one.alone[task]).split(list(COUNTS))
    return tuple(tuple(row.tolist()) for row in share)


def curve(
    way: str,
    alpha: float = ALPHA,
    beta: float = BETA,
    gamma: float = GAMMA,
    per: str = PER[0],
) -> list[float]:
    """The mean over the merged tasks, for one task, two tasks, ... eight."""
    if way in ("task arithmetic", "plain average", "TIES"):
        # the band has no effect on these
        beta, gamma, per = BETA, GAMMA, PER[0]
    if way == "plain average":
        alpha = ALPHA
    rows = kept(way, alpha, beta, gamma, per)
    return [sum(row) / len(row) for row in rows]


def lengths(way: str, beta: float = BETA, gamma: float = GAMMA) -> list[float]:
    """How long the sum is for one task, two tasks, ... before alpha."""
    sums = _sums(way, beta, gamma, PER[0])
    return [sum(w.square().sum().item() for w in one) ** 0.5 for one in sums]


@cache
def base_alone() -> list[float]:
    """The same of the base, with nothing added."""
    one = recorded()
    bases = Weights(*(b.expand(8, *b.shape) for b in one.base))
    found = accuracy(bases, one.head, one.images, one.labels)
    share = 100 * found / one.alone
    return (share.cumsum(0) / torch.tensor(COUNTS)).tolist()


def by_size(crumbs: Weights, task: int) -> dict[str, list[float]]:
    """Mean size of the changes in each bin of `EDGES`, first layer of a task:
    before the cut and after it."""
    whole, part = (
        w.w1[task].abs().flatten() for w in (recorded().vectors, crumbs)
    )
    order = whole.argsort(stable=True)
    ends = torch.tensor([round(len(order) * edge / 100) for edge in EDGES])
    found = {}
    for name, sizes in (("changed", whole), ("added", part)):
        running = F.pad(sizes[order].cumsum(dim=0), (1, 0))[ends]
        found[name] = (running.diff() / ends.diff()).tolist()
    return found


class Picture(NamedTuple):
    """What the chapter's picture shows, as plain lists."""

    curves: dict[str, list[float]]  # % kept by way and by the base, 1 to 8
    bars: dict[str, float]  # % kept of each merged task by breadcrumbs
    places: list[float]  # %, middles of the bins in the order of size
    sizes: dict[str, list[float]]  # mean size there, changed and added
    pixels: list[list[float]]  # [8][8], % of each pixel's weights kept
    task: str  # whose change the last two are
    entries: int  # kept in the first layer
    length: float  # of the kept part, % of the whole, all layers and tasks

    @property
    def colours(self) -> dict[str, str]:
        """What each curve is: the one to look at, a baseline, a rival."""
        roles = {way: "mean" for way in self.curves}
        return roles | {
            "breadcrumbs": "best",
            RIVALS[0]: "baseline",
            "base alone": "dropped",
        }

    @property
    def note(self) -> str:
        """How much the band holds, in words."""
        return (
            f"first layer of {self.task}: {self.entries} of"
            f" {recorded().base.w1.numel()} changes kept; in all,"
            f" {self.length:.0f} % of the length"
        )

    def words(self, rival: str, tasks: int, alpha: float) -> str:
        """Breadcrumbs against the rival, in words."""
        mine, other = (
            self.curves[way][tasks - 1] for way in ("breadcrumbs", rival)
        )
        merged = "1 task" if tasks == 1 else f"{tasks} tasks"
        return (
            f"{merged} at alpha = {alpha:g}: breadcrumbs keep {mine:.0f} %,"
            f" {rival} {other:.0f} %"
        )


def picture(
    tasks: int = 8,
    alpha: float = ALPHA,
    beta: float = BETA,
    gamma: float = GAMMA,
    per: str = PER[0],
    rival: str = RIVALS[0],
) -> Picture:
    """Merge the first tasks of the recorded eight, and measure them."""
    if tasks not in COUNTS:
        raise ValueError(f"tasks={tasks} is not within 1 to {len(COUNTS)}")
    one = recorded()
    ways = dict.fromkeys(("breadcrumbs", RIVALS[0], rival))
    curves = {way: curve(way, alpha, beta, gamma, per) for way in ways}
    curves["base alone"] = base_alone()
    each = kept("breadcrumbs", alpha, beta, gamma, per)[tasks - 1]
    crumbs = _crumbs(beta, gamma, per)
    mask = crumbs.w1[tasks - 1] != 0  # [w, 64]
    whole, part = (
        sum(v.square().sum().item() for v in vectors) ** 0.5
        for vectors in (one.vectors, crumbs)
    )
    return Picture(
        curves=curves,
        bars=dict(zip(one.names, each, strict=False)),
        places=[sum(pair) / 2 for pair in pairwise(EDGES)],
        sizes=by_size(crumbs, tasks - 1),
        pixels=(100 * mask.float().mean(dim=0).view(8, 8)).tolist(),
        task=one.names[tasks - 1],
        entries=int(mask.sum()),
        length=100 * part / whole,
    )
