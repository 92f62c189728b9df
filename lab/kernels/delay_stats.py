"""Delay statistics: the median of each pair of ranks, and who is too slow.

B windows hold T samples each of how long a message took from rank i to rank j,
per byte: D [B, T, N, N]. NaN says that i sent nothing to j. A pair belongs to
one of two classes, ranks of one group (a leaf switch) or of two:

    M_ij  = lower median of the samples that are there
    R_ij  = M_ij / median of M over the class of i, j
    sigma = 1.4826 * median of |R - 1|
    hot   : R_ij > 1 + z sigma

``sends`` is the share of a rank's row that is hot, ``receives`` that of its
column. Where nothing was sent, and on the diagonal, M is 0, which no message
takes; such a pair is never hot and counts nowhere. The factor 1.4826 makes
sigma the standard deviation where R is normal. A few hot pairs move these
medians little; a mean would follow them.

One program holds all samples of a tile of pairs and sorts each pair's own
(`tl.sort`); NaN goes last and is not counted. Neighbouring pairs lie side by
side in memory, so every sample is read once, in whole lines. The medians over
a class are left to PyTorch. A second, small kernel compares a rank's row and
column with their limits and counts.

Bytes: 4 B T N^2 read, 5 B N^2 + 8 B N written. A sort of T samples takes
log T (log T + 1) / 4 * T comparisons of two.

Source: the communication latency matrix of Dong et al. 2025, "Enhancing
Large-Scale AI Training Efficiency: The C4 Solution". The score is the lab's.
"""

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from lab.kernels.declaration import Compile, Cost, Declaration, Example
from lab.kernels.operator import operator
from lab.kernels.runtime import cdiv, may_look, next_power_of_2

MOST_SAMPLES = 64  # of a window; all of them are held in registers
TO_SIGMA = 1.4826  # from a median deviation to a normal's standard deviation


class DelayStats(NamedTuple):
    """The delay matrix of each window, and which of it is hot."""

    median: Tensor  # [B, N, N], 0 where nothing was sent
    hot: Tensor  # [B, N, N] int8, 1 if hot
    sends: Tensor  # [B, N], hot share of a rank's row
    receives: Tensor  # [B, N], hot share of its column


def delay_stats(delays: Tensor, group: Tensor, z: float) -> DelayStats:
    """Medians and hot pairs of delays [B, T, N, N] with groups [N] int32.

    A pair is hot if it is more than ``z`` sigma above its class. A delay of
    infinity is a message that never came; where most of a class never came,
    nothing of it is hot. Results are fp32 (float64 for float64 delays). On a
    CPU, delays of 0 or less are refused; on a GPU a check would stall it. If
    the median of a class is not positive there, which pairs are hot says
    nothing. O(B N^2 T log^2 T).
    """
    if delays.ndim != 4 or delays.shape[2] != delays.shape[3]:
        raise ValueError(
            f"delays have shape {tuple(delays.shape)}; give"
            " [windows, samples, ranks, ranks]"
        )
    if not delays.is_floating_point():
        raise TypeError(f"delays are {delays.dtype}; use a floating type")
    T, N = delays.shape[1:3]
    if not 1 <= T <= MOST_SAMPLES:
        raise ValueError(
            f"a window has {T} samples; use 1 to {MOST_SAMPLES} of them"
        )
    if N < 2:
        raise ValueError(f"{N} ranks send nothing; use at least 2")
    if group.shape != (N,) or group.dtype != torch.int32:
        raise ValueError(
            f"group is {group.dtype} of shape {tuple(group.shape)}; give an"
            f" int32 for each of the {N} ranks"
        )
    if not 0 <= z < math.inf:
        raise ValueError(f"z={z} is not allowed; use a finite number from 0")
    if may_look(delays) and (delays <= 0).any():
        raise ValueError(
            f"delays hold {int((delays <= 0).sum())} entries of 0 or less;"
            " use NaN where nothing was sent"
        )
    return DelayStats(*_delay_stats(delays, group, float(z)))


def limits(median: Tensor, group: Tensor, z: float) -> Tensor:
    """The largest delay that is not hot yet [B, N, N], from medians."""
    same = group[:, None] == group[None, :]
    median = median.masked_fill(median == 0, math.nan)
    inner = median.masked_fill(~same, math.nan).flatten(1).nanmedian(1).values
    outer = median.masked_fill(same, math.nan).flatten(1).nanmedian(1).values
    usual = torch.where(same, inner[:, None, None], outer[:, None, None])
    off = (median / usual - 1).abs().flatten(1).nanmedian(1).values
    return usual * (1 + z * TO_SIGMA * off)[:, None, None]


