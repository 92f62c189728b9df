"""Cache policies against exhaustive search and a closed form."""

import random

import pytest

from lab.tokens.expert_cache import simulate


def best_hits(trace, capacity):
    """The most hits that any choice of victims reaches, by trying all."""
    states = {frozenset(): 0}
    for expert in trace:
        after = {}
        for loaded, hits in states.items():
            if expert in loaded:
                options = [(loaded, hits + 1)]
            elif len(loaded) < capacity:
                options = [(loaded | {expert}, hits)]
            else:
                options = [(loaded - {v} | {expert}, hits) for v in loaded]
            for state, value in options:
                after[state] = max(value, after.get(state, 0))
        states = after
    return max(states.values())


@pytest.mark.parametrize("capacity", [1, 2, 3, 4])
def test_belady_is_the_optimum_of_200_short_traces(capacity):
    draw = random.Random(capacity)
    for _ in range(200):
        trace = [draw.randrange(5) for _ in range(14)]
        belady = sum(simulate(trace, capacity, "Belady").hits)
        assert belady == best_hits(trace, capacity), trace


@pytest.mark.parametrize("policy", ["random", "LRU"])
@pytest.mark.parametrize("capacity", [1, 3, 6])
def test_without_structure_the_hit_ratio_is_c_over_n(policy, capacity):
    draw = random.Random(capacity)
    trace = [draw.randrange(7) for _ in range(20_000)]
    ratio = simulate(trace, capacity, policy).ratio
    # five standard deviations of 20 000 coins
    assert abs(ratio - capacity / 7) < 5 * (0.25 / 20_000) ** 0.5


def test_a_long_window_is_belady_and_none_is_lru():
    draw = random.Random(0)
    trace = [draw.randrange(7) for _ in range(400)]
    for window, policy in ((400, "Belady"), (0, "LRU")):
        seen = simulate(trace, 3, "window", window)
        assert seen == simulate(trace, 3, policy)


def test_belady_sees_past_any_window():
    draw = random.Random(1)
    trace = [draw.randrange(7) for _ in range(400)]
    seen = simulate(trace, 3, "Belady", window=2)
    assert seen == simulate(trace, 3, "Belady")


def test_the_least_often_used_leaves_and_of_equals_the_least_recent():
    # 2 drives out 1, asked for once, though 0 was asked for longer ago
    run = simulate([0, 0, 1, 2, 0, 3], 2, "LFU")
    assert run.hits == [False, True, False, False, True, False]
    assert run.content == [(0,), (0,), (0, 1), (0, 2), (0, 2), (0, 3)]
    assert simulate([0, 1, 2], 2, "LFU").content[-1] == (1, 2)
