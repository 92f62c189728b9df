"""DistServe: queues against Lindley's recursion, the search by trying all."""

import math
from itertools import product

import numpy as np
import pytest
import torch
from seed_0 import in_the_ledger, measured

from lab import claims
from lab.exercises import judge
from lab.kernels.serve_sim import Served
from lab.serving import distserve, distserve_view, goodput, prefill_queue
from lab.serving import distserve_recorded as recorded
from lab.serving.distserve import EXERCISES
from lab.serving.engine_profiles import (
    decode_costs,
    moving,
    prefill_costs,
)
from lab.serving.goodput import Limits, Placement
from lab.serving.request_traces import drawn, lengths


def lindley(rate, times, seed=0, streams=400):
    """Mean time in the system of queues in a row, by simulation.

    ``times`` are the service times of the stages, functions of (random,
    shape); also the standard error.
    """
    random = np.random.default_rng(seed)
    shape = streams, 1500
    arrivals = random.exponential(1 / rate, shape).cumsum(1)
    ready = arrivals
    for stage in times:
        service = stage(random, shape)
        done = np.zeros(shape)
        before = np.zeros(streams)
        for n in range(shape[1]):
            before = np.maximum(before, ready[:, n]) + service[:, n]
            done[:, n] = before
        ready = done
    means = (ready - arrivals)[:, 500:].mean(1)
    return means.mean(), means.std() / math.sqrt(streams)


def always(time):
    return lambda random, shape: np.full(shape, time)


@pytest.mark.parametrize("rate", [0.3, 0.6, 0.8])
def test_one_gpu_and_two_that_share_layers_are_m_d_1(rate):
    mean, error = lindley(rate, [always(1.0)])
    assert abs(prefill_queue.one_gpu(rate, 1.0) - mean) < 4 * error
    mean, error = lindley(rate, [always(1 / 1.5)])
    assert abs(prefill_queue.intra_op(rate, 1.0, 1.5) - mean) < 4 * error
    assert error < 0.01 * mean


@pytest.mark.parametrize("rate", [0.6, 1.5])
def test_two_stages_wait_only_before_the_first(rate):
    mean, error = lindley(rate, [always(0.5), always(0.5)])
    assert abs(prefill_queue.inter_op(rate, 1.0) - mean) < 4 * error


def mixed_lengths(rate, times):
    """Mean TTFT for times that vary, by Pollaczek and Khinchine (M/G/1)."""
    mean, square = np.mean(times), np.mean(np.square(times))
    return mean + rate * square / (2 * (1 - rate * mean))


def test_mixed_lengths_wait_longer_by_their_spread():
    def two(random, shape):
        return random.choice([0.5, 1.5], shape)

    mean, error = lindley(0.7, [two])
    formula = mixed_lengths(0.7, [0.5, 1.5])
    assert abs(formula - mean) < 4 * error
    # twice the mean square over the squared mean: 1.25 times the wait
    wait = prefill_queue.one_gpu(0.7, 1.0) - 1
    assert formula == pytest.approx(1 + 1.25 * wait)
    assert mixed_lengths(0.7, [1.0]) == pytest.approx(1 + wait)


def test_the_recorded_queue_of_unequal_prompts_is_that_of_the_formula():
    a, b, c = prefill_costs("DistServe", 1)
    prompts = np.asarray(lengths("chat")[:, 0], dtype=float)
    times = (a + b * prompts + c * prompts**2) / 1000
    mean = times.mean()
    equal = prefill_queue.one_gpu(0.7 / mean, mean)
    percent = 100 * (mixed_lengths(0.7 / mean, times) / equal)
    by_slug = {claim.slug: claim for claim in distserve.CLAIMS}
    verdict = claims.recorded(by_slug["a-queue-of-equals"])
    # the notebook says 12
    assert round(percent) == 112
    assert verdict.low < percent - 100 < verdict.high


def test_a_queue_past_its_capacity_is_infinite():
    assert prefill_queue.one_gpu(1.0, 1.0) == math.inf
    assert prefill_queue.inter_op(2.0, 1.0) == math.inf
    assert prefill_queue.intra_op(1.5, 1.0, 1.5) == math.inf


@pytest.mark.parametrize(("K", "load"), [(1.2, 0.434), (1.5, 0.936),
                                         (1.8, 1.429)])  # fmt: skip
