"""What the pictures of chapter 25 show: short trainings, recorded, and how
weights share cells, computed live.

Seed 0: 150 steps for each mapping, compression, initial scale and scaler. All
scalers learn equally fast on average at an initial scale of 0.04; from there
only the scale changes. Beside them, what every method of the claims reached on
seeds 0 to 2, and a whole array of 404 numbers and 266 biases after 300 steps.
"""

from collections.abc import Callable
from functools import cache, lru_cache
from typing import NamedTuple

import numpy as np
import torch

from lab.atomic import write_arrays
from lab.data import DATA, read_arrays
from lab.weights.shared_array import (
    MAPPINGS,
    SCALERS,
    Sharing,
    effective_rank,
    share,
    sharers,
)
from lab.weights.shared_network import (
    WIDTH,
    Dense,
    Network,
    Shared,
    accuracy,
    learn,
)
from lab.weights.sharing_methods import (
    ARMS,
    HIGH,
    SHAPES,
    START,
    Arm,
    N,
    trained,
)

# rates of the scaler v1, by compression
RATES = {1: 0.1, 4: 0.3, 16: 1.0, 64: 1.0}
COMPRESSIONS = tuple(RATES)
STARTS = (0.01, 0.02, START, 0.1, 0.3, 1.0)
SHOWN = 150  # steps
EVERY = 5  # steps that a point of a curve is the mean of
CEILING = 100.0  # nats; a loss above it, or none, is drawn here
SEEDS = range(3)  # of the methods side by side
PLACES = range(101)  # %, of the cells from the busiest on
WINDOW = 32  # rows and columns of a layer that are shown
RECORDED = "parameter_sharing/recorded.npz"


def matched_rate(sharing: Sharing, rate: float, scaler: str) -> float:
    """The rate at which a scaler is as fast on average as v1 at `START`."""
    used = sharers(sharing) > 0
    one, other = (
        Shared(sharing, WIDTH, START, name, 0).by.cpu()[used].mean().item()
        for name in (scaler, "v1")
    )
    return rate * one / other


def learned(network: Network, rate: float) -> list[float]:
    """The loss over the steps, a point for every few of them."""
    losses = list(learn(network, rate, 0, SHOWN))
    points = torch.tensor(losses).view(-1, EVERY).mean(dim=1)
    return points.nan_to_num(CEILING, CEILING).clamp(max=CEILING).tolist()


def side_by_side() -> np.ndarray:
    """Percent of right answers [arm, seed] of all methods of the claims."""
    found = [[accuracy(trained(arm, seed)) for seed in SEEDS] for arm in ARMS]
    return np.array(found, dtype=np.float32)


