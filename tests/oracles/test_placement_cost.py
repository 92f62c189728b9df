"""Placement cost and transition counts against loops and NumPy."""

import numpy as np
import pytest
import torch
from on_device import on_device

from lab.kernels import placement_cost as module
from lab.kernels import runtime
from lab.kernels.placement_cost import (
    placement_cost,
    placement_cost_reference,
    placement_cost_triton,
)
from lab.kernels.transition_counts import (
    transition_counts,
    transition_counts_triton,
)


def trace(tokens, layers, experts, seed=0):
    random = np.random.default_rng(seed)
    return random.integers(experts, size=(tokens, layers)).astype(np.int8)


def by_token(routes, placed):
    """How often a token changes its GPU, followed step by step."""
    apart = 0
    for route in routes:
        at = [placed[layer][expert] for layer, expert in enumerate(route)]
        apart += sum(a != b for a, b in zip(at, at[1:], strict=False))
    return apart


@pytest.mark.parametrize(
    "count", [transition_counts, on_device(transition_counts_triton)]
)
@pytest.mark.parametrize(("tokens", "experts"), [(1, 1), (63, 5), (1000, 16)])
def test_counts_are_those_of_numpy(count, tokens, experts):
    routes = trace(tokens, 4, experts)
    expected = np.zeros((3, experts, experts), np.int32)
    for layer in range(3):
        pair = (layer, routes[:, layer], routes[:, layer + 1])
        np.add.at(expected, pair, 1)
    found = count(torch.from_numpy(routes), experts)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    "cost", [placement_cost, on_device(placement_cost_triton)]
)
@pytest.mark.parametrize(
    ("layers", "experts", "gpus"), [(2, 4, 2), (6, 8, 4), (3, 9, 3)]
)
def test_cost_follows_every_token(cost, layers, experts, gpus):
    routes = trace(101, layers, experts)
    random = np.random.default_rng(1)
    row = np.arange(experts) * gpus // experts
    placed = np.array(
        [[random.permutation(row) for _ in range(layers)] for _ in range(7)]
    ).astype(np.int8)
    counts = transition_counts(torch.from_numpy(routes), experts).float()
    found = cost(torch.from_numpy(placed), counts)
    assert found.tolist() == [by_token(routes, one) for one in placed]


@pytest.mark.parametrize("experts", [10, 16, 64])
def test_large_tiles_cost_the_same(experts, monkeypatch):
    case = module._inputs(0, "cpu", torch.float32, 150, 3, experts, 2)
    case["placements"] -= 1  # numbers may be negative
    monkeypatch.setattr(module, "MANY", 150)
    found = on_device(placement_cost_triton)(**case)
    assert found.equal(placement_cost_reference(**case))


def test_placements_may_begin_within_a_word():
    case = module._inputs(0, "cpu", torch.float32, 20, 3, 8, 4)
    case = {name: value.to(runtime.device()) for name, value in case.items()}
    shifted = torch.zeros(20 * 3 * 8 + 1, dtype=torch.int8)
    shifted = shifted.to(runtime.device())[1:].view(20, 3, 8)
    shifted.copy_(case["placements"] - 1)
    found = placement_cost_triton(shifted, case["counts"])
    assert found.equal(placement_cost_reference(**case))


P, W = torch.zeros(2, 3, 4, dtype=torch.int8), torch.zeros(2, 4, 4)
R = torch.zeros(5, 3, dtype=torch.int8)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: placement_cost(P.int(), W), "torch.int8"),
        (lambda: placement_cost(P[0], W), r"of shape \(3, 4\)"),
        (lambda: placement_cost(P, W[:1]), "do not fit"),
        (lambda: placement_cost(P, W.int()), "floating point"),
        (lambda: placement_cost(P, W + float("nan")), "NaN or infinity"),
        (lambda: placement_cost(P[:, :, :0], W[:, :0, :0]), "E=0"),
        (lambda: transition_counts(R[:, :1], 4), "no two layers"),
        (lambda: transition_counts(R.int(), 4), "torch.int32"),
        (lambda: transition_counts(R, 0), "experts=0"),
        (lambda: transition_counts(R, 200), "experts=200"),
    ],
)
def test_wrong_arguments_are_refused_in_a_sentence(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()


@pytest.mark.parametrize("K", [0, 3, 4096, 4099])
def test_so_many_placements_are_drawn(K):
    case = module._inputs(0, "cpu", torch.float32, K, 2, 4, 2)
    assert case["placements"].shape == (K, 2, 4)
