"""Two-sided quantile: where the middle of each row's magnitudes ends.

From rows x [R, n], and how many entries are cut at either end of the order
of |x|, the smallest and the largest magnitude that stay:

    lo[r] = |x[r]| of rank below + 1 from the bottom
    hi[r] = |x[r]| of rank above + 1 from the top

The band lo <= |x| <= hi then holds n - below - above entries, and more where
several share the magnitude of a threshold: those stay too.

No sort. Magnitudes have the order of their bits read as whole numbers, so a
rank is found byte by byte, the highest first. A pass counts how many entries
have each of the 256 values of a byte, among those whose higher bytes are
already right; the value at which the running count passes the rank is the
next byte. fp32 takes four passes, 16 bits take two. Each finds both ranks.

The programs of a row share its counts, so their additions are atomic. They
add whole numbers, so the result is the same in every order.

Bytes, with b per entry: b R n read in each of b passes, 2 b R written. `Cost`
counts one reading, the least that any method needs. A sort reads all entries,
and writes them, several times.

Source: Davari & Belilovsky 2024, the masks of breadcrumbs; in their code
`torch.topk`, in mergekit a sort.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from lab.kernels.declaration import (
    KINDS,
    Compile,
    Cost,
    Declaration,
    Example,
)
from lab.kernels.operator import operator
from lab.kernels.runtime import cdiv, may_look, multiprocessors

BINS = 256  # values of a byte
TILE = 1024  # entries that a program counts at once
MOST = 2**31 - TILE  # entries of a row: rounded up to tiles, an int32
BITS = {2: torch.int16, 4: torch.int32}  # what a magnitude is read as


def two_sided_quantile(x: Tensor, below: int, above: int) -> Tensor:
    """The smallest and largest magnitude [R, 2] between the ``below`` smallest
    and the ``above`` largest of each row of x [R, n].

    The result has the dtype of x and no gradient. On a CPU, NaN is refused;
    on a GPU, where a check would stall it, NaN counts as larger than
    infinity. O(R n).
    """
    if x.ndim != 2 or not x.is_floating_point():
        raise ValueError(
            f"x is {x.dtype} of shape {tuple(x.shape)}; use floats [rows,"
            " entries]"
        )
    n = x.shape[1]
    if n > MOST:
        raise ValueError(f"n={n} entries are too many; use at most {MOST}")
    if below < 0 or above < 0 or below + above >= n:
        raise ValueError(
            f"below={below} and above={above} leave none of {n} entries; cut"
            " 0 or more at either end, and fewer than all"
        )
    if may_look(x) and x.isnan().any():
        raise ValueError(
            f"x holds {int(x.isnan().sum())} NaN, which have no magnitude;"
            " look where they come from"
        )
    return _two_sided_quantile(x.detach(), below, above)


def two_sided_quantile_reference(x: Tensor, below: int, above: int) -> Tensor:
    """The thresholds in plain PyTorch: sort, and read two places."""
    ordered = x.abs().sort(dim=1).values
    last = x.shape[1] - 1
    return torch.stack([ordered[:, below], ordered[:, last - above]], dim=1)


@triton.jit
def start_of(
    counts_ptr, rank, END: tl.constexpr, DONE: tl.constexpr, BINS: tl.constexpr
):
    """The first DONE bytes of the magnitude of a rank, and the rank that is
    left among the entries which begin with them."""
    start = 0
    for done in tl.static_range(DONE):
        # the first pass has one table, each other pass one for either end
        table = 0 if done == 0 else 2 * done - 1 + END
        at = counts_ptr + table * BINS + tl.arange(0, BINS)
        upto = tl.cumsum(tl.load(at), 0)
        passed = upto <= rank
        start = start * BINS + tl.sum(passed.to(tl.int32), 0)
        rank -= tl.max(tl.where(passed, upto, 0), 0)
    return start, rank


@triton.jit
def two_sided_quantile_kernel(
    x_ptr,
    counts_ptr,
    low,
    high,
    n,
    parts,
    stride_r,
    stride_n,
    DONE: tl.constexpr,
    BYTES: tl.constexpr,
    TILE: tl.constexpr,
    BINS: tl.constexpr,
):
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    x_ptr += row * stride_r
    counts_ptr += row * (2 * BYTES - 1) * BINS
    low_start, _ = start_of(counts_ptr, low, 0, DONE, BINS)
    high_start, _ = start_of(counts_ptr, high, 1, DONE, BINS)
    low_counts = tl.zeros([BINS], tl.int32)
    high_counts = tl.zeros([BINS], tl.int32)
    for tile in range(part, tl.cdiv(n, TILE), parts):
        at = tl.cast(tile, tl.int64) * TILE + tl.arange(0, TILE)
        inside = at < n
        x = tl.load(x_ptr + at * stride_n, mask=inside, other=0.0)
        # the sign dropped, the bits of a magnitude are a whole number
        if BYTES == 4:
            key = x.to(tl.int32, bitcast=True) & 0x7FFFFFFF
        else:
            key = x.to(tl.int16, bitcast=True).to(tl.int32) & 0x7FFF
        start = key >> 8 * (BYTES - 1 - DONE)
        byte, start = start & 255, start >> 8
        mine = inside & (start == low_start)
        low_counts += tl.histogram(byte, BINS, mine)
        if DONE > 0:
            mine = inside & (start == high_start)
            high_counts += tl.histogram(byte, BINS, mine)
    table = 0 if DONE == 0 else 2 * DONE - 1
    to = counts_ptr + table * BINS + tl.arange(0, BINS)
    tl.atomic_add(to, low_counts, sem="relaxed")
    if DONE > 0:
        tl.atomic_add(to + BINS, high_counts, sem="relaxed")


@triton.jit
def two_sided_quantile_value_kernel(
    counts_ptr,
    found_ptr,
    low,
    high,
    BYTES: tl.constexpr,
    BINS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    counts_ptr += row * (2 * BYTES - 1) * BINS
    lo, _ = start_of(counts_ptr, low, 0, BYTES, BINS)
    hi, _ = start_of(counts_ptr, high, 1, BYTES, BINS)
    # the bits of both magnitudes, which the launcher reads as floats
    tl.store(found_ptr + 2 * row, lo)
    tl.store(found_ptr + 2 * row + 1, hi)


def two_sided_quantile_triton(x: Tensor, below: int, above: int) -> Tensor:
    """Launch a pass for each byte, and last the kernel that puts them
    together; x may have any strides."""
    R, n = x.shape
    size = x.element_size()
    low, high = below, n - 1 - above
    # enough programs for a few rows to fill the GPU, and one for each of many
    parts = min(cdiv(n, TILE), cdiv(4 * multiprocessors(x), max(R, 1)))
    counts = torch.zeros(
        (R, 2 * size - 1, BINS), dtype=torch.int32, device=x.device
    )
    bits = torch.empty((R, 2), dtype=BITS[size], device=x.device)
    if R:
        for done in range(size):
            two_sided_quantile_kernel[(R, parts)](
                x, counts, low, high, n, parts, *x.stride(),
                DONE=done, BYTES=size, TILE=TILE, BINS=BINS,
                num_warps=4,
            )  # fmt: skip
        two_sided_quantile_value_kernel[(R,)](
            counts, bits, low, high, BYTES=size, BINS=BINS, num_warps=4
        )
    return bits.view(x.dtype)


def _shapes(x, below, above):
    return x.new_empty((x.shape[0], 2))


_two_sided_quantile = operator(
    "two_sided_quantile(Tensor x, SymInt below, SymInt above) -> Tensor",
    cpu=two_sided_quantile_reference,
    cuda=two_sided_quantile_triton,
    shapes=_shapes,
)


def _inputs(seed, device, dtype, R, n, below=0, above=0, ties=False, zeros=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(R, n, generator=generator, dtype=torch.float64)
    if ties:
        x = (2 * x).round()
    # weights that never moved, such as those of a pixel without ink
    x[:, :zeros] = 0
    return {"x": x.to(device, dtype), "below": below, "above": above}


def _cost(x, below, above) -> Cost:
    # counting is no work for a floating-point unit
    R, n = x.shape
    return Cost(x.element_size() * (R * n + 2 * R), 0)


def _compile(n: int, dtype: torch.dtype, done: int) -> Compile:
    size = "i32:16" if n % 16 == 0 else "i32"
    return Compile(
        f"n{n} {KINDS[dtype]} byte {done + 1}",
        two_sided_quantile_kernel,
        signature={
            "x_ptr": f"*{KINDS[dtype]}", "counts_ptr": "*i32", "low": "i32",
            "high": "i32", "n": size, "parts": "i32", "stride_r": size,
        },
        constants={
            "stride_n": 1, "DONE": done, "BYTES": dtype.itemsize,
            "TILE": TILE, "BINS": BINS,
        },
    )  # fmt: skip


def _compile_value(dtype: torch.dtype) -> Compile:
    bits = "*i32" if dtype.itemsize == 4 else "*i16"
    return Compile(
        f"value {KINDS[dtype]}",
        two_sided_quantile_value_kernel,
        signature={
            "counts_ptr": "*i32", "found_ptr": bits, "low": "i32",
            "high": "i32",
        },
        constants={"BYTES": dtype.itemsize, "BINS": BINS},
    )  # fmt: skip


DECLARATION = Declaration(
    name="two_sided_quantile",
    operation=two_sided_quantile,
    reference=two_sided_quantile_reference,
    triton=two_sided_quantile_triton,
    inputs=_inputs,
    # magnitudes are copied, never computed
    tolerance={
        torch.float32: 0.0, torch.float16: 0.0, torch.bfloat16: 0.0,
    },
    examples=(
        Example("8 tasks", {"R": 8, "n": 700, "below": 595, "above": 5}),
        Example("several tiles", {"R": 2, "n": 9001, "below": 7650,
                                  "above": 54}),
        Example("narrow rows", {"R": 40, "n": 33, "below": 28}),
        Example("ties", {"R": 3, "n": 300, "below": 200, "above": 30,
                         "ties": True}, degenerate=True),
        Example("dead pixels", {"R": 3, "n": 200, "below": 60, "above": 20,
                                "zeros": 90}, degenerate=True),
        Example("all zeros", {"R": 2, "n": 65, "below": 10, "above": 10,
                              "zeros": 65}, degenerate=True),
        Example("nothing cut", {"R": 2, "n": 63}, degenerate=True),
        Example("one stays", {"R": 3, "n": 50, "below": 20, "above": 29},
                degenerate=True),
        Example("one entry", {"R": 2, "n": 1}, degenerate=True),
        Example("no row", {"R": 0, "n": 9, "below": 2}, degenerate=True),
        Example("large", {"R": 8, "n": 1 << 22, "below": 3_565_158,
                          "above": 29_360}, large=True),
    ),
    cost=_cost,
    compiles=(
        *(_compile(4096 * 4096, torch.float32, done) for done in range(4)),
        _compile(6145, torch.float32, 3),
        *(_compile(4096 * 4096, torch.bfloat16, done) for done in range(2)),
        _compile(6145, torch.float16, 1),
        *(_compile_value(dtype) for dtype in (torch.float32, torch.bfloat16)),
    ),
)  # fmt: skip
