"""Fair rates against the textbook's loop in exact fractions, and an LP."""

from fractions import Fraction

import numpy as np
import pytest
from scipy.optimize import linprog

from lab.networks.max_min import drain, fair_rates


def sample(seed, G=30, M=12, H=3):
    random = np.random.default_rng(seed)
    links = np.array([random.permutation(M)[:H] for _ in range(G)]).T
    # few different values, so that several links tie
    return links, random.integers(1, 5, M), random.integers(1, 4, G)


def by_the_textbook(links, capacity, weight):
    """Raise all rates together; fix those on the first full link; again."""
    G = links.shape[1]
    rate, spare = [None] * G, [Fraction(int(c)) for c in capacity]
    while None in rate:
        users = {
            link: [
                f for f in range(G) if rate[f] is None and link in links[:, f]
            ]
            for link in range(len(spare))
        }
        level, full = min(
            (spare[link] / sum(int(weight[f]) for f in some), link)
            for link, some in users.items()
            if some
        )
        for f in users[full]:
            rate[f] = level * int(weight[f])
            for link in links[:, f]:
                spare[link] -= rate[f]
    return [float(r) for r in rate]


@pytest.mark.parametrize("seed", range(12))
def test_rates_are_those_of_the_textbook(seed):
    links, capacity, weight = sample(seed)
    rates = fair_rates(links, capacity, weight)
    assert rates.tolist() == pytest.approx(
        by_the_textbook(links, capacity, weight), rel=1e-9
    )


@pytest.mark.parametrize("seed", range(3))
def test_no_rates_lift_the_poorest_higher(seed):
    links, capacity, _ = sample(seed)
    G, M = links.shape[1], len(capacity)
    # maximise t under: rate of each >= t, sum over each link <= capacity
    uses = np.zeros((M, G + 1))
    np.add.at(uses, (links.ravel(), np.tile(np.arange(G), len(links))), 1)
    above = np.hstack([-np.eye(G), np.ones((G, 1))])
    best = linprog(
        np.r_[np.zeros(G), -1],
        A_ub=np.vstack([uses, above]),
        b_ub=np.r_[capacity, np.zeros(G)],
    )
    rates = fair_rates(links, capacity, np.ones(G))
    assert rates.min() == pytest.approx(best.x[-1], rel=1e-9)


def test_one_link_is_shared_and_its_rest_goes_to_the_others():
    # a and b share link 0; b and c share the wider link 1
    links = np.array([[0, 0, 1], [2, 1, 2]])
    rates = fair_rates(links, np.array([1.0, 4.0, np.inf]), np.ones(3))
    assert rates.tolist() == [0.5, 0.5, 3.5]


def test_the_rest_is_sent_faster_when_one_has_ended():
    links, size = np.zeros((1, 2), dtype=int), np.array([1.0, 2.0])
    fluid = drain(links, np.ones(1), size, np.ones(2))
    assert fluid.time.tolist() == pytest.approx([0, 2, 3])
    assert fluid.delivered.tolist() == pytest.approx([0, 2, 3])
    assert fluid.end.tolist() == pytest.approx([2, 3])


@pytest.mark.parametrize("seed", range(6))
def test_rates_by_size_end_at_the_fullest_link(seed):
    links, capacity, size = sample(seed)
    load = np.bincount(links.ravel(), np.tile(size, len(links)), len(capacity))
    fluid = drain(links, capacity, size, size)
    assert fluid.time[-1] == pytest.approx((load / capacity).max(), rel=1e-9)
    assert fluid.delivered[-1] == pytest.approx(size.sum(), rel=1e-9)


@pytest.mark.parametrize("seed", range(6))
def test_a_pause_costs_no_data_and_little_time(seed):
    links, capacity, _ = sample(seed)
    size = np.random.default_rng(seed).random(links.shape[1])
    exact = drain(links, capacity, size, np.ones(len(size)))
    pause = exact.time[-1] / 50
    coarse = drain(links, capacity, size, np.ones(len(size)), pause)
    assert coarse.delivered[-1] == pytest.approx(size.sum(), rel=1e-9)
    assert len(coarse.time) < len(exact.time)
    # what one pause wastes the next rates mostly win back
    assert coarse.time[-1] == pytest.approx(exact.time[-1], rel=0.1)


def test_nothing_to_send_takes_no_time():
    fluid = drain(np.zeros((1, 2), dtype=int), np.ones(1), np.zeros(2), None)
    assert fluid.time.tolist() == [0]
