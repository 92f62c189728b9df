"""Watching and planning, against Koenig's theorem, loops and networkx."""

import math
from collections import Counter

import networkx as nx
import numpy as np
import pytest
import torch
from seed_0 import in_the_ledger, measured

from lab.exercises import judge
from lab.kernels.delay_stats import DelayStats, delay_stats
from lab.networks import c4, c4_view, slow_parts
from lab.networks.delay_traces import (
    FAR,
    RAIL,
    RANKS,
    Fault,
    faults,
    leaves,
    undisturbed,
    window,
)
from lab.networks.leaf_spine import Fabric, collective, ends, flows, paths
from lab.networks.spraying_rivals import ecmp
from lab.networks.training_jobs import FABRIC, bandwidth, rates, rings
from lab.networks.uplinks import exact, least_used, rehashed

PLACEMENTS = [("packed", 1), ("packed", 8), ("scattered", 1), ("scattered", 8)]


def on_links(plan, sent, fabric):
    """How many flows each link carries, counted one by one."""
    leaf, other = (x.tolist() for x in ends(sent, fabric))
    count = Counter()
    for f, k in enumerate(plan.spine.tolist()):
        if leaf[f] == other[f]:
            assert k == -1
            continue
        assert 0 <= k < fabric.spines
        count["up", leaf[f], k] += 1
        count["down", other[f], k] += 1
    return count


def busiest(sent, fabric):
    """Flows that leave or enter the busiest leaf."""
    leaf, other = (x.tolist() for x in ends(sent, fabric))
    count = Counter()
    for a, b in zip(leaf, other, strict=True):
        if a != b:
            count["out", a] += 1
            count["in", b] += 1
    return max(count.values(), default=0)


@pytest.mark.parametrize("spines", [1, 3, 7, 8, 40])
@pytest.mark.parametrize("workload", ["permutation", "ring", "expert groups"])
def test_the_exact_plan_meets_koenigs_bound(workload, spines):
    fabric = Fabric(6, 5, spines)
    for seed in range(5):
        sent = collective(workload, fabric, seed)
        most = max(on_links(exact(sent, fabric), sent, fabric).values())
        assert most == math.ceil(busiest(sent, fabric) / spines)


def test_the_exact_plan_copes_with_a_lopsided_crowd():
    # all hosts of three leaves send to leaf 0, which sends nothing
    fabric = Fabric(4, 6, 18)
    sent = flows(range(6, 24), [h % 6 for h in range(18)], [1.0] * 18)
    assert set(on_links(exact(sent, fabric), sent, fabric).values()) == {1}


@pytest.mark.parametrize("placement, count", PLACEMENTS)
def test_every_flow_of_every_job_gets_its_own_links(placement, count):
    for seed in range(3):
        jobs = rings(placement, count, seed)
        plan = exact(jobs.flows, FABRIC)
        links = on_links(plan, jobs.flows, FABRIC)
        assert set(links.values()) <= {1}
        assert (bandwidth(plan, jobs, FABRIC) == 1).all()


def by_table(sent, fabric, order, dead=()):
    """The least used living path, one flow after the other."""
    leaf, other = (x.tolist() for x in ends(sent, fabric))
    used, spine = Counter(), [-1] * len(leaf)
    for f in order:
        a, b = leaf[f], other[f]
        if a == b:
            continue
        living = [
            k
            for k in range(fabric.spines)
            if (a, k) not in dead and (b, k) not in dead
        ]
        spine[f] = min(
            living, key=lambda k: max(used["up", a, k], used["down", b, k])
        )
        used["up", a, spine[f]] += 1
        used["down", b, spine[f]] += 1
    return spine


@pytest.mark.parametrize("dead", [(), ((0, 0), (0, 3), (2, 1))])
def test_least_used_is_the_loop_that_anyone_would_write(dead):
    fabric = Fabric(5, 6, 4)
    alive = torch.ones(5, 4, dtype=torch.bool)
    for leaf, spine in dead:
        alive[leaf, spine] = False
    for seed in range(4):
        sent = collective("permutation", fabric, seed)
        order = np.random.default_rng(seed).permutation(len(sent.size))
        plan = least_used(sent, fabric, order.tolist(), alive)
        assert plan.spine.tolist() == by_table(sent, fabric, order, dead)


