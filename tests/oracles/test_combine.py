"""Combine against three loops."""

import pytest
import torch
from on_device import on_device

from lab.kernels import combine_backward as backward
from lab.kernels.combine import combine, combine_triton
from lab.kernels.combine_backward import (
    combine_backward,
    combine_backward_triton,
)


def by_loops(expert_rows, rows, weights):
    T, H = len(rows), expert_rows.shape[1]
    y = torch.zeros(T, H, dtype=torch.float64)
    for t in range(T):
        for row, weight in zip(rows[t], weights[t], strict=True):
            for h in range(H):
                if row >= 0:
                    y[t, h] += weight * expert_rows[row, h]
    return y


def by_loops_backward(expert_rows, rows, weights, grad):
    grad_rows = torch.zeros_like(expert_rows)
    grad_weights = torch.zeros_like(weights)
    for t, s in (rows >= 0).nonzero().tolist():
        grad_rows[rows[t, s]] = weights[t, s] * grad[t]
        grad_weights[t, s] = expert_rows[rows[t, s]] @ grad[t]
    return grad_rows, grad_weights


@pytest.fixture
def case():
    generator = torch.Generator().manual_seed(0)
    T, S, H, R = 11, 3, 5, 40
    rows = torch.randperm(R, generator=generator)[: T * S].view(T, S)
    rows[torch.rand(T, S, generator=generator) < 0.3] = -1
    rows[4] = -1  # a token without experts
    expert_rows = torch.randn(R, H, generator=generator).double()
    weights = torch.rand(T, S, generator=generator).double()
    return expert_rows, rows.int(), weights


def narrow(*tensors):
    return [x.float() if x.is_floating_point() else x for x in tensors]


def test_combine_equals_three_loops(case):
    expected = by_loops(*case)
    torch.testing.assert_close(combine(*case), expected)
    found = on_device(combine_triton)(*narrow(*case))
    torch.testing.assert_close(found, expected.float(), rtol=0, atol=1e-6)
    assert not found[4].any()


def test_combine_backward_equals_loops(case):
    grad = torch.randn(11, 5, generator=torch.Generator().manual_seed(1))
    expected = by_loops_backward(*case, grad.double())
    found = combine_backward(*case, grad.double())
    kernel = on_device(combine_backward_triton)(*narrow(*case, grad))
    for left, other, right in zip(found, kernel, expected, strict=True):
        torch.testing.assert_close(left, right)
        torch.testing.assert_close(other, right.float(), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "shapes, sentence",
    [
        (((4,), (2, 2), (2, 2)), r"shape \(4,\); combine needs"),
        (((4, 3), (2, 2), (2, 1)), r"weights \(2, 1\) must both be"),
    ],
)
def test_wrong_shapes_are_refused(shapes, sentence):
    a, b, c = shapes
    with pytest.raises(ValueError, match=sentence):
        combine(torch.zeros(a), torch.zeros(b).int(), torch.zeros(c))


def test_rows_of_nobody_get_zeros_where_there_are_many(case, monkeypatch):
    monkeypatch.setattr(backward, "FEW", 0)
    grad = torch.randn(11, 5, generator=torch.Generator().manual_seed(1))
    expected, _ = by_loops_backward(*case, grad.double())
    launcher = on_device(combine_backward_triton)
    found, _ = launcher(*narrow(*case, grad))
    torch.testing.assert_close(found, expected.float(), rtol=0, atol=1e-6)
    assert (found == 0).all(dim=1).any()
