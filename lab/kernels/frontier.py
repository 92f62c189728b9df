"""Frontier: one routing policy for each price of money, all in one pass.

A prompt n goes to the model with the best predicted score, minus what it
costs; lambda is the price of money, and sweeping it traces what any budget
can buy:

    m*(n, l) = argmax over m of  S[n, m] - lambda[l] C[n, m]
    quality[l] = mean over n of  Y[n, m*]
    cost[l]    = mean over n of  C[n, m*]
    load[l, m] = how many n chose m

S is what the router believes, Y what really happened. Ties go to the lowest
index. A difference within rounding of 0 may fall on either side.

Bytes: 8 N M read (4 N M more where costs differ by prompt), once, whatever
the number of lambdas; one policy at a time would read that L times. The work
is some 3 N M L operations, so from L = 64 on registers bound it, not memory.
No atomics: every program sums its own prompts, and a second sum adds up the
programs, so a result repeats bit for bit.

Source: the Lagrangian of the budgeted routing problem; Varangot-Reille et al.
2025, section on the formal problem.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from lab.kernels.declaration import Compile, Cost, Declaration, Example
from lab.kernels.gate_backward import finite
from lab.kernels.operator import operator

MOST_MODELS = 64
PROGRAMS = 1024  # along the prompts, about as many as a large GPU holds
BLOCK_L = 16  # lambdas per program


class Frontier(NamedTuple):
    """What each of the L policies costs, and what it is worth."""

    quality: Tensor  # [L], mean true score
    cost: Tensor  # [L], mean cost
    load: Tensor  # [L, M] int32, prompts per model


def frontier(
    predicted: Tensor, truth: Tensor, costs: Tensor, prices: Tensor
) -> Frontier:
    """Route predicted scores [N, M] at each of the prices of money [L].

    ``truth`` [N, M] are the true scores and ``costs`` [M] or [N, M] what a
    call costs. fp32, or float64 where the predictions are. On a CPU, NaN and
    negative prices are refused; on a GPU, where looking would stall it, a NaN
    prediction counts as the lowest number. O(N M L).
    """
    if predicted.ndim != 2 or 0 in predicted.shape:
        raise ValueError(
            f"predicted scores of shape {tuple(predicted.shape)} route"
            " nothing; give at least one prompt and one model, [N, M]"
        )
    N, M = predicted.shape
    if M > MOST_MODELS:
        raise ValueError(f"M={M} models are more than {MOST_MODELS}")
    fits = truth.shape == (N, M) and costs.shape in ((M,), (N, M))
    if not fits or prices.ndim != 1:
        raise ValueError(
            f"truth {tuple(truth.shape)}, costs {tuple(costs.shape)} and"
            f" prices {tuple(prices.shape)} do not fit {N} prompts and {M}"
            f" models; use [{N}, {M}], [{M}] or [{N}, {M}], and a list"
        )
    if predicted.device.type == "cpu":
        _check_values(predicted, truth, costs, prices)
    return Frontier(*_frontier(predicted, truth, costs.expand(N, M), prices))


def _check_values(predicted, truth, costs, prices):
    given = dict(predicted=predicted, truth=truth, costs=costs, prices=prices)
    for name, values in given.items():
        if not torch.isfinite(values).all():
            raise ValueError(
                f"{name} has a value that is no number; leave its prompt out"
            )
    if (prices < 0).any():
        raise ValueError(
            f"lambda={prices.min():g} would reward spending; use 0 or more"
        )


def frontier_reference(
    predicted: Tensor, truth: Tensor, costs: Tensor, prices: Tensor
) -> Frontier:
    """The sweep in plain PyTorch, one policy after the other."""
    N, M = predicted.shape
    wide = predicted.dtype == torch.float64
    predicted, truth, costs, prices = (
        x if wide else x.float() for x in (predicted, truth, costs, prices)
    )
    costs = costs.expand(N, M)
    quality, cost, load = [], [], []
    for price in prices:
        value = predicted - price * costs
        # argmax promises nothing about ties, the first of the best does
        choice = (value == value.amax(dim=1, keepdim=True)).int().argmax(1)
        quality.append(truth.gather(1, choice[:, None]).double().mean())
        cost.append(costs.gather(1, choice[:, None]).double().mean())
        load.append(torch.bincount(choice, minlength=M).to(predicted.dtype))
    return Frontier(
        predicted.new_tensor(quality),
        predicted.new_tensor(cost),
        torch.stack([predicted.new_zeros(M), *load])[1:].int(),
    )


@triton.jit
def frontier_kernel(
    predicted_ptr,
    truth_ptr,
    costs_ptr,
    prices_ptr,
    sums_ptr,
    load_ptr,
    N,
    M,
    L,
    tiles,
    costs_stride_n,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_L: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    first = tl.program_id(1) * BLOCK_L
    lane = tl.arange(0, BLOCK_L)
    m = tl.arange(0, BLOCK_M)
    is_model = m[None, :] < M
    quality = tl.zeros([BLOCK_L], tl.float32)
    cost = tl.zeros([BLOCK_L], tl.float32)
    load = tl.zeros([BLOCK_L, BLOCK_M], tl.int32)

    for tile in range(0, tiles):
        n = (program * tiles + tile) * BLOCK_N + tl.arange(0, BLOCK_N)
        inside = (n[:, None] < N) & is_model
        # [BLOCK_N, BLOCK_M], read once for all lambdas
        at = n[:, None] * M + m[None, :]
        s = tl.load(predicted_ptr + at, mask=inside, other=0.0)
        s = finite(s.to(tl.float32))
        y = tl.load(truth_ptr + at, mask=inside, other=0.0).to(tl.float32)
        # one row for all prompts has stride 0
        c_ptr = costs_ptr + n[:, None] * costs_stride_n + m[None, :]
        c = tl.load(c_ptr, mask=inside, other=0.0).to(tl.float32)
        for j in range(0, BLOCK_L):
            price = tl.load(
                prices_ptr + first + j, mask=first + j < L, other=0.0
            ).to(tl.float32)
            value = tl.where(is_model, s - price * c, float("-inf"))
            best = tl.max(value, 1)
            first_best = tl.where(value == best[:, None], m[None, :], BLOCK_M)
            choice = tl.min(first_best, 1)
            chosen = (m[None, :] == choice[:, None]) & inside
            here = lane == j
            gained = tl.sum(tl.sum(tl.where(chosen, y, 0.0), 1), 0)
            spent = tl.sum(tl.sum(tl.where(chosen, c, 0.0), 1), 0)
            count = tl.sum(chosen.to(tl.int32), 0)
            quality += tl.where(here, gained, 0.0)
            cost += tl.where(here, spent, 0.0)
            load += tl.where(here[:, None], count[None, :], 0)

    # row [program, lambda] of the partial sums
    row = program * L + first + lane
    kept = first + lane < L
    tl.store(sums_ptr + row * 2, quality, mask=kept)
    tl.store(sums_ptr + row * 2 + 1, cost, mask=kept)
    at = row[:, None] * M + m[None, :]
    tl.store(load_ptr + at, load, mask=kept[:, None] & is_model)


def blocks(M: int) -> tuple[int, int, int]:
    """Prompts and models of one tile, and its warps.

    One warp holds 256 scores, so that no sum crosses warps; three such tiles
    are alive, and twice as many scores would spill.
    """
    block_m = triton.next_power_of_2(max(2, M))
    block_n = max(16, min(128, 256 // block_m))
    return block_n, block_m, 1 if block_n * block_m < 1024 else 2


def frontier_triton(
    predicted: Tensor, truth: Tensor, costs: Tensor, prices: Tensor
) -> Frontier:
    """Launch the kernel and add up what its programs found."""
    N, M = predicted.shape
    L = len(prices)
    predicted, truth = predicted.contiguous(), truth.contiguous()
    costs = costs.expand(N, M)
    if costs.stride(1) != 1:
        costs = costs.contiguous()
    block_n, block_m, warps = blocks(M)
    tiles = triton.cdiv(triton.cdiv(N, block_n), PROGRAMS)
    programs = triton.cdiv(N, block_n * tiles)
    sums = predicted.new_empty((programs, L, 2), dtype=torch.float32)
    load = predicted.new_empty((programs, L, M), dtype=torch.int32)
    if L:
        frontier_kernel[(programs, triton.cdiv(L, BLOCK_L))](
            predicted, truth, costs, prices.contiguous(), sums, load,
            N, M, L, tiles, costs.stride(0),
            BLOCK_N=block_n, BLOCK_M=block_m, BLOCK_L=BLOCK_L,
            num_warps=warps,
        )  # fmt: skip
    means = (sums.sum(dim=0, dtype=torch.float64) / N).float()
    quality, cost = (
        # contiguous() would leave up to one number at a stride of 2
        column.clone(memory_format=torch.contiguous_format)
        for column in means.unbind(dim=1)
    )
    return Frontier(quality, cost, load.sum(dim=0, dtype=torch.int32))


def _shapes(predicted, truth, costs, prices):
    L, M = len(prices), predicted.shape[1]
    wide = predicted.dtype == torch.float64
    means = predicted.new_empty(
        (2, L), dtype=torch.float64 if wide else torch.float32
    )
    load = predicted.new_empty((L, M), dtype=torch.int32)
    return means[0].clone(), means[1].clone(), load


_frontier = operator(
    "frontier(Tensor predicted, Tensor truth, Tensor costs, Tensor prices)"
    " -> (Tensor, Tensor, Tensor)",
    cpu=frontier_reference,
    cuda=frontier_triton,
    shapes=_shapes,
)


def _inputs(seed, device, dtype, N, M, L, by_prompt=False, ties=False):
    generator = torch.Generator().manual_seed(seed)

    def on_grid(*shape, steps):
        # sums of such fractions are exact in fp32, so a tie is a true tie
        whole = torch.randint(0, steps + 1, shape, generator=generator)
        return (whole / steps).to(device, dtype)

    steps = 2 if ties else 1024
    return {
        "predicted": on_grid(N, M, steps=steps),
        "truth": on_grid(N, M, steps=2),
        "costs": on_grid(*((N, M) if by_prompt else (M,)), steps=32),
        "prices": on_grid(L, steps=2 if ties else 64),
    }


def _cost(predicted, truth, costs, prices) -> Cost:
    (N, M), L = predicted.shape, len(prices)
    read = 4 * (2 * N * M + costs.numel() + L)
    return Cost(read + 4 * L * (2 + M), 3 * N * M * L)


def _compile(M: int) -> Compile:
    block_n, block_m, warps = blocks(M)
    size = "i32:16" if M % 16 == 0 else "i32"
    pointers = ("predicted", "truth", "costs", "prices", "sums")
    return Compile(
        f"M{M}",
        frontier_kernel,
        signature={
            **{f"{name}_ptr": "*fp32" for name in pointers},
            "load_ptr": "*i32", "N": "i32", "M": size, "L": "i32:16",
            # stride 0, which counts as a multiple of 16
            "tiles": "i32", "costs_stride_n": "i32:16",
        },
        constants=dict(BLOCK_N=block_n, BLOCK_M=block_m, BLOCK_L=BLOCK_L),
        num_warps=warps,
    )  # fmt: skip


DECLARATION = Declaration(
    name="frontier",
    operation=frontier,
    reference=frontier_reference,
    triton=frontier_triton,
    inputs=_inputs,
    exact=("load",),
    examples=(
        Example("9 models", {"N": 1000, "M": 9, "L": 16}),
        Example("by prompt", {"N": 257, "M": 5, "L": 7, "by_prompt": True}),
        Example("16 models", {"N": 130, "M": 16, "L": 20}),
        Example("2 models", {"N": 63, "M": 2, "L": 33}),
        Example("64 models", {"N": 33, "M": 64, "L": 3}),
        Example("ties", {"N": 65, "M": 9, "L": 4, "ties": True},
                degenerate=True),
        Example("one model", {"N": 5, "M": 1, "L": 2}, degenerate=True),
        Example("one prompt", {"N": 1, "M": 3, "L": 1}, degenerate=True),
        Example("no price", {"N": 4, "M": 3, "L": 0}, degenerate=True),
        Example("large", {"N": 1 << 20, "M": 16, "L": 64}, large=True),
    ),
    cost=_cost,
    compiles=(*map(_compile, (2, 9, 16, 64)),),
)  # fmt: skip
