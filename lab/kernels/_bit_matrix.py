"""Bits as a matrix: 32 words of 32 bits, to transpose and to count.

Word w of row q holds the bits of number 32 w + q. In the transpose, row b
holds bit b of all 32 numbers of a word, side by side. So a popcount counts
the numbers that have a certain bit, and the largest of many numbers are found
without a sort.
"""

import torch
import triton
import triton.language as tl

BITS = 32  # of a word
LOAD = 16  # bytes that a lane loads at once
# the lowest bit of fp32 that a number of this type can set
LOWEST = {torch.bfloat16: 16, torch.float16: 13}


def words(size: int) -> int:
    """How many words ``size`` bits need."""
    return -(-size // BITS)


@triton.jit
def popcount(x):
    """How many bits are set in each uint32 word."""
    x = x - ((x >> 1) & 0x55555555)
    x = (x & 0x33333333) + ((x >> 2) & 0x33333333)
    x = (x + (x >> 4)) & 0x0F0F0F0F
    return ((x * 0x01010101) >> 24).to(tl.int32)


@triton.jit
def numbers(ptr, w, q, size, stride, N: tl.constexpr):
    """The N numbers from 32 w + q on, of ``size`` in all: fp32 [W, N], 0 past
    the end."""
    at = w[:, None] * 32 + q + tl.arange(0, N)[None, :]
    x = tl.load(ptr + at.to(tl.int64) * stride, mask=at < size, other=0.0)
    return x.to(tl.float32)


@triton.jit
def columns(x, W: tl.constexpr, N: tl.constexpr):
    """The columns [W] of x [W, N], N a power of two, from left to right."""
    parts = (tl.reshape(x, [W * N]),)
    for e in tl.static_range(5):
        if N >> e > 1:
            parts = even_then_odd(parts, W * N >> e)
    return parts


@triton.jit
def even_then_odd(parts, SIZE: tl.constexpr):
    """The even entries of each part [SIZE], then the odd entries of each."""
    even = ()
    odd = ()
    for q in tl.static_range(len(parts)):
        a, b = tl.split(tl.reshape(parts[q], [SIZE // 2, 2]))
        even = even + (a,)
        odd = odd + (b,)
    return even + odd


@triton.jit
def transpose(rows):
    """Turn bit b of 32 rows of uint32 words into row b, word by word.

    Halves, quarters, ... of the matrix are exchanged: Warren, Hacker's
    Delight, section 7-3.
    """
    for e in tl.static_range(5):
        rows = exchange(rows, 16 >> e)
    return rows


@triton.jit
def exchange(rows, S: tl.constexpr):
    """In every block of 2 S x 2 S bits, swap the S x S bits at one
    off-diagonal corner with those at the other."""
    LOW: tl.constexpr = 0xFFFFFFFF // ((1 << S) + 1)
    HIGH: tl.constexpr = LOW << S
    swapped = ()
    for q in tl.static_range(32):
        if q & S:
            row = ((rows[q - S] & HIGH) >> S) | (rows[q] & HIGH)
        else:
            row = (rows[q] & LOW) | ((rows[q + S] & LOW) << S)
        swapped = swapped + (row,)
    return swapped


@triton.jit
def largest(plane, equal, left, HIGHEST: tl.constexpr, LOWEST: tl.constexpr):
    """The ``left`` largest of the numbers that are set in ``equal``, as bits
    of the same words [W]. Ties go to the first.

    ``plane[b]`` [W] has bit b of all numbers, as `transpose` gives them. The
    bits of the least number to take are found from the highest on. Of the
    numbers that agree with it so far, how many have a 1 in this bit? If at
    least ``left``, it has a 1, too. If fewer, all of these are larger, and
    ``left`` falls by their number.
    """
    above = tl.zeros_like(equal)
    for b in tl.static_range(HIGHEST, LOWEST - 1, -1):
        one = equal & plane[b]
        count = tl.sum(popcount(one), 0)
        enough = count >= left
        above = tl.where(enough, above, above | one)
        equal = tl.where(enough, one, equal ^ one)
        left = tl.where(enough, left, left - count)

    # ties: the words before leave ``room`` ties to this word; 5 counts find
    # how many of its first bits hold no more than that
    tied = popcount(equal)
    room = left - (tl.cumsum(tied, 0) - tied)
    bits = tl.zeros_like(equal)
    for e in tl.static_range(5):
        more = bits + (16 >> e)
        fit = popcount(equal & ((1 << more) - 1)) <= room
        bits = tl.where(fit, more, bits)
    first = equal & ((1 << bits) - 1)
    return above | tl.where(tied <= room, equal, first)