def delay_stats_reference(
    delays: Tensor, group: Tensor, z: float
) -> DelayStats:
    """The same in plain PyTorch; its nanmedian is the lower median, too."""
    wide = delays if delays.dtype == torch.float64 else delays.float()
    median = wide.nanmedian(dim=1).values.nan_to_num(0.0, posinf=math.inf)
    median.diagonal(dim1=1, dim2=2).fill_(0.0)
    hot = median > limits(median, group, z)
    known = median > 0

    def share(dim: int) -> Tensor:
        counted = hot.sum(dim).to(wide.dtype)
        return counted / known.sum(dim).clamp(min=1)

    return DelayStats(median, hot.to(torch.int8), share(2), share(1))


@triton.jit
def delay_stats_kernel(
    delays_ptr,
    median_ptr,
    N,
    T,
    tiles,
    BLOCK_P: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    tile = tl.program_id(0).to(tl.int64)
    window = tile // tiles
    pairs = tl.cast(N, tl.int64) * N
    p = tile % tiles * BLOCK_P + tl.arange(0, BLOCK_P)
    t = tl.arange(0, BLOCK_T)
    # [BLOCK_P, BLOCK_T]
    x = tl.load(
        delays_ptr + (window * T + t)[None, :] * pairs + p[:, None],
        mask=(p < pairs)[:, None] & (t < T)[None, :],
        other=float("nan"),
    ).to(tl.float32)
    known = x == x
    count = tl.sum(known.to(tl.int32), 1)
    x = tl.sort(tl.where(known, x, float("inf")), dim=1)
    middle = (tl.maximum(count, 1) - 1) // 2
    median = tl.sum(tl.where(t[None, :] == middle[:, None], x, 0.0), 1)
    lost = (count == 0) | (p // N == p % N)
    median = tl.where(lost, 0.0, median)
    tl.store(median_ptr + window * pairs + p, median, mask=p < pairs)


@triton.jit
def hot_shares_kernel(
    median_ptr,
    limit_ptr,
    hot_ptr,
    sends_ptr,
    receives_ptr,
    N,
    BLOCK_N: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    rank = row % N
    first = row - rank
    # hot and known pairs of the row, then of the column
    sent = tl.zeros([BLOCK_N], tl.int32)
    known_sent = tl.zeros([BLOCK_N], tl.int32)
    received = tl.zeros([BLOCK_N], tl.int32)
    known_received = tl.zeros([BLOCK_N], tl.int32)
    for start in range(0, N, BLOCK_N):
        other = start + tl.arange(0, BLOCK_N)
        inside = other < N
        at = row * N + other
        m = tl.load(median_ptr + at, mask=inside, other=0.0).to(tl.float32)
        limit = tl.load(limit_ptr + at, mask=inside, other=0.0)
        hot = m > limit.to(tl.float32)
        tl.store(hot_ptr + at, hot.to(tl.int8), mask=inside)
        sent += hot.to(tl.int32)
        known_sent += (m > 0).to(tl.int32)
        at = (first + other) * N + rank
        m = tl.load(median_ptr + at, mask=inside, other=0.0).to(tl.float32)
        limit = tl.load(limit_ptr + at, mask=inside, other=0.0)
        received += (m > limit.to(tl.float32)).to(tl.int32)
        known_received += (m > 0).to(tl.int32)
    of = tl.maximum(tl.sum(known_sent, 0), 1).to(tl.float32)
    tl.store(sends_ptr + row, tl.sum(sent, 0).to(tl.float32) / of)
    of = tl.maximum(tl.sum(known_received, 0), 1).to(tl.float32)
    tl.store(receives_ptr + row, tl.sum(received, 0).to(tl.float32) / of)


def blocks(T: int) -> dict:
    """Pairs and samples of a tile: 16 numbers a lane at most, so that a sort
    stays in registers."""
    block_t = next_power_of_2(T)
    return {"BLOCK_P": 2048 // max(block_t, 16), "BLOCK_T": block_t}


def delay_stats_triton(delays: Tensor, group: Tensor, z: float) -> DelayStats:
    """Launch both kernels, with the medians of the classes between them."""
    B, T, N, _ = delays.shape
    delays = delays.contiguous()
    kind = {"dtype": torch.float32}
    median = delays.new_empty((B, N, N), **kind)
    hot = delays.new_empty((B, N, N), dtype=torch.int8)
    sends, receives = (delays.new_empty((B, N), **kind) for _ in range(2))
    if B:
        tile = blocks(T)
        tiles = cdiv(N * N, tile["BLOCK_P"])
        delay_stats_kernel[(B * tiles,)](
            delays, median, N, T, tiles, **tile, num_warps=4
        )
        hot_shares_kernel[(B * N,)](
            median, limits(median, group, z), hot, sends, receives, N,
            BLOCK_N=128, num_warps=4,
        )  # fmt: skip
    return DelayStats(median, hot, sends, receives)


def _shapes(delays, group, z):
    B, _, N, _ = delays.shape
    wide = torch.float64 if delays.dtype == torch.float64 else torch.float32
    return (
        delays.new_empty((B, N, N), dtype=wide),
        delays.new_empty((B, N, N), dtype=torch.int8),
        delays.new_empty((B, N), dtype=wide),
        delays.new_empty((B, N), dtype=wide),
    )


_delay_stats = operator(
    "delay_stats(Tensor delays, Tensor group, float z)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    cpu=delay_stats_reference,
    cuda=delay_stats_triton,
    shapes=_shapes,
)


def _inputs(
    seed, device, dtype, B, T, N, groups=4, gaps=0.0, slow=2.0, hang=0.0,
    jitter=0.15,
):  # fmt: skip
    """Log-normal delays, rank 0 of every window ``slow`` to send."""
    generator = torch.Generator().manual_seed(seed)
    shape = (B, T, N, N)
    noise = torch.randn(shape, generator=generator, dtype=torch.float64)
    delays = (jitter * noise).exp()
    delays[:, :, 0] *= slow
    drawn = torch.rand(shape, generator=generator)
    delays = delays.masked_fill(drawn < hang, math.inf)
    delays = delays.masked_fill(drawn > 1 - gaps, math.nan)
    group = torch.arange(N, dtype=torch.int32) * groups // N
    return {
        "delays": delays.to(device, dtype),
        "group": group.int().to(device),
        "z": 6.0,
    }


def _specified(result, **inputs):
    """Everything, with a number in place of infinity, to be compared."""
    return result._replace(median=result.median.nan_to_num(posinf=-1.0))


def _cost(delays, group, z) -> Cost:
    B, T, N, _ = delays.shape
    read = B * T * N * N * delays.element_size() + 4 * N
    return Cost(read + 5 * B * N * N + 8 * B * N, 0)


def _compile(T: int) -> Compile:
    return Compile(
        f"T{T}",
        delay_stats_kernel,
        signature={
            "delays_ptr": "*fp32", "median_ptr": "*fp32", "N": "i32",
            "T": "i32", "tiles": "i32",
        },
        constants=blocks(T),
    )  # fmt: skip


DECLARATION = Declaration(
    name="delay_stats",
    operation=delay_stats,
    reference=delay_stats_reference,
    triton=delay_stats_triton,
    inputs=_inputs,
    exact=("hot",),
    specified=_specified,
    examples=(
        Example("32 ranks", {"B": 2, "T": 16, "N": 32}),
        Example("some pairs silent", {"B": 1, "T": 7, "N": 21, "gaps": 0.4}),
        Example("64 samples", {"B": 1, "T": 64, "N": 9}),
        Example("two tiles of ranks", {"B": 1, "T": 2, "N": 130}),
        Example("one sample", {"B": 3, "T": 1, "N": 5}, degenerate=True),
        Example("two ranks", {"B": 2, "T": 3, "N": 2}, degenerate=True),
        Example("one group", {"B": 1, "T": 4, "N": 8, "groups": 1},
                degenerate=True),
        Example("every rank its own group",
                {"B": 1, "T": 4, "N": 8, "groups": 8}, degenerate=True),
        Example("no message at all", {"B": 2, "T": 4, "N": 6, "gaps": 2.0},
                degenerate=True),
        Example("some messages never came",
                {"B": 2, "T": 5, "N": 12, "hang": 0.3}, degenerate=True),
        Example("nothing came", {"B": 1, "T": 5, "N": 12, "hang": 2.0},
                degenerate=True),
        Example("all alike", {"B": 1, "T": 6, "N": 10, "jitter": 0.0},
                degenerate=True),
        Example("no window", {"B": 0, "T": 4, "N": 6}, degenerate=True),
        Example("large", {"B": 8, "T": 16, "N": 512}, large=True),
    ),
    cost=_cost,
    compiles=(
        *(_compile(T) for T in (4, 16, 64)),
        Compile(
            "128 ranks at a time",
            hot_shares_kernel,
            signature={
                "median_ptr": "*fp32", "limit_ptr": "*fp32",
                "hot_ptr": "*i8", "sends_ptr": "*fp32",
                "receives_ptr": "*fp32", "N": "i32",
            },
            constants={"BLOCK_N": 128},
        ),
    ),
)  # fmt: skip
