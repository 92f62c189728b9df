"""Grouped products: one call or a loop over the experts, the same bits."""

import pytest
import torch

from lab.kernels import _by_expert
from lab.kernels._by_expert import products, sums_of_products


def rows(load, K, dtype):
    generator = torch.Generator().manual_seed(0)
    offsets = torch.tensor([0, *load]).cumsum(0, dtype=torch.int32)
    x = torch.randn(sum(load), K, generator=generator).to(dtype)
    return x, offsets, generator


@pytest.mark.parametrize("dtype", _by_expert.GROUPED)
@pytest.mark.parametrize("load", [[3, 0, 9, 1], [0, 0], [7]])
@pytest.mark.parametrize("K, N", [(48, 32), (5, 7), (8, 3)])
def test_one_call_computes_what_the_loop_does(monkeypatch, load, K, N, dtype):
    x, offsets, generator = rows(load, K, dtype)
    w = torch.randn(len(load), K, N, generator=generator).to(dtype)
    dy = torch.randn(len(x), N, generator=generator).to(dtype)
    calls = (
        lambda: products(x, offsets, w),
        lambda: products(dy, offsets, w.mT),
        lambda: sums_of_products(x, dy, offsets),
    )
    found = [call() for call in calls]
    monkeypatch.setattr(_by_expert, "GROUPED", ())
    for one, call in zip(found, calls, strict=True):
        loop = call()
        assert one.shape == loop.shape
        # the gradient of an expert without rows is 0, not what memory held
        assert torch.equal(one, loop)


def test_whole_rows_of_16_bytes_go_in_one_call(monkeypatch):
    if not hasattr(torch.nn.functional, "grouped_mm"):
        pytest.skip("this PyTorch has no grouped product; the loop runs")
    monkeypatch.setattr(_by_expert, "_cut", None)
    x, offsets, generator = rows([3, 2], 48, torch.float32)
    w = torch.randn(2, 48, 32, generator=generator)
    assert products(x, offsets, w).shape == (5, 32)
    with pytest.raises(TypeError):
        products(x.double(), offsets, w.double())


def every_fourth(w):
    wide = w.new_zeros(*w.shape[:-1], 4 * w.shape[-1])
    wide[..., ::4] = w
    return wide[..., ::4]


LAYOUTS = {
    "as it is": lambda w: w,
    "every fourth": every_fourth,
    "one column": lambda w: w[..., :1].expand_as(w),
    "one expert": lambda w: w[:1].expand_as(w),
    "turned": lambda w: w.mT.contiguous().mT,
}


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("K, N", [(1, 1), (1, 8), (8, 1), (16, 32)])
def test_weights_may_lie_anyhow(name, K, N):
    x, offsets, generator = rows([3, 0, 2], K, torch.float32)
    w = LAYOUTS[name](torch.randn(3, K, N, generator=generator))
    found = products(x, offsets, w)
    expected = products(x.double(), offsets, w.double())
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
