"""The ends of the band against numpy's partition and against counting."""

import math

import numpy as np
import pytest
import torch
from on_device import on_device

from lab.kernels.two_sided_quantile import (
    two_sided_quantile,
    two_sided_quantile_triton,
)

KERNELS = {
    "operation": two_sided_quantile,
    "kernel": on_device(two_sided_quantile_triton),
}


def drawn(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator)


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize(
    ("n", "below", "above"),
    [(1, 0, 0), (37, 0, 36), (37, 36, 0), (1000, 850, 7), (3001, 7, 1200)],
)
def test_the_ends_are_those_of_a_partition(name, n, below, above):
    x = drawn(3, n)
    at = [below, n - 1 - above]
    expected = np.partition(np.abs(x.numpy()), at, axis=1)[:, at]
    assert np.array_equal(KERNELS[name](x, below, above).numpy(), expected)


@pytest.mark.parametrize("name", KERNELS)
def test_they_are_quantiles_where_a_quantile_is_an_entry(name):
    # 0.85 of 200 steps between 201 entries is the entry of rank 170
    x = drawn(4, 201)
    quantiles = np.quantile(np.abs(x.numpy()), [0.85, 0.99], axis=1).T
    found = KERNELS[name](x, 170, 2).numpy()
    np.testing.assert_allclose(found, quantiles, rtol=1e-6)


@pytest.mark.parametrize("name", KERNELS)
def test_between_the_ends_lies_what_counting_leaves(name):
    # whole numbers are full of ties, and 0 and -0 are one magnitude
    x = (2 * drawn(3, 90)).round()
    x[:, ::9] *= -0.0
    for below, above in ((0, 0), (30, 20), (60, 29)):
        ends = KERNELS[name](x, below, above).tolist()
        for row, (lo, hi) in zip(x.abs().tolist(), ends, strict=True):
            assert (
                sum(v < lo for v in row) <= below < sum(v <= lo for v in row)
            )
            assert (
                sum(v > hi for v in row) <= above < sum(v >= hi for v in row)
            )


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16, torch.bfloat16]
)
def test_the_last_bit_and_the_smallest_numbers_count(dtype):
    # neighbours around a power of two, and below all normal numbers
    whole = {2: torch.int16, 4: torch.int32}[dtype.itemsize]
    one = torch.ones((), dtype=dtype).view(whole)
    for start in (one - 20, torch.zeros_like(one)):
        bits = start + torch.arange(40, dtype=whole)
        x = bits.view(dtype)[torch.arange(40).roll(13)][None]
        x = x * torch.where(torch.arange(40) % 3 == 0, -1, 1).to(dtype)
        found = KERNELS["kernel"](x, 17, 9).view(whole)
        assert found.tolist() == [bits[[17, 30]].tolist()]


@pytest.mark.parametrize("name", KERNELS)
def test_infinity_is_a_magnitude_like_others(name):
    x = torch.tensor([[math.inf, 1.0, -math.inf, -2.0, 0.0]])
    assert KERNELS[name](x, 1, 2).tolist() == [[1.0, 2.0]]
    assert KERNELS[name](x, 0, 0).tolist() == [[0.0, math.inf]]


def test_nan_counts_as_largest_in_the_kernel():
    x = torch.tensor([[math.nan, 1.0, -math.inf, -math.nan, 0.5]])
    assert KERNELS["kernel"](x, 0, 2).tolist() == [[0.5, math.inf]]
    assert KERNELS["kernel"](x, 3, 0).isnan().all()


@pytest.mark.parametrize(
    ("x", "cuts", "sentence"),
    [
        (drawn(2, 5), (3, 2), "below=3 and above=2 leave none of 5 entries"),
        (drawn(2, 5), (-1, 2), "below=-1"),
        (drawn(2, 0), (0, 0), "leave none of 0 entries"),
        (drawn(5), (0, 0), r"shape \(5,\); use floats"),
        (torch.zeros(1, 5).int(), (0, 0), "torch.int32"),
        (drawn(1, 3) * math.nan, (0, 0), "x holds 3 NaN"),
        # rounded up to whole tiles, it would be no int32
        (
            torch.empty(1, 2**31 - 1023, device="meta"),
            (0, 0),
            "at most 2147482624",
        ),
    ],
)
def test_wrong_input_is_refused_in_a_sentence(x, cuts, sentence):
    with pytest.raises(ValueError, match=sentence):
        two_sided_quantile(x, *cuts)
