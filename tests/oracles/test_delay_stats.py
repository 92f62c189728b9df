"""Delay statistics against Python's own median and plain loops."""

import math
from statistics import median_low

import numpy as np
import pytest
import torch
from on_device import on_device

from lab.kernels.delay_stats import delay_stats, delay_stats_triton

KERNEL = on_device(delay_stats_triton)
OPERATIONS = [delay_stats, KERNEL]
NAN, INF = math.nan, math.inf


def sample(B, T, N, seed=0, gaps=0.2):
    """Delays with gaps, rank 1 slow to send, rank 2 slow to receive."""
    random = np.random.default_rng(seed)
    delays = np.exp(0.2 * random.standard_normal((B, T, N, N)))
    delays[:, :, 1] *= 2.5
    delays[:, :, :, N - 1] *= 1.7
    delays[random.random(delays.shape) < gaps] = NAN
    group = random.integers(3, size=N)
    delays[:, :, group[:, None] != group] *= 1.5
    return torch.from_numpy(delays).float(), torch.from_numpy(group).int()


def low(values):
    """The lower median of what is there, None of nothing."""
    values = [x for x in values if x is not None and not math.isnan(x)]
    return median_low(values) if values else None


def by_loops(delays, group, z):
    """One window: medians, hot pairs and shares, pair by pair."""
    T, N = len(delays), len(group)
    pairs = [(i, j) for i in range(N) for j in range(N) if i != j]
    median = {
        (i, j): low([delays[t][i][j] for t in range(T)]) for i, j in pairs
    }
    usual = {}
    for near in (False, True):
        of = [p for p in pairs if (group[p[0]] == group[p[1]]) == near]
        one = low([median[p] for p in of])
        usual |= dict.fromkeys(of, one)
    ratio = {p: m / usual[p] for p, m in median.items() if m is not None}
    sigma = 1.4826 * (low([abs(r - 1) for r in ratio.values()]) or 0.0)
    hot = {p: r > 1 + z * sigma for p, r in ratio.items()}

    def share(one):
        return sum(one) / len(one) if one else 0.0

    sends = [share([h for (i, _), h in hot.items() if i == n])
             for n in range(N)]  # fmt: skip
    receives = [share([h for (_, j), h in hot.items() if j == n])
                for n in range(N)]  # fmt: skip
    return median, {p for p, h in hot.items() if h}, sends, receives


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("z", [0.0, 1.0, 3.0])
@pytest.mark.parametrize("T, N", [(1, 3), (4, 9), (7, 14), (16, 33)])
def test_agrees_with_a_loop_over_the_pairs(operation, T, N, z):
    delays, group = sample(2, T, N)
    found = operation(delays, group, z)
    for b in range(2):
        median, hot, sends, receives = by_loops(
            delays[b].double().tolist(), group.tolist(), z
        )
        expected = torch.zeros(N, N)
        for (i, j), value in median.items():
            expected[i, j] = value or 0.0
        assert torch.equal(found.median[b], expected)
        assert {tuple(p) for p in found.hot[b].nonzero().tolist()} == hot
        assert found.sends[b].tolist() == pytest.approx(sends)
        assert found.receives[b].tolist() == pytest.approx(receives)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_of_an_even_number_of_samples_the_lower_one_counts(operation):
    delays = torch.tensor([4.0, 1.0, 3.0, 2.0]).view(1, 4, 1, 1)
    group = torch.zeros(3, dtype=torch.int32)
    median = operation(delays.expand(1, 4, 3, 3), group, 6.0).median
    assert median[0].tolist() == [[0, 2, 2], [2, 0, 2], [2, 2, 0]]


@pytest.mark.parametrize("operation", OPERATIONS)
def test_the_diagonal_is_not_looked_at(operation):
    delays, group = sample(1, 5, 8)
    other = delays.clone()
    other.diagonal(dim1=2, dim2=3).fill_(99.0)
    one, two = (operation(x, group, 1.0) for x in (delays, other))
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_turned_matrix_swaps_senders_and_receivers(operation):
    delays, group = sample(2, 6, 11)
    one = operation(delays, group, 1.0)
    turned = operation(delays.transpose(2, 3), group, 1.0)
    assert torch.equal(one.sends, turned.receives)
    assert torch.equal(one.hot, turned.hot.transpose(1, 2))


@pytest.mark.parametrize("operation", OPERATIONS)
def test_messages_that_never_came_are_hot_unless_most_of_a_class_is(operation):
    group = torch.zeros(5, dtype=torch.int32)
    delays = torch.ones(1, 3, 5, 5)
    # two of three samples of one pair, and one of three of another
    delays[0, :2, 0, 1] = INF
    delays[0, :1, 2, 3] = INF
    found = operation(delays, group, 6.0)
    assert found.median[0, 0, 1] == INF and found.median[0, 2, 3] == 1
    assert found.hot.nonzero().tolist() == [[0, 0, 1]]
    assert not operation(torch.full_like(delays, INF), group, 6.0).hot.any()


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_far_pair_is_not_hot_because_it_is_far(operation):
    group = torch.arange(8, dtype=torch.int32) // 4
    far = group[:, None] != group
    delays = torch.ones(1, 2, 8, 8).masked_fill(far, 5.0)
    delays[0, :, 0, 1] = 4.9
    assert operation(delays, group, 6.0).hot.nonzero().tolist() == [[0, 0, 1]]


DELAYS, GROUP = torch.ones(1, 2, 3, 3), torch.zeros(3, dtype=torch.int32)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"delays": DELAYS[0]}, ValueError, r"shape \(2, 3, 3\)"),
        ({"delays": DELAYS[..., :2]}, ValueError, "ranks, ranks"),
        ({"delays": DELAYS.int()}, TypeError, "torch.int32"),
        ({"delays": DELAYS[:, :0]}, ValueError, "0 samples; use 1 to 64"),
        ({"delays": torch.ones(1, 65, 3, 3)}, ValueError, "65 samples"),
        ({"delays": DELAYS[..., :1, :1]}, ValueError, "1 ranks send nothing"),
        ({"group": GROUP[:2]}, ValueError, "each of the 3 ranks"),
        ({"group": GROUP.long()}, ValueError, "torch.int64"),
        ({"z": -1.0}, ValueError, "z=-1.0"),
        ({"z": NAN}, ValueError, "z=nan"),
        ({"delays": -DELAYS}, ValueError, "18 entries of 0 or less"),
    ],
)
def test_wrong_input_is_refused_in_a_sentence(changes, error, words):
    given = {"delays": DELAYS, "group": GROUP, "z": 6.0} | changes
    with pytest.raises(error, match=words):
        delay_stats(**given)
