"""Pipelines against a clock that ticks every nanosecond, and closed forms."""

from itertools import combinations

import numpy as np
import pytest
import torch
from on_device import on_device

from lab.kernels.nano_sim import nano_sim, nano_sim_triton

BOTH = pytest.mark.parametrize(
    "simulate", [nano_sim, on_device(nano_sim_triton)]
)
NEEDS = "cmncnccn"  # compute, memory or network, for each operation
FREE = [0, 1000, 0, 1000]  # no interference


def tensors(durations, shares, behind):
    return [torch.tensor(rows, dtype=torch.int32) for rows in (
        durations, shares, behind)]  # fmt: skip


def ticks(durations, shares, behind, layers):
    """Every nanosecond, everything that runs loses its rate of work.

    A nano-batch is a list of what it still has to do, the first entry being
    [layer, operation, work left]; `doing` says who uses what.
    """
    share_m, rate_m, share_n, rate_n = shares
    todo = [
        [[layer, k, 1000 * row[k]] for layer in range(layers)
         for k in range(8)]
        for row in durations
    ]  # fmt: skip
    doing, now, left = {}, 0, [None] * layers

    def assign():
        for need in "cmn":
            if need in doing:
                continue
            waiting = [
                (batch[0][0], batch[0][1] if behind else 0, n)
                for n, batch in enumerate(todo)
                if batch and n not in doing.values()
                and NEEDS[batch[0][1]] == need
            ]  # fmt: skip
            if waiting:
                doing[need] = min(waiting)[-1]

    def retire():
        """What has no work left makes room; true if there was any."""
        over = [need for need, n in doing.items() if todo[n][0][2] <= 0]
        for need in over:
            todo[doing.pop(need)].pop(0)
        for layer in range(layers):
            away = all(not b or b[0][0] > layer for b in todo)
            if away and left[layer] is None:
                left[layer] = now
        return bool(over)

    while any(todo):
        assign()
        while retire():
            assign()
        rates = {"c": 1000, "m": 1000, "n": 1000}
        if "c" in doing:
            rates["c"] -= share_m * ("m" in doing) + share_n * ("n" in doing)
            rates["m"], rates["n"] = rate_m, rate_n
        for need, n in doing.items():
            todo[n][0][2] -= rates[need]
        now += bool(doing)
    return left


@BOTH
@pytest.mark.parametrize("parts", [1, 2, 3, 4])
@pytest.mark.parametrize("seed", [0, 1])
def test_finish_times_are_those_of_a_clock(simulate, parts, seed):
    random = np.random.default_rng(seed)
    # few different durations, so that many ends coincide
    durations = random.integers(0, 4, (6, parts, 8)) * random.integers(
        1, 8, (6, 1, 1)
    )
    shares = np.stack([
        random.integers(0, 500, 6), random.integers(1, 1001, 6),
        random.integers(0, 500, 6), random.integers(1, 1001, 6),
    ], axis=1)  # fmt: skip
    shares[0], shares[1] = FREE, [400, 800, 200, 500]
    # a clock would tick for long at a thousandth
    shares[:, 1::2] = np.maximum(shares[:, 1::2], 50)
    behind = [0, 1, 0, 1, 0, 1]
    given = durations.tolist(), shares.tolist(), behind
    expected = [ticks(*row, 2) for row in zip(*given, strict=True)]
    assert simulate(*tensors(*given), 2).tolist() == expected


@BOTH
def test_one_nano_batch_takes_the_sum_of_its_operations(simulate):
    random = np.random.default_rng(3)
    durations = random.integers(0, 900_000, (5, 1, 8))
    shares = 5 * [[400, 800, 200, 500]]
    found = simulate(*tensors(durations.tolist(), shares, 5 * [0]), 3)
    one = durations.sum((1, 2))
    assert found.tolist() == np.outer(one, range(1, 4)).tolist()


