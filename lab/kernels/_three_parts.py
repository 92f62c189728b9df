"""fp32 on matrix units: each number as the sum of three in bf16.

bf16 has the range of fp32 and 8 of its 24 bits, so three of them hold a
number exactly:

    x = x1 + x2 + x3        x1 = bf16(x), x2 = bf16(x - x1), x3 = the rest

A product then is nine products in bf16, each exact in fp32, where they are
added. The three smallest are below 2^-25 of it and left out:

    x y ~ x1 y3 + x2 y2 + x3 y1 + x1 y2 + x2 y1 + x1 y1

Where matrix units are more than six times as fast as fp32 without them, that
is faster. A number above 3.39e38 or infinite becomes NaN, and those below
1e-30 lose their last bits.

Source: Henry, Tang and Heinecke 2019, "Leveraging the bfloat16 artificial
intelligence datatype for higher-precision computations" (three parts, six
products).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from lab.kernels import runtime

# Here bf16 on matrix units is 14 times as fast as fp32 without, or more. On
# NVIDIA's smaller GPUs two to four times, and AMD's matrix units take fp32. A
# B200 has the room, but Triton 3.6 and 3.7 compile this to nothing there.
HAVE_ROOM = ("sm_80", "sm_90")
TAKE_IT_WHOLE = ("sm_86", "sm_100", "gfx942")  # what stands for the others
PRODUCTS = 6  # of parts, for one of whole numbers


def splits(dtype: torch.dtype, target: str) -> bool:
    """Whether products of this dtype go in parts on this GPU."""
    return dtype == torch.float32 and target in HAVE_ROOM


def is_whole(x: Tensor) -> bool:
    """Whether this is fp32 that is multiplied as it is: without units that
    turn a tile around, so that lanes reading neighbours far apart wait for
    one another in shared memory."""
    return x.dtype == torch.float32 and not splits(x.dtype, runtime.target(x))


@triton.jit
def three_parts(x):
    """x in fp32 as three tensors in bf16 of which it is the sum."""
    high = x.to(tl.bfloat16)
    rest = x - high.to(tl.float32)
    middle = rest.to(tl.bfloat16)
    return high, middle, (rest - middle.to(tl.float32)).to(tl.bfloat16)


@triton.jit
def add_product(a, b, total, SPLIT: tl.constexpr):
    """total + a b, of tiles that go in parts if SPLIT.

    Matrix units cut off what does not fit where they add, always towards
    zero, and over a long sum that comes to many times the error of fp32. So
    the six products of a step are added up from zero, the smallest first,
    and an ordinary addition rounds their sum into the total.
    """
    if SPLIT:
        a1, a2, a3 = three_parts(a)
        b1, b2, b3 = three_parts(b)
        step = tl.dot(a1, b3, input_precision="ieee")
        step = tl.dot(a2, b2, step, input_precision="ieee")
        step = tl.dot(a3, b1, step, input_precision="ieee")
        step = tl.dot(a1, b2, step, input_precision="ieee")
        step = tl.dot(a2, b1, step, input_precision="ieee")
        total += tl.dot(a1, b1, step, input_precision="ieee")
    else:
        total = tl.dot(a, b, total, input_precision="ieee")
    return total
