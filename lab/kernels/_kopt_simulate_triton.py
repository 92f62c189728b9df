"""The Triton side of `kopt_simulate`: up to 32 simulations a program.

Lengths, places and draws are whole numbers, so nothing here depends on the
order of a sum. The prefix lengths of a simulation live in global memory, in
the result itself: registers cannot be indexed by a loop.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def kopt_simulate_kernel(
    tours_ptr,
    places_ptr,
    candidates_ptr,
    potentials_ptr,
    distances_ptr,
    draws_ptr,
    gain_ptr,
    depth_ptr,
    start_ptr,
    prefixes_ptr,
    tried_ptr,
    S,
    n,
    C,
    D,
    stride_b,
    stride_i,
    stride_j,
    BLOCK_S: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    b = tl.program_id(0).to(tl.int64)
    s = tl.program_id(1) * BLOCK_S + tl.arange(0, BLOCK_S)
    inside = s < S
    # a simulation past the last one repeats it and stores nothing
    row = b * S + tl.minimum(s, S - 1)
    c = tl.arange(0, BLOCK_C)
    tours_ptr += b * n
    places_ptr += b * n
    candidates_ptr += b * n * C
    potentials_ptr += b * n * C
    distances_ptr += b * stride_b
    draws_ptr += row * (D + 1)
    prefixes_ptr += row * D
    tried_ptr += row * D

    draw = tl.load(draws_ptr).to(tl.int64)
    before = ((draw * n) >> 31).to(tl.int32)
    start = tl.where(before + 1 == n, 0, before + 1)
    first = tl.load(tours_ptr + before)
    end = tl.load(tours_ptr + start)
    place = tl.where(start + 1 == n, 0, start + 1)
    beside = tl.load(tours_ptr + place)
    gain = tl.load(
        distances_ptr
        + first.to(tl.int64) * stride_i
        + end.to(tl.int64) * stride_j
    )
    best = tl.full([BLOCK_S], -2147483647, tl.int32)
    depth = tl.full([BLOCK_S], 0, tl.int32)
    alive = tl.full([BLOCK_S], 1, tl.int32)
    for t in range(0, D):
        if tl.max(alive, 0) > 0:
            # [BLOCK_S, BLOCK_C]
            at = end.to(tl.int64)[:, None] * C + c[None, :]
            real = c[None, :] < C
            choices = tl.load(candidates_ptr + at, mask=real, other=-1)
            mass = tl.load(potentials_ptr + at, mask=real, other=0)
            allowed = (choices >= 0) & (choices != first[:, None])
            allowed = allowed & (choices != beside[:, None])
            mass = tl.where(allowed, mass, 0)
            sums = tl.cumsum(mass, 1)
            total = tl.sum(mass, 1)
            alive = tl.where(total > 0, alive, 0)
            draw = tl.load(draws_ptr + t + 1).to(tl.int64)
            below = ((draw * total) >> 31).to(tl.int32)
            chosen = tl.sum((sums <= below[:, None]).to(tl.int32), 1)
            is_chosen = c[None, :] == chosen[:, None]
            a = tl.sum(tl.where(is_chosen, choices, 0), 1)
            a = tl.where(alive > 0, a, end)
            # loaded before the prefixes: later, the address would spill
            # registers
            to_a = distances_ptr + a.to(tl.int64) * stride_j
            gain -= tl.load(to_a + end.to(tl.int64) * stride_i)

            prefix = tl.load(places_ptr + a) - start
            prefix = tl.where(prefix < 0, prefix + n, prefix)
            for k in range(0, t):
                p = tl.load(prefixes_ptr + k)
                prefix = tl.where(prefix < p, p - 1 - prefix, prefix)
            # the two cities ahead of a; the first becomes the free end
            ahead = tl.maximum(prefix - 1, 0)
            next_ahead = tl.maximum(prefix - 2, 0)
            for k in range(0, t):
                p = tl.load(prefixes_ptr + (t - 1 - k))
                ahead = tl.where(ahead < p, p - 1 - ahead, ahead)
                next_ahead = tl.where(
                    next_ahead < p, p - 1 - next_ahead, next_ahead
                )
            ahead += start
            ahead = tl.where(ahead >= n, ahead - n, ahead)
            cut = tl.load(tours_ptr + ahead)
            next_ahead += start
            next_ahead = tl.where(next_ahead >= n, next_ahead - n, next_ahead)
            beside = tl.load(tours_ptr + next_ahead)

            cut_row = cut.to(tl.int64) * stride_i
            gain += tl.load(to_a + cut_row)
            closing = gain - tl.load(
                distances_ptr + cut_row + first.to(tl.int64) * stride_j
            )
            writes = inside & (alive > 0)
            tl.store(prefixes_ptr + t, prefix, mask=writes)
            edge = end.to(tl.int64) * n + a
            tl.store(tried_ptr + t, edge.to(tl.int32), mask=writes)
            # the next step reads what other threads may have stored
            tl.debug_barrier()
            better = (alive > 0) & (closing > best)
            best = tl.where(better, closing, best)
            depth = tl.where(better, t + 1, depth)
            end = tl.where(alive > 0, cut, end)
            alive = tl.where(closing > 0, 0, alive)
    tl.store(gain_ptr + row, best, mask=inside)
    tl.store(depth_ptr + row, depth, mask=inside)
    tl.store(start_ptr + row, start, mask=inside)


def blocks(C: int, hip: bool = bool(torch.version.hip)) -> tuple[int, int]:
    """Simulations and candidates of one program, which is one warp."""
    # a tile of 256 potentials and their addresses fit the registers
    block_c = max(2, triton.next_power_of_2(C))
    # Triton 3.6 cannot compile a tile of one simulation for an AMD GPU
    fewest = 2 if hip else 1
    return max(fewest, min(32, 256 // block_c)), block_c


def launch(
    tours: Tensor,
    places: Tensor,
    candidates: Tensor,
    potentials: Tensor,
    distances: Tensor,
    draws: Tensor,
    gain: Tensor,
    depth: Tensor,
    start: Tensor,
    prefixes: Tensor,
    tried: Tensor,
) -> None:
    """Fill the last five tensors; a program holds simulations of one tour.

    All tensors but ``distances`` must be contiguous; ``prefixes`` must hold 0
    and ``tried`` -1.
    """
    B, n = tours.shape
    S, D, C = draws.shape[1], draws.shape[2] - 1, candidates.shape[2]
    block_s, block_c = blocks(C)
    kopt_simulate_kernel[(B, triton.cdiv(S, block_s))](
        tours, places, candidates, potentials, distances, draws,
        gain, depth, start, prefixes, tried,
        S, n, C, D, *distances.stride(),
        BLOCK_S=block_s, BLOCK_C=block_c, num_warps=1,
    )  # fmt: skip
