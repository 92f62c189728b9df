"""The symmetric KL divergence against the authors' loss and autograd."""

import numpy as np
import pytest
import scipy.special
import torch
import torch.nn.functional as F
from on_device import on_device

from lab.kernels.sym_kl import sym_kl, sym_kl_triton

BOTH = [sym_kl, on_device(sym_kl_triton)]


def sample(T=40, V=97, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.randn(2, T, V, generator=generator, dtype=torch.float64)
    mask = torch.rand(T, generator=generator) < 0.7
    return (2 * a).to(dtype), (2 * b).to(dtype), mask


def authors(a, b, pad):
    """`symmetric_KL_loss`: rows of padding leave, half of the rest's sum."""
    p, q = (F.softmax(x.double(), -1)[~pad] for x in (a, b))
    return ((p - q) * (p.log() - q.log())).sum() / 2


@pytest.mark.parametrize("function", BOTH)
def test_the_sum_is_the_authors_loss(function):
    a, b, mask = sample()
    found = function(a, b, mask).double().sum()
    assert found.item() == pytest.approx(authors(a, b, ~mask).item(), rel=1e-5)


@pytest.mark.parametrize("function", BOTH)
@pytest.mark.parametrize("V", [1, 2, 97, 1025])
def test_each_row_agrees_with_scipy(function, V):
    a, b, mask = sample(7, V, seed=1)
    p, q = (scipy.special.softmax(x.double().numpy(), axis=1) for x in (a, b))
    right = (scipy.special.rel_entr(p, q) + scipy.special.rel_entr(q, p)) / 2
    right = np.where(mask, right.sum(axis=1), 0.0)
    # sums of V terms in fp32
    np.testing.assert_allclose(
        function(a, b, mask), right, rtol=2e-5, atol=1e-6
    )


def test_gradients_are_those_of_the_two_divergences():
    a, b, mask = sample(dtype=torch.float64)
    a, b = a.requires_grad_(), b.requires_grad_()
    found = torch.autograd.grad(sym_kl(a, b, mask).sum(), (a, b))
    log_p, log_q = a.log_softmax(1), b.log_softmax(1)
    one = F.kl_div(log_q, log_p, reduction="none", log_target=True)
    two = F.kl_div(log_p, log_q, reduction="none", log_target=True)
    total = ((one + two).sum(1) * mask).sum() / 2
    for left, right in zip(
        found, torch.autograd.grad(total, (a, b)), strict=True
    ):
        torch.testing.assert_close(left, right, atol=1e-12, rtol=0)


@pytest.mark.parametrize("function", BOTH)
def test_equal_passes_and_shifted_passes_differ_by_nothing(function):
    a, _, mask = sample()
    assert function(a, a, mask).abs().max() == 0
    whole = a.round()
    # whole numbers, so that the shift itself loses no digit
    assert function(whole, whole + 1000, mask).abs().max() < 1e-6


@pytest.mark.parametrize("function", BOTH)
def test_logits_far_apart_need_no_logarithm_of_zero(function):
    a = torch.tensor([[0.0, 300.0]])
    found = function(a, -a, torch.tensor([True]))
    # p - q is 1 and a - b is 600 for the second symbol
    assert found.item() == pytest.approx(300.0)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (dict(b=torch.zeros(3, 4)), "are not two predictions"),
        (dict(b=torch.zeros(3, 5).double()), "are not two predictions"),
        (dict(mask=torch.ones(2, dtype=torch.bool)), "does not fit"),
        (dict(mask=torch.ones(3)), "does not fit"),
        (dict(a=torch.full((3, 5), float("nan"))), "15 NaN or infinite"),
        (dict(b=torch.full((3, 5), float("inf"))), "b has 15"),
        (dict(a=torch.zeros(3, 0), b=torch.zeros(3, 0)), "V=0"),
    ],
)
def test_wrong_arguments_are_refused_in_a_sentence(change, sentence):
    given = dict(
        a=torch.zeros(3, 5),
        b=torch.zeros(3, 5),
        mask=torch.ones(3, dtype=torch.bool),
    )
    with pytest.raises(ValueError, match=sentence):
        sym_kl(**(given | change))
