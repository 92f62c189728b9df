"""The arena's recorded runs, as a table and as data for its figures."""

from functools import cache
from typing import NamedTuple

import numpy as np
import torch

from lab.data import read_json
from lab.tokens.arena import BASELINE, gap
from lab.tokens.arena_records import (
    HOME,
    POSITIONS,
    SEEDS,
    Point,
    Run,
    point,
    points,
    recorded_profile,
    runs,
)
from lab.tokens.char_lm import BATCH
from lab.tokens.entrants import ENTRANTS, STEPS
from lab.tokens.routing_profile import KINDS, information
from lab.verdict import interval

# ways to count what a point costs: the field of a run, its unit, and where the
# axis is labelled
COSTS = {
    "multiply-adds": (
        "multiply_adds",
        "multiply-adds per token and layer, router included",
        (3000, 4000, 6000, 8000, 12000, 16000, 24000),
    ),
    "experts": ("experts", "experts per token and layer", (1, 2, 3, 4, 6, 8)),
}
NAMES = tuple(one.name for one in ENTRANTS)
ROUTINGS = ("characters", "depth")


class Summary(NamedTuple):
    """A recorded point over all seeds; means unless said otherwise."""

    point: Point
    bits: float
    lowest: float  # bits of the best seed
    highest: float  # bits of the worst seed
    gap: float
    low: float  # 95 % interval of the gap
    high: float
    run: dict[str, float]  # the means of a run's numbers, by their names


@cache
def summary(p: Point) -> Summary:
    """What the recorded runs say about ``p``."""
    mine = [runs()[p, seed] for seed in range(SEEDS)]
    bits = [one.bits for one in mine]
    numbers = {
        name: sum(getattr(one, name) for one in mine) / SEEDS
        for name, kind in Run.__annotations__.items()
        if kind is not str
    }
    gaps = interval([gap(p, seed) for seed in range(SEEDS)])
    return Summary(p, numbers["bits"], min(bits), max(bits), *gaps, numbers)


def entry_list() -> str:
    """The entrants, one per line, with their knobs and routers' costs."""
    lines = [
        f"{'':<51} router's own",
        f"{'router':<13} {'chapter':<8} {'knob':<13} {'settings':<16}"
        "work  parameters",
    ]
    for one in ENTRANTS:
        first = runs()[points([one.name])[0], 0]
        settings = ", ".join(f"{s:g}" for s in one.settings)
        lines.append(
            f"{one.name:<13} {one.chapter or 'all':<8} {one.knob:<13}"
            f" {settings:<15}{first.router_multiply_adds:5.0f}"
            f"  {first.router_parameters:10}"
        )
    return "\n".join(lines)


def table() -> str:
    """Every recorded point, one per line, and then where it was recorded."""
    lines = [
        f"{'':<15} experts work  in the  bits per character"
        "   gap to the line          fullest nats told",
        f"{'':<15} a token x1000 router  mean best  worst"
        "    mean  95 % interval     expert  kind next",
    ]
    for p in points():
        s = summary(p)
        of = s.run
        share = 100 * of["router_multiply_adds"] / of["multiply_adds"]
        lines.append(
            f"{p.label:<15} {of['experts']:6.2f} "
            f"{of['multiply_adds'] / 1000:6.2f} {share:3.0f} %"
            f"   {s.bits:.3f} {s.lowest:.3f} {s.highest:.3f}"
            f"  {s.gap:+.3f} [{s.low:+.3f}, {s.high:+.3f}]"
            f"  {of['fullest']:5.2f}  {of['told']:5.2f} {of['depth']:4.2f}"
        )
    return "\n".join([*lines, "", *_provenance()])


def _provenance() -> list[str]:
    """Budget, seeds, machine and date of the record."""
    about = read_json(str(HOME / "about.json"))
    days = sorted({one["date"] for one in about.values()})
    machines = sorted({one["machine"] for one in about.values()})
    return [
        f"{STEPS} steps of {BATCH} characters, one rate, {SEEDS} seeds;"
        f" {POSITIONS} test characters",
        f"recorded {' and '.join(days)} on {' and '.join(machines)}",
    ]


