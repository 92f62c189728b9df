"""Link loads through matrix units: no less exact than fp32."""

import numpy as np
import pytest
import torch
from triton.language import core
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

from lab.kernels import runtime
from lab.kernels.linkload import (
    blocks,
    linkload_reference,
    linkload_triton,
)

DEVICE = "cpu" if runtime.INTERPRETED else "cuda"


def fabric(dtype=torch.float32, B=3, G=700, L=8, S=8):
    """Subflows with sizes from 1e-4 to 6e4."""
    generator = torch.Generator().manual_seed(0)
    source, target, spine = (
        torch.randint(end, (B, G), generator=generator).int()
        for end in (L, L, S)
    )
    size = torch.exp(torch.randn(B, G, generator=generator) * 4)
    return (
        *(x.to(DEVICE) for x in (source, target, spine)),
        size.clamp(1e-4, 6e4).to(DEVICE, dtype), L, S,
    )  # fmt: skip


def farthest(found, ids_and_size):
    """The largest error of a link, relative to the load of that link."""
    *ids, size, L, S = ids_and_size
    exact = linkload_reference(*ids, size.double(), L, S)
    return max(
        float(((left - right).abs() / right.clamp_min(1e-30)).max())
        for left, right in zip(found, exact, strict=True)
    )


def tf32_dot(self, a, b, total, precision, *_):
    """A product as a matrix unit makes it: of each factor it takes 11 bits,
    and of the sum it cuts off what does not fit."""
    a, b = a.data, b.data
    if precision.name == "TF32":
        a, b = (
            (np.ascontiguousarray(x).view(np.int32) & -8192).view(np.float32)
            for x in (a, b)
        )
    exact = a.astype(np.float64) @ b.astype(np.float64) + total.data
    cut = exact.astype(np.float32)
    too_far = np.abs(cut) > np.abs(exact)
    cut[too_far] = np.nextafter(cut[too_far], np.float32(0))
    return TensorHandle(cut, core.float32)


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16, torch.bfloat16]
)
def test_each_link_is_as_exact_as_in_fp32(monkeypatch, dtype):
    """With sizes split into two parts the error would be 4e-7, in one 8e-4."""
    if runtime.INTERPRETED:
        monkeypatch.setattr(InterpreterBuilder, "create_dot", tf32_dot)
    given = fabric(dtype)
    assert farthest(linkload_triton(*given), given) < 3e-7


@pytest.mark.parametrize(
    "target, precision, parts",
    [
        ("sm_75", "ieee", 1),
        ("gfx942", "ieee", 1),
        ("sm_86", "tf32", 3),
        ("sm_100", "tf32", 3),
    ],
)
def test_each_gpu_multiplies_in_its_own_way(
    monkeypatch, target, precision, parts
):
    monkeypatch.setattr(runtime, "target", lambda tensor: target)
    tile = blocks(8, 8, torch.float32, target)
    assert (tile["PRECISION"], tile["PARTS"]) == (precision, parts)
    # numbers of 11 bits or fewer need not be split
    assert blocks(8, 8, torch.float16, target)["PARTS"] == 1
    given = fabric()
    if precision == "ieee" or runtime.triton_has_tensor_cores(given[0]):
        assert farthest(linkload_triton(*given), given) < 5e-7
