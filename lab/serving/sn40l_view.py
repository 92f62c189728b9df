"""What the widget of chapter 14 shows: an SN40L beside another machine.

Both serve the same requests. The map says where each model is while some of
them are served; the lanes say what link and chips do; the curve says what a
cache of another size would miss.
"""

from bisect import bisect_left
from typing import NamedTuple

from lab.serving.expert_requests import TRAFFIC, requests, shares
from lab.serving.model_switching import (
    GB,
    H100,
    SN40L,
    SOFTWARE,
    Mean,
    Node,
    Request,
    depths,
    formula,
    serve,
)
from lab.tokens.expert_cache import simulate

EXECUTE = (5, 10, 20, 40, 60, 100, 200, 500)  # ms of router and expert
LINKS = (8, 16, 32, 64, 128, 256, 512, 1000, 4000)  # GB/s
EXPERTS = (10, 40, 75, 150, 300, 600, 1000)
REQUESTS, WARM = 1500, 500
SHOWN = 90  # requests of the map
ROWS = 150  # models of the map, the most popular ones
SLOWEST = 5  # requests that the slower machine serves while we watch
CURVE = 100  # slots at the end of the curve

IN_DDR, IN_HBM, WAS_THERE, MOVED = range(4)
STATES = ("in DDR", "in HBM", "hit", "moved")
SHADES = ("grid", "#B4D4E7", "kept", "cut")
KINDS = {"model moves to HBM": "cut", "router and model run": "kept"}
LINES = {"LRU": "kept", "formula": "baseline"}


class Picture(NamedTuple):
    """One setting of the knobs, for a picture."""

    other: Node
    times: dict[str, float]  # of a request, by machine, in ms
    missing: tuple[float, float]  # share of the requests, SN40L first
    map: list[list[int]]  # [model][request], one of the four states
    jobs: dict[str, list[tuple]]  # lane: (kind, start, end, words)
    ends: float  # of the lanes, in ms
    slots: list[int]
    simulated: list[float]  # percent of LRU's misses, by slots
    formula: list[float]

    @property
    def title(self) -> str:
        """Who is faster, and how much."""
        here, there = self.times.values()
        return (
            f"A request takes {there:.0f} ms, on an SN40L {here:.0f} ms:"
            f" {there / here:.2f} times as fast"
        )

    @property
    def note(self) -> str:
        """How often models move, and how long that takes."""
        here, there = (100 * share for share in self.missing)
        return (
            f"{there:.0f} % of the requests wait for a model,"
            f" {self.other.switch:.0f} ms; on an SN40L {here:.0f} %,"
            f" {SN40L.switch:.0f} ms"
        )


def picture(
    traffic: str = TRAFFIC[0],
    execute: float = 60,
    link: float = 64,
    experts: int = 150,
    software: str = SOFTWARE[0],
) -> Picture:
    """Serve the same requests on an SN40L and with another link, in GB/s."""
    other = Node(f"{link:g} GB/s", H100.hbm, link * GB)
    stream = requests(traffic, experts, 0, REQUESTS)
    runs = {
        node.name: serve(stream, node, execute, software)
        for node in (SN40L, other)
    }
    means = [Mean.of(run, WARM) for run in runs.values()]
    ends = max(m.time for m in means) * SLOWEST
    deep = depths(stream)[WARM:]
    slots = list(range(1, min(experts, CURVE) + 1))
    rest = sorted(deep)
    share = shares(traffic, experts, 0).tolist()
    return Picture(
        other,
        times={n: m.time for n, m in zip(runs, means, strict=True)},
        missing=tuple(m.missing for m in means),
        map=_map(stream, min(experts, ROWS), software),
        jobs=_lanes(runs, ends),
        ends=ends,
        slots=slots,
        simulated=[100 * _beyond(rest, s) for s in slots],
        formula=[100 * missed for missed in formula(share, slots)],
    )


def _beyond(deep: list[int], slots: int) -> float:
    """Share of the requests whose depth is not below ``slots``."""
    return 1 - bisect_left(deep, slots) / len(deep)


def _map(stream, rows: int, software: str) -> list[list[int]]:
    """Where the most popular models are, request by request."""
    rule = "Belady" if software == "Belady" else "LRU"
    seen = stream if rule == "Belady" else stream[: WARM + SHOWN]
    run = simulate(seen, SN40L.slots, rule)
    table = [[IN_DDR] * SHOWN for _ in range(rows)]
    for at in range(SHOWN):
        now = WARM + at
        for model in run.content[now]:
            if model < rows:
                table[model][at] = IN_HBM
        if stream[now] < rows:
            hit = run.hits[now]
            table[stream[now]][at] = WAS_THERE if hit else MOVED
    return table


def _lanes(runs: dict[str, list[Request]], ends: float) -> dict:
    """What link and chips of every machine do in the first ``ends`` ms."""
    move, run = KINDS
    lanes = {}
    for name, served in runs.items():
        zero = served[WARM - 1].end
        links, chips = [], []
        for one in served[WARM:]:
            if one.load - zero >= ends:
                break
            words = f"model {one.expert}"
            if not one.hit:
                links.append((move, one.load - zero, one.come - zero, words))
            chips.append((run, one.start - zero, one.end - zero, words))
        lanes[f"{name}: link"], lanes[f"{name}: chips"] = links, chips
    return lanes
