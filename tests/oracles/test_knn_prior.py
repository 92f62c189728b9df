"""The neighbours against SciPy's k-d tree."""

import pytest
import torch
from on_device import on_device
from scipy.spatial import KDTree

from lab.kernels.knn_prior import knn_prior, knn_prior_triton

KERNELS = {"reference": knn_prior, "kernel": on_device(knn_prior_triton)}


def points(n, side=1_000_000):
    generator = torch.Generator().manual_seed(n)
    return torch.randint(side, (2, n, 2), generator=generator).int()


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize(("n", "k"), [(130, 7), (40, 39)])
def test_neighbours_are_those_of_a_tree(name, n, k):
    cities = points(n)
    found = KERNELS[name](cities, k)
    for instance, rows in zip(cities, found, strict=True):
        tree = KDTree(instance.double().numpy())
        _, near = tree.query(instance.double().numpy(), k + 1)
        assert rows.tolist() == near[:, 1:].tolist()


@pytest.mark.parametrize("name", KERNELS)
def test_ties_go_to_the_lowest_index(name):
    # the corners of a square around city 4, and a twin of city 4
    cities = [[0, 0], [2, 0], [0, 2], [2, 2], [1, 1], [1, 1]]
    found = KERNELS[name](torch.tensor([cities]).int(), 5)[0].tolist()
    assert found[4] == [5, 0, 1, 2, 3]
    assert found[5] == [4, 0, 1, 2, 3]


@pytest.mark.parametrize(
    ("cities", "k", "sentence"),
    [
        (points(9).long(), 3, "torch.int64"),
        (points(9)[0], 3, r"shape \(9, 2\)"),
        (points(9), 9, "k=9 does not fit 9 cities; use 1 to 8"),
        (points(9), 0, "k=0"),
        (torch.zeros(1, 9, 3).int(), 2, "3 coordinates"),
        (torch.tensor([[[-(2**29), 0], [2**29, 0]]]).int(), 1, "1073741824 a"),
    ],
)
def test_wrong_input_is_refused_in_a_sentence(cities, k, sentence):
    with pytest.raises(ValueError, match=sentence):
        knn_prior(cities, k)


def test_the_kernel_finds_neighbours_at_the_end_of_int32():
    cities = points(40, 100) - 2**31
    cities[:, 0] = -(2**31)
    found = on_device(knn_prior_triton)(cities.int(), 5)
    assert torch.equal(found, knn_prior(cities.int(), 5))
