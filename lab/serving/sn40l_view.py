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

EXECUTE = (5, 10, 20, 40, 72, 100, 200, 500)  # ms of router and expert
LINKS = (8, 16, 32, 64, 128, 256, 512, 1000, 4000)  # GB/s
EXPERTS = (10, 40, 75, 150, 300, 600, 890)  # the last fill the DDR
REQUESTS, WARM = 1500, 500
SHOWN = 48  # requests of the map
SLOWEST = 5  # requests that the slower machine serves while we watch
FASTEST = 24  # and the most that the faster one does
CURVE = 100  # slots at the end of the curve

IN_DDR, IN_HBM, WAS_THERE, MOVED = range(4)
STATES = ("in DDR", "in HBM", "hit", "moved")
SHADES = ("grid", "#B4D4E7", "kept", "cut")  # of the four
COLUMNS = [str(i) if i % 8 == 0 else "" for i in range(1, SHOWN + 1)]
KINDS = {"model moves to HBM": "cut", "router and model run": "kept"}
LINES = {"LRU": "kept", "Che's formula": "baseline"}
MARKS = {"": SN40L.slots, " ": H100.slots}  # of the two machines


class Picture(NamedTuple):
    """One setting of the knobs, for a picture."""

    other: Node
    times: dict[str, float]  # of a request, by machine, in ms
    missing: tuple[float, float]  # share of the requests, SN40L first
    models: list[int]  # those of the map, the most popular first
    map: list[list[int]]  # [model][request], one of the four states
    jobs: dict[str, list[tuple]]  # lane: (kind, start, end, words)
    ends: float  # of the lanes, in ms
    slots: list[int]
    curves: dict[str, list[float]]  # percent of LRU's misses, by slots

    @property
    def heads(self) -> tuple[str, str]:
        """Title and note of the whole picture."""
        return self.title, self.note

    @property
    def title(self) -> str:
        """Who is faster, and how much."""
        here, there = self.times.values()
        return (
            f"SN40L: {here:.0f} ms a request; over {self.other.name}:"
            f" {there:.0f} ms, {there / here:.2f} times as long"
        )

    @property
    def note(self) -> str:
        """How often models move, and how long that takes."""
        here, there = (100 * share for share in self.missing)
        return (
            f"SN40L: {here:.0f} % of the requests bring a model, in"
            f" {SN40L.switch:.0f} ms; over {self.other.name}: {there:.0f} %,"
            f" in {self.other.switch:.0f} ms"
        )

    @property
    def rows(self) -> str:
        """What the map's rows are."""
        return (
            f"rows: the {len(self.models)} models asked for, the most"
            " popular first"
        )

    @property
    def held(self) -> str:
        """What the marks are."""
        return f"dashed: {SN40L.slots} in an SN40L, {H100.slots} in a DGX"


def picture(
    traffic: str = TRAFFIC[0],
    execute: float = 72,
    link: float = 64,
    experts: int = 150,
    software: str = SOFTWARE[0],
) -> Picture:
    """Serve the same requests on an SN40L and with another link, in GB/s.

    Both run a request in ``execute`` ms: nothing but memory differs.
    """
    other = Node(f"{link:g} GB/s", H100.hbm, link * GB)
    stream = requests(traffic, experts, 0, REQUESTS)
    runs = {
        node.name: serve(stream, node, execute, software)
        for node in (SN40L, other)
    }
    means = [Mean.of(run, WARM) for run in runs.values()]
    fast, slow = sorted(m.time for m in means)
    deep = depths(stream)[WARM:]
    slots = list(range(1, CURVE + 1))
    ends = min(SLOWEST * slow, FASTEST * fast)
    rest = sorted(deep)
    share = shares(traffic, experts, 0).tolist()
    models, table = _map(stream, software)
    return Picture(
        other,
        times={n: m.time for n, m in zip(runs, means, strict=True)},
        missing=tuple(m.missing for m in means),
        models=models,
        map=table,
        jobs=_lanes(runs, ends),
        ends=ends,
        slots=slots,
        curves={
            "LRU": [100 * _beyond(rest, s) for s in slots],
            "Che's formula": [100 * m for m in formula(share, slots)],
        },
    )


def _beyond(deep: list[int], slots: int) -> float:
    """Share of the requests whose depth is not below ``slots``."""
    return 1 - bisect_left(deep, slots) / len(deep)


def _map(stream, software: str) -> tuple[list[int], list[list[int]]]:
    """Where the models are that some requests ask for, one by one."""
    rule = "Belady" if software == "Belady" else "LRU"
    last = WARM + SHOWN
    run = simulate(
        stream if rule == "Belady" else stream[:last], SN40L.slots, rule
    )
    models = sorted(set(stream[WARM:last]))
    table = []
    for model in models:
        row = []
        for now in range(WARM, last):
            state = IN_HBM if model in run.content[now] else IN_DDR
            if stream[now] == model:
                state = WAS_THERE if run.hits[now] else MOVED
            row.append(state)
        table.append(row)
    return models, table


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
        lanes[f"{name} link"], lanes[f"{name} chips"] = links, chips
    return lanes