def test_twice_the_spines_less_one_need_no_luck():
    # a new flow meets at most 31 others at each end
    for seed in range(3):
        jobs = rings("scattered", 8, seed)
        fabric = FABRIC._replace(spines=63)
        plan = c4.by_arrival(jobs.flows, fabric)
        assert set(on_links(plan, jobs.flows, fabric).values()) == {1}


def test_the_order_of_arrival_decides():
    jobs = rings("scattered", 8, 0)
    orders = [range(256), np.random.default_rng(0).permutation(256).tolist()]
    plans = [least_used(jobs.flows, FABRIC, order) for order in orders]
    one, two = (bandwidth(p, jobs, FABRIC).mean() for p in plans)
    assert two < one < 1


def test_only_flows_on_dead_links_are_hashed_again():
    jobs = rings("scattered", 8, 1)
    plan = exact(jobs.flows, FABRIC)
    alive = c4.dead_links(5, 1)
    again = rehashed(plan, jobs.flows, FABRIC, alive, seed=3).spine.tolist()
    leaf, other = (x.tolist() for x in ends(jobs.flows, FABRIC))
    hit = 0
    for f, k in enumerate(plan.spine.tolist()):
        if k >= 0 and not (alive[leaf[f], k] and alive[other[f], k]):
            hit += 1
            k = again[f]
            assert alive[leaf[f], k] and alive[other[f], k]
        assert again[f] == k
    # five links up and five down had one flow each
    assert hit == 10


def test_the_links_that_die_are_those_of_leaf_0():
    alive = c4.dead_links(5, 3)
    assert (~alive).sum(1).tolist() == [5] + [0] * 7
    assert not torch.equal(alive, c4.dead_links(5, 4))


@pytest.mark.parametrize("placement, count", PLACEMENTS)
def test_a_job_is_one_ring_per_rail(placement, count):
    jobs = rings(placement, count, 2)
    graph = nx.DiGraph(zip(*(x.tolist() for x in jobs.flows[:2]), strict=True))
    assert set(dict(graph.degree()).values()) == {2}
    cycles = list(nx.strongly_connected_components(graph))
    assert len(cycles) == 8 * count
    job = dict(zip(jobs.flows.source.tolist(), jobs.job.tolist(), strict=True))
    for cycle in cycles:
        # one job, one rail, all its nodes
        assert len({job[nic] for nic in cycle}) == 1
        assert len({nic % 8 for nic in cycle}) == 1
        assert len(cycle) == 32 // count


def test_a_job_is_as_fast_as_its_slowest_flow():
    jobs = rings("scattered", 8, 0)
    plan = ecmp(jobs.flows, FABRIC, 0)
    rate = rates(plan, jobs.flows, FABRIC)
    links, capacity = paths(plan, jobs.flows, FABRIC)
    carried = np.zeros(len(capacity))
    for f in range(256):
        carried[links[:, f]] += rate[f]
    for f in range(256):
        # max-min: some link of the flow is full, and nobody is faster there
        assert any(
            carried[m] > capacity[m] - 1e-9
            and rate[f] >= rate[(links == m).any(0)].max() - 1e-9
            for m in links[:, f]
        )
    slowest = [min(rate[8 * 4 * j : 8 * 4 * (j + 1)]) for j in range(8)]
    assert bandwidth(plan, jobs, FABRIC).tolist() == slowest


def test_a_job_within_a_leaf_gains_nothing_from_a_plan():
    found = c4.experiment(0, "packed", 8)
    assert all((speed == 1).all() for speed in found.values())


