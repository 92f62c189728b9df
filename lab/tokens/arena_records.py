"""What the arena measured: every run of every entrant, in `data/arena/`.

`runs.csv` has a row for each run (a point and a seed), and `profiles.npz` its
counts (see `lab/tokens/routing_profile.py`). `about.json` says where and when
the runs were made.
"""

import csv
import io
from collections.abc import Callable
from datetime import date
from functools import cache
from typing import NamedTuple

import numpy as np
import torch

from lab.atomic import write_arrays, write_bytes, write_json
from lab.data import DATA, data_path, read_arrays, read_json
from lab.tokens.char_lm import measure, spread
from lab.tokens.entrants import (
    ENTRANTS,
    STEPS,
    Entrant,
    Training,
    entrant,
    expert_work,
    router_parameters,
    router_work,
    trained,
)
from lab.tokens.routing_profile import Profile, profile
from lab.verdict import machine, versions

SEEDS = 5
POSITIONS = 16384  # test characters
HOME = DATA / "arena"
COUNTS = ("load", "kinds", "pairs")  # the tables of a profile, kept in full


class Run(NamedTuple):
    """One trained model, measured; a row of `data/arena/runs.csv`."""

    router: str
    setting: float
    seed: int
    bits: float  # per character
    experts: float  # on the test text, mean per token and layer
    experts_in_training: float
    router_multiply_adds: float  # per token and layer
    multiply_adds: float  # the same, experts included
    router_parameters: int
    fullest: float  # load of the fullest expert over its fair share
    told: float  # nats that the choice tells about the character
    depth: float  # nats that a layer's choice tells about the next's


class Point(NamedTuple):
    """An entrant at one setting."""

    router: str
    setting: float

    @property
    def label(self) -> str:
        return f"{self.router} {self.setting:g}"


def points(names: list[str] | None = None) -> list[Point]:
    """Every setting of every entrant, or of those called ``names``."""
    chosen = ENTRANTS if names is None else map(entrant, names)
    return [Point(one.name, s) for one in chosen for s in one.settings]


def point(label: str) -> Point:
    """The point with this label, such as "top-p 0.4"."""
    known = {one.label: one for one in points()}
    if label not in known:
        raise ValueError(f"{label!r} is not a point; use one of {list(known)}")
    return known[label]


def train_and_measure(
    one: Entrant,
    training: Training,
    positions: int = POSITIONS,
    progress: Callable = iter,
) -> tuple[Run, Profile]:
    """Train and measure an entrant, which need not be in the arena yet."""
    model, while_training = trained(one, training, progress)
    context, target = spread("prose", positions)
    seen = measure(model, context, target)
    found = profile(seen, context)
    own = router_work(model)
    run = Run(
        router=one.name,
        setting=training.setting,
        seed=training.seed,
        bits=seen.bits_per_character,
        experts=seen.mean_experts,
        experts_in_training=while_training,
        router_multiply_adds=own,
        multiply_adds=own + seen.mean_experts * expert_work(),
        router_parameters=router_parameters(model),
        fullest=(seen.load.amax(1) / seen.load.mean(1)).mean().item(),
        told=found.told.mean().item(),
        depth=found.depth[:-1].mean().item(),
    )
    return run, found


def record(progress: Callable = iter, names: list[str] | None = None) -> None:
    """Train and record all points, or those of the entrants ``names``.

    With ``names`` everything else that is recorded stays, so that a new
    entrant can be added.
    """
    kept, arrays, about = {}, {}, {}
    if names is not None and HOME.is_dir():
        kept, arrays = dict(runs()), dict(_arrays())
        about = read_json(str(HOME / "about.json"))
    jobs = [(p, seed) for p in points(names) for seed in range(SEEDS)]
    # a training that several settings share is done once per seed
    jobs.sort(key=lambda job: _order(*job))
    shapes: dict[str, list[np.ndarray]] = {}
    for p, seed in progress(jobs):
        one = entrant(p.router)
        training = Training(p.setting, seed, STEPS)
        run, found = train_and_measure(one, training, POSITIONS)
        kept[p, seed] = run
        for name in COUNTS:
            table = getattr(found, name).numpy().astype(np.float16)
            shapes.setdefault(f"{p.label}/{name}", []).append(table)
        about[p.router] = {
            "date": date.today().isoformat(),
            "machine": machine(),
            "threads": torch.get_num_threads(),
            "versions": versions(),
        }
    arrays |= {key: np.stack(tables) for key, tables in shapes.items()}
    _write(kept, arrays, about)


def _order(p: Point, seed: int) -> tuple:
    names = [one.name for one in ENTRANTS]
    return names.index(p.router), seed, p.setting


def _write(kept: dict, arrays: dict, about: dict) -> None:
    HOME.mkdir(parents=True, exist_ok=True)
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(Run._fields)
    for key in sorted(kept, key=lambda key: _order(*key)):
        row = kept[key]
        writer.writerow(f"{v:.6g}" if isinstance(v, float) else v for v in row)
    write_bytes(HOME / "runs.csv", file.getvalue().encode())
    write_arrays(HOME / "profiles.npz", **arrays)
    write_json(HOME / "about.json", about)
    for known in (runs, _arrays):
        known.cache_clear()


@cache
def runs() -> dict[tuple[Point, int], Run]:
    """All recorded runs, by point and seed."""
    path = data_path(str(HOME / "runs.csv"))
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    found = {}
    for row in rows:
        run = Run(**{
            name: kind(float(row[name])) if kind is not str else row[name]
            for name, kind in Run.__annotations__.items()
        })  # fmt: skip
        found[Point(run.router, run.setting), run.seed] = run
    return found


@cache
def _arrays() -> dict[str, np.ndarray]:
    return read_arrays(str(HOME / "profiles.npz"))


def recorded_profile(p: Point, seed: int) -> dict[str, np.ndarray]:
    """Load, kinds and pairs of a recorded run, see `Profile`."""
    return {
        name: _arrays()[f"{p.label}/{name}"][seed].astype(float)
        for name in COUNTS
    }
