"""ExpertFlow: its cache against a clock, its parts against brute force."""

import itertools
import math
from collections import OrderedDict

import numpy as np
import pytest
import torch
from seed_0 import in_the_ledger, measured

from lab import data
from lab.exercises import judge
from lab.serving import expertflow, path_predictor, token_scheduler
from lab.serving import expertflow_recorded as recorded
from lab.serving.demand_caches import demand_time, load_all, lru_by_layer
from lab.serving.expertflow import EXERCISES
from lab.serving.expertflow_view import KINDS, picture
from lab.serving.prefetch_cache import QUEUES, Costs, serve, visits
from lab.serving.routing_traces import LAYERS, untrained
from lab.tokens.char_lm import CONTEXT, measure, windows
from lab.tokens.expert_cache import simulate
from lab.tokens.text import split


def drawn(steps, batch, layers, experts, seed=0):
    random = np.random.default_rng(seed)
    shape = (steps, batch, layers)
    return torch.from_numpy(random.integers(experts, size=shape))


def mixed(truth, experts, right, seed=1):
    """Guesses of which about the share ``right`` is true."""
    random = np.random.default_rng(seed)
    other = drawn(*truth.shape, experts, seed)
    keep = torch.from_numpy(random.random(tuple(truth.shape)) < right)
    return torch.where(keep, truth, other)


def on_a_clock(needs, wishes, C, W, costs, queue, step=0):
    """The rules, tick by tick, with whole numbers; hits, loads and time."""
    transfer, run, attention = costs
    cache, arrives, unwanted = [], {}, set()  # the first: oldest first
    now = link = hits = loads = 0

    for v, needed in enumerate(needs):
        needed, gate, begun, done = sorted(needed), now + attention, set(), {}
        known, gpu, queued = False, gate, True
        while True:
            if now == gate:
                known = True
                hits += sum(x in cache and arrives[x] <= now for x in needed)
                for x in needed:
                    if x in cache:
                        cache.remove(x)
                        cache.append(x)
                unwanted |= {x for x in wishes[v] if x in cache}
                unwanted -= set(needed)
            first = v + known
            last = min(first + W, len(needs))
            if step:
                last = min(last, v - v % step + step)

            def due(x, first=first, last=last, unwanted=unwanted):
                for later in range(first, last):
                    if x in wishes[later]:
                        return later
                return 2e9 if x in unwanted else 1e9

            if known:
                ready = [
                    x
                    for x in needed
                    if x in cache and arrives[x] <= now and x not in begun
                ]
                if ready and gpu <= now:
                    x = min(ready, key=lambda x: (max(arrives[x], gate), x))
                    begun.add(x)
                    gpu = done[x] = now + run
                if len(done) == len(needed) and gpu <= now:
                    break
            absent = [x for x in needed if known and x not in arrives]
            free = [
                y
                for y in cache
                if not known or y not in needed or done.get(y, 1e9) <= now
            ]
            worst = max(free, key=due, default=None)
            if link <= now:
                chosen = None
                if not absent or (queue == "in turn" and queued):
                    wanted = [
                        (later, x)
                        for later in range(first, last)
                        for x in wishes[later]
                        if x not in cache
                    ]
                    for later, x in wanted[:1]:
                        if len(cache) < C:
                            chosen = x, None
                        elif worst is not None and due(worst) > later:
                            chosen = x, worst
                    # unless a slot will be free when another has run
                    waits = wanted and any(
                        y in needed and done.get(y, 1e9) > now for y in cache
                    )
                    if known and chosen is None and not waits:
                        queued = False
                if (
                    chosen is None
                    and absent
                    and not (queue == "in turn" and queued)
                ):
                    if len(cache) < C:
                        chosen = absent[0], None
                    elif free:
                        chosen = absent[0], worst
                if chosen:
                    x, leaves = chosen
                    if leaves is not None:
                        cache.remove(leaves)
                        unwanted.discard(leaves)
                        # those that have run need not come back
                        if leaves not in needed or not known:
                            del arrives[leaves]
                    unwanted.discard(x)
                    cache.append(x)
                    link = arrives[x] = now + transfer
                    loads += 1
            now += 1
            assert now < 1e5, "the clock never stops"
        for x in list(arrives):
            if x not in cache:
                del arrives[x]
        for x in reversed(needed):
            if x in cache:
                cache.remove(x)
                cache.append(x)
    return hits, loads, now


