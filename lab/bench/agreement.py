"""When two results are the same but for rounding."""

import torch
from torch import Tensor

# relative to the largest entry of the result in fp32
TOLERANCE = {
    torch.float32: 1e-4,
    torch.float16: 1e-2,
    torch.bfloat16: 4e-2,
}


def relative_error(found, expected) -> float:
    """The largest error over the largest entry, over all tensors."""
    found, expected = (
        [x] if isinstance(x, Tensor) else list(x) for x in (found, expected)
    )
    worst = 0.0
    for left, right in zip(found, expected, strict=True):
        if right.numel():
            scale = right.abs().max().double().clamp_min(1e-30)
            error = (left.double() - right.double()).abs().max() / scale
            worst = float("nan") if error.isnan() else max(worst, float(error))
    return worst
