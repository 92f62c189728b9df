"""The cost model against enumeration, simulation and a clock made of events.

The oracles count: every batch of a tiny case, drawn batches, and a timeline
on which each copy and each computation starts when it may.
"""

from itertools import product

import numpy as np
import pytest
import torch
from seed_0 import measured

from lab.exercises import judge
from lab.tokens import expert_reads, expert_timing, moe_inference
from lab.tokens.coverage import (
    Trace,
    coverage,
    distinct,
    loads,
    lru_hits,
    neighbours,
    read,
    uniform_rates,
    unrelated,
)
from lab.tokens.inference_cost import (
    MACHINES,
    SIZES,
    Machine,
    Size,
    all_to_all_time,
    by_device,
    expert_time,
    place,
    ridge,
    transfer_time,
)
from lab.tokens.moe_inference import EXERCISES
from lab.tokens.moe_inference_recorded import (
    BATCHES,
    ROUTERS,
    coverage_curves,
    picture,
    recorded,
)

CHOSEN = torch.tensor([[0, 3], [1, 3], [0, 2], [4, -1], [3, 1]]).int()
RATES = torch.tensor([0.4, 0.4, 0.2, 0.6, 0.2, 0.0])  # of six experts


@pytest.mark.parametrize("batch", [1, 2, 4])
def test_the_formula_is_the_mean_over_every_batch(batch):
    sets = [{e for e in row if e >= 0} for row in CHOSEN.tolist()]
    sizes = [len(set().union(*drawn)) for drawn in product(sets, repeat=batch)]
    assert coverage(RATES, batch) == pytest.approx(np.mean(sizes), rel=1e-6)


def test_the_formula_agrees_with_drawn_loads():
    random = np.random.default_rng(0)
    rates = np.array([0.9, 0.5, 0.3, 0.2, 0.05, 0.05])
    drawn = random.binomial(7, rates, size=(40_000, 6))
    counted = (drawn > 0).sum(1).mean()
    assert coverage(torch.tensor(rates), 7) == pytest.approx(counted, rel=1e-2)


def test_the_limits_of_coverage():
    uniform = uniform_rates(16, 2)
    assert coverage(uniform, 1) == pytest.approx(2)
    assert coverage(uniform, 10**9) == pytest.approx(16)
    assert coverage(uniform_rates(5, 5), 1) == 5
    # too small for 1 - (1 - q)^B in double precision
    tiny = torch.tensor([1e-18], dtype=torch.float64)
    assert coverage(tiny, 1000) == pytest.approx(1e-15)


def test_calibration_points_of_mixtral():
    uniform = uniform_rates(8, 2)
    assert coverage(uniform, 7) < 7 < coverage(uniform, 8)
    assert coverage(uniform, 57) == pytest.approx(8.0, abs=1e-4)


@pytest.mark.parametrize(
    ("call", "hint"),
    [
        (lambda: coverage(RATES, 0), "batch=0"),
        (lambda: coverage(RATES * 2, 1), "a share is 0 to 1"),
        (lambda: uniform_rates(4, 5), "use 0 to 4"),
        (lambda: neighbours(3, 4, 1), "the 3 tokens"),
        (lambda: place(RATES, 4), "use a divisor"),
        (
            lambda: transfer_time(1, SIZES["lab toy"], MACHINES["T4"], hit=2),
            "use 0 to 1",
        ),
        (
            lambda: expert_time(
                RATES, SIZES["lab toy"], MACHINES["T4"], bytes_per_weight=3
            ),
            "bytes_per_weight=3",
        ),
        (lambda: recorded("none"), "is not one of top-2 of 16"),
    ],
)
def test_what_makes_no_sense_is_refused(call, hint):
    with pytest.raises(ValueError, match=hint):
        call()


def test_loads_are_counted_and_empty_slots_are_nobody():
    at = torch.tensor([[0, 1, 3], [3, 3, 3]])
    assert loads(CHOSEN, 6, at).tolist() == [
        [1, 1, 0, 2, 1, 0],
        [0, 0, 0, 0, 3, 0],
    ]
    assert distinct(CHOSEN, 6, at) == 2.5


def test_a_trace_knows_its_experts_and_the_shares_of_their_choices():
    for trace in read(expert_reads.untrained(0, 5, 2, 0.0), 300):
        counts = trace.chosen.flatten().bincount(minlength=5)
        assert trace.experts == 5 and trace.chosen.shape == (300, 2)
        torch.testing.assert_close(trace.rates, counts.double() / 300)


def test_batches_lie_within_the_text():
    row = neighbours(10, 4, 50)
    assert row.shape == (50, 4) and row.min() >= 0 and row.max() == 9
    assert (row.diff(dim=1) == 1).all()
    drawn = unrelated(10, 4, 50, seed=1)
    assert torch.equal(drawn, unrelated(10, 4, 50, seed=1))
    assert set(drawn.flatten().tolist()) == set(range(10))


