"""fp32 on matrix units: each number as the sum of three bf16 numbers.

bf16 has the range of fp32 and 8 of its 24 bits, so three bf16 numbers, the
parts, hold an fp32 number exactly:

    x = x1 + x2 + x3        x1 = bf16(x), x2 = bf16(x - x1), x3 = the rest

A product is then the sum of nine products in bf16. Each is exact in fp32, in
which they are added. The three smallest are below 2^-25 of the whole product
and are left out:

    x y ~ x1 y3 + x2 y2 + x3 y1 + x1 y2 + x2 y1 + x1 y1

This is faster where matrix units are more than six times as fast as fp32
without them. A number above 3.39e38 or infinite becomes NaN, and numbers below
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

# On these GPUs bf16 on matrix units is at least 14 times as fast as fp32
# without them. On NVIDIA's smaller GPUs it is two to four times as fast, and
# AMD's matrix units multiply fp32 themselves. A B200 is fast enough, too, but
# Triton 3.6 and 3.7 compile this to nothing there.
HAVE_ROOM = ("sm_80", "sm_90")
TAKE_IT_WHOLE = ("sm_86", "sm_100", "gfx942")  # representing all other GPUs
PRODUCTS = 6  # products of parts for one product of fp32 numbers


def splits(dtype: torch.dtype, target: str) -> bool:
    """Whether this GPU multiplies numbers of this dtype in three parts."""
    return dtype == torch.float32 and target in HAVE_ROOM


def is_whole(x: Tensor) -> bool:
    """Whether x is fp32 and is multiplied as it is, not in three parts.

    No matrix unit then transposes a tile, so neighbouring lanes that read far
    apart wait for one another in shared memory.
    """
    return x.dtype == torch.float32 and not splits(x.dtype, runtime.target(x))


@triton.jit
def three_parts(x):
    """Three tensors in bf16 whose sum is x in fp32."""
    high = x.to(tl.bfloat16)
    rest = x - high.to(tl.float32)
    middle = rest.to(tl.bfloat16)
    return high, middle, (rest - middle.to(tl.float32)).to(tl.bfloat16)


@triton.jit
def add_product(a, b, total, SPLIT: tl.constexpr):
    """total + a b for two tiles, multiplied in three parts if SPLIT.

    When matrix units add, they cut off the bits that do not fit, always
    towards zero; over a long sum the error grows to many times that of fp32.
    So the six products of a step are summed from zero, the smallest first,
    and an ordinary addition, which rounds, adds their sum to the total.
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
