"""The benchmark measures what it says, and nothing that is wrong."""

import pytest
import torch

from lab.bench import limits, peers, suite, table, tiles, timing
from lab.bench.sizes import Case, layer_costs
from lab.bench.timing import Roofs, Timing
from lab.kernels import runtime
from lab.kernels._expert_mlp_triton import Tiles
from lab.kernels.declaration import Cost
from lab.kernels.moe_layer import moe_layer_reference

on_cpu = pytest.mark.skipif(
    torch.cuda.is_available(), reason="needs a machine without a GPU"
)
ROOFS = Roofs(1e9, {"float32": 1e10})
SMALL = Case("small", 4, 2, 16, 12, (33,))


@pytest.mark.parametrize("peer", peers.installed("cpu"), ids=lambda p: p.name)
def test_every_peer_computes_the_same_layer(peer):
    inputs, pull = suite.layer_inputs(SMALL, 33, torch.float32, "cpu")
    layer = peer.make(*inputs)
    y = layer.run(*layer.leaves)
    expected = moe_layer_reference(*inputs)
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-5)
    reference = [
        x.detach().requires_grad_()
        for x in (inputs[0], inputs[1].weights, *inputs[2:])
    ]
    tokens, weights, *experts = reference
    gate = inputs[1]._replace(weights=weights)
    wanted = torch.autograd.grad(
        moe_layer_reference(tokens, gate, *experts), reference, pull
    )
    for found, right in zip(
        torch.autograd.grad(y, layer.leaves, pull), wanted, strict=True
    ):
        if found.shape != right.shape:  # a peer may store matrices transposed
            found = found.mT
        torch.testing.assert_close(found, right, rtol=0, atol=1e-4)


def test_providers_take_turns():
    turns = []

    def provider(name):
        return lambda: lambda: turns.append(name)

    found = timing.in_turn(
        {"a": provider("a"), "b": provider("b")}, "cpu", samples=6
    )
    assert turns == ["a", "b"] * 8  # two rounds of them to warm up
    assert all(t.samples == 6 for t in found.values())


def test_preparation_is_not_timed():
    def prepare():
        sum(range(2_000_000))
        return lambda: None

    assert timing.in_turn({"a": prepare}, "cpu", samples=5)["a"].ms < 1


def test_summary_is_the_median_and_the_middle_three_fifths():
    found = timing.summary([5.0, 1.0, 2.0, 3.0, 4.0, 100.0])
    assert found == Timing(3.5, 2.0, 5.0, 6)


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
        suite.layer_rows(
            SMALL, 33, torch.float32, "cpu", ROOFS, {"samples": 5}
        )
    )
    notes = {(r["provider"], r["mode"]): r["note"] for r in rows}
    assert notes["lab", "forward"] == ""
    assert notes["wrong", "backward"] == "wrong"
    assert notes["broken", "forward"] == "RuntimeError: no such kernel"
    assert [("ms" in r) for r in rows] == [True, False, False] * 2


def test_a_wrong_kernel_gets_a_note_and_no_time():
    declaration = next(
        d for d in suite.all_declarations() if d.name == "combine"
    )
    inputs = declaration.inputs(
        0, "cpu", torch.float32, **declaration.examples[0].options
    )
    calls = {
        "nothing": lambda **inputs: torch.full((129, 48), float("nan")),
        "reference": declaration.reference,
    }
    key = {"operation": "combine", "dtype": "float32"}
    rows = list(
        suite.kernel_rows(
            key, declaration, calls, inputs, torch.float32, ROOFS,
            {"samples": 5},
        )
    )  # fmt: skip
    assert rows[0]["note"] == "wrong" and "ms" not in rows[0]
    assert rows[1]["error"] == 0 and rows[1]["ms"] > 0


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
    inputs, _ = suite.layer_inputs(SMALL, 1, torch.float32, "cpu")
    costs = layer_costs(SMALL, 1, torch.float32, inputs[1])
    weights = 2 * 3 * 16 * 12  # two of four experts
    assert costs["forward"] == Cost(
        4 * (2 * 16 + weights) + 16, 6 * 2 * 16 * 12
    )


def test_a_table_read_and_written_again_is_the_same(tmp_path):
    kept = table.path_of("2-core x86-64 CPU").read_text()
    rows = table.recorded("2-core x86-64 CPU")
    again = table.write(rows, tmp_path / "again.csv").read_text()
    assert again == kept


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
    inputs, pull = suite.layer_inputs(SMALL, 9, torch.float32, "cpu")
    found = list(tiles.sweep(*inputs, pull, samples=5, seconds=0.0))
    kernels = {tried.kernel for tried in found}
    assert len(kernels) == 6
    for kernel in kernels:
        mine = [tried for tried in found if tried.kernel == kernel]
        assert [tried.chosen for tried in mine].count(True) == 1
        # half to twice the chosen tile's rows
        assert len(mine) == 2
        assert all(tried.timing.samples == 5 for tried in mine)
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
    inputs, pull = suite.layer_inputs(SMALL, 9, torch.float32, "cpu")
    found = tiles.sweep(*inputs, pull, samples=5, seconds=0.0)
    notes = [t.note for t in found if t.kernel == "second product"]
    assert notes == ["", "wrong", "no room"]


def test_other_tiles_need_a_gpu(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        suite.main(["--tiles"])
    assert "--tiles needs a GPU" in capsys.readouterr().err