def test_a_cache_remembers_the_last_ones():
    asked = torch.tensor([[0], [1], [0], [2], [1], [0], [-1]])
    # with two places: 0 and 1 miss, 0 hits, 2 drives 1 out, 1 drives 0 out
    assert lru_hits(asked, 2) == pytest.approx(1 / 6)
    assert lru_hits(asked, 3) == pytest.approx(3 / 6)


def test_an_expert_reads_or_computes_whichever_is_longer():
    size, machine = Size(4, 10), Machine(1000.0, 100.0, 10.0, 10.0, 0.0)
    # 120 weights, 240 bytes: 2.4 s to read, 0.24 s a token to compute
    load = torch.tensor([0, 1, 10, 11])
    expected = torch.tensor([0.0, 2.4, 2.4, 2.64]).double()
    torch.testing.assert_close(expert_time(load, size, machine), expected)
    assert ridge(machine) == pytest.approx(10)
    assert transfer_time(3, size, machine, hit=0.5) == pytest.approx(36)


def test_the_ridges_of_real_machines():
    assert ridge(MACHINES["H200"]) == pytest.approx(206, abs=0.5)
    assert ridge(MACHINES["T4"]) == pytest.approx(203, abs=0.5)


def test_quantisation_halves_bytes_and_leaves_arithmetic():
    layer, machine = SIZES["Mixtral-like"], MACHINES["H200"]
    few, many = torch.tensor([1]), torch.tensor([10_000])
    times = [
        [expert_time(n, layer, machine, s).item() for n in (few, many)]
        for s in (2, 1)
    ]
    assert times[1][0] == pytest.approx(times[0][0] / 2)
    assert times[1][1] == times[0][1]


def test_all_to_all_counts_every_pair_sent_away():
    size, machine = Size(8, 1), Machine(1.0, 1.0, 1.0, 100.0, 0.5)
    # 12 tokens, 2 experts each, on 3 devices: 8 pairs a device, 2/3 leave
    there = 12 / 3 * 2 * (2 / 3) * 8 * 2 / 100
    found = all_to_all_time(12, 2, size, machine, 3)
    assert found == pytest.approx(2 * 0.5 + 2 * there)
    assert all_to_all_time(12, 2, size, machine, 1) == 0


def timeline(layers, compute, transfer):
    """When the last layer ends, if the next one's experts are fetched as
    soon as the wire is free and the layer before has begun."""
    wire = transfer  # nothing to hide the first behind
    began = wire
    for _ in range(layers - 1):
        wire = max(wire, began) + transfer
        began = max(began + compute, wire)
    return began + compute


@pytest.mark.parametrize(("compute", "transfer"), [(3, 5), (5, 3), (4, 4)])
def test_prefetching_takes_the_longer_of_both_but_for_the_first(
    compute, transfer
):
    model = 32 * max(compute, transfer)
    exact = timeline(32, compute, transfer)
    assert exact - model == pytest.approx(min(compute, transfer))


def test_greedy_placement_evens_the_load_and_keeps_equal_counts():
    rates = torch.tensor([0.8, 0.6, 0.3, 0.1, 0.1, 0.1])
    home = place(rates, 3)
    assert home.bincount().tolist() == [2, 2, 2]
    load = by_device(rates[None], home, 3)[0]
    assert load.tolist() == pytest.approx([0.9, 0.7, 0.4])
    by_index = by_device(rates[None], place(rates, 3, greedy=False), 3)[0]
    assert by_index.tolist() == pytest.approx([1.4, 0.4, 0.2])


def test_skipping_takes_the_weakest_choices_and_spares_the_best():
    scores = torch.tensor([[0.5, 0.5, 0], [0.9, 0.1, 0], [0.6, 0.4, 0]])
    chosen = torch.tensor([[0, 1], [0, 1], [0, 1]]).int()
    kept = expert_reads.skip(Trace(chosen, scores, 3), keep=5 / 6)
    assert kept.tolist() == [[0, 1], [0, -1], [0, 1]]
    assert (
        expert_reads.skip(Trace(chosen, scores, 3), keep=0).tolist()
        == [[0, -1]] * 3
    )


def test_a_real_router_obeys_the_formula_and_text_reads_fewer():
    reads = coverage_curves("top-2 of 16")
    at = BATCHES.index(16)
    counted, formula = reads["unrelated tokens"][at], reads["formula"][at]
    assert counted == pytest.approx(formula, rel=0.03)
    assert reads["contiguous text"][at] < counted
    assert formula < reads["uniform formula"][at]


