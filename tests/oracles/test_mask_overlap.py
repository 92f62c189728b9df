"""Mask overlaps against NumPy, word by word and unit by unit."""

import numpy as np
import pytest
import torch

from lab.kernels.mask_overlap import mask_overlap, pack, unpack

SEED = torch.Generator().manual_seed(0)


def largest(row, d):
    """The d largest magnitudes of a row, none that is 0, by plain sorting."""
    by_size = sorted(range(len(row)), key=lambda i: (-abs(row[i]), i))
    return {i for i in by_size[:d] if row[i] != 0}


@pytest.mark.parametrize("D, d", [(1, 1), (31, 7), (63, 40), (192, 96)])
@pytest.mark.parametrize("kind", ["dense", "relu", "ties"])
def test_counts_are_those_of_sets(D, d, kind):
    u = torch.randn(9, D, generator=SEED)
    u = {"dense": u, "relu": u.relu(), "ties": u.round()}[kind]
    experts = torch.rand(5, D, generator=SEED) < 0.5
    seen = mask_overlap(u, pack(experts), d)
    for t, row in enumerate(u.tolist()):
        mine = largest(row, d)
        bits = unpack(seen.masks[t], D).numpy()
        assert set(np.flatnonzero(bits).tolist()) == mine
        for j, expert in enumerate(experts.numpy()):
            theirs = set(np.flatnonzero(expert).tolist())
            assert seen.counts[t, j] == len(mine & theirs)


def test_words_are_those_of_packbits():
    mask = torch.rand(7, 200, generator=SEED) < 0.5
    padded = np.zeros((7, 224), bool)
    padded[:, :200] = mask.numpy()
    want = np.packbits(padded, axis=1, bitorder="little").view("<i4")
    assert np.array_equal(pack(mask).numpy(), want)
    assert torch.equal(unpack(pack(mask), 200), mask)


def test_the_authors_cut_keeps_one_less():
    u = torch.randn(6, 100, generator=SEED)
    d = 50
    cut = u.abs().sort(dim=1, descending=True).values[:, d - 1 : d]
    strict = u.abs() > cut  # `thresholding` of VITA-Group/READ-ME
    ours = unpack(mask_overlap(u, pack(strict), d).masks, 100)
    assert (strict.sum(1) == d - 1).all() and (ours.sum(1) == d).all()
    assert (ours | strict).eq(ours).all()


@pytest.mark.parametrize(
    "change, words",
    [
        ({"d": 0}, "d=0 is not within 1 to 40"),
        ({"d": 41}, "d=41"),
        ({"experts": torch.zeros(2, 1, dtype=torch.int32)}, "int32 words"),
        ({"features": torch.full((2, 40), torch.nan)}, "80 NaN"),
        ({"features": torch.zeros(2, 0)}, "nothing to rank"),
    ],
)
def test_errors_say_what_is_wrong(change, words):
    right = {
        "features": torch.ones(2, 40),
        "experts": torch.zeros(2, 2, dtype=torch.int32),
        "d": 20,
    }
    with pytest.raises(ValueError, match=words):
        mask_overlap(**right | change)
