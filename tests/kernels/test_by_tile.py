"""Products whose tiles the GPU itself copies, or the interpreter in its place.

A descriptor knows nothing of experts: rows beyond an expert's last one belong
to the next expert, or to none, and must not reach a result.
"""

import pytest
import torch

from lab.kernels import _expert_mlp_triton as forward
from lab.kernels import runtime
from lab.kernels._expert_mlp_backward_triton import weight_backward
from lab.kernels._expert_tiles import Tiles

DEVICE = "cpu" if runtime.INTERPRETED else "cuda"
by_tile = pytest.mark.skipif(
    runtime.target(torch.empty(0, device=DEVICE)) not in forward.HOPPER,
    reason="this GPU copies no tiles",
)
# rows of the four experts: none, more than a tile of 128, a few, and many;
# the last of the 320 rows belong to no expert
OFFSETS = torch.tensor([0, 0, 130, 137, 300], dtype=torch.int32).to(DEVICE)
ROWS, E = 320, 4
LARGEST = Tiles(128, 256, 64, 8, 4)


def normal(*shape):
    generator = torch.Generator().manual_seed(len(shape))
    return torch.randn(shape, generator=generator).to(DEVICE)


def of_each(x):
    return x[: OFFSETS[-1]].double().split(OFFSETS.diff().tolist())


def assert_near(found, expected):
    error = (found.double() - expected).abs().max() / expected.abs().max()
    assert error < 1e-3, error  # fp16 rounds the result


@by_tile
@pytest.mark.parametrize(
    "programs, other",
    [(4, "expert_product_kernel"), (14, "expert_product_tma_kernel")],
    ids=["some have two tiles", "none has"],
)
@pytest.mark.parametrize("transposed", [False, True])
def test_product_equals_the_slices(monkeypatch, transposed, programs, other):
    monkeypatch.setattr(runtime, "multiprocessors", lambda tensor: programs)
    monkeypatch.setattr(forward, other, "not launched")
    a = normal(ROWS, 128).half()
    a[OFFSETS[-1] :] = float("nan")
    weight = (normal(E, 128, 264) / 11).half()
    if transposed:
        weight = weight.mT.contiguous().mT
    assert forward.suits_descriptors(a, weight, LARGEST)
    found = forward.product(a, weight, OFFSETS, LARGEST)
    slices = zip(of_each(a), weight.double(), strict=True)
    expected = torch.cat([x @ w for x, w in slices])
    assert_near(found[: OFFSETS[-1]], expected)


@by_tile
@pytest.mark.parametrize("gather", [False, True])
def test_sums_over_rows_take_none_of_the_next_expert(gather):
    T, S = 200, 2
    a = normal(T if gather else ROWS, 128).half()
    b = normal(ROWS, 256).half()
    # the last expert learns from NaN, and no other expert may
    b[OFFSETS[-2] :] = float("nan")
    if not gather:
        a[OFFSETS[-2] :] = float("nan")
    pairs = torch.arange(ROWS, dtype=torch.int32, device=DEVICE) % (T * S)
    slots = S if gather else None
    found = weight_backward(a, b, pairs, OFFSETS, slots, LARGEST)
    rows = a[(pairs // S).long()] if gather else a
    slices = zip(of_each(rows), of_each(b), strict=True)
    expected = torch.stack([x.T @ y for x, y in slices])
    assert_near(found[:-1], expected[:-1])
    assert found[-1].isnan().all()


@pytest.mark.parametrize("rows", [1, 3, 16, 17, 40])
@pytest.mark.parametrize("experts", [1, 3])
def test_every_tile_has_one_program(rows, experts):
    """Some cases have several groups of tile rows, all several columns."""
    tiles = Tiles(16, 16, 16, 4, 2)
    ends = [0, *(rows * 16 * (e + 1) - e for e in range(experts))]
    offsets = torch.tensor(ends, dtype=torch.int32, device=DEVICE)
    a = normal(ends[-1], 16)
    weight = normal(experts, 16, 48)
    found = forward.product(a, weight, offsets, tiles)
    parts = zip(a.split(offsets.diff().tolist()), weight, strict=True)
    expected = torch.cat([x @ w for x, w in parts])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@by_tile
def test_what_a_gpu_cannot_copy_by_itself_goes_by_pointers():
    a, weight = normal(ROWS, 128).half(), normal(E, 128, 264).half()
    suits = forward.suits_descriptors
    assert suits(a, weight, LARGEST)
    assert not suits(a, weight, LARGEST._replace(m=64))  # few rows
    assert not suits(a.float(), weight.float(), LARGEST)
    assert not suits(a, weight[:, :, :257].contiguous(), LARGEST)
    assert not suits(a, weight[:, :, :256], LARGEST)  # no dense rows
    assert not suits(a, weight, LARGEST._replace(k=96))  # does not divide 128
    odd = torch.empty(ROWS * 128 + 1, device=DEVICE).half()[1:].view(ROWS, 128)
    assert not suits(odd, weight, LARGEST)  # begins 2 bytes too late
