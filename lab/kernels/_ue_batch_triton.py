"""The Triton kernel of `ue_batch`: one network in the registers of a program.

What is computed, and why in this way, is said in `ue_batch`.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from lab.kernels.runtime import next_power_of_2


@triton.jit
def row(tile, k, rows):
    """Row ``k`` of a tile, known to all lanes."""
    return tl.sum(tl.where(rows == k, tile, 0), 0)[None, :]


@triton.jit
def column(tile, k, columns):
    """Column ``k`` of a tile, known to all lanes."""
    return tl.sum(tl.where(columns == k, tile, 0), 1)[:, None]


@triton.jit
def link_times(x, free, rise, scale, SQUARINGS: tl.constexpr):
    ratio = x * scale
    for _ in tl.static_range(SQUARINGS):
        ratio = ratio * ratio
    return free + rise * ratio


@triton.jit
def of_links(e, free_ptr, rise_ptr, capacity_ptr):
    """Free time, rise and 1 / capacity of the links ``e``, where not -1."""
    free = tl.load(free_ptr + e, mask=e >= 0, other=0.0)
    rise = tl.load(rise_ptr + e, mask=e >= 0, other=0.0)
    capacity = tl.load(capacity_ptr + e, mask=e >= 0, other=1.0)
    scale = 1.0 / capacity.to(tl.float32)
    return free.to(tl.float32), rise.to(tl.float32), scale


@triton.jit
def routes(times, is_link, N, i, j):
    """Shortest times and next nodes by Floyd-Warshall, each [i, j]."""
    D = tl.where(is_link, times, float("inf"))
    D = tl.where(i == j, 0.0, D)
    after = tl.zeros_like(i) + j
    for k in range(N):
        by_k = column(D, k, j) + row(D, k, i)
        after = tl.where(by_k < D, column(after, k, j), after)
        D = tl.minimum(D, by_k)
    return D, after


@triton.jit
def ue_batch_kernel(
    capacity_ptr,
    demand_ptr,
    index_ptr,
    free_ptr,
    rise_ptr,
    start_ptr,
    flows_ptr,
    total_ptr,
    gap_ptr,
    N,
    E,
    stride_d,
    iterations,
    FRESH: tl.constexpr,
    SQUARINGS: tl.constexpr,
    HALVINGS: tl.constexpr,
    ROUNDS: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    b = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, BLOCK_N)[:, None]
    j = tl.arange(0, BLOCK_N)[None, :]
    inside = (i < N) & (j < N)
    # the number of the link from i to j, or -1
    e = tl.load(index_ptr + i * N + j, mask=inside, other=-1)
    link = e >= 0
    demand_ptr += b * stride_d
    capacity_ptr += b * E
    x = tl.zeros([BLOCK_N, BLOCK_N], tl.float32)
    if not FRESH:
        x = tl.load(start_ptr + b * E + e, mask=link, other=0.0)
        x = x.to(tl.float32)

    # links and demand are read again in each part, because registers are
    # scarcer than reads
    for k in range(iterations):
        free, rise, scale = of_links(e, free_ptr, rise_ptr, capacity_ptr)
        times = link_times(x, free, rise, scale, SQUARINGS)
        D, after = routes(times, link, N, i, j)
        # how much of the demand for j passes i, by pointer doubling
        trips = tl.load(demand_ptr + i * N + j, mask=inside, other=0.0)
        moving, at = trips.to(tl.float32), after
        for _ in range(ROUNDS):
            more = tl.zeros([BLOCK_N, BLOCK_N], tl.float32)
            ahead = at
            for n in range(N):
                to = row(at, n, i)
                more += tl.where(i == to, row(moving, n, i), 0.0)
                ahead = tl.where(at == n, to, ahead)
            moving += more
            at = ahead
        y = tl.zeros([BLOCK_N, BLOCK_N], tl.float32)
        for s in range(N):
            to = column(after, s, j)
            y += tl.where(j == to, column(moving, s, j), 0.0)
        # who has arrived stays: on the diagonal, where no link is
        step = tl.where(link, y, 0.0) - x

        free, rise, scale = of_links(e, free_ptr, rise_ptr, capacity_ptr)
        share = 0.0
        bit = 1.0
        for _ in range(HALVINGS):
            bit *= 0.5
            further = x + (share + bit) * step
            slope = link_times(further, free, rise, scale, SQUARINGS) * step
            share += tl.where(tl.sum(tl.sum(slope, 1), 0) <= 0, bit, 0.0)
        if FRESH:
            share = tl.where(k == 0, 1.0, share)
        x += share * step

    free, rise, scale = of_links(e, free_ptr, rise_ptr, capacity_ptr)
    times = link_times(x, free, rise, scale, SQUARINGS)
    D, after = routes(times, link, N, i, j)
    total = tl.sum(tl.sum(times * x, 1), 0)
    trips = tl.load(demand_ptr + i * N + j, mask=inside, other=0.0)
    demand = trips.to(tl.float32)
    best = tl.sum(tl.sum(demand * tl.where(demand > 0, D, 0.0), 1), 0)
    # nobody travels: nobody can save
    gap = tl.where(total == 0, 0.0, 1 - best / tl.where(total == 0, 1, total))
    tl.store(flows_ptr + b * E + e, x, mask=link)
    tl.store(total_ptr + b, total)
    tl.store(gap_ptr + b, gap)


def blocks(N: int) -> dict:
    """Nodes of a tile, rounds of doubling, warps: 4 numbers a lane."""
    block_n = max(4, next_power_of_2(N))
    return {
        "ROUNDS": (N - 1).bit_length(),
        "BLOCK_N": block_n,
        "num_warps": max(1, block_n * block_n // 128),
    }


def launch(
    capacity: Tensor,
    demand: Tensor,
    links: Tensor,
    free: Tensor,
    rise: Tensor,
    iterations: int,
    power: int,
    start: Tensor | None,
    halvings: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Flows, total times and gaps, by one program per network."""
    (B, E), N = capacity.shape, demand.shape[1]
    capacity, demand = capacity.contiguous(), demand.contiguous()
    kind = {"dtype": torch.float32}
    flows = capacity.new_empty((B, E), **kind)
    total, gap = (capacity.new_empty(B, **kind) for _ in range(2))
    index = links.new_full((N, N), -1)
    tail, head = links.long()
    index[tail, head] = torch.arange(E, dtype=index.dtype, device=index.device)
    if B:
        ue_batch_kernel[(B,)](
            capacity, demand, index, free.contiguous(), rise.contiguous(),
            capacity if start is None else start.contiguous(),
            flows, total, gap, N, E, N * N if len(demand) > 1 else 0,
            iterations, FRESH=start is None, SQUARINGS=power // 2,
            HALVINGS=halvings, **blocks(N),
        )  # fmt: skip
    return flows, total, gap
