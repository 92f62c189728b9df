"""SN40L: caches against literal ones, times against a clock and simpy."""

import itertools
import math
from collections import OrderedDict

import pytest
import torch
from seed_0 import in_the_ledger, measured

from lab.exercises import judge
from lab.kernels.stack_distance import stack_distance
from lab.serving import sn40l
from lab.serving.expert_requests import PROMPTS, requests, shares
from lab.serving.fusion_levels import A100_RIDGE, LEVELS, intensity
from lab.serving.model_switching import (
    A100,
    FIRST,
    H100,
    SN40L,
    WAITING,
    WEIGHTS,
    Mean,
    Node,
    depths,
    formula,
    gain,
    hits,
    serve,
)
from lab.serving.sn40l import EXERCISES
from lab.serving.sn40l_view import IN_DDR, MOVED, WAS_THERE, picture


def by_dictionary(stream, slots):
    """LRU with a dictionary that knows the order of use."""
    cache, found = OrderedDict(), []
    for expert in stream:
        found.append(expert in cache)
        cache[expert] = None
        cache.move_to_end(expert)
        if len(cache) > slots:
            cache.popitem(last=False)
    return found


@pytest.mark.parametrize("traffic", ["0.0", "1.0"])
@pytest.mark.parametrize("slots", [1, 7, 39, 60])
def test_hits_are_those_of_a_literal_cache(traffic, slots):
    stream = requests(traffic, 60, 3, 700)
    assert hits(stream, slots, "LRU") == by_dictionary(stream, slots)


def test_depths_are_the_stack_distances_of_chapter_11():
    stream = requests("0.6", 40, 1, 300)
    needs = torch.nn.functional.one_hot(torch.tensor(stream), 40).bool()
    hist = stack_distance(needs[None, :, None])[0, 0].tolist()
    found = depths(stream)
    assert [found.count(d) for d in range(40)] == hist[:-1]
    assert found.count(FIRST) == hist[-1] == len(set(stream))


def fewest_misses(stream, slots):
    """The least of all caches, by trying every eviction."""
    held = {frozenset(): 0}
    for expert in stream:
        following = {}
        for cache, missed in held.items():
            options = [cache]
            if expert not in cache:
                missed += 1
                options = [cache | {expert}]
                if len(cache) == slots:
                    options = [cache - {e} | {expert} for e in cache]
            for one in options:
                following[one] = min(missed, following.get(one, missed))
        held = following
    return min(held.values())


@pytest.mark.parametrize("seed", range(6))
def test_beladys_rule_misses_as_rarely_as_any_cache_can(seed):
    stream = requests("0.4", 6, seed, 30)
    found = hits(stream, 3, "Belady")
    assert found.count(False) == fewest_misses(stream, 3)


@pytest.mark.parametrize("traffic", ["0.0", "0.6", "1.0", "1.4", PROMPTS])
def test_the_formula_is_close_to_the_simulation(traffic):
    stream, p = requests(traffic, 150, 0), shares(traffic, 150, 0).tolist()
    for slots, expected in zip((39, 46), formula(p, [39, 46]), strict=True):
        rest = hits(stream, slots, "LRU")[1000:]
        assert rest.count(False) / len(rest) == pytest.approx(
            expected, abs=0.03
        )


def test_prompts_that_stand_for_a_model_do_not_come_first():
    # as many distinct requests as models would be none but misses
    stream = requests(PROMPTS, 890, 0, 1500)
    [expected] = formula(shares(PROMPTS, 890, 0).tolist(), [39])
    rest = hits(stream, 39, "LRU")[500:]
    assert rest.count(False) / len(rest) == pytest.approx(expected, abs=0.015)


def test_the_formula_by_hand():
    # with equal shares a cache of S experts misses 1 - S / K
    assert formula([0.1] * 10, [2, 5, 10, 12]) == pytest.approx(
        [0.8, 0.5, 0, 0], abs=1e-3
    )


def on_a_clock(stream, node, execute, ahead, slots):
    """One link, one chip and a queue of known requests, tick by tick."""
    switch, found = round(node.switch), by_dictionary(stream, slots)
    n = len(stream)
    brought, started, ended = [None] * n, [None] * n, [None] * n
    link_free = chip_free = now = loading = running = 0
    while running < n:
        # the link takes the next request as soon as it may know it
        while loading < n and link_free <= now:
            may = (
                loading < running + ahead
                if ahead
                else (loading == running and chip_free <= now)
            )
            if not may:
                break
            brought[loading] = now if found[loading] else now + switch
            link_free = brought[loading]
            loading += 1
        ready = running < loading and brought[running] <= now
        if ready and chip_free <= now:
            started[running], ended[running] = now, now + execute[running]
            chip_free = ended[running]
            running += 1
            continue
        now += 1
    return brought, started, ended


