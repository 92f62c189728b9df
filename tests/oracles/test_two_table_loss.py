"""The loss of two tables against scipy, and its gradients against counts."""

import numpy as np
import pytest
import scipy.special
import torch
from on_device import on_device

from lab.kernels.two_table_loss import two_table_loss, two_table_loss_triton
from lab.kernels.two_table_loss_backward import (
    two_table_loss_backward,
    two_table_loss_backward_triton,
)

BOTH = [two_table_loss, on_device(two_table_loss_triton)]
BACKWARD = [two_table_loss_backward, on_device(two_table_loss_backward_triton)]


def sample(M=7, N=5, V=13, B=90, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    tables = [
        torch.randn(rows, V, generator=generator, dtype=torch.float64)
        for rows in (M, N)
    ]
    numbers = [
        torch.randint(high, (B,), generator=generator).int()
        for high in (M, N, V)
    ]
    return [2 * table.to(dtype) for table in tables], numbers


def by_scipy(tables, numbers):
    one, two = (table.double().numpy() for table in tables)
    triples = zip(*(x.tolist() for x in numbers), strict=True)
    return np.array(
        [-scipy.special.log_softmax(one[i] + two[j])[k] for i, j, k in triples]
    )


def from_counts(tables, numbers):
    """The paper's sums of N_ij u_ij(k) - N_ijk, over j and over i."""
    one, two = (table.double().numpy() for table in tables)
    counts = np.zeros((len(one), len(two), one.shape[1]))
    np.add.at(counts, tuple(x.numpy() for x in numbers), 1)
    u = scipy.special.softmax(one[:, None] + two, axis=2)
    change = counts.sum(2, keepdims=True) * u - counts
    return change.sum(1), change.sum(0)


@pytest.mark.parametrize("function", BOTH)
@pytest.mark.parametrize("V", [1, 13, 60, 1025])
def test_each_loss_agrees_with_scipy(function, V):
    tables, numbers = sample(V=V)
    # sums of V terms in fp32
    np.testing.assert_allclose(
        function(*tables, *numbers), by_scipy(tables, numbers),
        rtol=1e-5, atol=1e-6,
    )  # fmt: skip


@pytest.mark.parametrize("function", BACKWARD)
@pytest.mark.parametrize("V", [2, 13, 300])
def test_gradients_are_the_papers_counts(function, V):
    tables, numbers = sample(V=V)
    one, two = tables
    scores = one[numbers[0].long()] + two[numbers[1].long()]
    pull = torch.ones(len(scores))
    found = function(*tables, *numbers, scores.logsumexp(1), pull)
    for left, right in zip(found, from_counts(tables, numbers), strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-5, atol=1e-5)
        # what one node gains, the others lose
        assert left.double().sum(1).abs().max() < 1e-4


def test_autograd_gives_the_same_counts():
    tables, numbers = sample(dtype=torch.float64)
    leaves = [table.requires_grad_() for table in tables]
    total = two_table_loss(*leaves, *numbers).sum()
    right = from_counts([table.detach() for table in tables], numbers)
    for found, expected in zip(
        torch.autograd.grad(total, leaves), right, strict=True
    ):
        np.testing.assert_allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize("function", BOTH)
@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("outside", [-1, -7, 13, 2**31 - 1])
def test_a_number_outside_is_padding(function, place, outside):
    tables, numbers = sample()
    right = function(*tables, *numbers)
    numbers[place][::3] = outside
    found = function(*tables, *numbers)
    assert not found[::3].any()
    assert torch.equal(found[1::3], right[1::3])


@pytest.mark.parametrize("function", BACKWARD)
@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("outside", [-1, 13])
def test_padding_sends_no_gradient(function, place, outside):
    tables, numbers = sample()
    kept = torch.arange(90) % 3 > 0
    log_sum, pull = torch.ones(90), torch.ones(90)
    right = function(
        *tables, *(x[kept] for x in numbers), log_sum[kept], pull[kept]
    )
    numbers[place][~kept] = outside
    found = function(*tables, *numbers, log_sum, pull)
    for left, other in zip(found, right, strict=True):
        torch.testing.assert_close(left, other, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("function", BOTH)
def test_scores_far_apart_do_not_overflow(function):
    one = torch.tensor([[0.0, 3e4, -3e4]])
    numbers = [torch.tensor([0, 0, 0]).int()] * 2
    found = function(one, one, *numbers, torch.tensor([0, 1, 2]).int())
    assert found.tolist() == pytest.approx([6e4, 0.0, 12e4])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"by_target": torch.zeros(5, 4)}, "cannot be added"),
        ({"by_target": torch.zeros(5, 13).double()}, "cannot be added"),
        ({"by_current": torch.zeros(0, 13)}, "predict nothing"),
        ({"target": torch.zeros(90).long()}, "target .* is torch.int64"),
        ({"following": torch.zeros(9).int()}, r"following \(9,\)"),
        ({"by_current": torch.full((7, 13), float("nan"))}, "91 NaN"),
    ],
)
def test_wrong_arguments_are_refused_in_a_sentence(change, sentence):
    (one, two), (i, j, k) = sample()
    given = dict(
        by_current=one, by_target=two, current=i, target=j, following=k
    )
    with pytest.raises(ValueError, match=sentence):
        two_table_loss(**given | change)
