"""The fused Monarch product against other ways to a Fourier transform."""

import cmath
import math

import pytest
import torch
from on_device import on_device

from lab.kernels.fused_monarch import (
    LARGEST,
    fourier,
    fused_monarch,
    fused_monarch_triton,
)

BOTH = pytest.mark.parametrize(
    "transform", [fused_monarch, on_device(fused_monarch_triton)]
)


def signals(B, n, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(B, 2, n * n, generator=generator, dtype=torch.float64)
    return x.to(dtype)


def whole(x):
    """Planes [B, 2, N] as complex numbers [B, N]."""
    return torch.complex(x[:, 0].double(), x[:, 1].double())


def error(found, expected):
    """The largest error, as a share of the largest number."""
    return (
        (whole(found) - expected).abs().max() / expected.abs().max()
    ).item()


@BOTH
@pytest.mark.parametrize(
    ("dtype", "bound"), [(torch.float32, 1e-5), (torch.float16, 2e-3)]
)
@pytest.mark.parametrize("n", [1, 2, 7, 16, 21, 32, 64])
def test_it_is_the_fourier_transform_of_pytorch(transform, n, dtype, bound):
    x = signals(3, n, dtype=dtype)
    found = transform(x, *fourier(n, dtype))
    assert found.dtype == dtype
    assert error(found, torch.fft.fft(whole(x))) < bound


@BOTH
def test_every_number_of_a_small_one_is_the_sum_of_the_definition(transform):
    x = signals(1, 3)
    numbers = whole(x)[0].tolist()
    sums = [
        sum(
            value * cmath.exp(-2j * math.pi * k * i / 9)
            for i, value in enumerate(numbers)
        )
        for k in range(9)
    ]
    found = whole(transform(x, *fourier(3, torch.float32)))[0]
    expected = torch.tensor(sums, dtype=torch.complex128)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@BOTH
@pytest.mark.parametrize("n", [5, 16])
def test_any_matrices_are_multiplied_as_the_formula_says(transform, n):
    # not symmetric, so a forgotten transpose shows
    x, parts = signals(4, n), signals(3, n, seed=1).unflatten(2, (n, n))
    left, twiddle, right = (
        torch.complex(part[0], part[1]).to(torch.complex128) for part in parts
    )
    tile = whole(x).unflatten(1, (n, n))
    expected = right @ ((left @ tile) * twiddle).transpose(1, 2)
    found = transform(x, *parts)
    assert error(found, expected.flatten(1)) < 1e-5


def test_a_wave_has_one_peak_at_its_frequency():
    t = torch.arange(1024) / 1024
    wave = torch.stack([torch.cos(2 * math.pi * 5 * t), 0 * t])[None]
    found = whole(fused_monarch(wave, *fourier(32, torch.float32)))[0].abs()
    # of a real wave, the mirror image, too
    assert found.topk(2).indices.sort().values.tolist() == [5, 1024 - 5]
    assert found.sort().values[-3] < 1e-3 * found.max()


def test_twiddles_are_rounded_once():
    n = LARGEST
    angle = torch.arange(n)[:, None] * torch.arange(n) * (-2 * math.pi / n**2)
    for plane, exact in zip(
        fourier(n, torch.float16).twiddle,
        (angle.double().cos(), angle.double().sin()),
        strict=True,
    ):
        assert (plane.double() - exact).abs().max() < 2**-11


def test_two_runs_agree_in_every_bit():
    x = signals(2, 32, dtype=torch.float16)
    run = on_device(fused_monarch_triton)
    one, two = (run(x, *fourier(32, torch.float16)) for _ in range(2))
    assert torch.equal(one, two)


@pytest.mark.filterwarnings("ignore:invalid value encountered")
def test_a_bad_signal_spoils_its_own_result_alone():
    x, matrices = signals(3, 8), fourier(8, torch.float32)
    expected = on_device(fused_monarch_triton)(x, *matrices)
    x[1, 0, 5] = float("nan")
    found = on_device(fused_monarch_triton)(x, *matrices)
    assert found[1].isnan().all()
    assert torch.equal(found[[0, 2]], expected[[0, 2]])


def test_signals_that_are_not_contiguous_give_the_same():
    x, matrices = signals(4, 9), fourier(9, torch.float32)
    turned = x.transpose(0, 2).contiguous().transpose(0, 2)
    found = on_device(fused_monarch_triton)(turned, *matrices)
    assert torch.equal(found, on_device(fused_monarch_triton)(x, *matrices))


M = fourier(8, torch.float32)
X = torch.ones(2, 2, 64)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((X[:, :1], *M), r"need \[signals, 2, 64\]"),
        ((X[..., :63], *M), r"need \[signals, 2, 64\]"),
        ((X[0], *M), r"need \[signals, 2, 64\]"),
        ((X, M.left[:, :7], M.twiddle, M.right), r"left has shape \(2, 7, 8"),
        ((X, M.left, M.twiddle[:1], M.right), "twiddle has shape"),
        ((X, M.left, M.twiddle, fourier(9, torch.float32).right), "right has"),
        ((X, torch.ones(()), M.twiddle, M.right), "left has shape"),
        ((torch.ones(1, 2, 65**2), *(torch.ones(2, 65, 65),) * 3), "1 to 64"),
        ((torch.ones(1, 2, 0), *(torch.ones(2, 0, 0),) * 3), "1 to 64"),
        ((X / 0, *M), "signals hold NaN or infinity"),
        ((X, M.left, M.twiddle / 0, M.right), "twiddle hold NaN"),
    ],
)
def test_wrong_arguments_are_refused_in_a_sentence(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        fused_monarch(*arguments)


def test_wrong_sides_and_kinds_are_refused_in_a_sentence():
    with pytest.raises(ValueError, match="n=65 does not fit"):
        fourier(65, torch.float32)
    with pytest.raises(TypeError, match="use one dtype"):
        fused_monarch(X.half(), *M)
    whole_numbers = [matrix.int() for matrix in M]
    with pytest.raises(TypeError, match="view_as_real"):
        fused_monarch(X.int(), *whole_numbers)
    with pytest.raises(TypeError, match="use one dtype"):
        fused_monarch(torch.complex(X, X), *M)
