"""The benchmark measures what it says, and nothing that is wrong."""

import contextlib
import dataclasses
import gc
import os
import types
import weakref

import pytest
import torch

from lab.bench import (
    kernels,
    layers,
    limits,
    passes,
    peers,
    picture,
    record,
    suite,
    table,
    tiles,
    timing,
    work,
)
from lab.bench.sizes import Case, drawn_gate, layer_costs
from lab.bench.timing import Roofs, Sample, Timing
from lab.kernels import runtime
from lab.kernels._expert_tiles import Tiles
from lab.kernels.declaration import Cost
from lab.kernels.moe_layer import moe_layer_reference

on_cpu = pytest.mark.skipif(
    torch.cuda.is_available(), reason="needs a machine without a GPU"
)
ROOFS = Roofs(1e9, {"float32": 1e10})
SMALL = Case("small", 4, 2, 16, 12, (33,))


GATES = (
    SMALL,
    SMALL._replace(gate="skewed"),
    SMALL._replace(gate="null"),
    SMALL._replace(gate="top-p"),
)


@pytest.mark.parametrize("case", GATES, ids=lambda c: c.gate)
@pytest.mark.parametrize("peer", peers.installed("cpu"), ids=lambda p: p.name)
def test_every_peer_computes_the_same_layer(peer, case):
    inputs, pull = layers.layer_inputs(case, 33, torch.float32, "cpu")
    expected = layers.reference(inputs, pull)
    found = {}
    for mode, prepare, columns in layers.checked(peer, inputs, pull, expected):
        assert not columns["note"]
        found[mode] = prepare()()
    found["backward"] = layers.of_filled_slots(found["backward"], inputs[1])
    torch.testing.assert_close(
        found["forward"], moe_layer_reference(*inputs), rtol=0, atol=1e-5
    )
    for left, right in zip(
        found["backward"], expected["backward"], strict=True
    ):
        torch.testing.assert_close(left, right, rtol=0, atol=1e-4)


def test_providers_take_turns():
    turns = []

    def provider(name):
        return lambda: lambda: turns.append(name)

    found = timing.in_turn(
        {"a": provider("a"), "b": provider("b")}, "cpu", samples=6
    )
    rounds = [tuple(turns[i : i + 2]) for i in range(0, 16, 2)]
    # the first two are the warm-up; after them neither is always the first
    assert len(turns) == 16
    assert set(rounds) == {("a", "b"), ("b", "a")}
    assert all(t.samples == 6 for t in found.values())


def test_preparation_is_not_timed():
    def prepare():
        sum(range(2_000_000))
        return lambda: None

    assert timing.in_turn({"a": prepare}, "cpu", samples=5)["a"].ms < 1


def test_summary_is_the_median_and_the_middle_three_fifths():
    times = [5.0, 1.0, 2.0, 3.0, 4.0, 100.0]
    assert timing.summary([*map(Sample, times)]) == Timing(3.5, 2.0, 5.0, 6)
    hosts = [Sample(ms, 10 * ms) for ms in times]
    assert timing.summary(hosts) == Timing(3.5, 2.0, 5.0, 6, 35.0)


class FakeGPU:
    """Pretends that work takes time on a GPU, without any time here."""

    def __init__(self):
        self.ms = 0.0

    def work(self, ms):
        return lambda *_, **__: setattr(self, "ms", self.ms + ms)

    def event(self, enable_timing):
        event = types.SimpleNamespace(synchronize=lambda: None)
        event.record = lambda: setattr(event, "at", self.ms)
        event.elapsed_time = lambda other: other.at - event.at
        return event


@pytest.mark.parametrize("ahead, wait", [(False, 0.07), (True, 0.56)])
def test_a_gpu_is_kept_busy_until_the_call_is_there(monkeypatch, ahead, wait):
    gpu, begun = FakeGPU(), []
    spill = types.SimpleNamespace(zero_=gpu.work(0.07))
    monkeypatch.setattr(torch, "empty", lambda *_, **__: spill)
    monkeypatch.setattr(torch.cuda, "Event", gpu.event)
    measure = timing.clock("cuda", ahead)
    before = gpu.ms

    def call():
        begun.append(gpu.ms - before)
        gpu.work(2.0)()

    assert measure(call).ms == pytest.approx(2.0)
    assert begun == [pytest.approx(wait)]


