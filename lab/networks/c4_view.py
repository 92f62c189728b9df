"""What chapter 40 shows: jobs on planned and hashed paths, delay matrices."""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lab.networks.c4 import by_arrival, dead_links
from lab.networks.delay_traces import PATHS, Fault, leaves, window
from lab.networks.leaf_spine import Subflows, ends, loads
from lab.networks.slow_parts import (
    RULES,
    diagnosed,
    ratios,
    verdicts,
    watch,
)
from lab.networks.spraying_rivals import ecmp
from lab.networks.training_jobs import FABRIC, Jobs, bandwidth, rings
from lab.networks.uplinks import exact, rehashed

HASHED = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256)
PLANS = ("exact", "least used")
JOBS = (1, 2, 4, 8)


class Picture(NamedTuple):
    """What the widget shows of one setting."""

    up: list[list[float]]  # [L, S], flows on each link up
    down: list[list[float]]  # the same down
    speed: dict[str, float]  # of each job, 1 is the rate of a NIC
    hashed: list[int]  # numbers of hashed flows, from 1 up
    mean: list[float]  # of the jobs' speeds, over ``hashed``
    least: list[float]  # the slowest job's
    here: dict[str, int]  # where on the curve this setting is
    crossing: int  # flows between leaves
    title: str  # the same in words


def picture(
    hashed: int,
    plan: str,
    spines: int = 32,
    jobs: int = 8,
    placement: str = "scattered",
    dead: int = 0,
    seed: int = 0,
) -> Picture:
    """Planned flows, ``hashed`` of them placed by a hash instead."""
    scene = _scene(plan, spines, jobs, placement, dead, seed)
    fabric = FABRIC._replace(spines=spines)
    now = _with_hash(scene, hashed)
    load = loads([now], scene.jobs.flows, fabric)
    speed = bandwidth(now, scene.jobs, fabric)
    slower = int((speed < 1 - 1e-9).sum())
    crossing = len(scene.order)
    names = [f"job {job}" for job in range(jobs)]
    return Picture(
        up=load.up[0].tolist(),
        down=load.down[0].tolist(),
        speed=dict(zip(names, speed.tolist(), strict=True)),
        hashed=scene.counts,
        mean=scene.mean,
        least=scene.least,
        here={"here": min(hashed, scene.counts[-1])} if hashed else {},
        crossing=crossing,
        title=f"{min(hashed, crossing)} of {crossing} flows hashed:"
        f" {slower} of {jobs} jobs slowed down, mean speed"
        f" {speed.mean():.2f}",
    )


def ticks(count: int) -> list[str]:
    """Labels for ``count`` columns or rows, every eighth one."""
    return [str(i) if i % 8 == 0 else "" for i in range(count)]


class _Scene(NamedTuple):
    """What stays when only the number of hashed flows changes."""

    jobs: Jobs
    plan: Subflows
    chance: Subflows  # every flow by hash
    order: Tensor  # of the flows between leaves, the first hashed first
    counts: list[int]
    mean: list[float]
    least: list[float]


@lru_cache(maxsize=64)
def _scene(plan, spines, count, placement, dead, seed) -> _Scene:
    fabric = FABRIC._replace(spines=spines)
    jobs = rings(placement, count, seed)
    alive = dead_links(dead, seed, fabric)
    sent = (jobs.flows, fabric)
    if plan == "exact":
        # made before the links died
        planned = rehashed(exact(*sent), *sent, alive, seed + 1)
    else:
        planned = by_arrival(*sent, alive=alive)
    chance = rehashed(ecmp(*sent, seed), *sent, alive, seed)
    leaf, other = ends(*sent)
    crossing = (leaf != other).nonzero()[:, 0].numpy()
    order = torch.from_numpy(np.random.default_rng(seed).permutation(crossing))
    scene = _Scene(jobs, planned, chance, order, [], [], [])
    # where all jobs stay in their leaves, one point says so
    most = max(1, len(order))
    for h in [*(h for h in HASHED[1:] if h < most), most]:
        speed = bandwidth(_with_hash(scene, h), jobs, fabric)
        scene.counts.append(h)
        scene.mean.append(float(speed.mean()))
        scene.least.append(float(speed.min()))
    return scene


def _with_hash(scene: _Scene, hashed: int) -> Subflows:
    spine = scene.plan.spine.clone()
    flow = scene.order[:hashed]
    spine[flow] = scene.chance.spine[flow]
    return scene.plan._replace(spine=spine)


class Matrix(NamedTuple):
    """The delays of one window, as the diagnosis sees them."""

    ratio: list[list[float | None]]  # [N, N], 1 is usual for the class
    found: Fault


def matrices(
    fault: Fault, samples: int = 16, slowdown: float = 2.0, seed: int = 0
) -> dict[str, Matrix]:
    """The same fault on planned and on hashed paths."""
    group = leaves()
    delays = torch.stack(
        [window(fault, samples, slowdown, seed, paths) for paths in PATHS]
    )
    stats = watch(delays)
    shown = {}
    for paths, ratio, found in zip(
        PATHS,
        ratios(stats.median, group).nan_to_num(-1.0).tolist(),
        verdicts(stats, group),
        strict=True,
    ):
        cells = [[x if x > 0 else None for x in row] for row in ratio]
        shown[paths] = Matrix(cells, found)
    return shown


def found_by_slowdown(
    slowdowns: list[float], samples: int = 16, trials: int = 5, seed: int = 50
) -> dict[str, list[float]]:
    """Percent of right verdicts, for both kinds of paths and both rules."""
    return {
        f"{paths}, {rule}": [
            diagnosed(seed, paths, samples, m, trials=trials, rule=rule)
            for m in slowdowns
        ]
        for paths in PATHS
        for rule in RULES
    }


def words(found: Fault) -> str:
    """A verdict as a person would say it."""
    if found.kind == "link":
        return f"the link from {found.rank} to {found.peer} is slow"
    if found.kind == "none":
        return "nothing is slow"
    return f"rank {found.rank} {found.kind} slowly"
