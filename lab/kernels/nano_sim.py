"""Pipelines of nano-batches simulated: when has each layer been left?

A batch is cut into N nano-batches. In every layer each of them passes eight
operations, one after the other, and each operation needs one resource:

    KQV  attn  AG  O  AG  UG  D  AR
     c    m    n   c  n   c   c  n     compute, memory or network

A stream for each resource does one operation at a time. A free stream takes
the ready operation of the earliest layer; within it that of the first
nano-batch or, if ``behind`` is 1, the one that comes first in the list above.
While a matrix product (a GEMM) runs, the others slow it down, and it them:

    GEMM       at  1 - R_a [attention runs] - R_n [network runs]
    attention  at  P_a,  1 without a GEMM
    network    at  P_n,  1 without a GEMM

Rates change whenever an operation starts or ends. Durations are whole
nanoseconds, R and P whole thousandths, and an end is rounded up to the next
nanosecond: all is integer, so every machine takes the same decisions.

Each candidate is a lane, and a program has 32 of them. A nano-batch keeps its
layer, its operation, the work left of it, and whether it runs.

Bytes: 32 C N + 20 C read, 8 C L written. The limit is the chain of 8 N L
events, of some sixty passes over a lane's nano-batches and two divisions.

Source: Zhu et al. 2025, NanoFlow, sections 3.7 and 4.1; the fluid simulation
is the lab's.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from lab.kernels._nano_sim_pipeline import COMPUTE as COMPUTE
from lab.kernels._nano_sim_pipeline import MEMORY as MEMORY
from lab.kernels._nano_sim_pipeline import NETWORK as NETWORK
from lab.kernels._nano_sim_pipeline import OPERATIONS
from lab.kernels._nano_sim_pipeline import STREAM as STREAM
from lab.kernels._nano_sim_pipeline import Pipeline as Pipeline
from lab.kernels.declaration import Compile, Cost, Declaration, Example
from lab.kernels.operator import operator
from lab.kernels.runtime import cdiv, may_look, next_power_of_2

BLOCK_C = 32  # candidates of a program, one for each thread
MOST_NANO_BATCHES = 4
MOST_LAYERS = 1024
LONGEST = 1 << 30  # nanoseconds of one operation
NEVER = tl.constexpr(1 << 62)


def nano_sim(
    durations: Tensor, shares: Tensor, behind: Tensor, layers: int
) -> Tensor:
    """Simulate C pipelines of N nano-batches through some ``layers``.

    ``durations`` [C, N, 8] int32 are nanoseconds that an operation takes
    alone; ``shares`` [C, 4] int32 are R and P of attention, then of the
    network, in thousandths; ``behind`` [C] int32 is 0 or 1. Returns when the
    last nano-batch left each layer [C, layers], int64 nanoseconds.

    On a CPU wrong numbers are refused; on a GPU a check would stall it, and
    there a rate below a thousandth counts as one, and a duration below 0 as 0.
    O(C N^2 L).
    """
    if durations.ndim != 3 or durations.shape[2] != len(OPERATIONS):
        raise ValueError(
            f"durations have shape {tuple(durations.shape)}; give"
            f" [candidates, nano-batches, {len(OPERATIONS)}]"
        )
    C, N, _ = durations.shape
    if not 1 <= N <= MOST_NANO_BATCHES:
        raise ValueError(
            f"{N} nano-batches are not within 1 to {MOST_NANO_BATCHES}"
        )
    if not 1 <= layers <= MOST_LAYERS:
        raise ValueError(f"layers={layers} is not within 1 to {MOST_LAYERS}")
    given = {
        "durations": (durations, durations.shape),
        "shares": (shares, (C, 4)),
        "behind": (behind, (C,)),
    }
    for name, (tensor, shape) in given.items():
        if tensor.dtype != torch.int32 or tensor.shape != shape:
            raise ValueError(
                f"{name} are {tensor.dtype} of shape {tuple(tensor.shape)};"
                f" give torch.int32 of shape {tuple(shape)}"
            )
    if may_look(durations) and C:
        _look(durations, shares, behind)
    return _nano_sim(durations, shares, behind, layers)


def _look(durations: Tensor, shares: Tensor, behind: Tensor) -> None:
    """Refuse numbers that no pipeline can have."""
    low, high = durations.min().item(), durations.max().item()
    if low < 0 or high > LONGEST:
        raise ValueError(
            f"durations reach from {low} to {high} ns; use 0 to {LONGEST}"
        )
    if shares.min() < 0 or shares[:, 1::2].min() < 1 or shares.max() > 1000:
        raise ValueError(
            "a share or a rate is out of range; in thousandths, R is within"
            " 0 to 1000 and P within 1 to 1000"
        )
    most = shares[:, ::2].sum(1).max().item()
    if most >= 1000:
        raise ValueError(
            f"R of attention and network add up to {most} thousandths, which"
            " leaves a GEMM nothing; use less than 1000"
        )
    if not ((behind | 1) == 1).all():
        raise ValueError("behind is neither 0 nor 1 somewhere; use 0 or 1")


def nano_sim_reference(
    durations: Tensor, shares: Tensor, behind: Tensor, layers: int
) -> Tensor:
    """The simulations in plain Python, one after the other."""
    rows = zip(
        durations.tolist(), shares.tolist(), behind.tolist(), strict=True
    )
    finish = [Pipeline(*row, layers).run() for row in rows]
    return torch.tensor(
        finish, dtype=torch.int64, device=durations.device
    ).reshape(len(durations), layers)


@triton.jit
def resource(operation):
    """0, 1, 2 where an operation needs compute, memory or the network."""
    network = (operation == 2) | (operation == 4) | (operation == 7)
    return tl.where(operation == 1, 1, tl.where(network, 2, 0))


@triton.jit
def busy(runs, stream, one):
    """Whether a stream does something: 1 or 0, for each candidate."""
    return tl.max((runs & (stream == one)).to(tl.int32), 1)


@triton.jit
def begin(runs, waits, stream, one, place):
    """A free stream takes the first of the nano-batches that wait for it."""
    mine = waits & (stream == one) & (busy(runs, stream, one) == 0)[:, None]
    first = tl.min(tl.where(mine, place, 1 << 30), 1)
    return runs | (mine & (place == first[:, None]))


@triton.jit
def rate_of(runs, stream, shares_ptr, c, inside):
    """How fast every nano-batch is, in thousandths."""
    r_a = tl.load(shares_ptr + c * 4, mask=inside, other=0)
    p_a = tl.load(shares_ptr + c * 4 + 1, mask=inside, other=1)
    r_n = tl.load(shares_ptr + c * 4 + 2, mask=inside, other=0)
    p_n = tl.load(shares_ptr + c * 4 + 3, mask=inside, other=1)
    product = busy(runs, stream, 0) > 0
    gemm = 1000 - tl.where(busy(runs, stream, 1) > 0, r_a, 0)
    gemm -= tl.where(busy(runs, stream, 2) > 0, r_n, 0)
    attention = tl.where(product, p_a, 1000)
    network = tl.where(product, p_n, 1000)
    rate = tl.where(stream == 1, attention[:, None], network[:, None])
    rate = tl.where(stream == 0, gemm[:, None], rate)
    return tl.maximum(rate, 1).to(tl.int64)


@triton.jit
def nano_sim_kernel(
    durations_ptr,
    shares_ptr,
    behind_ptr,
    finish_ptr,
    C,
    N,
    layers,
    BLOCK_C: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    c = tl.program_id(0).to(tl.int64) * BLOCK_C + tl.arange(0, BLOCK_C)
    n = tl.arange(0, BLOCK_N)
    inside = c < C
    here = inside[:, None] & (n < N)[None, :]
    behind = tl.load(behind_ptr + c, mask=inside, other=0)
    # all below are [BLOCK_C, BLOCK_N]
    at = durations_ptr + (c[:, None] * N + n[None, :]) * 8
    operation = tl.zeros([BLOCK_C, BLOCK_N], tl.int32)
    layer = tl.where(here, 0, layers)
    left = tl.load(at, mask=here, other=0).to(tl.int64) * 1000
    runs = tl.zeros([BLOCK_C, BLOCK_N], tl.int32) > 0

    now = tl.zeros([BLOCK_C], tl.int64)
    done = tl.min(layer, 1)
    while tl.min(done, 0) < layers:
        stream = resource(operation)
        waits = (layer < layers) & (runs == 0)
        step = layer * 8 + operation * behind[:, None]
        place = step * BLOCK_N + n[None, :]
        runs = begin(runs, waits, stream, 0, place)
        runs = begin(runs, waits, stream, 1, place)
        runs = begin(runs, waits, stream, 2, place)

        # to the next end of an operation, rounded up
        rate = rate_of(runs, stream, shares_ptr, c, inside)
        wait = tl.where(runs, (tl.maximum(left, 0) + rate - 1) // rate, NEVER)
        wait = tl.where(done < layers, tl.min(wait, 1), 0)
        now += wait
        left = tl.where(runs, left - rate * wait[:, None], left)

        ends = runs & (left <= 0)
        runs = runs & (left > 0)
        operation = tl.where(ends, (operation + 1) % 8, operation)
        layer += (ends & (operation == 0)).to(tl.int32)
        work = tl.load(at + operation, mask=ends & here, other=0)
        left = tl.where(ends, work.to(tl.int64) * 1000, left)
        fewest = tl.min(layer, 1)
        tl.store(
            finish_ptr + c * layers + done, now, mask=inside & (fewest > done)
        )
        done = fewest


def nano_sim_triton(
    durations: Tensor, shares: Tensor, behind: Tensor, layers: int
) -> Tensor:
    """Launch the kernel; one program for each 32 candidates."""
    C, N, _ = durations.shape
    finish = durations.new_empty((C, layers), dtype=torch.int64)
    if C:
        nano_sim_kernel[(cdiv(C, BLOCK_C),)](
            durations.contiguous(), shares.contiguous(), behind.contiguous(),
            finish, C, N, layers,
            BLOCK_C=BLOCK_C, BLOCK_N=next_power_of_2(N), num_warps=1,
        )  # fmt: skip
    return finish


def _shapes(durations, shares, behind, layers):
    shape = (len(durations), layers)
    return durations.new_empty(shape, dtype=torch.int64)


_nano_sim = operator(
    "nano_sim(Tensor durations, Tensor shares, Tensor behind, SymInt layers)"
    " -> Tensor",
    cpu=nano_sim_reference,
    cuda=nano_sim_triton,
    shapes=_shapes,
)


def _inputs(
    seed, device, dtype, C, N, layers, alike=False, nothing=0.0, share=450
):
    """Random pipelines; ``alike`` ones have nano-batches of one length."""
    generator = torch.Generator().manual_seed(seed)

    def whole(low, high, *shape):
        drawn = torch.randint(low, high, shape, generator=generator)
        return drawn.to(device, torch.int32)

    durations = whole(1, 500_000, C, N, len(OPERATIONS))
    if alike:
        durations = durations[:, :1, :1].expand_as(durations).contiguous()
    lost = torch.rand(durations.shape, generator=generator) < nothing
    shares = torch.stack(
        (whole(0, share + 1, C), whole(1, 1001, C)) * 2, dim=1
    )
    return {
        "durations": durations.masked_fill(lost.to(device), 0),
        "shares": shares,
        "behind": whole(0, 2, C),
        "layers": layers,
    }


def _cost(durations, shares, behind, layers) -> Cost:
    C, N, _ = durations.shape
    return Cost(32 * C * N + 20 * C + 8 * C * layers, 0)


def _compile(N: int) -> Compile:
    return Compile(
        f"{N} nano-batches",
        nano_sim_kernel,
        signature={
            "durations_ptr": "*i32", "shares_ptr": "*i32",
            "behind_ptr": "*i32", "finish_ptr": "*i64", "C": "i32",
            "N": "i32", "layers": "i32",
        },
        constants={"BLOCK_C": BLOCK_C, "BLOCK_N": next_power_of_2(N)},
        num_warps=1,
    )  # fmt: skip


DECLARATION = Declaration(
    name="nano_sim",
    operation=nano_sim,
    reference=nano_sim_reference,
    triton=nano_sim_triton,
    inputs=_inputs,
    exact=("result",),
    examples=(
        Example("two", {"C": 40, "N": 2, "layers": 1}),
        Example("three", {"C": 5, "N": 3, "layers": 1}),
        Example("all alike", {"C": 7, "N": 2, "layers": 2, "alike": True},
                degenerate=True),
        Example("nothing to do", {"C": 9, "N": 2, "layers": 1,
                                  "nothing": 0.5}, degenerate=True),
        Example("no time at all", {"C": 2, "N": 2, "layers": 1,
                                   "nothing": 1.0}, degenerate=True),
        Example("hardly a share left", {"C": 8, "N": 2, "layers": 1,
                                        "share": 499}, degenerate=True),
        Example("one nano-batch", {"C": 3, "N": 1, "layers": 2},
                degenerate=True),
        Example("four", {"C": 6, "N": 4, "layers": 1}),
        Example("no candidate", {"C": 0, "N": 2, "layers": 3},
                degenerate=True),
        Example("large", {"C": 1 << 17, "N": 2, "layers": 8}, large=True),
    ),
    cost=_cost,
    compiles=(_compile(1), _compile(2), _compile(4)),
)  # fmt: skip
