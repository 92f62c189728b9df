"""What chapter 42 shows: recorded requests, and the pairs that serve them."""

from collections.abc import Callable
from functools import cache, lru_cache
from itertools import product
from typing import NamedTuple

import numpy as np

from lab.atomic import write_arrays
from lab.data import DATA, read_arrays
from lab.networks.entanglement import COHERENCE, swapped
from lab.networks.quantum_network import (
    WEIGHTS,
    accepted,
    experiment,
    path_hops,
    path_rates,
    throughput,
)
from lab.networks.reservations import Request, Served, Waiting
from lab.networks.starlight import (
    MEMORIES,
    PLACES,
    SHORT,
    fibre_of,
    fibres,
    placement,
)

RECORDED = "starlight/recorded.npz"
BLENDS = tuple(range(0, 101, 5))  # percent of the memories
SLOWER = (0.0, 0.25, 0.5, 1.0, 2.0)  # messages take so many times as long
EFFICIENCY = (40, 50, 60, 75, 90)  # percent of the photons get out
SECONDS = 120  # on the picture
# of the picture, one whose gain by load is not far from the usual one
SEED = 114
SEEDS = 5  # for the curve
SIZE = 3.6  # pixels across, for a router's memory or a pair: its root times


class Picture(NamedTuple):
    """What the widget shows of one setting."""

    points: list[tuple[float, float]]  # routers, then the middles of fibres
    edges: list[tuple[int, int]]  # fibres
    groups: dict[str, tuple[str, list[int]]]  # of points, with their colours
    sizes: list[float]  # of points, in pixels
    names: list[str]  # of points
    used: list[tuple[int, int]]  # fibres with reserved memories
    waiting: list[tuple[int, int]]  # from whom to whom
    lanes: dict[str, list[tuple]]  # of each router: its requests
    moment: float  # s
    blends: list[int]  # percent
    curves: dict[str, list[float]]  # accepted requests, mean over seeds
    alive: int  # pairs of neighbours that wait now
    title: str


def train_checkpoints(progress: Callable) -> None:
    """Simulate all placements again and keep what the widget shows."""
    kept = {"accepted": [], "rows": [], "count": []}
    for by, blend in progress(list(product(WEIGHTS, BLENDS))):
        kept["accepted"].append(
            [
                accepted(experiment(seed, blend / 100, by))
                for seed in range(SEEDS)
            ]
        )
        rows = _rows(experiment(SEED, blend / 100, by, float(SECONDS)))
        kept["rows"] += rows
        kept["count"].append(len(rows))
    shape = len(WEIGHTS), len(BLENDS)
    rates = [
        [path_rates(slower, share / 100)[way] for way in _ways()]
        for slower in SLOWER
        for share in EFFICIENCY
    ]
    write_arrays(
        DATA / RECORDED,
        accepted=np.array(kept["accepted"], np.int16).reshape(*shape, SEEDS),
        rows=np.array(kept["rows"], np.float32),
        count=np.array(kept["count"], np.int16).reshape(shape),
        rates=np.array(rates, np.float32).reshape(
            len(SLOWER), len(EFFICIENCY), -1
        ),
    )


def _ways():
    """Every path, in a fixed order."""
    return [fibres().path[pair] for pair in sorted(fibres().path)]


def _rows(served: Served) -> list[list[float]]:
    """A row of numbers for each request; 0 memories for a waiting one."""
    rows = [
        [one.path[0], one.path[-1], one.memories, one.asked, one.start,
         one.end, one.tries]
        for one in served.accepted
    ]  # fmt: skip
    return rows + [
        [one.path[0], one.path[-1], 0, one.asked, SECONDS, SECONDS, one.tries]
        for one in served.waiting
    ]


@cache
def recorded() -> dict[str, np.ndarray]:
    return read_arrays(RECORDED)


@cache
def requests(blend: int, by: str) -> Served:
    """The recorded requests of one placement, in the order of acceptance."""
    place = list(WEIGHTS).index(by) * len(BLENDS) + BLENDS.index(blend)
    count = recorded()["count"].ravel()
    first = int(count[:place].sum())
    done, open = [], []
    for row in recorded()["rows"][first : first + count[place]].tolist():
        path = fibres().path[int(row[0]), int(row[1])]
        if row[2]:
            times = (float(x) for x in row[3:6])
            done.append(Request(path, int(row[2]), *times, int(row[6])))
        else:
            open.append(Waiting(path, row[3], int(row[6])))
    return Served(done, open, SECONDS)


class Lanes(NamedTuple):
    """The chains of a request, k side by side, cycle after cycle; in ms."""

    begins: np.ndarray  # [n, k], when a cycle begins
    rises: np.ndarray  # [m], when a pair rises
    falls: np.ndarray  # [m], when it is swapped or dropped
    hops: np.ndarray  # [m], of which hop


@lru_cache(maxsize=256)
def lanes(
    path: tuple[int, ...], memories: int, ms: float, seed: int,
    slower: float, efficiency: float,
) -> Lanes:  # fmt: skip
    """What `chain_mc` skips: every pair of k chains within ``ms``."""
    one = path_hops(path, slower, efficiency)
    random = np.random.default_rng(seed)
    per_try = np.log1p(-one.p)

    def pairs(shape):
        return one.ms * np.ceil(np.log(random.random(shape)) / per_try)

    cycle = float((one.ms / one.p).max())
    count = int(1.3 * ms / cycle) + 20
    rise = pairs((count, memories, len(one.p)))
    dropped = []
    last = rise.max(2, keepdims=True)
    while (old := rise + COHERENCE < last).any():
        dropped.append((old, rise[old]))
        again = rise + COHERENCE + pairs(rise.shape)
        rise = np.where(old, again, rise)
        last = rise.max(2, keepdims=True)
    begins = last[..., 0].cumsum(0) - last[..., 0]
    at = np.broadcast_to(begins[..., None], rise.shape)
    hop = np.broadcast_to(np.arange(len(one.p)), rise.shape)
    rises = [(at + rise).ravel()]
    falls, hops = [(at + last).ravel()], [hop.ravel()]
    for old, rose in dropped:
        rises.append(at[old] + rose)
        falls.append(at[old] + rose + COHERENCE)
        hops.append(hop[old])
    return Lanes(begins, *(np.concatenate(x) for x in (rises, falls, hops)))