@BOTH
def test_rates_change_when_an_operation_ends(simulate):
    # nano-batch 1 does KQV (400) while 0 is in attention (100), then AG (90)
    durations = [[[50, 100, 90, 0, 0, 0, 0, 0], [400, 0, 0, 0, 0, 0, 0, 0]]]
    shares = [[400, 800, 200, 500]]
    # attention until 50 + 100 / 0.8, AG until 175 + 90 / 0.5; the KQV has
    # done 125 * 0.6 + 180 * 0.8 = 219 by then, and runs alone until 536
    found = simulate(*tensors(durations, shares, [0]), 1)
    assert found.tolist() == [[536]]


@BOTH
def test_without_interference_no_bound_is_broken(simulate):
    random = np.random.default_rng(5)
    durations = random.integers(0, 1000, (20, 3, 8))
    given = durations.tolist(), 20 * [FREE], 10 * [0, 1]
    found = simulate(*tensors(*given), 2).numpy()[:, -1]
    for need in "cmn":
        mine = [k for k, other in enumerate(NEEDS) if other == need]
        assert (found >= 2 * durations[:, :, mine].sum((1, 2))).all()
    assert (found >= 2 * durations.sum(2).max(1)).all()
    assert (found <= 2 * durations.sum((1, 2))).all()


def best_order(durations):
    """The least makespan of two nano-batches in one layer, by trying all
    orders of the compute and of the network stream."""
    best = None
    pairs = [
        [(n, k) for k in range(8) if NEEDS[k] == need] for n in (0, 1)
        for need in "cn"
    ]  # fmt: skip
    computes, networks = (pairs[0], pairs[2]), (pairs[1], pairs[3])

    def merged(one, two):
        for places in combinations(range(len(one) + len(two)), len(one)):
            first, second = iter(one), iter(two)
            yield [
                next(first if i in places else second)
                for i in range(len(one) + len(two))
            ]

    for c in merged(*computes):
        for x in merged(*networks):
            for m in ([(0, 1), (1, 1)], [(1, 1), (0, 1)]):
                queues, ends = {"c": c, "n": x, "m": m}, {}
                free = dict.fromkeys("cmn", 0)
                at = dict.fromkeys("cmn", 0)
                moved = True
                while moved:
                    moved = False
                    for need, queue in queues.items():
                        if at[need] == len(queue):
                            continue
                        n, k = queue[at[need]]
                        if k and (n, k - 1) not in ends:
                            continue
                        start = max(free[need], ends.get((n, k - 1), 0))
                        ends[n, k] = free[need] = start + durations[n][k]
                        at[need] += 1
                        moved = True
                if len(ends) == 16:
                    last = max(ends.values())
                    best = last if best is None else min(best, last)
    return best


def test_the_better_order_is_near_the_best_of_all():
    random = np.random.default_rng(7)
    durations = random.integers(1, 60, (6, 2, 8)).tolist()
    gaps = []
    for row in durations:
        given = tensors(2 * [row], 2 * [FREE], [0, 1])
        found = nano_sim(*given, 1).min().item()
        least = best_order(row)
        assert found >= least
        gaps.append(found / least - 1)
    # the rule looks no step ahead, so it is not always the best
    assert np.mean(gaps) < 0.1 and max(gaps) < 0.25


GOOD = ([[[9] * 8]], [[400, 800, 200, 500]], [0])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({0: torch.zeros(1, 8, dtype=torch.int32)}, "durations have shape"),
        ({0: torch.zeros(1, 5, 8, dtype=torch.int32)}, "5 nano-batches"),
        ({0: torch.full((1, 1, 8), -1, dtype=torch.int32)}, "from -1 to -1"),
        ({0: torch.ones(1, 1, 8)}, "durations are torch.float32"),
        ({1: torch.tensor([[600, 800, 400, 500]]).int()}, "1000 thousandths"),
        ({1: torch.tensor([[400, 0, 200, 500]]).int()}, "P within 1 to 1000"),
        ({1: torch.tensor([[400, 1, 200]]).int()}, "shares are torch.int32"),
        ({2: torch.tensor([2]).int()}, "behind is neither 0 nor 1"),
        ({3: 0}, "layers=0 is not within 1"),
    ],
)
def test_wrong_numbers_are_refused_in_a_sentence(change, sentence):
    given = dict(enumerate([*tensors(*GOOD), 2])) | change
    with pytest.raises(ValueError, match=sentence):
        nano_sim(*given.values())