def test_intra_op_is_better_up_to_the_crossing_and_not_above(K, load):
    found = prefill_queue.crossing(K)
    assert found == pytest.approx(load, abs=1e-3)
    for x in np.linspace(0.01, K - 0.01, 60):
        intra = prefill_queue.intra_op(x, 1.0, K)
        assert (intra < prefill_queue.inter_op(x, 1.0)) == (x < found)
    for wrong in (1.0, 2.0):
        with pytest.raises(ValueError, match="between 1 and 2"):
            prefill_queue.crossing(wrong)


def test_costs_are_the_authors_with_their_overheads():
    # prefill of 500 and 300: 18.1025 + 0.101912 t + 7.12226e-6 t2, + 1, and
    # 2 + 1e-4 t for the scheduler
    a, b, c = prefill_costs("DistServe", 1)
    plain = 18.1025 + 0.101912 * 800 + 7.12226e-6 * 340_000
    assert a + b * 800 + c * 340_000 == pytest.approx(plain + 3.08)
    # ten requests with 5000 tokens, the new ones among them
    a, b, c = decode_costs("vLLM", 2)[:3]
    plain = 24.5406 + 2.24401e-4 * 5000 + 0.0871579 * 10
    assert a + b * 5000 + c * 10 == pytest.approx(plain + 2 + 1e-4 * 4990)
    assert decode_costs("DistServe", 4)[3] == pytest.approx(12.4835)


def test_keys_and_values_take_their_time():
    # 40 layers, 5120 wide, fp16: 819 kB a token
    assert 783 * moving(25) == pytest.approx(205.3, abs=0.1)
    assert 783 * moving(4800) == pytest.approx(1.07, abs=0.01)


def test_requests_are_those_that_opt_can_read():
    chat, code = lengths("chat").double(), lengths("code").double()
    assert (len(chat), len(code)) == (16_528, 5_452)
    assert chat.mean(0).tolist() == pytest.approx([753.74, 232.48], abs=0.01)
    assert code.mean(0).tolist() == pytest.approx([831.06, 26.30], abs=0.01)
    assert chat.sum(1).max() == 2048 and chat.min() >= 1
    stream = drawn("code", 1000, seed=3, streams=4)
    assert torch.equal(stream.arrivals, drawn("code", 1000, 3, 4).arrivals)
    assert stream.arrivals.diff(dim=1).min() >= 0
    gaps = stream.arrivals[:, -1].double() / 1000
    assert gaps.mean() == pytest.approx(1.0, abs=0.06)


def test_all_placements_are_tried_and_none_is_too_large():
    split = goodput.disaggregated(6)
    every = [
        (p, d, gp, gd)
        for p, d in product(range(1, 7), repeat=2)
        for gp, gd in product((1, 2, 4), repeat=2)
        if p * gp + d * gd <= 6
    ]
    assert len(split) == len(set(split)) == 2 * len(every)
    assert {one[:4] for one in split} == set(every)
    whole = goodput.colocated(6)
    # 6 of one GPU, 3 of two, 1 of four; two batches, two orders
    assert len(whole) == len(set(whole)) == 10 * 4
    assert max(one.gpus for one in whole) == 6
    assert not any(one.decode for one in whole)


def test_both_limits_must_hold_for_the_same_request():
    # the first quarter is not counted
    ttft = torch.tensor([9.0, 9, 1, 9, 1, 1, 1, 1]).reshape(1, 1, 8)
    tpot = torch.tensor([9.0, 9, 1, 1, 1, 1, 9, 1]).reshape(1, 1, 8)
    waits, limits = Served(ttft, tpot), Limits(5, 5)
    assert goodput.attainment(waits, limits).item() == pytest.approx(4 / 6)
    late, slow = goodput.within(waits, limits)
    assert late.sum() == slow.sum() == 1
    # 2 x is the least that 90 % of (0.2, 1.8, 0.2, 0.2, 1.8, 0.2) keep
    tight = goodput.tightest(waits, limits).item()
    assert tight == pytest.approx(np.quantile([0.2] * 4 + [1.8] * 2, 0.9))


