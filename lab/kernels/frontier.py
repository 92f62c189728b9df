"""Frontier: one routing policy for each price of money, all in one pass.

Each prompt n goes to the model with the best predicted score after lambda
times its cost is subtracted. lambda is the price of money; sweeping it traces
what any budget can buy:

    m*(n, l) = argmax over m of  S[n, m] - lambda[l] C[n, m]
    quality[l] = mean over n of  Y[n, m*]
    cost[l]    = mean over n of  C[n, m*]
    load[l, m] = how many n chose m

S is what the router predicts, Y what really happened. Ties go to the lowest
index. A difference within rounding of 0 may fall on either side.

Bytes: 8 N M read once (4 N M more where costs differ by prompt), whatever the
number of lambdas; one policy at a time would read them L times. The work is
about 3 N M L operations, so from L = 64 on the limit is comparing, not memory.

A lane owns a lambda and goes through the prompts one by one, so neither a
choice nor a sum needs another lane. There are no atomics: every program sums
its own prompts, and a second sum adds up the programs, so a result repeats bit
for bit.

Source: the Lagrangian of the budgeted routing problem; Varangot-Reille et al.
2025, section on the formal problem.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from lab.kernels import runtime
from lab.kernels.declaration import Compile, Cost, Declaration, Example
from lab.kernels.operator import operator
from lab.kernels.runtime import cdiv, next_power_of_2

MOST_MODELS = 64
PROGRAMS = 32  # along the prompts, per multiprocessor: as many as it holds
MOST_PROMPTS = 255  # of a program, because its counts have 8 bits


class Frontier(NamedTuple):
    """What each of the L policies costs, and what it is worth."""

    quality: Tensor  # [L], mean true score
    cost: Tensor  # [L], mean cost
    load: Tensor  # [L, M] int32, prompts per model


def frontier(
    predicted: Tensor, truth: Tensor, costs: Tensor, prices: Tensor
) -> Frontier:
    """Route by predicted scores [N, M] at each of the prices of money [L].

    ``truth`` [N, M] are the true scores and ``costs`` [M] or [N, M] what a
    call costs. Results are fp32 (float64 for float64 predictions). On a CPU,
    NaN and negative prices are refused; on a GPU, where a check would stall
    it, a NaN prediction loses to all others. O(N M L).
    """
    if predicted.ndim != 2 or 0 in predicted.shape:
        raise ValueError(
            f"predicted scores of shape {tuple(predicted.shape)} route"
            " nothing; give at least one prompt and one model, [N, M]"
        )
    N, M = predicted.shape
    if M > MOST_MODELS:
        raise ValueError(
            f"M={M} models are too many; use at most {MOST_MODELS}"
        )
    fits = truth.shape == (N, M) and costs.shape in ((M,), (N, M))
    if not fits or prices.ndim != 1:
        raise ValueError(
            f"truth {tuple(truth.shape)}, costs {tuple(costs.shape)} and"
            f" prices {tuple(prices.shape)} do not fit {N} prompts and {M}"
            f" models; use [{N}, {M}], then [{M}] or [{N}, {M}], then a list"
        )
    if runtime.may_look(predicted):
        _check_values(predicted, truth, costs, prices)
    return Frontier(*_frontier(predicted, truth, costs.expand(N, M), prices))


def _check_values(predicted, truth, costs, prices):
    given = dict(predicted=predicted, truth=truth, costs=costs, prices=prices)
    for name, values in given.items():
        if not torch.isfinite(values).all():
            raise ValueError(
                f"{name} has a NaN or infinite value; use finite numbers"
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
    quality, cost = [], []
    load = predicted.new_zeros((len(prices), M), dtype=torch.int32)
    for row, price in enumerate(prices):
        value = predicted - price * costs
        choice = value.argmax(dim=1)  # of equals the first
        quality.append(truth.gather(1, choice[:, None]).double().mean())
        cost.append(costs.gather(1, choice[:, None]).double().mean())
        load[row] = torch.bincount(choice, minlength=M)
    return Frontier(
        predicted.new_tensor(quality),
        predicted.new_tensor(cost),
        load,
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
    prompts,
    costs_stride_n,
    BLOCK_M: tl.constexpr,
    BLOCK_L: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    lam = tl.program_id(1) * BLOCK_L + tl.arange(0, BLOCK_L)
    is_lam = lam < L
    price = tl.load(prices_ptr + lam, mask=is_lam, other=0.0).to(tl.float32)
    m = tl.arange(0, BLOCK_M)
    is_model = m < M
    quality = tl.zeros([BLOCK_L], tl.float32)
    cost = tl.zeros([BLOCK_L], tl.float32)
    # the counts of four models share an integer: a fourth of the additions
    four = tl.arange(0, BLOCK_M // 4) * 4
    counts = tl.zeros([BLOCK_M // 4, BLOCK_L], tl.int32)

    first = program * prompts
    for n in range(first, tl.minimum(first + prompts, N)):
        s = tl.load(
            predicted_ptr + n * M + m, mask=is_model, other=float("-inf")
        ).to(tl.float32)
        # a row that all prompts share has stride 0
        row_ptr = costs_ptr + n * costs_stride_n
        c = tl.load(row_ptr + m, mask=is_model, other=0.0).to(tl.float32)
        value = s[:, None] - price[None, :] * c[:, None]
        # NaN is neither the largest nor equal to it
        is_best = value == tl.max(value, 0)[None, :]
        choice = tl.min(tl.where(is_best, m[:, None], BLOCK_M), 0)
        choice = tl.where(choice < M, choice, 0)
        # neighbouring lanes read from one row, so the cache sees one access
        y = tl.load(truth_ptr + n * M + choice)
        quality += y.to(tl.float32)
        cost += tl.load(row_ptr + choice).to(tl.float32)
        one = (1 << (choice % 4 * 8))[None, :]
        is_here = four[:, None] == (choice // 4 * 4)[None, :]
        counts += tl.where(is_here, one, 0)

    # row [program, lambda] of the partial sums
    row = program * L + lam
    tl.store(sums_ptr + row * 2, quality, mask=is_lam)
    tl.store(sums_ptr + row * 2 + 1, cost, mask=is_lam)
    for i in tl.static_range(4):
        model = (four + i)[:, None]
        at = row[None, :] * M + model
        kept = is_lam[None, :] & (model < M)
        tl.store(load_ptr + at, (counts >> 8 * i) & 255, mask=kept)


def blocks(M: int, L: int) -> tuple[int, int]:
    """Models and lambdas of a program of one warp: two lambdas per lane where
    there are as many, and at most 32 values per lane."""
    block_m = max(4, next_power_of_2(M))
    most = min(64, 1024 // block_m)
    return block_m, min(most, max(16, next_power_of_2(L)))


def share(N: int, multiprocessors: int) -> int:
    """Prompts per program, such that every multiprocessor is full."""
    return min(MOST_PROMPTS, cdiv(N, PROGRAMS * multiprocessors))


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
    prompts = share(N, runtime.multiprocessors(predicted))
    programs = cdiv(N, prompts)
    sums = predicted.new_empty((programs, L, 2), dtype=torch.float32)
    load = predicted.new_empty((programs, L, M), dtype=torch.int32)
    if L:
        block_m, block_l = blocks(M, L)
        frontier_kernel[(programs, cdiv(L, block_l))](
            predicted, truth, costs, prices.contiguous(), sums, load,
            N, M, L, prompts, costs.stride(0),
            BLOCK_M=block_m, BLOCK_L=block_l, num_warps=1,
        )  # fmt: skip
    means = (sums.sum(dim=0, dtype=torch.float64) / N).float()
    quality, cost = (
        # contiguous() would leave a single number, or none, at a stride of 2
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


def _compile(M: int, L: int) -> Compile:
    block_m, block_l = blocks(M, L)
    size = "i32:16" if M % 16 == 0 else "i32"
    pointers = ("predicted", "truth", "costs", "prices", "sums")
    return Compile(
        f"M{M} L{L}",
        frontier_kernel,
        signature={
            **{f"{name}_ptr": "*fp32" for name in pointers},
            "load_ptr": "*i32", "N": "i32", "M": size, "L": "i32:16",
            # stride 0, which counts as a multiple of 16
            "prompts": "i32", "costs_stride_n": "i32:16",
        },
        constants=dict(BLOCK_M=block_m, BLOCK_L=block_l),
        num_warps=1,
    )  # fmt: skip


DECLARATION = Declaration(
    name="frontier",
    operation=frontier,
    reference=frontier_reference,
    triton=frontier_triton,
    inputs=_inputs,
    exact=("load",),
    examples=(
        Example("9 models", {"N": 150, "M": 9, "L": 16}),
        Example("by prompt", {"N": 67, "M": 5, "L": 7, "by_prompt": True}),
        Example("16 models", {"N": 35, "M": 16, "L": 20}),
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
    compiles=(
        _compile(2, 64), _compile(9, 16), _compile(16, 64), _compile(64, 16),
    ),
)  # fmt: skip
