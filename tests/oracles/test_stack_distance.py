"""Stack distances against literal LRU caches, one for every capacity."""

from collections import OrderedDict

import numpy as np
import pytest
import torch
from on_device import on_device

from lab.kernels.stack_distance import stack_distance, stack_distance_triton
from lab.tokens.expert_cache import simulate

BOTH = pytest.mark.parametrize(
    "distances", [stack_distance, on_device(stack_distance_triton)]
)


def needed(groups, steps, layers, experts, share, seed=0):
    random = np.random.default_rng(seed)
    return random.random((groups, steps, layers, experts)) < share


def lru_hits(rows, capacity):
    """Hits of one cache that is asked for a set of experts in every step."""
    cache, hits = OrderedDict(), 0
    for row in rows:
        wanted = np.flatnonzero(row)
        hits += sum(int(e) in cache for e in wanted)
        # used last, so most recent: the lowest index
        for e in wanted[::-1]:
            cache[int(e)] = None
            cache.move_to_end(int(e))
        while len(cache) > capacity:
            cache.popitem(last=False)
    return hits


@BOTH
@pytest.mark.parametrize(
    ("experts", "share"), [(1, 0.5), (7, 0.3), (16, 0.4), (33, 0.1)]
)
def test_hits_are_those_of_a_cache_of_every_size(distances, experts, share):
    needs = needed(2, 45, 3, experts, share)
    found = distances(torch.from_numpy(needs)).numpy()
    assert (found.sum(2) == needs.sum((1, 3))).all()
    for g in range(2):
        for layer in range(3):
            rows = needs[g, :, layer]
            hits = [lru_hits(rows, c) for c in range(1, experts + 1)]
            assert found[g, layer].cumsum()[:-1].tolist() == hits


@BOTH
def test_one_need_a_step_is_the_cache_of_chapter_08(distances):
    trace = np.random.default_rng(1).integers(9, size=300)
    needs = torch.from_numpy(np.eye(9, dtype=bool)[trace])
    found = distances(needs[None, :, None])[0, 0]
    for capacity in range(1, 10):
        lru = simulate(trace.tolist(), capacity, "LRU")
        assert int(found[:capacity].sum()) == sum(lru.hits)


@BOTH
def test_experts_in_turn_are_always_the_oldest(distances):
    # 0 1 2 3 0 1 2 3: a cache of three never hits, one of four always does
    needs = torch.eye(4, dtype=torch.bool).repeat(5, 1)[None, :, None]
    assert distances(needs)[0, 0].tolist() == [0, 0, 0, 16, 4]


@BOTH
def test_of_one_step_the_lower_index_is_the_more_recent(distances):
    needs = torch.tensor([[1, 1, 1], [0, 0, 1], [0, 1, 0]]).bool()
    # 2 stood behind 0 and 1; then 1 stood behind 2 and 0
    assert distances(needs[None, :, None])[0, 0].tolist() == [0, 0, 2, 3]


def test_needs_that_are_not_contiguous_count_the_same():
    needs = torch.from_numpy(needed(2, 20, 3, 8, 0.3))
    turned = needs.transpose(0, 2).contiguous().transpose(0, 2)
    found = on_device(stack_distance_triton)(turned)
    assert torch.equal(found, stack_distance(needs))


N = torch.zeros(1, 2, 3, 4, dtype=torch.bool)


@pytest.mark.parametrize(
    ("needs", "sentence"),
    [
        (N[0], r"of shape \(2, 3, 4\)"),
        (N[..., :0], "1 to 128 experts"),
        (N[..., :1].expand(1, 2, 3, 200), "1 to 128 experts"),
        (N.int(), "use .bool"),
        (N[:, :1].expand(1, 1 << 29, 3, 4), "S=536870912 steps"),
    ],
)
def test_wrong_needs_are_refused_in_a_sentence(needs, sentence):
    with pytest.raises(ValueError, match=sentence):
        stack_distance(needs)
