"""Random numbers by counter: Philox-4x32-10, the one that Triton has.

A number is a function of a seed and of a place (c0, c1, c2), so nothing is
passed from draw to draw: the order of work does not matter, and the same
place gives the same bits on a CPU and on a GPU.

Source: Salmon, Moraes, Dror, Shaw 2011, "Parallel random numbers: as easy as
1, 2, 3".
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

ROUNDS = 10
MULTIPLY = 0xCD9E8D57, 0xD2511F53
RAISE = 0x9E3779B9, 0xBB67AE85
LOW = 0xFFFFFFFF


def uniform(seed: int, c0: Tensor, c1: Tensor, c2: Tensor) -> Tensor:
    """A float64 in (0, 1) for each place; the counters are int64 from 0."""
    c0, c1, c2 = torch.broadcast_tensors(c0, c1, c2)
    c3 = torch.zeros_like(c0)
    k0, k1 = seed & LOW, seed >> 32 & LOW
    for _ in range(ROUNDS):
        # int64 wraps, but the 64 bits of a product are right
        one, two = MULTIPLY[0] * c2, MULTIPLY[1] * c0
        c0 = (one >> 32 & LOW) ^ c1 ^ k0
        c2 = (two >> 32 & LOW) ^ c3 ^ k1
        c1, c3 = one & LOW, two & LOW
        k0, k1 = k0 + RAISE[0] & LOW, k1 + RAISE[1] & LOW
    return (c0.double() + 0.5) * 2.0**-32


@triton.jit
def philox_uniform(seed, c0, c1, c2):
    """The same in a kernel; the counters are int32."""
    word, _, _, _ = tl.philox(seed, c0, c1, c2, c2 * 0)
    return (word.to(tl.float64) + 0.5) * 2.3283064365386963e-10
