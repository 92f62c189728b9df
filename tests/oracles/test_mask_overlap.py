"""Mask overlaps against NumPy, word by word and unit by unit."""

import numpy as np
import pytest
import torch
from on_device import on_device

from lab.kernels.mask_overlap import (
    mask_overlap,
    mask_overlap_triton,
    pack,
    unpack,
)

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


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16, torch.bfloat16]
)
@pytest.mark.parametrize("d", [1, 2, 9, 40, 64, 90, 100])
def test_the_kernel_ranks_what_no_example_has(dtype, d):
    inf, nan = torch.inf, torch.nan
    step = torch.tensor(torch.finfo(dtype).smallest_normal, dtype=dtype)
    if dtype != torch.bfloat16:  # Triton's interpreter misreads the others
        step *= torch.finfo(dtype).eps
    rows = torch.randn(5, 100, generator=SEED).to(dtype)
    rows[0, 5::7] = torch.tensor(nan)
    rows[0, 40], rows[0, 41], rows[0, 99] = inf, -inf, inf
    # the least numbers, of which the first have one bit alone
    rows[1] = torch.arange(100).to(dtype) * step
    rows[2] = (torch.arange(100).view(4, 25) % 3 - 1).reshape(-1).to(dtype)
    rows[3] = 1.0  # all tie, over four words
    # neighbours, which differ in the last bit
    rows[4] = 1.0 + torch.arange(100) * torch.finfo(dtype).eps
    none = torch.zeros(1, 4, dtype=torch.int32)
    seen = on_device(mask_overlap_triton)(rows, none, d).masks
    for t, row in enumerate(rows.nan_to_num(0.0, inf, -inf).tolist()):
        bits = unpack(seen[t].cpu(), 100).numpy()
        assert set(np.flatnonzero(bits).tolist()) == largest(row, d)


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