def test_planned_paths_are_quiet_and_hashed_ones_are_not():
    leaf = leaves()
    usual = torch.where(leaf[:, None] == leaf, 1.0, FAR).double()
    apart = ~torch.eye(RANKS, dtype=torch.bool)
    planned, hashed = undisturbed("planned", 0), undisturbed("hashed", 0)
    assert torch.equal(planned[apart], usual[apart])
    slower = hashed[apart] / usual[apart]
    assert (slower >= 1).all() and (slower > 1.5).float().mean() > 0.3
    # the paper's rule plans these rounds as well as the exact one
    for r in range(1, RANKS):
        sent = flows(range(RANKS), np.roll(range(RANKS), -r), [1.0] * RANKS)
        plan = least_used(sent, RAIL, range(RANKS))
        assert set(on_links(plan, sent, RAIL).values()) <= {1}
    # a path is a path: within a leaf nothing is shared
    assert torch.equal(slower[usual[apart] == 1].unique(), torch.ones(1))
    assert RAIL.spines * RAIL.leaves == RANKS


def test_a_window_has_the_fault_where_it_should():
    for fault in faults(5):
        quiet = window(Fault("none"), 1, 2.0, 5, jitter=0.0)[0]
        ratio = (window(fault, 1, 3.0, 5, jitter=0.0)[0] / quiet).nan_to_num(1)
        cells = {tuple(x) for x in (ratio > 2).nonzero().tolist()}
        others = set(range(RANKS)) - {fault.rank}
        expected = {
            "none": set(),
            "sends": {(fault.rank, j) for j in others},
            "receives": {(j, fault.rank) for j in others},
            "link": {(fault.rank, fault.peer)},
        }
        assert cells == expected[fault.kind]


@pytest.mark.parametrize("rule", slow_parts.RULES)
@pytest.mark.parametrize("seed", range(3))
def test_every_fault_is_found_where_nothing_else_disturbs(seed, rule):
    for fault in faults(seed):
        one = window(fault, 3, 1.2, seed, jitter=0.0)
        stats = delay_stats(one[None], leaves(), slow_parts.Z)
        assert slow_parts.verdicts(stats, leaves(), rule) == [fault]


ONE = torch.zeros(3, dtype=torch.int32)  # three ranks under one leaf


def stats(sends, receives, hot=(), median=None):
    N = len(sends)
    cells = torch.zeros(1, N, N, dtype=torch.int8)
    for i, j in hot:
        cells[0, i, j] = 1
    median = torch.ones(1, N, N) if median is None else median
    return DelayStats(
        median, cells, torch.tensor([sends]), torch.tensor([receives])
    )


def test_the_larger_share_is_to_blame_and_equals_go_to_the_first():
    blamed = [
        (([0.0, 0.7, 0.7], [0.1, 0.2, 0.3]), Fault("sends", 1)),
        (([0.0, 0.7, 0.1], [0.8, 0.2, 0.8]), Fault("receives", 0)),
        (([0.0, 0.8, 0.1], [0.8, 0.2, 0.8]), Fault("sends", 1)),
        (([0.0, 0.5, 0.1], [0.5, 0.2, 0.6]), Fault("none")),
    ]
    for shares, fault in blamed:
        assert slow_parts.verdicts(stats(*shares), ONE) == [fault]


def test_a_link_is_to_blame_if_no_rank_is_and_the_hottest_counts():
    median = torch.ones(1, 3, 3)
    # the slowest of all is not hot
    median[0, 0, 1], median[0, 2, 0], median[0, 1, 2] = 2.0, 3.0, 9.0
    found = stats([0.5] * 3, [0.5] * 3, [(0, 1), (2, 0)], median)
    assert slow_parts.verdicts(found, ONE) == [Fault("link", 2, 0)]


def test_a_link_is_judged_by_its_class_not_by_its_delay():
    group = torch.arange(8, dtype=torch.int32) // 4
    delays = torch.where(group[:, None] == group, 1.0, 2.0)[None, None]
    # nearly twice as slow within a leaf, and 1.2 times to another
    delays[..., 0, 1], delays[..., 0, 5] = 1.9, 2.4
    found = delay_stats(delays, group, slow_parts.Z)
    assert found.hot.sum() == 2
    assert slow_parts.verdicts(found, group) == [Fault("link", 0, 1)]