@pytest.mark.parametrize("queue", QUEUES)
@pytest.mark.parametrize("right", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(
    ("batch", "capacity", "window", "costs", "step"),
    [
        (3, 6, 3, Costs(10, 1, 10), 0),
        (1, 4, 5, Costs(7, 3, 2), 0),
        (4, 7, 2, Costs(3, 2, 5), 3),
        (6, 3, 4, Costs(4, 1, 6), 0),
        (2, 18, 6, Costs(25, 1, 10), 3),
    ],
)
def test_the_cache_keeps_the_rules_of_a_clock(
    batch, capacity, window, costs, step, right, queue
):
    truth = drawn(25, batch, 3, 6)
    needs = visits(truth, 6)
    wishes = visits(mixed(truth, 6, right), 6)
    run = serve(needs, wishes, capacity, window, costs, queue, step)
    found = run.hits, run.loads, run.time
    rules = needs, wishes, capacity, window, costs, queue, step
    assert found == on_a_clock(*rules)


@pytest.mark.parametrize("batch", [1, 4, 16])
@pytest.mark.parametrize("capacity", [18, 30, 48])
def test_without_a_prediction_it_is_one_lru_cache(batch, capacity):
    needs = visits(drawn(30, batch, 6, 16), 16)
    run = serve(needs, [[]] * len(needs), capacity, 6)
    cache, hits = OrderedDict(), 0
    for needed in needs:
        hits += sum(x in cache for x in needed)
        for x in sorted(needed, reverse=True):
            cache[x] = None
            cache.move_to_end(x)
        while len(cache) > capacity:
            cache.popitem(last=False)
    assert (run.hits, run.loads) == (hits, run.needs - hits)


def test_with_the_truth_and_a_fast_link_nothing_is_missed():
    needs = visits(drawn(30, 8, 6, 16), 16)
    run = serve(needs, needs, 24, 6, Costs(0.0))
    assert run.ratio == 1
    assert run.time == pytest.approx(len(needs) + 0.1 * run.needs)


@pytest.mark.parametrize("right", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("capacity", [12, 24, 48])
def test_no_prediction_loads_less_than_the_optimal_cache(right, capacity):
    truth = drawn(40, 4, 6, 16)
    wishes = visits(mixed(truth, 16, right), 16)
    run = serve(visits(truth, 16), wishes, capacity, 12)
    asked = [job.expert for job in run.jobs if job.kind == "expert"]
    belady = simulate(asked, capacity, "Belady")
    assert run.loads >= len(asked) - sum(belady.hits)


def test_the_jobs_are_those_of_one_link_and_one_gpu():
    truth = drawn(20, 4, 6, 16)
    needs, wishes = visits(truth, 16), visits(mixed(truth, 16, 0.6), 16)
    run = serve(needs, wishes, 24, 6)
    gpu = [j for j in run.jobs if j.kind in ("attention", "expert")]
    link = [j for j in run.jobs if j.kind not in ("attention", "expert")]
    for lane in (gpu, link):
        for one, two in itertools.pairwise(lane):
            assert one.end <= two.start + 1e-9
    assert len(link) == run.loads
    assert sum(j.kind == "expert" for j in gpu) == run.needs
    # an expert runs after its transfer and before another one of its own
    for job in (j for j in gpu if j.kind == "expert"):
        assert any(
            j.expert == job.expert and j.end <= job.start + 1e-9 for j in link
        )
    corrections = sum(j.kind == "on demand" for j in link)
    assert 0 < corrections <= run.needs - run.hits
    assert any(j.kind == "prefetch, unused" for j in link)


def test_visits_put_the_expert_of_more_tokens_first():
    paths = torch.tensor([[[2, 0], [1, 0], [2, 3]]])
    assert visits(paths, 4) == [[2, 1], [4, 7]]


def test_lru_in_each_layer_agrees_with_the_kernel_at_every_capacity():
    for batch in (1, 8, 16):
        needs = recorded.needed(0, batch, 40)
        found = recorded.lru_hits(0, batch, 40)
        for slots in range(1, 17):
            run = lru_by_layer(needs, LAYERS, slots)
            assert 100 * run.ratio == pytest.approx(found[slots - 1])


def test_with_room_for_all_both_caches_only_load_each_expert_once():
    needs = visits(drawn(30, 4, 6, 16), 16)
    lru = lru_by_layer(needs, 6, 16)
    run = serve(needs, [[]] * len(needs), 96, 6)
    assert (lru.hits, lru.loads) == (run.hits, run.loads)
    assert lru.time == pytest.approx(run.time)
    assert lru.loads == len(set(itertools.chain(*needs)))


def test_a_visit_on_demand_by_hand():
    costs = Costs(transfer=1.0, expert=0.25, attention=2.0)
    # two that are there run during the first transfer
    assert demand_time(2, 2, costs) == 2 + 2.25
    assert demand_time(8, 1, costs) == 2 + 2.25
    assert demand_time(3, 0, costs) == 2.75
    everything = load_all([[0, 1]], 16, costs)
    assert everything.time == 16 and everything.ratio == 1


def test_the_predictor_sees_no_later_character():
    net = path_predictor.PathPredictor(3, 5, seed=1).eval()
    ids = torch.arange(40)[None] % 90
    changed = ids.clone()
    changed[0, 25:] = 7
    one, two = net(ids), net(changed)
    torch.testing.assert_close(one[:, :25], two[:, :25])
    assert not torch.allclose(one[:, 25:], two[:, 25:])


def test_paths_are_the_experts_that_the_model_takes():
    model, ids = untrained(16, seed=3).eval(), split("code").test
    found = path_predictor.paths(model, ids[None, 100:150])[0]
    # the token at a character predicts the next one
    at = torch.arange(100 + CONTEXT, 151)
    chosen = measure(model, *windows(ids, at)).chosen
    assert torch.equal(found, torch.cat(chosen, dim=1).long())


def test_predictor_and_table_learn_an_easy_rule(monkeypatch):
    # the path of a character is its number, in two layers
    def rule(model, text):
        last = text[:, CONTEXT - 1 :]
        return torch.stack([last % 4, last // 4 % 4], dim=2)

    monkeypatch.setattr(path_predictor, "paths", rule)
    model, ids = untrained(4, seed=0), split("code").train
    model.layers = model.layers[:2]
    learned = path_predictor.learn(model, ids, seed=0, steps=40)
    text = split("code").test[None, : 11 + 2 * 64]
    guess = path_predictor.predict(learned.predictor, text)
    assert guess.shape == (1, 128, 2)
    right = (guess == rule(model, text)).double().mean()
    assert right > 0.8
    assert torch.equal(learned.table[text[:, 11:]], rule(model, text))


def best_split(paths):
    """The fewest experts that any two equal batches need, by trying all."""
    tokens = len(paths)
    return min(
        token_scheduler.distinct(
            paths, torch.tensor([int(i not in half) for i in range(tokens)])
        )
        for half in itertools.combinations(range(tokens), tokens // 2)
    )


def test_regrouping_is_balanced_and_not_far_from_the_best_of_all():
    ours = best = arrival = 0
    for seed in range(12):
        paths = drawn(1, 8, 4, 4, seed)[0]
        batch = token_scheduler.regroup(paths)
        assert batch.sum() == 4
        ours += token_scheduler.distinct(paths, batch)
        best += best_split(paths)
        arrival += token_scheduler.distinct(paths, torch.arange(8) // 4)
    assert best <= ours < arrival
    assert ours - best < (arrival - best) / 2


def by_the_rules(paths):
    """Balanced 2-means with loops, as the paper describes it."""
    paths = paths.tolist()
    tokens = range(len(paths))

    def alike(i, j):
        return sum(a == b for a, b in zip(paths[i], paths[j], strict=True))

    # the first of those that agree least
    pairs = itertools.product(tokens, tokens)
    centres = min(pairs, key=lambda pair: alike(*pair))
    halves = None
    for _ in range(20):
        lean = {i: alike(centres[0], i) - alike(centres[1], i) for i in tokens}
        order = sorted(tokens, key=lambda i: -lean[i])
        half = len(paths) // 2
        new = sorted(order[:half]), sorted(order[half:])
        if new == halves:
            break
        halves = new
        centres = [
            max(members, key=lambda i: sum(alike(i, j) for j in members))
            for members in map(tuple, halves)
        ]
    return [int(i in halves[1]) for i in tokens]


def test_regrouping_follows_the_rules_to_the_letter():
    for seed in range(30):
        paths = drawn(1, 10, 5, 4, seed)[0]
        batch = token_scheduler.regroup(paths)
        assert batch.tolist() == by_the_rules(paths)


def test_two_clear_groups_are_found():
    paths = torch.tensor([[0, 1, 2], [3, 3, 3]]).repeat(6, 1)
    batch = token_scheduler.regroup(paths)
    assert batch.tolist() in ([0, 1] * 6, [1, 0] * 6)
    assert token_scheduler.distinct(paths, batch) == best_split(paths) == 6


@pytest.mark.parametrize("seed", range(recorded.SEEDS))
def test_the_recorded_paths_are_whole(seed):
    kept = recorded.trace(seed)
    shape = (recorded.STEPS, recorded.TEXTS, LAYERS)
    for rows in (kept.truth, *kept.guesses.values()):
        assert rows.shape == shape
        assert rows.min() >= 0 and rows.max() < recorded.EXPERTS
    # a collapsed router would make every cache look good
    load = torch.bincount(kept.truth[..., 0].flatten(), minlength=16)
    assert load.max() < 0.2 * load.sum()
    learned = expertflow.accuracy(seed)
    assert learned > expertflow.accuracy(seed, "table") > 100 / 16
    before = kept.guesses["before"]
    assert torch.equal(before[1:], kept.truth[:-1])


@pytest.mark.parametrize(
    ("name", "knobs"),
    [
        ("learned", (24, 8, 1.0, "6 layers", "corrections first")),
        (30, (12, 4, 3.0, "this step", "in turn")),
        (100, (72, 16, 0.1, "3 layers", "corrections first")),
    ],
)
def test_the_recorded_grid_is_what_the_cache_does(name, knobs):
    capacity, batch, transfer, ahead, queue = knobs
    run = recorded.served(
        0, name, batch, capacity, transfer, ahead, queue, recorded.SHOWN
    )
    hits, loads, time = recorded.sums(name, *knobs)
    assert (hits, loads) == (run.hits, run.loads)
    assert time == pytest.approx(run.layer_time, rel=1e-6)


def test_mistakes_are_as_many_as_asked_for_and_stay():
    truth = recorded.trace(0).truth
    some, more = (recorded.mistaken(0, p) != truth for p in (20, 50))
    assert some.double().mean() == pytest.approx(0.2, abs=0.02)
    assert more.double().mean() == pytest.approx(0.5, abs=0.02)
    assert (more | ~some).all()
    assert torch.equal(recorded.mistaken(0, 0), truth)
    assert (recorded.mistaken(0, 100) != truth).all()


def test_the_picture_tells_where_lru_wins():
    right, wrong = picture(0), picture(100)
    lru = right.times["LRU"][0]
    curve = right.times["mistakes"]
    assert curve[0] < right.times["learned"][0] < lru < curve[-1]
    assert f"with LRU {lru:.2f}" in right.title
    assert right.jobs["GPU"][0][:2] == ("attention", 0.0)
    kinds = [job[0] for job in wrong.jobs["link"]]
    assert {*kinds, *(job[0] for job in wrong.jobs["GPU"])} <= {*KINDS}
    assert kinds.count("on demand") > len(kinds) / 3
    # misses in turn: more hits, and yet slower than LRU
    naive = picture(30, queue="in turn")
    assert naive.hit_ratio > naive.lru_hit_ratio == naive.hits["LRU"][2]
    assert naive.time == naive.times["mistakes"][3] > naive.lru_time


def test_a_second_recording_keeps_the_same_kinds_of_things(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(recorded, "DATA", tmp_path)
    monkeypatch.setattr(data, "DATA", tmp_path)
    monkeypatch.setattr(recorded, "MODEL_STEPS", 2)
    learn = path_predictor.learn
    monkeypatch.setattr(recorded, "learn", lambda *a: learn(*a[:3], steps=2))
    before = data.read_arrays
    recorded.record(77)
    kept = before("expertflow/seed-77.npz")
    assert kept["truth"].shape == (129, 16, 6)
    assert kept["learned"].shape == kept["table"].shape == (128, 16, 6)
    assert kept["truth"].dtype == np.int8


def test_break_even_lies_between_two_percentages():
    found = expertflow.break_even(0, steps=32)
    above = min(w for w in recorded.WRONG if w >= found)
    below = max(w for w in recorded.WRONG if w <= found)
    for percent, sign in ((below, -1), (above, 1)):
        one = expertflow.experiment(0, percent, steps=32)
        assert (one.time - one.lru_time) * sign >= 0
    # a fast link forgives all; 16 texts and a short look ahead gain nothing
    assert expertflow.break_even(0, steps=32, transfer=0.1) == 100.0
    near = {"batch": 16, "ahead": "3 layers"}
    assert expertflow.break_even(0, steps=32, **near) == 0.0


def test_every_claim_runs():
    for claim in expertflow.CLAIMS:
        if claim.experiment:
            assert math.isfinite(claim.experiment(0, **claim.reduced))


def test_seed_0_measures_what_the_record_says():
    expected = pytest.approx(in_the_ledger(expertflow), rel=1e-6)
    assert measured(expertflow) == expected


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: serve([[0]], [[0]], 0, 1), "capacity=0"),
        (lambda: serve([[0]], [[0]], 1, 0), "window=0"),
        (lambda: serve([[0]], [], 1, 1), "0 visits are predicted"),
        (lambda: serve([[0]], [[0]], 1, 1, queue="x"), "queue='x'"),
        (lambda: lru_by_layer([[0]], 1, 0), "slots=0"),
        (lambda: recorded.lru(0, capacity=20), "capacity=20"),
        (lambda: recorded.mistaken(0, 120), "wrong=120"),
        (
            lambda: token_scheduler.regroup(torch.zeros(3, 2)),
            "3 tokens make no two batches",
        ),
        (
            lambda: path_predictor.predict(None, torch.zeros(1, 70)),
            "a text of 70 characters",
        ),
    ],
)
def test_wrong_arguments_are_refused_in_a_sentence(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()


def _by_dictionary(needs, slots):
    cache, hits = OrderedDict(), 0
    for needed in needs:
        hits += sum(e in cache for e in needed)
        for e in sorted(needed, reverse=True):
            cache[e] = True
            cache.move_to_end(e)
        while len(cache) > slots:
            cache.popitem(last=False)
    return hits


RIGHT = {"exercise-1": 0.25, "exercise-2": 3.6, "exercise-3": _by_dictionary}
WRONG = {
    "exercise-1": 0.0417,
    "exercise-2": 2.0,
    "exercise-3": lambda needs, slots: _by_dictionary(needs, slots + 1),
}


@pytest.mark.parametrize("slug", RIGHT)
def test_the_checker_knows_right_from_wrong(slug):
    assert judge(EXERCISES[slug], RIGHT[slug]) == "correct"
    assert judge(EXERCISES[slug], WRONG[slug]) != "correct"