def test_who_is_slow_leaves_the_rounds(monkeypatch):
    turns, now = [], [0.0]

    def measure(call):
        now[0] += call()
        return Sample(1e3 * call())

    fake = types.SimpleNamespace(monotonic=lambda: now[0])
    monkeypatch.setattr(timing, "time", fake)
    monkeypatch.setattr(timing, "clock", lambda device, ahead: measure)

    def provider(name, seconds):
        def prepare():
            turns.append(name)
            return lambda: seconds

        return prepare

    providers = {
        "quick": provider("quick", 0.01),
        "slow": provider("slow", 0.15),
        "very": provider("very", 5.0),
    }
    found = timing.in_turn(providers, "cpu", samples=10, seconds=0.5)
    assert {k: t.samples for k, t in found.items()} == {
        "quick": 10,
        "slow": 4,  # the call that passes half a second is the last
        "very": 3,  # the least number
    }
    # two calls to warm up, or one if a call takes long
    assert turns.count("slow") == 6 and turns.count("very") == 4
    # no provider is measured in a block of its own
    for i in (5, 8, 11):
        assert sorted(turns[i : i + 3]) == ["quick", "slow", "very"]


def test_floor_is_the_longer_of_moving_and_working():
    assert table.floor_ms(10**9, 0, ROOFS, "float32") == 1000
    assert table.floor_ms(0, 10**10, ROOFS, "float32") == 1000
    # a dtype whose rate was not measured is bound by its bytes alone
    assert table.floor_ms(10**6, 10**12, ROOFS, "bfloat16") == 1


def test_a_wrong_peer_gets_a_note_and_no_time(monkeypatch):
    def wrong(*inputs):
        layer = peers.lab(*inputs)
        return layer._replace(run=lambda *x: layer.run(*x) * 1.01)

    def broken(*inputs):
        raise RuntimeError("no such kernel")

    def found(device):
        return [
            peers.Peer("lab", "routing-lab", peers.lab),
            peers.Peer("wrong", "torch", wrong),
            peers.Peer("broken", "torch", broken),
        ]

    monkeypatch.setattr(peers, "installed", found)
    rows = list(
        layers.layer_rows(
            SMALL, 33, torch.float32, "cpu", ROOFS, {"samples": 5}
        )
    )
    notes = {(r["provider"], r["mode"]): r["note"] for r in rows}
    assert notes["lab", "forward"] == ""
    assert notes["wrong", "forward"] == "wrong"
    assert notes["wrong", "backward"] == "wrong"
    assert notes["broken", "forward"] == "RuntimeError: no such kernel"
    assert [("ms" in r) for r in rows] == [True, False, False] * 2


def test_a_wrong_kernel_gets_a_note_and_no_time():
    declaration = next(
        d for d in kernels.all_declarations() if d.name == "combine"
    )
    inputs = declaration.inputs(
        0, "cpu", torch.float32, **declaration.examples[0].options
    )

    def broken(**inputs):
        raise RuntimeError("no such\nkernel")

    calls = {
        "nothing": lambda **inputs: torch.full((129, 48), float("nan")),
        "broken": broken,
        "reference": declaration.reference,
    }
    key = {"operation": "combine", "dtype": "float32"}
    rows = list(
        kernels.kernel_rows(
            key, declaration, calls, inputs, torch.float32, ROOFS,
            {"samples": 5},
        )
    )  # fmt: skip
    assert rows[0]["note"] == "wrong" and "ms" not in rows[0]
    assert rows[1]["note"] == "RuntimeError: no such kernel"
    assert rows[2]["error"] == 0 and rows[2]["ms"] > 0


def test_an_index_off_by_one_is_wrong_however_small_the_error():
    declaration = next(
        d for d in kernels.all_declarations() if d.name == "topk_gate"
    )
    inputs = declaration.inputs(0, "cpu", torch.bfloat16, T=9, E=128, k=8)
    expected = declaration.reference(**inputs)

    def next_expert(**inputs):
        experts = expected.experts.clone()
        experts[0, 0] += 1
        return expected._replace(experts=experts)

    found = kernels.checked(
        declaration, next_expert, inputs, torch.bfloat16, expected
    )
    assert found["error"] < 0.01 and found["note"] == "wrong"


def test_an_operation_is_timed_with_the_host_ahead(monkeypatch):
    asked = []

    def in_turn(calls, device, samples, ahead, failed):
        asked.append(ahead)
        return dict.fromkeys(calls)

    monkeypatch.setattr(kernels, "in_turn", in_turn)
    declaration = next(
        d for d in kernels.all_declarations() if d.name == "combine"
    )
    piece = kernels.piece(
        declaration, declaration.examples[0], "cpu", [torch.float32], ROOFS,
        {"samples": 5},
    )  # fmt: skip
    assert len([*piece.measure()]) == len(piece.keys)
    assert asked == [True]