def test_a_job_that_communicates_less_of_the_time_gains_less():
    one = c4.experiment(3, "packed", 4)
    gained = []
    for slow, fast in zip(one["ECMP"], one["least used"], strict=True):
        # 7 s of computing, and 3 s of communication with ECMP
        gained.append(10 / (7 + 3 * slow / fast) - 1)
    found = c4.CLAIMS[3].experiment(3, 0.3, "packed", 4)
    assert found == pytest.approx(100 * np.mean(gained))


def test_who_sees_nothing_wrong_says_so():
    # at 1.0 times as slow, only the windows without a fault can be right
    assert c4_view.found_by_slowdown([1.0], trials=2)["planned, rows"] == [25]


def test_a_pairs_own_past_shows_what_the_hash_hides():
    setting = {"paths": "hashed", "samples": 16, "trials": 2}
    assert slow_parts.diagnosed(70, past=True, **setting) == 100
    assert slow_parts.diagnosed(70, **setting) < 60


def test_diagnosis_gets_worse_with_less_to_see():
    strong = slow_parts.diagnosed(50, slowdown=2.0, samples=16, trials=3)
    weak = slow_parts.diagnosed(50, slowdown=1.1, samples=16, trials=3)
    hashed = slow_parts.diagnosed(
        50, "hashed", slowdown=2.0, samples=16, trials=3
    )
    assert strong == 100 and weak == 25 and hashed <= 50


def test_the_picture_reaches_from_the_plan_to_the_hash():
    jobs = rings("scattered", 8, 0)
    planned = c4_view.picture(0, "exact")
    assert set(planned.speed.values()) == {1.0}
    assert max(map(max, planned.up + planned.down)) == 1
    hashed = c4_view.picture(256, "exact")
    expected = bandwidth(ecmp(jobs.flows, FABRIC, 0), jobs, FABRIC)
    assert list(hashed.speed.values()) == expected.tolist()
    assert hashed.mean[-1] == pytest.approx(expected.mean())
    assert hashed.least[-1] == expected.min()
    for shown in (planned, hashed):
        assert sum(map(sum, shown.up)) == shown.crossing
        assert sum(map(sum, shown.down)) == shown.crossing


def test_one_flow_out_of_place_slows_whole_jobs_down():
    shown = c4_view.picture(1, "exact")
    assert sorted(shown.speed.values()) == [0.5] * 3 + [1.0] * 5
    assert "1 of 240 flows hashed: 3 of 8 jobs slowed down" in shown.title
    assert shown.here == {"here": 1} and c4_view.picture(0, "exact").here == {}


@pytest.mark.parametrize("plan", c4_view.PLANS)
def test_no_flow_of_a_picture_takes_a_dead_link(plan):
    alive = c4.dead_links(8, 0)
    for hashed in (0, 16):
        shown = c4_view.picture(hashed, plan, dead=8)
        for links in (shown.up, shown.down):
            assert not any(torch.tensor(links)[~alive].tolist())


def test_a_picture_within_the_leaves_has_one_point():
    shown = c4_view.picture(4, "exact", jobs=8, placement="packed")
    assert shown.crossing == 0 and shown.hashed == shown.mean == [1]
    assert set(shown.speed.values()) == {1.0}


def test_the_two_matrices_show_one_fault_on_two_kinds_of_paths():
    fault = Fault("link", 5, 20)
    shown = c4_view.matrices(fault)
    assert shown["planned"].found == fault != shown["hashed"].found
    assert 1.7 < shown["planned"].ratio[5][20] < 2.3
    assert shown["planned"].ratio[5][5] is None
    others = [x for row in shown["planned"].ratio for x in row if x]
    assert len(others) == RANKS * (RANKS - 1) and sorted(others)[-2] < 1.5


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (Fault("none"), "nothing is slow"),
        (Fault("sends", 3), "rank 3 sends slowly"),
        (Fault("receives", 0), "rank 0 receives slowly"),
        (Fault("link", 2, 9), "the link from 2 to 9 is slow"),
    ],
)
def test_a_verdict_is_said_in_words(fault, words):
    assert c4_view.words(fault) == words


