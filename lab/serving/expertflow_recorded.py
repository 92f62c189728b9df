"""What chapter 11 recorded: real paths, predicted paths, and served visits.

For every seed, a model of six layers with 16 experts reads 16 texts that are
new to it, side by side. Kept are the experts that each character took, those
that the trained predictor and the table guessed, and, for the picture, what
the cache did for seed 0 in every setting of the knobs.
"""

import json
from collections.abc import Callable
from functools import cache
from itertools import product
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lab.atomic import write_arrays
from lab.data import DATA, read_arrays
from lab.kernels.runtime import device
from lab.kernels.stack_distance import stack_distance
from lab.serving.demand_caches import lru_by_layer
from lab.serving.path_predictor import LEAD, learn, paths, predict
from lab.serving.prefetch_cache import QUEUES, Costs, Served, serve, visits
from lab.serving.routing_traces import DOMAIN, LAYERS, untrained
from lab.serving.routing_traces import STEPS as MODEL_STEPS
from lab.tokens.char_lm import train
from lab.tokens.text import split

FOLDER = "expertflow"
EXPERTS = 16
SEEDS = 5
TEXTS = 16  # read side by side
STEPS = 128  # tokens of each
GUESSES = ("learned", "table", "before")
WRONG = (0, 10, 20, 30, 40, 50, 60, 80, 100)  # percent of the guesses
CAPACITIES = (12, 18, 24, 36, 48, 72)  # of the 96 experts
BATCHES = (1, 4, 8, 16)
TRANSFERS = (0.1, 0.3, 1.0, 3.0)
# how far the prediction reaches: visits, and layers of a step that ends it
AHEAD = {"3 layers": (3, 0), "6 layers": (6, 0), "this step": (6, LAYERS)}
SHOWN = 64  # steps that the picture serves


class Trace(NamedTuple):
    """The experts [S, B, L] that the texts' characters took, and guesses."""

    truth: Tensor
    guesses: dict[str, Tensor]  # by `GUESSES`


@cache
def trace(seed: int = 0) -> Trace:
    """The recorded paths of one seed, without training."""
    arrays = read_arrays(f"{FOLDER}/seed-{seed}.npz")
    rows = {
        name: torch.from_numpy(arrays[name].astype(np.int64))
        for name in ("truth", "learned", "table")
    }
    # one step more than the guesses, for the path of the token before
    truth = rows.pop("truth")
    return Trace(truth[1:], rows | {"before": truth[:-1]})


@cache
def mistaken(seed: int, percent: int) -> Tensor:
    """The true paths with ``percent`` of the experts replaced by others.

    What is wrong at 10 % is wrong at 20 %, too. An expert that is wrong for
    one text may still be needed by another.
    """
    if not 0 <= percent <= 100:
        raise ValueError(f"wrong={percent} is not within 0 to 100 percent")
    truth = trace(seed).truth
    generator = torch.Generator().manual_seed(seed)
    dice = torch.rand(truth.shape, generator=generator)
    shift = torch.randint(1, EXPERTS, truth.shape, generator=generator)
    return torch.where(dice < percent / 100, (truth + shift) % EXPERTS, truth)


def guess(seed: int, name: str | int) -> Tensor:
    """The guessed paths: one of `GUESSES`, or a percentage of mistakes."""
    if isinstance(name, int):
        return mistaken(seed, name)
    return trace(seed).guesses[name]


@cache
def needed(seed: int, batch: int, steps: int) -> list[list[int]]:
    """The visits of the first ``batch`` texts."""
    return visits(trace(seed).truth[:steps, :batch], EXPERTS)


def served(
    seed: int,
    name: str | int,
    batch: int = 8,
    capacity: int = 24,
    transfer: float = 1.0,
    ahead: str = "6 layers",
    queue: str = QUEUES[0],
    steps: int = STEPS,
) -> Served:
    """The cache with one of the guesses, for one seed."""
    window, step = AHEAD[ahead]
    return serve(
        needed(seed, batch, steps),
        visits(guess(seed, name)[:steps, :batch], EXPERTS),
        capacity, window, Costs(transfer), queue, step,
    )  # fmt: skip