def alive(one: Request, index: int, moment: float, slower, efficiency):
    """How many pairs wait on every hop of a request at a moment (s)."""
    ms = 1000 * (one.end - one.start)
    seen = lanes(one.path, one.memories, ms, index, slower, efficiency)
    age = 1000 * (moment - one.start)
    there = (seen.rises <= age) & (age < seen.falls)
    return np.bincount(seen.hops[there], minlength=len(one.path) - 1)


def picture(
    blend: int = 0,
    second: int = 60,
    later: int = 0,
    by: str = "load",
    slower: float = 1.0,
    efficiency: int = 75,
) -> Picture:
    """The nine routers ``later`` ms after a second, and all requests."""
    served = requests(blend, by)
    moment = second + later / 1000
    held = placement(blend / 100, WEIGHTS[by]())
    taken = [0] * len(held)
    pairs = np.zeros(len(fibres().km), int)
    used, now = [], []
    for index, one in enumerate(served.accepted):
        if not one.start <= moment < one.end:
            continue
        now.append(one)
        hops = list(zip(one.path, one.path[1:], strict=False))
        found = alive(one, index, moment, slower, efficiency / 100)
        for (u, v), count in zip(hops, found, strict=True):
            pairs[fibre_of()[u, v]] += count
            used.append((u, v))
            taken[u] += one.memories
            taken[v] += one.memories
    rates = _rates(slower, efficiency)
    later_on = [
        one for one in served.accepted if one.asked <= moment < one.start
    ]
    waiting = [(one.path[0], one.path[-1]) for one in later_on]
    waiting += [
        (one.path[0], one.path[-1])
        for one in served.waiting
        if one.asked <= moment
    ]
    points, sizes, names = _points(held, pairs)
    began = sum(one.start < SECONDS for one in served.accepted)
    total = throughput(served, rates)
    curves = recorded()["accepted"]
    return Picture(
        points=points,
        edges=[tuple(pair) for pair in fibres().ends.tolist()],
        groups=_groups(held, taken, pairs),
        sizes=sizes,
        names=names,
        used=sorted(set(used)),
        waiting=waiting,
        lanes=_lanes(served),
        moment=moment,
        blends=list(BLENDS),
        curves={
            f"by {name}": curves[place].mean(1).tolist()
            for place, name in enumerate(WEIGHTS)
        },
        alive=int(pairs.sum()),
        title=f"{began} requests served in {SECONDS} s, {total:.0f} pairs per"
        f" second from end to end; at {moment:.3f}\u00a0s: {len(now)} served,"
        f" {len(waiting)} wait, {sum(taken)} of {MEMORIES} memories reserved",
    )


@cache
def _rates(slower: float, efficiency: int) -> dict:
    place = SLOWER.index(slower), EFFICIENCY.index(efficiency)
    return dict(
        zip(
            _ways(),
            recorded()["rates"][place].tolist(),
            strict=True,
        )
    )


def _points(held, pairs):
    """Routers and the middles of fibres: places, sizes, names."""
    middles = [
        tuple((np.array(PLACES[u]) + PLACES[v]) / 2)
        for u, v in fibres().ends.tolist()
    ]
    sizes = [SIZE * count**0.5 + 8 for count in held]
    sizes += [SIZE * count**0.5 + 10 for count in pairs.tolist()]
    return [*PLACES, *middles], sizes, [*SHORT, *map(str, pairs.tolist())]


def _groups(held, taken, pairs):
    """Routers by the share of reserved memories, and fibres with pairs."""
    share = [used / count for used, count in zip(taken, held, strict=True)]
    levels = {
        "under half reserved": ("baseline", 0.0, 0.5),
        "half to 80 %": ("kept", 0.5, 0.8),
        "80 % and more": ("cut", 0.8, 9.0),
    }
    routers = {
        name: (role, [v for v, x in enumerate(share) if low <= x < high])
        for name, (role, low, high) in levels.items()
    }
    first = len(held)
    fibre = [first + e for e, count in enumerate(pairs.tolist()) if count]
    return routers | {"pairs that wait now": ("best", fibre)}


def _lanes(served: Served) -> dict[str, list[tuple]]:
    """Of each router: when its requests waited and when they were served."""
    lanes = {short: [] for short in SHORT}
    for one in served.accepted:
        to = f"to {SHORT[one.path[-1]]}"
        said = (
            f"{to}: {one.memories} memories, {len(one.path) - 1} hops,"
            f" fidelity {swapped(len(one.path) - 1):.2f}, try {one.tries}"
        )
        lane = lanes[SHORT[one.path[0]]]
        lane.append(("waits", one.asked, one.start, to))
        lane.append(("served", one.start, min(one.end, SECONDS), said))
    for one in served.waiting:
        to = f"to {SHORT[one.path[-1]]}: try {one.tries}, no end in sight"
        lanes[SHORT[one.path[0]]].append(("waits", one.asked, SECONDS, to))
    return lanes
