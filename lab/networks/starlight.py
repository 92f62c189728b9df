"""Nine quantum routers around Chicago, as SeQUeNCe's paper joins them.

The fibres and the delay of messages beside them are those of the authors'
`example/starlight/starlight.json`, see `data/starlight`; the places are drawn
by hand. Hardware as in `starlight_experiments.py` there.
"""

import csv
from functools import lru_cache
from itertools import permutations
from typing import NamedTuple

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import dijkstra

from lab.data import data_path

# name, two letters for the map, and where it lies there
ROUTERS = {
    "NU": ("NU", (7.4, 8.6)),
    "StarLight": ("SL", (6.4, 6.2)),
    "UChicago_PME": ("PM", (8.4, 4.0)),
    "UChicago_HC": ("HC", (10.0, 2.6)),
    "Fermilab_1": ("F1", (1.6, 5.4)),
    "Fermilab_2": ("F2", (0.0, 7.2)),
    "Argonne_1": ("A1", (4.6, 2.4)),
    "Argonne_2": ("A2", (2.2, 1.0)),
    "Argonne_3": ("A3", (6.6, 0.6)),
}
NAMES = tuple(ROUTERS)
SHORT = tuple(short for short, _ in ROUTERS.values())
PLACES = tuple(place for _, place in ROUTERS.values())
MEMORIES = 450  # in all, 50 for each router at first
PAPER = (25, 91, 67, 24, 67, 24, 103, 25, 24)  # the paper's, by load

LOSS = 0.2  # dB for each km of fibre
MEMORY, DETECTOR = 0.75, 0.8  # shares of the photons that get out, and count
RAW = 0.9349367588934053  # fidelity of a new pair
KEPT = 0.95  # share of the fidelity that a swap leaves


class Fibres(NamedTuple):
    """E fibres between N routers, and the shortest ways over them."""

    ends: np.ndarray  # [E, 2], routers
    km: np.ndarray  # [E]
    delay: np.ndarray  # [E], ms that a message takes beside the fibre
    path: dict[tuple[int, int], tuple[int, ...]]  # routers of the way


@lru_cache
def fibres() -> Fibres:
    """The network of nine routers and ten fibres."""
    with data_path("starlight/fibres.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    ends = [
        [NAMES.index(row[end]) for end in ("one", "other")] for row in rows
    ]
    km = np.array([float(row["metres"]) / 1000 for row in rows])
    delay = np.array([float(row["delay_us"]) / 1000 for row in rows])
    return Fibres(np.array(ends), km, delay, shortest(ends, km))


def shortest(ends, km) -> dict[tuple[int, int], tuple[int, ...]]:
    """The shortest way between any two routers of a connected network."""
    N = 1 + max(map(max, ends))
    joined = coo_array((km, np.transpose(ends)), shape=(N, N))
    _, before = dijkstra(
        joined.tocsr(), directed=False, return_predecessors=True
    )
    way = {}
    for u, v in permutations(range(N), 2):
        back = [v]
        while back[-1] != u:
            back.append(int(before[u, back[-1]]))
        way[u, v] = tuple(reversed(back))
    return way


@lru_cache
def fibre_of() -> dict[tuple[int, int], int]:
    """The number of the fibre between two neighbours, in both orders."""
    found = {}
    for e, (u, v) in enumerate(fibres().ends.tolist()):
        found[u, v] = found[v, u] = e
    return found


def path_load() -> np.ndarray:
    """Memories that each router [N] holds if every pair asks for one.

    An end holds one and a router on the way two, one for each side.
    """
    load = np.zeros(len(NAMES))
    for way in fibres().path.values():
        load[list(way)] += 2
        load[[way[0], way[-1]]] -= 1
    return load


def fibre_count() -> np.ndarray:
    """How many fibres end at each router [N]."""
    return np.bincount(fibres().ends.ravel(), minlength=len(NAMES)).astype(
        float
    )


def placement(blend: float, weight: np.ndarray | None = None) -> list[int]:
    """Memories of each router: ``blend`` of all by ``weight``, the rest even.

    ``weight`` is the path load if left out. What rounding leaves over or
    short goes to the router with the largest weight.
    """
    weight = path_load() if weight is None else weight
    even = MEMORIES / len(weight)
    share = (1 - blend) * even + blend * MEMORIES * weight / weight.sum()
    held = np.round(share).astype(int)
    held[weight.argmax()] += MEMORIES - held.sum()
    return held.tolist()