@on_cpu
def test_quick_run_makes_a_table_that_reads_back(tmp_path, monkeypatch):
    monkeypatch.setattr(table, "FOLDER", tmp_path)
    rows = suite.run(quick=True, only="combine")
    assert [r["operation"] for r in rows] == ["combine"]
    table.write(rows)
    (found,) = table.recorded(table.machine())
    assert set(found) == set(table.COLUMNS)
    assert found["ms"] == pytest.approx(rows[0]["ms"], rel=1e-3)
    assert found["clock"] == "CPU time" and found["provider"] == "reference"
    assert table.recorded("a machine nobody measured") == []


def test_an_unknown_operation_is_refused():
    with pytest.raises(ValueError, match=r"there is no gates; use one of "):
        suite.run(only="gates")


def test_recorded_rows_are_whole():
    rows = table.recorded()
    assert rows, "no machine has been measured"
    for line in rows:
        assert line["ms"] is None or line["ms20"] <= line["ms"] <= line["ms80"]
        assert line["ms"] or line["note"]
        assert line["machine"] and line["commit"] and line["date"]


def test_cost_of_a_layer_counts_only_experts_in_use():
    inputs, _ = layers.layer_inputs(SMALL, 1, torch.float32, "cpu")
    costs = layer_costs(SMALL, 1, torch.float32, inputs[1])
    weights = 2 * 3 * 16 * 12  # two of four experts
    assert costs["forward"] == Cost(
        4 * (2 * 16 + weights) + 16, 6 * 2 * 16 * 12
    )


def test_a_table_read_and_written_again_is_the_same(tmp_path):
    rows = table.recorded("2-core x86-64 CPU")
    kept = table.write(rows, tmp_path / "kept.csv")
    again = table.write(table.read(kept), tmp_path / "again.csv")
    assert table.read(again) == rows
    assert again.read_text() == kept.read_text()
    assert {path.name for path in tmp_path.iterdir()} == {
        "kept.csv", "again.csv",
    }  # fmt: skip


def test_limits_need_no_gpu_and_follow_from_the_sizes(capsys):
    found = {(x.case, x.mode): x for x in limits.limits()}
    wide = found["E128 k8 T32768", "forward"]
    # 8 experts a token, three matrices of 2048 x 768, two FLOPs an entry
    assert wide.teraflops == pytest.approx(32768 * 8 * 3 * 2048 * 768 * 2e-12)
    assert wide.ms["H200"] == pytest.approx(1e3 * wide.teraflops / 989)
    # a few tokens read many weights and do little: bandwidth is the limit
    few = found["E128 k8 T16", "forward"]
    assert few.ms["H200"] == pytest.approx(few.gigabytes / 4.8)
    assert found["E128 k8 T32768", "backward"].ms["H200"] > wide.ms["H200"]
    assert suite.main(["--limits"]) == 0
    assert "computed, not measured" in capsys.readouterr().out


@pytest.mark.skipif(not runtime.INTERPRETED, reason="compiles for minutes")
def test_other_tiles_agree_with_the_chosen_one_and_are_timed(monkeypatch):
    others = Tiles(16, 32, 16, 4, 2), Tiles(128, 32, 16, 4, 2)
    monkeypatch.setattr(tiles, "OTHERS", others)
    inputs, pull = layers.layer_inputs(SMALL, 9, torch.float32, "cpu")
    found = list(tiles.sweep(*inputs, pull, samples=5, seconds=0.0))
    kernels = {tried.kernel for tried in found}
    assert len(kernels) == 6
    for kernel in kernels:
        mine = [tried for tried in found if tried.kernel == kernel]
        assert [tried.chosen for tried in mine].count(True) == 1
        # half to twice the chosen tile's rows
        assert len(mine) == 2
        assert all(tried.timing.samples == timing.LEAST for tried in mine)
        assert "*" in tiles.line(mine[0])


@pytest.mark.skipif(not runtime.INTERPRETED, reason="compiles for minutes")
def test_a_tile_that_is_wrong_or_too_large_is_not_timed(monkeypatch):
    right, asked = tiles.product, []

    def product(a, weight, offsets, chosen=None):
        asked.append(chosen)
        if chosen == Tiles(16, 32, 16, 4, 2):
            return right(a, weight, offsets) + 1.0
        if chosen == Tiles(16, 64, 16, 4, 2):
            raise tiles.OutOfResources(2, 1, "shared memory")
        return right(a, weight, offsets)

    monkeypatch.setattr(tiles, "product", product)
    others = Tiles(16, 32, 16, 4, 2), Tiles(16, 64, 16, 4, 2)
    monkeypatch.setattr(tiles, "OTHERS", others)
    inputs, pull = layers.layer_inputs(SMALL, 9, torch.float32, "cpu")
    found = tiles.sweep(*inputs, pull, samples=5, seconds=0.0)
    notes = [t.note for t in found if t.kernel == "second product"]
    assert notes == ["", "wrong", "no room"]