def train_checkpoints(progress: Callable = iter) -> None:
    """Train the recorded networks again, seed 0: some minutes."""
    axes = MAPPINGS, COMPRESSIONS, SCALERS, STARTS
    grid = tuple(map(len, axes))
    curves = np.zeros((*grid, SHOWN // EVERY), dtype=np.float16)
    right = np.zeros(grid, dtype=np.float32)
    for at in progress([*np.ndindex(grid)]):
        mapping, compression, scaler, start = (
            axis[i] for axis, i in zip(axes, at, strict=True)
        )
        sharing = share(SHAPES, N // compression, mapping, 0)
        rate = matched_rate(sharing, RATES[compression], scaler)
        network = Shared(sharing, WIDTH, start, scaler, 0)
        curves[at] = learned(network, rate)
        right[at] = accuracy(network)
    original = Dense(WIDTH, 0)
    loss = learned(original, RATES[1])
    small = trained(Arm("STABLE-RPS", HIGH), 0)
    write_arrays(
        DATA / RECORDED,
        curves=curves,
        right=right,
        original=np.array(loss, dtype=np.float16),
        arms=side_by_side(),
        original_right=np.array(accuracy(original), dtype=np.float32),
        table=small.table.detach().cpu().numpy(),
        biases=np.concatenate(
            [b.detach().cpu().numpy() for b in small.biases]
        ),
    )


@cache
def recorded() -> dict[str, np.ndarray]:
    """curves [mapping, compression, scaler, start, point] and right without
    the points; the same of the original; arms [arm, seed], in percent;
    table [404] and biases [266]."""
    return read_arrays(RECORDED)


def kept_network() -> Shared:
    """The network whose 404 numbers and 266 biases are recorded."""
    sharing = share(SHAPES, N // HIGH, "RandomFold", 0)
    network = Shared(sharing, WIDTH, START, "v1", 0)
    table, biases = (
        torch.from_numpy(recorded()[key]) for key in ("table", "biases")
    )
    parts = biases.split([rows for rows, _ in SHAPES])
    with torch.no_grad():
        network.table.copy_(table)
        for bias, part in zip(network.biases, parts, strict=True):
            bias.copy_(part)
    return network


@lru_cache(maxsize=32)
def shared(mapping: str, compression: int) -> Sharing:
    """How a mapping shares, seed 0."""
    return share(SHAPES, N // compression, mapping, 0)


@lru_cache(maxsize=64)
def rank_of(mapping: str, compression: int, layer: int) -> float:
    """The effective rank of a layer as it starts."""
    sharing = shared(mapping, compression)
    first = Shared(sharing, WIDTH, START, "v1", 0)
    return effective_rank(first.recovered()[layer - 1].detach().cpu())


class Picture(NamedTuple):
    """What the chapter's picture shows, as plain lists."""

    losses: dict[str, list[float]]  # nats by name, over `steps`
    steps: list[int]
    right: dict[str, list[float]]  # % by scaler, over STARTS
    window: list[list[int]]  # [WINDOW][WINDOW] or fewer rows, cells
    loads: dict[str, list[float]]  # weights of a cell, over PLACES
    cells: int  # m
    unused: float  # % of the cells
    rank: float  # effective, of the layer
    full: int  # the rank it could have
    accuracy: float  # % right, this setting
    said: str  # the setting in words

    @property
    def colours(self) -> dict[str, str]:
        """What each curve is: the cure, what is looked at, a baseline."""
        roles = {"none": "dropped", "v4": "null", "v1": "best"}
        roles |= {"original model": "faint", "the same for all": "faint"}
        roles |= {"this setting": "kept", "this mapping": "kept"}
        return roles | {f"v1, s0 = {START:g}": "best"}

    @property
    def rows(self) -> list[str]:
        """Every fourth row of the window is named."""
        return ["" if r % 4 else str(r) for r in range(len(self.window))]

    @property
    def title(self) -> str:
        return f"{self.said}: {self.accuracy:.1f} % right"

    @property
    def note(self) -> str:
        return (
            f"{self.cells} numbers, {self.unused:.1f} % of them unused;"
            f" effective rank of the layer {self.rank:.0f} of {self.full}"
        )


def picture(
    start: float = START,
    scaler: str = "none",
    mapping: str = "RandomFold",
    compression: int = 16,
    layer: int = 2,
) -> Picture:
    """One training beside the original's, and who shares with whom."""
    known = (
        ("start", start, STARTS), ("scaler", scaler, SCALERS),
        ("mapping", mapping, MAPPINGS),
        ("compression", compression, COMPRESSIONS),
        ("layer", layer, (1, 2, 3)),
    )  # fmt: skip
    for name, value, allowed in known:
        if value not in allowed:
            raise ValueError(
                f"{name}={value!r} was not recorded; use one of"
                f" {', '.join(map(str, allowed))}"
            )
    arrays = recorded()
    row = MAPPINGS.index(mapping), COMPRESSIONS.index(compression)
    at = *row, SCALERS.index(scaler), STARTS.index(start)
    cured = *row, SCALERS.index("v1"), STARTS.index(START)
    sharing = shared(mapping, compression)
    before = sum(rows * columns for rows, columns in SHAPES[: layer - 1])
    rows, columns = SHAPES[layer - 1]
    cells = sharing.cells[before:][: rows * columns].view(rows, columns)
    busiest = sharers(sharing).sort(descending=True).values
    places = [round(p / 100 * (sharing.m - 1)) for p in PLACES]
    return Picture(
        losses={
            "original model": arrays["original"].tolist(),
            f"v1, s0 = {START:g}": arrays["curves"][cured].tolist(),
            "this setting": arrays["curves"][at].tolist(),
        },
        steps=[*range(0, SHOWN, EVERY)],
        right={
            name: arrays["right"][*row, place].tolist()
            for place, name in enumerate(SCALERS)
        },
        window=cells[:WINDOW, :WINDOW].tolist(),
        loads={
            "the same for all": [N / sharing.m] * len(PLACES),
            "this mapping": busiest[places].tolist(),
        },
        cells=sharing.m,
        unused=100 * (sharers(sharing) == 0).double().mean().item(),
        rank=rank_of(mapping, compression, layer),
        full=min(rows, columns),
        accuracy=float(arrays["right"][at]),
        said=f"s0 = {start:g}, scaler {scaler}, {mapping}, {compression}x",
    )