@cache
def lru(
    seed: int,
    batch: int = 8,
    capacity: int = 24,
    transfer: float = 1.0,
    steps: int = STEPS,
) -> Served:
    """The baseline with as many slots in all, the same number per layer."""
    if capacity % LAYERS:
        raise ValueError(
            f"capacity={capacity} is not the same number of slots for each of"
            f" {LAYERS} layers; use a multiple of {LAYERS}"
        )
    needs = needed(seed, batch, steps)
    return lru_by_layer(needs, LAYERS, capacity // LAYERS, Costs(transfer))


@cache
def lru_hits(seed: int, batch: int, steps: int = STEPS) -> list[float]:
    """Percent of hits with 1 to 16 slots in every layer, in one pass."""
    truth = trace(seed).truth[:steps, :batch]
    needs = torch.nn.functional.one_hot(truth, EXPERTS).amax(1).bool()
    hist = stack_distance(needs[None].to(device()))[0].sum(0).double()
    return (100 * hist.cumsum(0) / hist.sum())[:-1].tolist()


@cache
def grid() -> dict[str, np.ndarray]:
    """Hits, loads and times for every setting, as `at` finds them."""
    return read_arrays(f"{FOLDER}/grid.npz")


def at(capacity, batch, transfer, ahead, queue) -> tuple[int, ...]:
    """The place of a setting in the recorded arrays."""
    return (
        CAPACITIES.index(capacity),
        BATCHES.index(batch),
        TRANSFERS.index(transfer),
        list(AHEAD).index(ahead),
        QUEUES.index(queue),
    )


def sums(name: str | int, *knobs) -> tuple[int, int, float]:
    """Recorded hits, loads and time of a layer, with one of the guesses."""
    place = (*at(*knobs), [*WRONG, *GUESSES].index(name))
    return tuple(grid()[k][place].item() for k in ("hits", "loads", "time"))


def record(seed: int) -> None:
    """Train model and predictor of one seed and keep paths and guesses."""
    model = untrained(EXPERTS, seed)
    train(model, DOMAIN, MODEL_STEPS, seed)
    model.eval()
    ids = split(DOMAIN)
    learned = learn(model, ids.train, seed)
    span = torch.arange(LEAD + 1 + STEPS)
    starts = torch.linspace(0, len(ids.test) - len(span), TEXTS).long()
    text = ids.test[starts[:, None] + span]
    kept = {
        "truth": paths(model, text),
        "learned": predict(learned.predictor, text[:, 1:]),
        "table": learned.table[text[:, LEAD + 1 :]],
    }
    about = {"seed": seed, "domain": DOMAIN, "steps": MODEL_STEPS}
    write_arrays(
        DATA / FOLDER / f"seed-{seed}.npz",
        # [B, S, L] as [S, B, L]
        **{k: v.transpose(0, 1).numpy().astype(np.int8)
           for k, v in kept.items()},
        about=json.dumps(about),
    )  # fmt: skip


def record_grid(progress: Callable = iter) -> None:
    """Serve seed 0 with every setting of the picture."""
    names = [*WRONG, *GUESSES]
    axes = CAPACITIES, BATCHES, TRANSFERS, tuple(AHEAD), QUEUES
    shape = *map(len, axes), len(names)
    hits, loads = (np.zeros(shape, dtype=np.int32) for _ in range(2))
    time = np.zeros(shape, dtype=np.float32)
    for knobs in progress(list(product(*axes))):
        C, B, transfer, ahead, queue = knobs
        for i, name in enumerate(names):
            run = served(0, name, B, C, transfer, ahead, queue, SHOWN)
            place = (*at(*knobs), i)
            hits[place], loads[place] = run.hits, run.loads
            time[place] = run.layer_time
    write_arrays(DATA / FOLDER / "grid.npz", hits=hits, loads=loads, time=time)


def train_checkpoints(progress: Callable = iter) -> None:
    """Train and record all seeds, then the grid: about five minutes."""
    for seed in progress(range(SEEDS)):
        record(seed)
    record_grid(progress)