def test_a_request_that_is_never_served_keeps_no_limit():
    # a GPU has NaN for it
    ttft = torch.tensor([1.0, 1, 1, math.nan]).reshape(1, 1, 4)
    tpot = torch.tensor([1.0, 1, math.nan, 1]).reshape(1, 1, 4)
    waits, limits = Served(ttft, tpot), Limits(5, 5)
    assert goodput.attainment(waits, limits).item() == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    "placement", [Placement(2, 1), Placement(3, 0, batch=2048, in_turn=True)]
)
def test_goodput_is_kept_and_the_next_rate_is_not(placement):
    stream, limits = drawn("code", 150, seed=7), Limits(400, 40)
    found = goodput.goodput([placement], stream, limits)[0]
    # the span of all rates, halved ten times
    step = (goodput.FASTEST / goodput.SLOWEST) ** (1 / 2**10)
    rates = [found, found * step]
    waits = goodput.served([placement] * 2, rates, stream)
    shares = []
    for ttft, tpot in zip(*waits, strict=True):
        kept = [
            t <= 400 and p <= 40
            for t, p in zip(ttft[0].tolist(), tpot[0].tolist(), strict=True)
        ][150 // 4 :]
        shares.append(sum(kept) / len(kept))
    assert shares[0] >= 0.9 > shares[1]


def test_a_placement_that_keeps_no_limit_has_no_goodput():
    stream = drawn("chat", 60, seed=7)
    found = goodput.goodput([Placement()], stream, Limits(10, 10), tries=3)
    assert found == [0.0]


def test_the_search_takes_the_most_goodput_then_the_fewest_gpus(monkeypatch):
    rows = [
        (Placement(1, 1), 2.0),
        (Placement(2, 2), 3.0),
        (Placement(2, 1), 3.0),
        (Placement(2, 0, 1, 1), 9.0),
    ]
    monkeypatch.setattr(recorded, "table", lambda workload: rows)
    assert recorded.best("chat 250/40", "split") == Placement(2, 1)
    few = recorded.best("chat 250/40", "split", lambda one: one.gpus == 2)
    assert few == Placement(1, 1)
    assert recorded.best("chat 250/40", "together").prefill == 2


@pytest.mark.parametrize("system", recorded.SYSTEMS)
def test_the_recorded_search_is_what_the_simulator_finds(system):
    trace, limits = recorded.WORKLOADS["code 400/40"]
    one = recorded.best("code 400/40", system)
    stream = drawn(trace, recorded.REQUESTS, recorded.SEARCHED)
    found = goodput.goodput([one], stream, limits, tries=8)[0]
    kept = dict(recorded.table("code 400/40"))
    assert kept[one] == pytest.approx(found, rel=1e-5)


def test_the_recorded_curves_are_what_the_simulator_finds():
    kept = recorded.recorded()
    one = recorded.divided("code 400/40", 4)
    assert (one.prefill, one.decode) == (4, 2)
    row = kept["split"][4, 3, recorded.LINKS.index(25)]
    assert row == pytest.approx(recorded.shares(one, "code 400/40", 25))
    for name in ("split", "together"):
        assert kept[name].sum(-1) == pytest.approx(100, abs=1e-3)
    for name in recorded.WORKLOADS:
        for engine in recorded.RIVALS.values():
            assert recorded.rival(name, engine).gpus == goodput.NODE


def test_a_second_recording_keeps_the_same_kinds_of_things(
    tmp_path, monkeypatch
):
    before = recorded.recorded()
    kept = {}
    monkeypatch.setattr(
        recorded, "write_arrays", lambda path, **arrays: kept.update(arrays)
    )
    monkeypatch.setattr(recorded, "REQUESTS", 8)
    monkeypatch.setattr(recorded, "RATES", recorded.RATES[:1])
    name = "code 400/40"
    monkeypatch.setattr(
        recorded, "search", lambda workload: before["search"][4]
    )
    monkeypatch.setattr(
        recorded, "WORKLOADS", {name: recorded.WORKLOADS[name]}
    )
    monkeypatch.setattr(recorded, "table", lambda workload: [
        (one, 1.0) for one in recorded.every()
    ])  # fmt: skip
    recorded.rival.cache_clear()
    recorded.divided.cache_clear()
    recorded.train_checkpoints()
    recorded.rival.cache_clear()
    recorded.divided.cache_clear()
    assert kept.keys() == before.keys()
    for key, rows in kept.items():
        assert rows.dtype == np.float32 and rows.shape[0] == 1
        assert rows.shape[1] == before[key].shape[1]
    assert kept["split"][..., 0].max() <= 100


def test_the_rate_where_a_curve_falls_below_the_goal():
    percent = [100.0, 94.0, 84.0] + [10.0] * 9
    assert distserve_view.crossing(percent) == pytest.approx(0.85)
    assert distserve_view.crossing([80.0] * 12) == 0.0
    assert distserve_view.crossing([95.0] * 12) == math.inf
    said = [distserve_view.said(x) for x in (0.0, 1.25, math.inf)]
    assert said == ["less than 0.5", "1.2", "over 8"]


def test_the_picture_shows_that_code_wants_prefill_gpus():
    few, many = (distserve_view.picture(p) for p in (1, 4))
    assert few.goodput["split"] < few.goodput["together"]
    assert many.goodput["split"] > 1.5 * many.goodput["together"]
    assert few.attained["together"] == many.attained["together"]
    assert many.title.startswith("4 of 6 GPUs prefill: ")
    lanes = [f"prefill {n}" for n in range(1, 5)] + ["decode 1", "decode 2"]
    assert list(many.jobs) == [*lanes, "together 1"]
    for name, jobs in many.jobs.items():
        kinds = {job[0] for job in jobs}
        assert jobs and kinds <= {*distserve_view.KINDS}
        assert name.startswith("together") or kinds == {name.split()[0]}
        for _, start, end, _ in jobs:
            assert 0 <= start < end <= distserve_view.SECONDS
    # one instance does one thing at a time
    for jobs in many.jobs.values():
        for one, two in zip(jobs, jobs[1:], strict=False):
            assert one[2] <= two[1] + 1e-9


@pytest.mark.parametrize("prefill", [1, 5])
@pytest.mark.parametrize("rate", [recorded.RATES[0], recorded.RATES[-1]])
def test_the_picture_holds_at_both_ends_of_every_knob(prefill, rate):
    for workload, against, link in product(
        ("chat 250/40", "code 400/40"),
        recorded.RIVALS,
        (recorded.LINKS[0], recorded.LINKS[-1]),
    ):
        seen = distserve_view.picture(prefill, workload, against, rate, link)
        assert len(seen.missed) == 4
        assert all(0 <= x <= 100 for x in seen.missed.values())
        assert "nan" not in seen.title
        assert seen.other.engine == recorded.RIVALS[against]


SLOW = ("always-better", "not-the-engine", "parallelism-is-no-help")


def test_the_ledger_holds_what_seed_0_measures():
    kept = in_the_ledger(distserve)
    found = measured(distserve, but=SLOW)
    for slug, effect in found.items():
        assert effect == pytest.approx(kept[slug], rel=1e-4), slug


def test_the_exercises_accept_right_and_refuse_wrong_answers():
    def right(runs, limits, gpus):
        best = 0.0
        for rate, ttft, tpot in runs:
            kept = sum(
                t <= limits[0] and p <= limits[1]
                for t, p in zip(ttft, tpot, strict=True)
            )
            if kept / len(ttft) >= 0.9:
                best = max(best, rate / gpus)
        return best

    def apart(runs, limits, gpus):
        """Each limit by itself, as the authors' search does."""
        return max([0.0] + [
            rate / gpus for rate, ttft, tpot in runs
            if sum(t <= limits[0] for t in ttft) >= 0.9 * len(ttft)
            and sum(p <= limits[1] for p in tpot) >= 0.9 * len(tpot)
        ])  # fmt: skip

    answers = [
        ("exercise-1", 96.6, True), ("exercise-1", 12.1, False),
        ("exercise-1", 90.0, False),
        ("exercise-2", (1.75, 1.107, 0.889), True),
        ("exercise-2", (1.75, 0.889, 1.107), False),
        ("exercise-3", right, True), ("exercise-3", apart, False),
        ("exercise-3", lambda runs, limits, gpus: gpus * right(
            runs, limits, gpus), False),
    ]  # fmt: skip
    for slug, attempt, good in answers:
        assert (judge(EXERCISES[slug], attempt) == "correct") == good, slug