@pytest.mark.parametrize("software", ["LRU", "prefetch"])
@pytest.mark.parametrize("link", [900e9, 200e9])
def test_times_are_those_of_a_clock(software, link):
    node = Node("test", 8 * 64 * 2**30, link)
    node = node._replace(link=1000 * WEIGHTS / round(node.switch))
    stream = requests("0.4", 100, 5, 150)
    execute = [20 + 7 * (i % 5) for i in range(len(stream))]
    served = serve(stream, node, execute, software)
    ahead = WAITING if software == "prefetch" else 0
    brought, started, ended = on_a_clock(
        stream, node, execute, ahead, node.slots
    )
    come = {i: round(r.come) for i, r in enumerate(served) if not r.hit}
    assert come == {i: brought[i] for i in come} and len(come) > 60
    assert [round(one.start) for one in served] == started
    assert [round(one.end) for one in served] == ended


def test_what_is_prefetched_is_not_driven_out_before_it_runs():
    stream = requests("0.0", 150, 2, 400)
    served = serve(stream, H100, 60.0, "prefetch")
    # at any load, the experts that wait to run are among those used last
    for i, one in enumerate(served):
        if not one.hit:
            waiting = {r.expert for r in served[:i] if r.end > one.load}
            assert len(waiting) < H100.slots


def test_without_misses_or_with_nothing_but_misses_time_is_arithmetic():
    few = list(range(30)) * 10
    served = serve(few, H100, 60.0)
    assert Mean.of(served, 30) == (pytest.approx(60.0), 0.0)
    many = list(range(60)) * 5
    for node in (SN40L, H100, A100):
        mean = Mean.of(serve(many, node, 60.0), 60)
        assert mean == (pytest.approx(60 + node.switch), 1.0)


def test_the_papers_numbers_are_arithmetic():
    assert (SN40L.slots, H100.slots, A100.slots) == (39, 46, 46)
    assert H100.switch / SN40L.switch == pytest.approx(15.6, abs=0.05)
    assert A100.switch / SN40L.switch == pytest.approx(31.25, abs=0.01)
    # table V: both DGX, 20 and 200 tokens; the last row is "expert speedup"
    for node, few, many, runs in (
        (H100, 3.7, 2.7, [1.5, 2.3]),
        (A100, 6.6, 4.2, [2.0, 3.2]),
    ):
        assert gain(node) == pytest.approx(few, abs=0.03)
        assert gain(node, 200) == pytest.approx(many, abs=0.08)
        slower = [node.execute(n) / SN40L.execute(n) for n in (20, 200)]
        assert slower == pytest.approx(runs)


def test_requests_have_the_shares_that_they_are_drawn_from():
    for traffic in ("0.0", "1.0", PROMPTS):
        p = shares(traffic, 20)
        assert p.sum() == pytest.approx(1.0)
        assert (p.diff() <= 1e-12).all()
        stream = torch.tensor(requests(traffic, 20))
        found = torch.bincount(stream, minlength=20) / len(stream)
        assert (found - p).abs().max() < 0.025
    assert shares("1.0", 3).tolist() == pytest.approx([6 / 11, 3 / 11, 2 / 11])
    assert shares("0.0", 4).tolist() == [0.25] * 4


def test_an_expert_of_a_prompt_is_the_most_similar_one(monkeypatch):
    from lab.serving import expert_requests as module

    class Pool:
        # five prompts on a circle, and their copies a little further on
        embeddings = torch.tensor(
            [[math.cos(a), math.sin(a)]
             for a in (0.0, 1.2, 2.4, 3.6, 4.8, 0.1, 1.3, 2.5, 3.7, 4.9)]
        )  # fmt: skip

    monkeypatch.setattr(module, "pool", Pool)
    module._by_likeness.cache_clear()
    for seed in range(3):
        which = module._by_likeness(10, seed)
        # all are drawn, so each is its own expert
        assert sorted(which.tolist()) == list(range(10))
        drawn = torch.randperm(
            10, generator=torch.Generator().manual_seed(seed)
        )
        assert drawn[which].tolist() == list(range(10))
    module._by_likeness.cache_clear()