def test_new_tokens_bring_new_experts_but_cost_a_dense_layer_nothing():
    seen = picture(batch=4)
    moe, dense = (
        seen.times[name][2] / seen.times[name][0]
        for name in ("experts in memory", "dense")
    )
    assert moe == pytest.approx(seen.reads["unrelated tokens"][2] / 2, 1e-3)
    assert dense == 1
    assert "4 tokens read 6." in seen.title and "dense: 1.0 x" in seen.title


def test_all_experts_cached_leaves_nothing_to_fetch():
    times = picture(cached=100).times
    assert times["fetched on demand"] == times["experts in memory"]
    times = picture(cached=0).times
    assert times["fetched on demand"] > times["fetched ahead"]


@pytest.mark.parametrize("router", ROUTERS)
def test_every_router_has_a_picture(router):
    seen = picture(batch=2, router=router, size="lab toy", machine="T4")
    assert all(len(values) == len(BATCHES) for values in seen.reads.values())
    assert all(v > 0 for values in seen.times.values() for v in values)


def test_an_experiment_is_the_same_twice_and_its_arms_differ():
    run = expert_reads.arm.__wrapped__
    first = run(0, 4, 1, 2, 0.01)
    assert first == run(0, 4, 1, 2, 0.01)
    assert first != run(0, 4, 1, 2, 0.0)
    assert first != run(1, 4, 1, 2, 0.01)


def test_one_arm_has_the_balance_loss_and_the_other_none(monkeypatch):
    monkeypatch.setattr(expert_reads, "arm", lambda *about: about)
    balanced, free = expert_reads.experiment(3, experts=4, top_k=1, steps=5)
    assert balanced == (3, 4, 1, 5, 0.01) and free == (3, 4, 1, 5, 0.0)


def test_an_effect_is_what_its_claim_says(monkeypatch):
    balanced = expert_reads.Arm(
        unrelated={4: 6.0, 16: 12.0, 64: 16.0},
        neighbours={4: 5.0, 16: 9.0, 64: 15.0},
        predicted={4: 6.3, 16: 12.0, 64: 16.0},
        uniform={4: 7.0, 16: 14.0, 64: 16.0},
        hits=0.75,
        hits_shuffled=0.5,
        saved_reads=0.085,
        imbalance=1.5,
        imbalance_greedy=1.25,
    )
    free = balanced._replace(
        unrelated={4: 5.0, 16: 10.0, 64: 12.5},
        predicted={4: 5.0, 16: 10.0, 64: 10.0},
        uniform={4: 7.0, 16: 13.0, 64: 16.0},
    )
    monkeypatch.setattr(
        moe_inference,
        "experiment",
        lambda *_, **__: expert_reads.Result(balanced, free),
    )
    # from 1 to 4 tokens 6 times, from 1 to 16 tokens 16 times the time, a
    # dense layer 2 times; 4 times as many experts
    times = expert_timing.Clocked(
        (1, 4, 16), [2.0, 5.0, 8.0], [0.5, 3.0, 8.0], [1.0, 2.0, 3.0]
    )
    monkeypatch.setattr(moe_inference, "clocked", lambda *_, **__: times)
    effects = measured(moe_inference)
    assert effects == pytest.approx(
        {
            "no-free-batch": 3.0,
            "time-follows-experts": 1.0,
            "coverage-formula": 20,
            "text-reads-fewer": 25,
            "popularity-is-skewed": 30,
            "locality-helps-a-cache": 25,
            "placement-pays": 0.25,
            # AdaMoE skips 17 % of the choices
            "skipping-cuts-bytes": 50,
        }
    )


def test_the_clock_measures_each_batch_and_counts_its_experts():
    found = expert_timing.wall_clock(0, (1, 4), samples=5, copies=1)
    assert found.distinct[0] == 2 and 3 < found.distinct[1] <= 8
    assert min(found.moe_ms + found.dense_ms) > 0


def test_the_dense_layer_of_the_clock_is_twice_as_wide_not_a_copy():
    up, down = expert_timing._weights(0, 1)
    x = torch.ones(3, expert_timing.DIM)
    result = expert_timing._dense(x, up, down)()()
    w_up = up.view(8, expert_timing.DIM, -1)[0]
    g, u = (x @ w_up).chunk(2, dim=1)
    y = (torch.nn.functional.silu(g) * u) @ down.view(8, -1, x.shape[1])[0]
    torch.testing.assert_close(result, y, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("slug", "right", "wrong"),
    [
        ("exercise-1", [704.6, 146.8], [352.3, 73.4]),
        ("exercise-2", 8, 7),
        (
            "exercise-3",
            lambda q, B: (1 - (1 - q) ** B).sum(),
            lambda q, B: (B * q).clamp(max=1).sum(),
        ),
    ],
)
def test_the_checker_tells_right_from_wrong(slug, right, wrong):
    assert judge(EXERCISES[slug], right) == "correct"
    assert judge(EXERCISES[slug], wrong) != "correct"
