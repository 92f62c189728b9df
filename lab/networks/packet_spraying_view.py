"""What the widget of chapter 39 shows of one collective and one rule."""

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from lab.kernels.linkload import LinkLoad
from lab.networks.collective_time import least_time, transfer
from lab.networks.leaf_spine import (
    Fabric,
    Flows,
    Subflows,
    collective,
    ends,
    ideal_congestion,
    loads,
)
from lab.networks.packet_spraying import RULES, assign, over_ideal


class Picture(NamedTuple):
    """What the widget shows of one setting."""

    up: list[list[float]]  # [L, S], load of each link up
    ideal: float  # C*, the fullest link of ideal spraying
    congestion: dict[str, float]  # of every rule, 1 is ideal spraying
    cut: int  # flows in more than one piece
    crossing: int  # flows that leave their leaf
    time: list[float]  # moments, for both curves
    used: dict[str, list[float]]  # % of what all NICs could send at that time
    end: float  # of this rule
    sprayed: float  # end of ideal spraying
    title: str  # the same in words


def picture(
    spines: int,
    workload: str,
    rule: str,
    fairness: str,
    hosts: int = 8,
    spread: float = 0.0,
    leaves: int = 4,
    seed: int = 0,
) -> Picture:
    """One collective by one rule, beside what the other rules reach."""
    scene = _scene(Fabric(leaves, hosts, spines), workload, spread, seed)
    cut = scene.cuts[rule]
    # where all sizes differ, a thousand ends would be a thousand steps
    pause = least_time(scene.flows, scene.fabric) / 100 if spread else 0.0
    setting = (scene.flows, scene.fabric, fairness, pause)
    mine = transfer(rule, cut, *setting)
    theirs = transfer("spraying", None, *setting)
    # a little past the end, where both rates are 0
    edges = np.linspace(0, 1.04 * max(mine.time[-1], theirs.time[-1]), 105)
    full = leaves * hosts * np.diff(edges)
    used = {
        name: 100 * np.diff(np.interp(edges, one.time, one.delivered)) / full
        for name, one in ((rule, mine), ("spraying", theirs))
    }
    several = int((cut.flow[cut.spine >= 0].bincount(minlength=1) > 1).sum())
    ratio = dict(zip(RULES, scene.congestion, strict=True))
    end, sprayed = float(mine.time[-1]), float(theirs.time[-1])
    return Picture(
        up=scene.load.up[list(RULES).index(rule)].tolist(),
        ideal=scene.ideal,
        congestion=ratio,
        cut=several,
        crossing=scene.crossing,
        time=((edges[1:] + edges[:-1]) / 2).tolist(),
        used={name: u.round(6).tolist() for name, u in used.items()},
        end=end,
        sprayed=sprayed,
        title=f"{several} of {scene.crossing} flows cut, fullest link"
        f" {ratio[rule]:.2f} x ideal; done at {'about ' if pause else ''}"
        f"{end:.1f}, spraying {sprayed:.1f}",
    )


class _Scene(NamedTuple):
    """What stays when only rule and fairness change."""

    fabric: Fabric
    flows: Flows
    crossing: int
    cuts: dict[str, Subflows]
    load: LinkLoad  # [rules, L, S]
    ideal: float
    congestion: list[float]


@lru_cache(maxsize=64)
def _scene(fabric: Fabric, workload: str, spread: float, seed: int) -> _Scene:
    flows = collective(workload, fabric, seed, spread)
    leaf, other = ends(flows, fabric)
    cuts = {name: assign(name, flows, fabric, seed) for name in RULES}
    load = loads(list(cuts.values()), flows, fabric)
    ideal = ideal_congestion(flows, fabric)
    ratio = over_ideal(load.peak, ideal)
    crossing = int((leaf != other).sum())
    return _Scene(fabric, flows, crossing, cuts, load, ideal, ratio.tolist())
