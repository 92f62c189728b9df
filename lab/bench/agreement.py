"""Whether two results are the same except for rounding."""

from collections.abc import Iterable

import torch
from torch import Tensor

# relative to the largest entry of the result in fp32
TOLERANCE = {
    torch.bfloat16: 4e-2,
    torch.float16: 1e-2,
    torch.float32: 1e-4,
}


def relative_error(found, expected) -> float:
    """The largest error divided by the largest entry, worst of all tensors."""
    found, expected = (
        [x] if isinstance(x, Tensor) else list(x) for x in (found, expected)
    )
    worst = 0.0
    for left, right in zip(found, expected, strict=True):
        if right.numel():
            # at least fp32; float64 of a large tensor would fill a GPU
            wide = torch.float64
            if right.is_floating_point():
                wide = torch.promote_types(right.dtype, torch.float32)
            scale = right.abs().max().double().clamp_min(1e-30)
            error = (left.to(wide) - right.to(wide)).abs().max() / scale
            worst = float("nan") if error.isnan() else max(worst, float(error))
    return worst


def are_equal(found, expected, fields: Iterable[str]) -> bool:
    """Whether these fields agree bit for bit; "result" is a lone tensor.

    An index that is off by one may be a small error, but is a wrong answer.
    """
    found, expected = (
        {"result": x} if isinstance(x, Tensor) else x._asdict()
        for x in (found, expected)
    )
    return all(torch.equal(found[name], expected[name]) for name in fields)
