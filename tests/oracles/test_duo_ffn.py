"""The layer of two networks against a loop over tokens and hidden units."""

import math

import pytest
import torch

from lab.kernels.duo_ffn import duo_ffn, duo_ffn_reference, masked
from lab.kernels.moe_layer import moe_layer
from lab.kernels.topk_gate import Gate


def inputs(T=23, D=5, F=12, small=3, seed=0):
    dice = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=dice, dtype=torch.float64)

    big = torch.rand(T, generator=dice) < 0.5
    return normal(T, D), big, normal(D, F + small), normal(F + small, D), small


def by_loop(tokens, big, w_up, w_down, small):
    """y_t, one hidden unit after the other, in Python's own numbers."""
    F = w_up.shape[1] - small
    rows = []
    for x, wants in zip(tokens.tolist(), big.tolist(), strict=True):
        y = [0.0] * len(x)
        for unit in range(F) if wants else range(F, F + small):
            column = w_up[:, unit].tolist()
            z = sum(a * b for a, b in zip(x, column, strict=True))
            h = z * 0.5 * (1 + math.erf(z / math.sqrt(2)))
            y = [
                total + h * w
                for total, w in zip(y, w_down[unit].tolist(), strict=True)
            ]
        rows.append(y)
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize("function", [duo_ffn, duo_ffn_reference, masked])
def test_every_token_goes_through_its_own_network(function):
    given = inputs()
    y = function(*given, "gelu")
    torch.testing.assert_close(y, by_loop(*given), rtol=0, atol=1e-12)


def test_networks_of_equal_size_are_two_experts():
    tokens, big, w_up, w_down, small = inputs(F=8, small=8)
    experts = big.logical_not().int()[:, None]
    gate = Gate(experts, torch.ones(experts.shape, dtype=tokens.dtype))
    expected = moe_layer(
        tokens,
        gate,
        torch.stack(w_up.split(8, dim=1)),
        torch.stack(w_down.split(8)),
        "relu",
    )
    y = duo_ffn(tokens, big, w_up, w_down, small, "relu")
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-12)


def test_the_other_network_gets_no_gradient():
    tokens, big, w_up, w_down, small = inputs()
    w_up, w_down = w_up.requires_grad_(), w_down.requires_grad_()
    duo_ffn(tokens, torch.ones_like(big), w_up, w_down, small).sum().backward()
    assert w_up.grad[:, -small:].abs().max() == 0
    assert w_down.grad[-small:].abs().max() == 0
    assert w_down.grad[:-small].abs().min() > 0


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({0: torch.ones(3, 4)}, "do not fit"),
        ({1: torch.ones(23)}, "give a bool"),
        ({1: torch.ones(2).bool()}, "each of the 23 tokens"),
        ({4: 0}, "small=0"),
        ({4: 15}, "use 1 to 14"),
        ({5: "swiglu"}, "activation='swiglu'"),
    ],
)
def test_wrong_arguments_are_refused_in_a_sentence(change, sentence):
    given = dict(enumerate([*inputs(), "gelu"])) | change
    with pytest.raises(ValueError, match=sentence):
        duo_ffn(*given.values())


def test_mixed_dtypes_are_refused():
    tokens, *rest = inputs()
    with pytest.raises(TypeError, match="use one dtype"):
        duo_ffn(tokens.float(), *rest)