def test_fusing_halves_the_bytes_twice():
    four, three, whole = (intensity(64, level) for level in LEVELS)
    assert (three / four, whole / three) == (2.0, 2.0)
    # by hand: 16 n + 6 FLOPs a number, which is read and written, 4 bytes
    assert whole == (16 * 64 + 6) / 8
    crossing = {
        level: next(
            n for n in range(1, 999) if intensity(n, level) > A100_RIDGE
        )
        for level in LEVELS
    }
    assert list(crossing.values()) == [300, 150, 75]


def test_the_picture_shows_what_moves():
    even, skewed = picture("0.0"), picture("1.4")
    assert 2.5 < even.times[even.other.name] / even.times["SN40L"] < 2.8
    assert 1.2 < skewed.times[skewed.other.name] / skewed.times["SN40L"] < 1.5
    # every column of the map has its request, and no more models than slots
    for seen in (even, skewed, picture("0.6", software="Belady")):
        for column in zip(*seen.map, strict=True):
            asked = [c for c in column if c in (WAS_THERE, MOVED)]
            assert len(asked) == 1
            here = sum(c != IN_DDR for c in column)
            assert here <= SN40L.slots
    assert sum(row.count(MOVED) for row in even.map) > 2 * sum(
        row.count(MOVED) for row in skewed.map
    )


def test_the_map_is_a_cache_that_keeps_its_rules():
    seen = picture("0.6", experts=75)
    for before, after in itertools.pairwise(zip(*seen.map, strict=True)):
        for was, now in zip(before, after, strict=True):
            # what is there now was there or has just been brought
            assert now in (IN_DDR, MOVED) or was != IN_DDR
            # what was asked for last is never brought right away
            assert not (was in (WAS_THERE, MOVED) and now == MOVED)


@pytest.mark.parametrize("experts", [10, 40, 75, 890])
@pytest.mark.parametrize("software", ["LRU", "prefetch", "Belady"])
def test_the_picture_holds_at_the_ends_of_its_knobs(experts, software):
    for execute, link in ((5, 8), (500, 4000)):
        seen = picture("0.2", execute, link, experts, software)
        assert all(math.isfinite(t) and t > 0 for t in seen.times.values())
        assert len(seen.jobs["SN40L chips"]) <= 140
        for line in seen.curves.values():
            assert len(line) == len(seen.slots)
            assert all(0 <= y <= 100 for y in line)
        assert all(job[2] > job[1] >= 0 for job in seen.jobs["SN40L chips"])
        if experts <= 10:
            assert seen.missing == (0.0, 0.0)


def test_every_claim_runs():
    for claim in sn40l.CLAIMS:
        if claim.experiment:
            assert math.isfinite(claim.experiment(0))


def test_seed_0_measures_what_the_record_says():
    expected = pytest.approx(in_the_ledger(sn40l), rel=1e-6)
    assert measured(sn40l) == expected


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: requests("2.0", 10), "traffic='2.0'"),
        (lambda: requests("0.0", 0), "experts=0"),
        (lambda: shares("0.0", 1001), "experts=1001"),
        (lambda: serve([0], SN40L, 60.0, "FIFO"), "software='FIFO'"),
        (lambda: serve([0, 1], SN40L, [60.0]), "1 times of execution"),
        (lambda: serve([0], SN40L._replace(hbm=2e11), 60.0), "13 slots"),
        (lambda: gain(H100, 0), "tokens=0"),
        (lambda: intensity(8, "two"), "level='two'"),
        (lambda: intensity(0, "all fused"), "n=0"),
    ],
)
def test_wrong_arguments_are_refused_in_a_sentence(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()


def _by_dictionary(stream, slots):
    return by_dictionary(stream, slots).count(False)


RIGHT = {
    "exercise-1": 183.7,
    "exercise-2": (890, 20),
    "exercise-3": _by_dictionary,
}
WRONG = {
    "exercise-1": 197.1,
    "exercise-2": (890, 19),
    "exercise-3": lambda stream, slots: _by_dictionary(stream, slots + 1),
}


@pytest.mark.parametrize("slug", RIGHT)
def test_the_checker_knows_right_from_wrong(slug):
    assert judge(EXERCISES[slug], RIGHT[slug]) == "correct"
    assert judge(EXERCISES[slug], WRONG[slug]) != "correct"
