"""Chains against a clock that ticks, closed forms, and published bits."""

import math
from itertools import combinations

import pytest
import torch
from on_device import on_device

from lab.kernels._philox import uniform
from lab.kernels.chain_mc import SWAP, chain_mc, chain_mc_triton

BOTH = pytest.mark.parametrize(
    "chains", [chain_mc, on_device(chain_mc_triton)]
)
LONG = 1 << 28
WORD = (1 << 32) - 1


def philox(key, c0, c1, c2, c3=0):
    """The first word of Philox-4x32-10, with Python's whole numbers."""
    k0, k1 = key & WORD, key >> 32
    for _ in range(10):
        one, two = 0xCD9E8D57 * c2, 0xD2511F53 * c0
        c0, c1 = (one >> 32) ^ c1 ^ k0, one & WORD
        c2, c3 = (two >> 32) ^ c3 ^ k1, two & WORD
        k0, k1 = (k0 + 0x9E3779B9) & WORD, (k1 + 0xBB67AE85) & WORD
    return c0


def test_the_bits_are_the_published_ones():
    # known answers of Random123
    assert philox(0, 0, 0, 0) == 0x6627E8D5
    assert philox(-1 & (1 << 64) - 1, WORD, WORD, WORD, WORD) == 0x408F276D
    key = 0x299F31D0_A4093822
    pi = 0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344
    assert philox(key, *pi) == 0xD16CFE09
    for seed in (0, 7, 0x299F31D0_A4093822):
        for place in ((0, 0, 0), (5, 65536, 3), (2**31 - 1, 31, 9)):
            found = uniform(seed, *(torch.tensor(c) for c in place))
            assert found == (philox(seed, *place) + 0.5) / 2**32


def by_the_clock(p, step, b, cutoff, limit, swap, seed):
    """One trial, moment by moment: time, drops and waiting.

    A hop that tries counts its tries down; one that has a pair counts up its
    age. At each moment, pairs rise, then all that are up are swapped, then
    what is too old is dropped.
    """
    hops = [h for h, s in enumerate(step) if s]
    turn, fails, drops = dict.fromkeys(hops, 0), 0, 0
    left, age = {}, {}

    def begin(h):
        u = (philox(seed, b, h, turn[h]) + 0.5) / 2**32
        turn[h] += 1
        tries = 1
        # the first try that lands below p, told by one number
        while p[h] < 1 and u < (1 - p[h]) ** tries:
            tries += 1
        left[h] = tries * step[h]
        age.pop(h, None)

    for h in hops:
        begin(h)
    for now in range(1, limit + 1):
        for h in hops:
            if h in age:
                age[h] += 1
            else:
                left[h] -= 1
                if not left[h]:
                    age[h] = 0
        if len(age) == len(hops):
            u = (philox(seed, b, SWAP, fails) + 0.5) / 2**32
            if u < swap ** (len(hops) - 1):
                return now, drops, sum(age.values())
            fails += 1
            for h in hops:
                begin(h)
            continue
        for h in list(age):
            if age[h] == cutoff:
                drops += 1
                begin(h)
    return -1, None, 0


@BOTH
@pytest.mark.parametrize(
    ("cutoff", "swap", "limit"),
    [(400, 1.0, 400), (9, 1.0, 400), (0, 1.0, 60), (12, 0.6, 400),
     (5, 0.8, 40)],
)  # fmt: skip
def test_skipping_ahead_ends_where_the_clock_does(chains, cutoff, swap, limit):
    p = torch.tensor([[0.5, 0.25, 0.5], [0.75, 1.0, 0.25]])
    step = torch.tensor([[1, 2, 1], [3, 0, 2]], dtype=torch.int32)
    found = chains(p, step, 12, cutoff, limit, swap, 42)
    for c in range(2):
        for b in range(12):
            time, drops, waited = by_the_clock(
                p[c].tolist(), step[c].tolist(), b, cutoff, limit, swap, 42
            )
            assert found.time[c, b] == time
            assert found.waited[c, b] == waited
            if time > 0:
                assert found.drops[c, b] == drops


def test_the_mean_is_that_of_the_slowest_of_geometric_times():
    p = [0.3, 0.2, 0.1, 0.25]
    step = torch.ones(1, 4, dtype=torch.int32)
    found = chain_mc(torch.tensor([p]), step, 40_000, LONG, LONG, 1.0, 3)
    # inclusion and exclusion
    exact = sum(
        (-1) ** (k + 1) / (1 - math.prod(1 - x for x in some))
        for k in range(1, 5)
        for some in combinations(p, k)
    )
    time = found.time[0].double()
    assert abs(time.mean() - exact) < 4 * time.std() / 200
    assert not found.drops.any()