def all_gaps() -> tuple[dict[str, tuple[float, float, float]], str]:
    """Mean gap and interval of all points but the baseline's, and a title."""
    rows = {
        p.label: (s.gap, s.low, s.high)
        for p in points()
        if p.router != BASELINE
        for s in [summary(p)]
    }
    below = sum(high < 0 for _, _, high in rows.values())
    above = sum(low > 0 for _, low, _ in rows.values())
    return rows, (
        f"Of {len(rows)} points {below or 'none'} lie below the top-k line"
        f" beyond doubt, {above} above it"
    )


def curves(names: list[str], cost: str) -> dict[str, list[dict]]:
    """The points of the entrants ``names``, for a figure, by entrant."""
    key, _, _ = COSTS[cost]
    return {
        name: [_spot(summary(p), key) for p in points([name])]
        for name in names
    }


def _spot(s: Summary, key: str) -> dict:
    hover = (
        f"{s.point.label}: {s.bits:.3f} bits, {s.run['experts']:.2f} experts,"
        f" {s.run['multiply_adds']:,.0f} multiply-adds<br>{s.gap:+.3f}"
        f" [{s.low:+.3f}, {s.high:+.3f}] to the top-k line"
    )
    x, y = s.run[key], s.bits
    return dict(x=x, y=y, low=s.lowest, high=s.highest, hover=hover)


def spot(p: Point, seed: int, cost: str) -> dict:
    """One recorded run, for a figure."""
    one = runs()[p, seed]
    hover = f"{p.label}, seed {seed}: {one.bits:.3f} bits"
    return dict(x=getattr(one, COSTS[cost][0]), y=one.bits, hover=hover)


def headline(p: Point, seed: int) -> str:
    """The result of a recorded run, as a title."""
    one, far = runs()[p, seed], gap(p, seed)
    return (
        f"{p.label}, seed {seed}: {one.bits:.3f} bits with"
        f" {one.experts:.2f} experts, {abs(far):.3f}"
        f" {'above' if far > 0 else 'below'} the top-k line at equal work"
    )


def load(label: str, seed: int) -> np.ndarray:
    """Percent of the characters that each expert of each layer took."""
    return 100 * recorded_profile(point(label), seed)["load"]


def shown(label: str, routing: str, layer: int, seed: int) -> dict:
    """One of `ROUTINGS` as the arguments of a heat map, in percent.

    "characters": where the choices of each kind of character go in ``layer``
    (1 to 3). "depth": where the tokens of each expert go in the next layer;
    after the last layer comes the first.
    """
    seen = recorded_profile(point(label), seed)
    if routing == "characters":
        return _characters(100 * seen["kinds"][layer - 1], layer)
    return _depth(seen["pairs"][layer - 1], layer, len(seen["pairs"]))


def _characters(share: np.ndarray, layer: int) -> dict:
    kinds = list(KINDS)
    row, column = np.unravel_index(share.argmax(), share.shape)
    return dict(
        values=share,
        title=f"Layer {layer}: {share[row, column]:.0f} % of the choices for"
        f" a {kinds[row]} go to expert {column}",
        rows=kinds,
        row_title="just read",
        column_title="expert",
        unit="% of its choices",
        low=0,
        high=100,
    )


def _depth(pairs: np.ndarray, layer: int, layers: int) -> dict:
    told = float(information(torch.from_numpy(pairs)))
    after = layer % layers + 1
    used = pairs[:-1, :-1]
    # a token may have chosen no expert
    names = [str(i) for i in range(len(used))]
    if pairs.sum() - used.sum() > 1e-3:
        used, names = pairs, [*names, "none"]
    share = 100 * used / np.maximum(used.sum(1, keepdims=True), 1e-9)
    return dict(
        values=share,
        title=f"The choice in layer {layer} tells {told:.2f} nats about"
        f" layer {after}'s",
        rows=names,
        columns=names,
        row_title=f"layer {layer}",
        column_title=f"first choice in layer {after}",
        unit="% of its tokens",
        low=0,
        high=100,
    )
