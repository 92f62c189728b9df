"""Selections against a loop, and against fractions that cannot round."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from on_device import on_device

from lab.kernels import runtime
from lab.kernels.route_select import (
    HIGHEST,
    route_select,
    route_select_reference,
    route_select_triton,
)

KERNELS = {"reference": route_select, "kernel": on_device(route_select_triton)}
DEVICE = runtime.device()


def states(N, D, K, seed=0):
    random = np.random.default_rng(seed)
    shapes = ((N, D), (K, D), (K,), (K,))
    h, w, b, c = (random.standard_normal(shape) for shape in shapes)
    return h, w, b, abs(c)


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize(("N", "D", "K"), [(40, 32, 11), (67, 21, 3)])
def test_choices_are_those_of_a_loop(name, N, D, K):
    h, w, b, c = states(N, D, K)
    tensors = (torch.from_numpy(x).float() for x in (h, w, b, c))
    found = KERNELS[name](*tensors)
    for n in range(N):
        value = [
            sum(h[n, d] * w[k, d] for d in range(D)) + b[k] + c[k]
            for k in range(K)
        ]
        first, second = sorted(value)[:2]
        # within rounding either may win
        if second - first > 1e-4:
            assert found.choice[n] == value.index(first)
        assert found.value[n].item() == pytest.approx(first, abs=1e-5)
        margin = found.margin[n].item()
        assert margin == pytest.approx(second - first, abs=1e-5)


@pytest.mark.parametrize("name", KERNELS)
def test_ties_go_to_the_lowest_index_and_have_no_margin(name):
    hidden = torch.ones(3, 2)
    head = torch.tensor([[1.0, 1], [0, 0], [2, -2], [0, 0]])
    bias = torch.tensor([0.0, 0.5, 0.0, 0.0])
    penalty = torch.tensor([0.0, 0.0, 0.5, 0.5])
    # the values are 2, 0.5, 0.5, 0.5
    found = KERNELS[name](hidden, head, bias, penalty)
    assert found.choice.tolist() == [1, 1, 1]
    assert found.value.tolist() == [0.5] * 3
    assert found.margin.tolist() == [0.0] * 3


@pytest.mark.parametrize("name", KERNELS)
def test_two_models_change_places_exactly_at_the_break_point(name):
    # losses 2, 2.125, 2.5 and sizes 1, 0.5, 0: the points are 1/4 and 3/4
    losses = [Fraction(2), Fraction(17, 8), Fraction(5, 2)]
    sizes = [Fraction(1), Fraction(1, 2), Fraction(0)]
    hidden, head = torch.ones(1, 1), torch.zeros(3, 1)
    bias = torch.tensor([float(x) for x in losses])
    for eighths in range(9):
        wish = Fraction(eighths, 8)
        value = [
            loss + wish * size
            for loss, size in zip(losses, sizes, strict=True)
        ]
        penalty = torch.tensor([float(wish * size) for size in sizes])
        found = KERNELS[name](hidden, head, bias, penalty)
        assert found.choice.item() == value.index(min(value))
        first, second = sorted(value)[:2]
        assert found.margin.item() == float(second - first)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bits_lose_nothing_but_their_inputs_digits(dtype):
    h, w, b, c = (
        torch.from_numpy(x).to(dtype) for x in states(70, 130, 20, seed=1)
    )
    value = h.double() @ w.double().T + b.double() + c.double()
    lowest = value.topk(2, dim=1, largest=False)
    found = KERNELS["kernel"](h, w, b, c)
    clear = lowest.values.diff(dim=1)[:, 0] > 1e-3
    assert clear.sum() > 60
    assert torch.equal(found.choice[clear], lowest.indices[clear, 0].int())
    torch.testing.assert_close(
        found.value.double(), lowest.values[:, 0], atol=1e-4, rtol=0
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_value_that_is_no_number_loses_to_all_others(dtype):
    nan, inf = math.nan, math.inf
    hidden = torch.tensor(
        [[1, 0], [nan, 0], [inf, 1], [0, 1]], dtype=dtype, device=DEVICE
    )
    head = torch.tensor(
        [[1, 2], [-1, -1], [nan, 0]], dtype=dtype, device=DEVICE
    )
    zero = torch.zeros(3, dtype=dtype, device=DEVICE)
    found = route_select_triton(hidden, head, zero, zero)
    # of three values that are no numbers, the first
    assert found.choice.tolist() == [1, 0, 0, 1]
    assert found.value.tolist() == [-1, HIGHEST, HIGHEST, -1]
    assert found.margin.tolist() == [2, 0, 0, 3]


H, W, B = torch.rand(4, 3), torch.rand(5, 3), torch.rand(5)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((H[0], W, B, B), r"shape \(3,\) predict nothing"),
        ((H[:, :0], W[:, :0], B, B), "predict nothing"),
        ((H, W[:, :2], B, B), "does not fit hidden states of width 3"),
        ((H, W[:1], B[:1], B[:1]), "K=1 models leave no choice"),
        ((H, W[:0], B[:0], B[:0]), "K=0 models"),
        ((H, torch.rand(129, 3), B, B), "K=129 models"),
        ((H, W, B[:4], B), "a bias of shape"),
        ((H, W, B, B[:4]), "a penalty of shape"),
        ((H, W, B, B[:, None]), "a penalty of shape"),
        ((H / 0, W, B, B), "hidden has a NaN or infinite value"),
        ((H, W, B, B + math.nan), "penalty has a NaN or infinite value"),
    ],
)
def test_wrong_arguments_are_refused_in_a_sentence(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        route_select(*arguments)


def test_one_dtype_is_asked_for():
    with pytest.raises(TypeError, match="the same floating type"):
        route_select(H.half(), W, B, B)
    with pytest.raises(TypeError, match="torch.int64"):
        route_select(H.long(), W.long(), B, B)


def test_a_wide_penalty_makes_a_wide_result():
    found = route_select(H, W, B, B.double())
    assert found.value.dtype == found.margin.dtype == torch.float64
    wide = route_select_reference(H.double(), W.double(), B.double(), B)
    torch.testing.assert_close(found.value, wide.value)
