"""Link loads against a loop over exact fractions, and against NumPy."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from on_device import on_device

from lab.kernels.linkload import linkload, linkload_triton

KERNEL = on_device(linkload_triton)
OPERATIONS = [linkload, KERNEL]
SIZES = [(3, 63, 8, 8), (2, 200, 5, 3), (1, 1, 2, 1), (2, 97, 20, 16)]


def sample(B, G, L, S, seed=0):
    """Sizes are quarters, so that their sums are exact in fp32."""
    random = np.random.default_rng(seed)
    source, target = random.integers(L, size=(2, B, G))
    spine = random.integers(-1, S, size=(B, G))
    size = random.integers(0, 64, size=(B, G)) / 4
    return source, target, spine, size


def run(operation, source, target, spine, size, L, S):
    ids = [torch.from_numpy(x).int() for x in (source, target, spine)]
    return operation(*ids, torch.from_numpy(size).float(), L, S)


def by_loops(source, target, spine, size, L, S):
    up = [[Fraction(0)] * S for _ in range(L)]
    down = [[Fraction(0)] * S for _ in range(L)]
    for i, j, k, z in zip(source, target, spine, size, strict=True):
        if k < 0 or i == j:
            continue
        up[i][k] += Fraction(z)
        down[j][k] += Fraction(z)
    return up, down, max(map(max, up + down))


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("B, G, L, S", SIZES)
def test_agrees_exactly_with_a_loop_over_fractions(operation, B, G, L, S):
    drawn = sample(B, G, L, S)
    up, down, peak = run(operation, *drawn, L, S)
    for b in range(B):
        expected = by_loops(*(x[b].tolist() for x in drawn), L, S)
        assert up[b].tolist() == expected[0]
        assert down[b].tolist() == expected[1]
        assert peak[b].item() == expected[2]


@pytest.mark.parametrize("operation", OPERATIONS)
def test_agrees_with_numpys_unbuffered_addition(operation):
    source, target, spine, _ = sample(4, 1000, 8, 7, seed=1)
    size = np.random.default_rng(2).random((4, 1000))
    up, _, _ = run(operation, source, target, spine, size, 8, 7)
    expected = np.zeros((4, 8, 7))
    b, g = np.nonzero((spine >= 0) & (source != target))
    np.add.at(expected, (b, source[b, g], spine[b, g]), size[b, g])
    # a thousand fp32 additions
    np.testing.assert_allclose(up, expected, rtol=1e-5)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_what_stays_in_a_leaf_or_is_padding_loads_nothing(operation):
    source, target = np.array([[0, 1, 2]]), np.array([[0, 2, 2]])
    spine, size = np.array([[0, -1, 1]]), np.ones((1, 3))
    up, down, peak = run(operation, source, target, spine, size, 3, 2)
    assert not up.any() and not down.any() and not peak.any()


def test_ids_outside_the_fabric_count_as_padding_in_the_kernel():
    # a GPU cannot look without stalling, so the kernel must not be hurt
    source, target = np.array([[5, 0, -1, 0]]), np.array([[1, 5, 1, 1]])
    spine, size = np.array([[0, 0, 0, 7]]), np.ones((1, 4))
    drawn = (source, target, spine, size)
    up, down, peak = run(KERNEL, *drawn, 3, 2)
    assert not up.any() and not down.any() and not peak.any()


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"source": [[0, 3]]}, "source runs from 0 to 3; use 0 to 2"),
        ({"target": [[-1, 0]]}, "target runs from -1 to 0; use 0 to 2"),
        ({"spine": [[0, 2]]}, "spine runs from 0 to 2; use -1 to 1"),
        ({"size": [[1.0, -1.0]]}, "negative, infinite or NaN"),
        ({"size": [[1.0, float("nan")]]}, "negative, infinite or NaN"),
        ({"size": [1.0, 1.0]}, "of the sizes' shape"),
        ({"size": [[1, 2]]}, r"sizes are torch\.int64 of shape \(1, 2\)"),
        ({"leaves": 0}, "0 leaves and 2 spines"),
        ({"spines": 0}, "3 leaves and 0 spines"),
    ],
)
def test_what_no_fabric_has_is_refused(changes, words):
    given = {"source": [[0, 1]], "target": [[1, 2]], "spine": [[0, 1]]}
    given |= {"size": [[1.0, 2.0]], "leaves": 3, "spines": 2} | changes
    for name in ("source", "target", "spine"):
        given[name] = torch.tensor(given[name], dtype=torch.int32)
    given["size"] = torch.tensor(given["size"])
    with pytest.raises(ValueError, match=words):
        linkload(**given)


def test_ids_of_64_bits_are_refused():
    ids = torch.zeros(1, 2, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"torch\.int64"):
        linkload(ids, ids, ids, torch.ones(1, 2), 2, 2)