def test_two_hops_with_a_cutoff_take_as_long_as_the_renewal_says():
    # the other hop has w slots: E = E[min] + P(one alone) (rest), by hand
    p, w = 0.1, 6
    step = torch.ones(1, 2, dtype=torch.int32)
    pair = torch.full((1, 2), p)
    found = chain_mc(pair, step, 40_000, w, LONG, 1.0, 8)
    some = 1 - (1 - p) ** 2
    both = p * p / some
    late = (1 - p) ** w
    waits = sum(k * p * (1 - p) ** (k - 1) for k in range(1, w + 1))
    exact = (1 / some + (1 - both) * (waits + w * late)) / (
        both + (1 - both) * (1 - late)
    )
    time = found.time[0].double()
    assert abs(time.mean() - exact) < 4 * time.std() / 200


def test_swaps_that_fail_multiply_the_time():
    p, step = torch.ones(1, 3), torch.ones(1, 3, dtype=torch.int32)
    found = chain_mc(p, step, 40_000, LONG, LONG, 0.5, 5)
    time = found.time[0].double()
    assert abs(time.mean() - 4) < 4 * time.std() / 200


@BOTH
def test_all_chains_of_a_call_have_the_same_luck(chains):
    p = torch.tensor([[0.2, 0.3], [0.2, 0.3], [0.4, 0.3]])
    step = torch.ones(3, 2, dtype=torch.int32)
    one, same, better = chains(p, step, 100, 1000, 1000, 1.0, 9).time
    assert torch.equal(one, same)
    assert (better <= one).all() and (better < one).any()
    # a trial does not depend on how many there are
    fewer = chains(p, step, 7, 1000, 1000, 1.0, 9).time
    assert torch.equal(fewer[0], one[:7])
    assert not torch.equal(
        chains(p, step, 100, 1000, 1000, 1.0, 8).time[0], one
    )


def test_half_a_hop_more_tries_take_twice_the_time():
    p = torch.tensor([[0.2, 0.3]])
    step = torch.tensor([[2, 3]], dtype=torch.int32)
    one, two = (
        chain_mc(p, k * step, 50, k * 30, k * 900, 1.0, 1) for k in (1, 2)
    )
    assert torch.equal(2 * one.time, two.time)
    assert torch.equal(2 * one.waited, two.waited)
    assert torch.equal(one.drops, two.drops)


def test_on_a_gpu_a_hop_without_a_chance_never_has_a_pair():
    # the kernel itself, which checks nothing
    kernel = on_device(chain_mc_triton)
    for p in (0.0, -1.0, 1.5, math.nan, math.inf):
        given = torch.tensor([[0.5, p]]), torch.ones(1, 2, dtype=torch.int32)
        assert (kernel(*given, 3, 9, 9, 1.0, 0).time == -1).all()


P, STEP = torch.full((2, 3), 0.5), torch.ones(2, 3, dtype=torch.int32)
WRONG = [
    ({"p": P[0]}, ValueError, r"p has shape \(3,\)"),
    ({"p": P[:, :0], "step": STEP[:, :0]}, ValueError, "1 to 32 hops"),
    ({"p": torch.ones(1, 33)}, ValueError, "1 to 32 hops"),
    ({"p": STEP}, TypeError, "torch.int32"),
    ({"step": STEP.long()}, ValueError, "torch.int64"),
    ({"step": STEP[:1]}, ValueError, r"shape \(1, 3\)"),
    ({"step": -STEP}, ValueError, "from -1 to -1"),
    ({"step": 200 * STEP}, ValueError, "the limit, 100"),
    ({"step": 0 * STEP}, ValueError, "a chain has no hop"),
    ({"p": 0 * P}, ValueError, r"not within \(0, 1\]"),
    ({"p": 3 * P}, ValueError, r"not within \(0, 1\]"),
    ({"p": math.nan * P}, ValueError, r"not within \(0, 1\]"),
    ({"trials": -1}, ValueError, "trials=-1"),
    ({"cutoff": 101}, ValueError, "cutoff=101"),
    ({"limit": 0}, ValueError, "limit=0"),
    ({"swap": 0.0}, ValueError, "swap=0.0"),
    ({"swap": math.nan}, ValueError, "swap=nan"),
    ({"seed": -1}, ValueError, "seed=-1"),
]


@pytest.mark.parametrize(("changes", "error", "words"), WRONG)
def test_wrong_input_is_refused_in_a_sentence(changes, error, words):
    given = {
        "p": P, "step": STEP, "trials": 4, "cutoff": 9, "limit": 100,
        "swap": 1.0, "seed": 0,
    }  # fmt: skip
    with pytest.raises(error, match=words):
        chain_mc(**given | changes)