def test_other_tiles_need_a_gpu(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        suite.main(["--tiles"])
    assert "--tiles needs a GPU" in capsys.readouterr().err


def test_work_is_by_row_what_it_is_routed():
    plain, _, null, top_p = (
        layer_costs(case, 512, torch.float32, drawn_gate(case, 512))
        for case in (c._replace(E=64, k=8) for c in GATES)
    )
    work_of = [
        c["forward"].flops / plain["forward"].flops for c in (null, top_p)
    ]
    # half the columns are null; 0.4 of the mass is held by about 8 of 64
    assert work_of == pytest.approx([0.5, 1.0], abs=0.1)
    assert top_p["backward"].flops == 2 * top_p["forward"].flops


def test_a_skewed_gate_prefers_the_first_experts_and_takes_none_twice():
    case = Case("skewed", 64, 8, 16, 12, (2000,), "skewed")
    gate = drawn_gate(case, 2000)
    assert all(len(row.unique()) == 8 for row in gate.experts)
    load = torch.bincount(gate.experts.flatten(), minlength=64)
    assert load[0] > 0.9 * 2000 > 10 * load[63]


def test_empty_slots_are_filled_evenly_for_who_knows_none():
    case = Case("null", 8, 4, 16, 12, (512,), "null")
    gate = drawn_gate(case, 512)
    filled = peers.all_filled(gate, 8)
    taken = gate.experts >= 0
    assert torch.equal(filled[taken], gate.experts[taken])
    assert torch.bincount(filled[~taken]).max() < 2 * (~taken).sum() / 8
    assert (gate.weights[~taken] == 0).all()


@pytest.mark.parametrize("case", GATES, ids=lambda c: c.gate)
def test_pytorchs_grouped_product_gets_no_row_of_an_empty_slot(
    case, monkeypatch
):
    given, product = [], peers.F.grouped_mm

    def count(rows, *others, **options):
        given.append(len(rows))
        return product(rows, *others, **options)

    monkeypatch.setattr(peers.F, "grouped_mm", count)
    (*inputs,), _ = layers.layer_inputs(case, 33, torch.float32, "cpu")
    layer = peers.torch_grouped_mm(*inputs)
    layer.run(*layer.leaves)
    assert given == [(inputs[1].experts >= 0).sum()] * 2


def test_weights_too_large_to_gather_are_a_note(monkeypatch):
    monkeypatch.setattr(peers, "MOST_GATHERED", 1000)
    peer = peers.Peer("b", "transformers", peers.transformers("batched_mm"))
    inputs, pull = layers.layer_inputs(SMALL, 33, torch.float32, "cpu")
    found = layers.checked(peer, inputs, pull, None)
    notes = [columns["note"] for _, _, columns in found]
    assert notes == ["MemoryError: would gather 0 GiB of weights"] * 2


def test_a_capture_that_fails_is_a_note_and_the_others_go_on(monkeypatch):
    def no_capture(*given):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(torch.cuda, "Stream", no_capture)
    monkeypatch.setattr(torch.cuda, "make_graphed_callables", no_capture)
    lab = peers.installed("cpu")[0]
    graph = next(p for p in peers.installed("cuda") if p.name == "lab, graph")
    assert graph.passes is passes.REPLAYED
    monkeypatch.setattr(peers, "installed", lambda device: [lab, graph])
    effort = {"samples": 5, "seconds": 0.0}
    rows = [*layers.layer_rows(SMALL, 33, torch.float32, "cpu", ROOFS, effort)]
    notes = {(r["provider"], r["mode"]): r["note"] for r in rows}
    assert notes["lab", "forward"] == notes["lab", "backward"] == ""
    for mode in layers.MODES:
        assert "not permitted when stream" in notes["lab, graph", mode]


def test_a_graph_is_captured_once_and_replayed(monkeypatch):
    """Fakes torch.cuda: a graph's replay runs the call again."""
    events = []

    class Graph:
        def replay(self):
            events.append("replay")

    @contextlib.contextmanager
    def capture(graph):
        events.append("capture")
        yield

    def graphed(run, leaves):
        events.append("graphed")
        return run

    stream = types.SimpleNamespace(wait_stream=lambda other: None)
    for name, acted in {
        "Stream": lambda: stream,
        "current_stream": lambda: stream,
        "stream": contextlib.nullcontext,
        "CUDAGraph": Graph,
        "graph": capture,
        "make_graphed_callables": graphed,
    }.items():
        monkeypatch.setattr(torch.cuda, name, acted)
    graph = next(p for p in peers.installed("cuda") if p.name == "lab, graph")
    for case in GATES:
        inputs, pull = layers.layer_inputs(case, 33, torch.float32, "cpu")
        expected = layers.reference(inputs, pull)
        events.clear()
        for _, prepare, columns in layers.checked(
            graph, inputs, pull, expected
        ):
            assert columns["note"] == ""
            prepare()()
        # one replay is not measured, one is checked, and one is done here
        assert events == ["capture", *["replay"] * 3, "graphed"]


def key(name, mode="forward"):
    return {
        "operation": name, "case": "c", "dtype": "float32", "mode": mode,
        "version": "1",
        "provider": "p",
    }  # fmt: skip


def row_of(key, ms):
    return table.row(key, Cost(8, 8), ROOFS, Timing(ms, ms, ms, 5), note="")


def piece(name, measured, problem=None):
    """Two rows, forward and backward; `problem` comes after the first."""
    keys = [key(name), key(name, "backward")]

    def measure():
        measured.append(name)
        yield row_of(keys[0], 1.0)
        if problem:
            raise problem
        yield row_of(keys[1], 2.0)

    return work.Piece(keys, measure)


def test_pieces_run_in_order_until_the_time_is_out():
    now, begun = [0], []

    def is_time_left():
        now[0] += 1
        return now[0] <= 2

    pieces = [piece(name, begun) for name in "abc"]
    rows = list(work.done(pieces, is_time_left))
    assert begun == ["a", "b"]
    assert [r["note"] for r in rows] == ["", "", "", ""] + 2 * [work.NO_TIME]
    assert [r["operation"] for r in rows] == list("aabbcc")
    assert "ms" not in rows[-1]


class Tied:
    """Refers to itself, as a peer's module may refer to its tensors."""

    def __init__(self):
        self.own = self


def test_what_a_piece_leaves_is_gone_before_the_next_one():
    left = []

    def leave():
        assert not any(tied() for tied in left)
        left.append(weakref.ref(Tied()))
        yield row_of(key("a"), 1.0)

    # the test would pass by chance if the collector ran unasked
    gc.disable()
    try:
        pieces = [work.Piece([key("a")], leave)] * 2
        rows = list(work.done(pieces, lambda: True))
    finally:
        gc.enable()
    assert [row["note"] for row in rows] == ["", ""]


def test_what_an_earlier_run_kept_is_not_measured_again():
    begun = []
    kept = [key("a") | {"ms": 7.0}, key("a", "backward") | {"ms": 8.0}]
    half = [key("b") | {"ms": 9.0}]
    rows = list(
        work.done(
            [piece("a", begun), piece("b", begun)], lambda: True, kept + half
        )
    )
    assert begun == ["b"]  # half a piece is not kept: its rows go together
    assert [r["ms"] for r in rows] == [7.0, 8.0, 1.0, 2.0]


def test_another_version_of_a_peer_is_measured():
    begun = []
    old = {"version": "0", "ms": 7.0}
    kept = [key("a") | old, key("a", "backward") | old]
    rows = list(work.done([piece("a", begun)], lambda: True, kept))
    assert begun == ["a"] and [r["ms"] for r in rows] == [1.0, 2.0]


def test_who_dies_while_it_is_timed_leaves_the_others_their_times():
    calls, told = [], []

    def tight():
        calls.append(1)
        if len(calls) > 3:
            raise MemoryError("no room")

    found = timing.in_turn(
        {"tight": lambda: tight, "wide": lambda: lambda: None},
        "cpu",
        samples=5,
        failed=lambda name, problem: told.append((name, str(problem))),
    )
    assert told == [("tight", "no room")]
    assert list(found) == ["wide"] and found["wide"].samples == 5
    with pytest.raises(MemoryError):
        timing.in_turn({"tight": lambda: tight}, "cpu", samples=5)


def test_a_peer_that_dies_while_it_is_timed_says_so(monkeypatch):
    def in_turn(calls, device, samples, failed):
        other = next(name for name in calls if name != "lab")
        failed(other, MemoryError("no room"))
        return {}

    monkeypatch.setattr(layers, "in_turn", in_turn)
    rows = layers.layer_rows(
        SMALL, 33, torch.float32, "cpu", ROOFS, {"samples": 3}
    )
    notes = {row["provider"]: row["note"] for row in rows}
    assert notes.pop("lab") == ""
    assert "MemoryError: no room" in notes.values()


def test_a_piece_that_dies_says_so_and_the_next_one_runs():
    broken = piece("a", [], ValueError("no\nroom"))
    rows = list(work.done([broken, piece("b", [])], lambda: True))
    assert [r["note"] for r in rows] == ["", "ValueError: no room", "", ""]


def test_a_gpu_that_does_not_answer_ends_the_run(monkeypatch):
    def dead():
        raise RuntimeError("CUDA error: an illegal memory access")

    monkeypatch.setattr(torch.cuda, "synchronize", dead)
    broken = piece("a", [], ValueError("wrong pointer"))
    found, begun = [], []
    with pytest.raises(work.Lost, match="not answer after ValueError: wrong"):
        for row in work.done(
            [broken, piece("b", begun)], lambda: True, device="cuda"
        ):
            found.append(row)
    # its own rows all have their note, so that the next run leaves it out
    assert [r["note"] for r in found] == [
        "", "ValueError: wrong pointer", work.NO_TIME, work.NO_TIME
    ]  # fmt: skip
    assert begun == []


def test_the_layer_in_16_bits_comes_first_and_no_row_twice():
    dtypes = [torch.bfloat16, torch.float16, torch.float32]
    pieces = list(suite.in_order("cuda", dtypes, ROOFS, False, ""))
    first = [p.keys[0] for p in pieces]
    groups = [
        (k["operation"] == "moe_layer", k["dtype"])
        for k in first
        if k["operation"] == "moe_layer" or k["dtype"] == "bfloat16"
    ]
    kinds = list(dict.fromkeys(groups))
    assert kinds == [
        (True, "bfloat16"), (False, "bfloat16"), (True, "float16"),
        (True, "float32"),
    ]  # fmt: skip
    identities = [work.identity(k) for p in pieces for k in p.keys]
    assert len(identities) == len(set(identities))
    layer = {k["case"] for k in first if k["operation"] == "moe_layer"}
    assert {
        "E64 top-p T4096",
        "E64 k8 null T4096",
        "E64 k8 Zipf T4096",
    } < layer
    assert {k["provider"] for k in pieces[0].keys} > {"lab", "lab, graph"}


@on_cpu
@pytest.mark.parametrize("only", ["", "combine", "moe_layer"])
def test_every_piece_gives_the_rows_that_it_announces(only, monkeypatch):
    if not only:
        monkeypatch.setattr(suite, "ON_CPU", (SMALL,))
    pieces = suite.in_order("cpu", [torch.float32], ROOFS, True, only)
    for one in [p for p in pieces][:3]:
        rows = list(one.measure())
        assert [work.identity(r) for r in rows] == [
            work.identity(k) for k in one.keys
        ]


def test_inputs_that_take_long_to_draw_are_drawn_once(monkeypatch):
    combine = next(
        d for d in kernels.all_declarations() if d.name == "combine"
    )
    asked = []

    def inputs(seed, device, dtype, **options):
        asked.append(dtype)
        return combine.inputs(seed, device, dtype, **options)

    slow = dataclasses.replace(combine, inputs=inputs)
    dtypes = [torch.bfloat16, torch.float16, torch.float32]
    for limit, times in ((1e9, 3), (-1.0, 1)):
        asked.clear()
        monkeypatch.setattr(kernels, "SLOW_TO_DRAW", limit)
        found = dict(kernels.drawn(slow, combine.examples[0], "cpu", dtypes))
        assert len(asked) == times
        for dtype in dtypes:
            assert found[dtype]["expert_rows"].dtype == dtype
            # in fp32 whatever the rows are
            assert found[dtype]["weights"].dtype == torch.float32
            assert found[dtype]["rows"].dtype == torch.int32


SHARED = {
    "machine": "A Machine 9", "clock": "CPU time", "date": "2026-11-26",
    "commit": "abc1234", "torch": "2", "triton": "3", "python": "3",
}  # fmt: skip


def line(name, note=""):
    return SHARED | key(name) | {"ms": 1.5, "note": note}


def test_rows_are_on_the_disk_before_the_run_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(table, "FOLDER", tmp_path)
    old = table.write([line("old")])
    before = old.read_text()
    run = record.Record(SHARED)
    run.add(line("a"))
    run.add(line("b"))
    # here the process is killed: the earlier table is still complete
    assert old.read_text() == before
    assert [r["operation"] for r in table.recorded()] == ["old"]
    # cut short in the middle of a third row
    with open(run.part, "a") as file:
        file.write("c,c,float")
    assert [r["operation"] for r in table.read(run.part)] == ["a", "b"]
    # a day later the same command resumes
    again = record.Record(SHARED | {"date": "2026-11-27"})
    assert [r["operation"] for r in again.kept] == ["a", "b"]
    assert [r["ms"] for r in again.kept] == [1.5, 1.5]
    again.add(line("c"))
    assert len(table.read(again.part)) == 3
    again.finish([*again.kept, line("c")])
    assert not again.part.exists()
    assert [r["operation"] for r in table.recorded()] == ["a", "b", "c"]


@pytest.mark.parametrize(
    "change", [{"commit": "def5678"}, {"torch": "3"}, {"python": "4"}]
)
def test_rows_of_another_commit_or_package_are_not_kept(
    change, tmp_path, monkeypatch
):
    monkeypatch.setattr(table, "FOLDER", tmp_path)
    record.Record(SHARED).add(line("a"))
    assert record.Record(SHARED | change).kept == []


def test_rows_of_changed_files_and_of_a_run_begun_anew_are_not_kept(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(table, "FOLDER", tmp_path)
    for commit in ("abc1234-dirty", ""):
        unknown = SHARED | {"commit": commit}
        record.Record(unknown).add(line("a") | unknown)
        assert record.Record(unknown).kept == []
    record.Record(SHARED).add(line("a"))
    assert record.Record(SHARED, anew=True).kept == []


def test_rows_that_fell_with_somebody_else_are_measured_again(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(table, "FOLDER", tmp_path)
    run = record.Record(SHARED)
    run.add(line("a"))
    note = work.reason(work.Lost("the GPU does not answer after a peer"))
    run.add(SHARED | key("b") | {"note": note})
    assert [r["operation"] for r in record.Record(SHARED).kept] == ["a"]


def test_a_record_that_could_not_be_kept_is_refused_before_it_begins(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(table, "FOLDER", tmp_path)
    monkeypatch.setattr(os, "access", lambda folder, mode: False)
    with pytest.raises(ValueError, match="cannot be written to"):
        record.Record(SHARED)


def test_a_part_of_which_nothing_is_kept_lies_beside_the_table(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(table, "FOLDER", tmp_path)
    first = record.Record(SHARED)
    first.add(line("a"))
    assert record.Record(SHARED | {"commit": ""}).kept == []
    old = first.part.with_suffix(".old")
    assert [r["operation"] for r in table.read(old)] == ["a"]
    # the old file does not count as a table
    assert table.recorded() == []


def test_a_table_that_owes_rows_says_which_and_keeps_its_part(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(table, "FOLDER", tmp_path)
    run = record.Record(SHARED)
    run.add(line("a"))
    late = SHARED | key("b") | {"note": work.NO_TIME}
    run.finish([line("a"), late])
    found = table.recorded()
    assert [r["note"] for r in found] == ["", work.NO_TIME]
    assert found[1]["ms"] is None
    assert [r["operation"] for r in record.Record(SHARED).kept] == ["a"]


def three_pieces(tmp_path, monkeypatch, problem):
    """The suite has pieces a, b and c, and b raises ``problem``.

    Returns which were begun, in this order, and which are to raise.
    """
    begun, bad = [], ["b"]

    def a_piece(name):
        inner = piece(name, begun)

        def measure():
            if name in bad:
                begun.append(name)
                raise problem
            yield from inner.measure()

        return inner._replace(measure=measure)

    monkeypatch.setattr(table, "FOLDER", tmp_path)
    monkeypatch.setattr(table, "commit", lambda: "abc1234")
    monkeypatch.setattr(suite, "measure_roofs", lambda *given: ROOFS)
    monkeypatch.setattr(suite, "in_order", lambda *given: map(a_piece, "abc"))
    return begun, bad


@on_cpu
def test_a_run_that_is_stopped_goes_on_where_it_was(
    tmp_path, monkeypatch, capsys
):
    begun, bad = three_pieces(tmp_path, monkeypatch, KeyboardInterrupt)
    with pytest.raises(SystemExit) as status:
        suite.main(["--record"])
    assert status.value.code == 130
    said = capsys.readouterr().out
    assert "stopped" in said and "the same command continues" in said
    assert table.recorded() == []
    bad.clear()
    suite.main(["--record"])
    # a only in the first run; b, which did not end, last in the second
    assert begun == ["a", "b", "c", "b"]
    assert [r["operation"] for r in table.recorded()] == list("aaccbb")
    assert "kept" in capsys.readouterr().out


@on_cpu
@pytest.mark.parametrize("commit", ["", "abc1234-dirty", "abc1234"])
def test_a_run_that_could_not_go_on_says_so_before_it_begins(
    commit, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(table, "FOLDER", tmp_path)
    monkeypatch.setattr(table, "commit", lambda: commit)
    monkeypatch.setattr(suite, "measure_roofs", lambda *given: ROOFS)
    monkeypatch.setattr(suite, "in_order", lambda *given: [piece("a", [])])
    suite.main(["--record"])
    first, *_ = capsys.readouterr().out.splitlines()
    assert ("LAB_COMMIT" in first) == (commit != "abc1234")


@on_cpu
def test_who_takes_the_gpu_down_does_not_stand_in_the_way_of_others(
    tmp_path, monkeypatch, capsys
):
    problem = work.Lost("the GPU does not answer after b")
    begun, bad = three_pieces(tmp_path, monkeypatch, problem)
    assert suite.main(["--record"]) == 1
    assert "does not answer after b" in capsys.readouterr().out
    # the table is written, as it is when time has run out
    notes = {r["operation"]: r["note"] for r in table.recorded()}
    assert notes["a"] == "" and notes["c"] == work.NO_TIME
    assert suite.main(["--record"]) == 1
    # b comes last now, where it cannot end every run before the others
    assert begun == ["a", "b", "c", "b"]
    bad.clear()
    assert suite.main(["--record"]) == 0
    assert begun == ["a", "b", "c", "b", "b"]
    assert not any(r["note"] for r in table.recorded())
    assert not list(tmp_path.glob("*.part"))


def test_a_piece_that_kills_the_process_comes_last_in_the_next_run(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(table, "FOLDER", tmp_path)
    killed = record.Record(SHARED)
    killed.begin([key("a"), key("a", "backward")])
    killed.add(line("a"))
    killed.add(SHARED | row_of(key("a", "backward"), 2.0))
    killed.begin([key("b"), key("b", "backward")])
    killed.add(line("b"))  # and here a compiler aborts
    again = record.Record(SHARED)
    assert [r["operation"] for r in again.kept] == ["a", "a", "b"]
    assert [r["mode"] for r in again.lost] == ["backward"]
    begun = []
    pieces = [piece(name, begun) for name in "abc"]
    rows = work.done(
        pieces, lambda: True, again.kept, again.lost, begin=again.begin
    )
    for row in rows:
        again.add(SHARED | row)
    assert begun == ["c", "b"]
    assert record.Record(SHARED).lost == []


@on_cpu
def test_without_time_every_row_is_named(monkeypatch):
    monkeypatch.setattr(suite, "measure_roofs", lambda *given: ROOFS)
    rows = suite.run(only="moe_layer", minutes=0.0)
    assert rows and all(r["note"] == work.NO_TIME for r in rows)
    assert work.NO_TIME in suite.shown(rows)


def test_the_commit_is_empty_where_there_is_no_git(monkeypatch):
    def missing(*given, **options):
        raise FileNotFoundError("git")

    monkeypatch.setattr(table.subprocess, "run", missing)
    assert table.commit() == ""
    monkeypatch.setenv("LAB_COMMIT", "abc1234")
    assert table.commit() == "abc1234"


@pytest.mark.parametrize("ms, expected", [(6, 1 / 36), (60, 1 / 100)])
def test_fp32_in_parts_may_be_the_higher_roof(monkeypatch, ms, expected):
    """Pretends that six products in bf16 take less time than one in fp32."""
    taken = {"copy": 1, "float32": 100, "bfloat16": ms}
    monkeypatch.setattr(
        timing,
        "in_turn",
        lambda calls, *_, **__: {
            what: Timing(taken[what], 0, 0, 1) for what in calls
        },
    )
    roofs = timing.measure_roofs("meta", [torch.float32])
    found = roofs.flops_per_s["float32"] / (2 * 8192**3 * 1e3)
    assert found == pytest.approx(expected)
    assert timing.measure_roofs("cpu", [torch.float32]).flops_per_s.keys() == {
        "float32"
    }


def test_an_implementation_that_fails_leaves_the_others_bars(monkeypatch):
    row = dict(
        operation="topk_gate", mode="forward", case="large", bytes=1e6,
        dtype="float32", machine="a GPU", clock="GPU events", floor_ms=0.5,
        roof_bytes_per_s=2e9,
    )  # fmt: skip
    rows = [
        row | dict(provider="triton", note="out of memory"),
        row | dict(provider="reference", ms=2.0),
    ]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(picture, "run", lambda **words: rows)
    figure = picture.roofline("topk_gate")
    assert "2 000" in figure.to_json().replace("\\u202f", " ")