def test_medians_of_rows_see_a_nic_through_the_hash_but_not_a_link():
    by_rows = c4_view.found_by_slowdown([1.2], trials=2)
    assert by_rows["planned, rows"] > by_rows["planned, cells"]
    one = window(Fault("sends", 7), 16, 2.0, 3, "hashed")[None]
    stats = delay_stats(one, leaves(), slow_parts.Z)
    assert slow_parts.verdicts(stats, leaves(), "rows") == [Fault("sends", 7)]
    assert slow_parts.verdicts(stats, leaves(), "cells") != [Fault("sends", 7)]
    one = window(Fault("link", 5, 20), 16, 2.0, 0, "hashed")[None]
    stats = delay_stats(one, leaves(), slow_parts.Z)
    assert slow_parts.verdicts(stats, leaves(), "rows") != [
        Fault("link", 5, 20)
    ]


def test_medians_of_rows_are_those_of_numpy():
    # by rows: rank 2's row has the largest median above the others
    delays, group = window(Fault("sends", 2), 4, 1.5, 8)[None], leaves()
    stats = delay_stats(delays, group, slow_parts.Z)
    ratio = slow_parts.ratios(stats.median, group)[0].numpy()
    with np.errstate(invalid="ignore"):
        near = np.equal.outer(group.numpy(), group.numpy())
        median = np.where(np.eye(RANKS), np.nan, stats.median[0].numpy())
        for of in (near, ~near):
            values = np.sort(median[of & ~np.isnan(median)])
            middle = values[(len(values) - 1) // 2]
            expected = median[of] / middle
            np.testing.assert_allclose(ratio[of], expected, rtol=1e-6)
    rows = np.nanmedian(ratio, 1)
    assert rows.argmax() == 2
    assert slow_parts.verdicts(stats, group, "rows") == [Fault("sends", 2)]


def test_every_claim_can_be_measured():
    small = {"trials": 1, "cases": [["packed", 4]], "dead": [2]}
    for claim in c4.CLAIMS:
        if claim.experiment:
            used = {k: v for k, v in small.items() if k in claim.parameters}
            effect = claim.experiment(90, **claim.parameters | used)
            assert math.isfinite(effect)


def test_seed_0_measures_what_the_record_says():
    expected = pytest.approx(in_the_ledger(c4), abs=1e-6)
    assert measured(c4) == expected


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: rings("loose", 8, 0), "placement='loose'"),
        (lambda: rings("packed", 3, 0), "3 jobs do not share 32 nodes"),
        (lambda: rings("packed", 32, 0), "use a divisor from 1 to 16"),
        (lambda: undisturbed("lucky", 0), "paths='lucky'"),
        (lambda: window(Fault("send", 3), 1, 2.0, 0), "kind='send'"),
        (
            lambda: slow_parts.verdicts(stats([0.0] * 3, [0.0] * 3), ONE, "x"),
            "rule='x' is unknown; use one of cells, rows",
        ),
        (
            lambda: c4.by_arrival(
                rings("scattered", 8, 0).flows, FABRIC,
                alive=torch.ones(2, 2, dtype=torch.bool),
            ),
            "8 leaves and 32 spines",
        ),
        (
            lambda: c4.by_arrival(
                rings("scattered", 8, 0).flows, FABRIC,
                alive=c4.dead_links(32, 0),
            ),
            "no living spine joins leaves",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_in_a_sentence(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def first_of_the_emptiest(up, down, dead=()):
    best = None
    for k in range(len(up)):
        full = max(up[k], down[k])
        if k not in dead and (best is None or full < best[0]):
            best = full, k
    return best[1]


RIGHT = {
    "exercise-1": math.factorial(8) / 8**8,
    "exercise-2": ("receives", 5),
    "exercise-3": first_of_the_emptiest,
}
WRONG = {
    "exercise-1": 1 / 8,
    "exercise-2": ("sends", 5),
    "exercise-3": lambda up, down, dead=(): up.index(min(up)),
}


@pytest.mark.parametrize("slug", RIGHT)
def test_the_checker_knows_right_from_wrong(slug):
    assert judge(c4.EXERCISES[slug], RIGHT[slug]) == "correct"
    assert judge(c4.EXERCISES[slug], WRONG[slug]) != "correct"
