"""Chains of entanglement: how long until all hops have a pair at once.

There are C chains of up to H hops, and B trials of each. Hop h tries every
s_h units of time to make a pair, and succeeds with probability p_h. A pair
waits for the others, but at most for the cut-off w; then it is dropped, and
its hop tries again. Once all hops have a pair, all of them are swapped into
one from end to end. If a swap fails, all hops begin anew.

    G     = ceil(ln u / ln(1 - p_h))      tries, geometric, u uniform
    r_h   = s_h G                         when hop h has its pair
    last  = max over h of r_h
    while some r_h + w < last:            such a pair is too old
        r_h = r_h + w + s_h G'            dropped at r_h + w; a new one
    time  = last

No pair of a hop lasts until ``last`` but its newest, so the hops need not be
watched from slot to slot: every step of the loop skips to what matters. If a
swap fails (probability 1 - q^(hops - 1)), each r_h becomes last + s_h G'.

The n-th draw of hop h in trial b is a function of seed, b, h and n alone
(`_philox`). So all chains of a call have the same luck, and differences
between them are paired. Bits repeat on every device as far as the logarithm
does, which is in float64: a different last digit would have to fall on a whole
number of tries.

A program holds some trials with all hops in registers and loops until the
last of them is done or past the limit.

Bytes: 8 C H read, 16 C B written. Work: about 150 integer operations and a
logarithm for each draw, H and more draws a trial; so compute is the limit.

Source: the model is the lab's, for chains of SeQUeNCe (Wu et al. 2021), which
swaps as soon as a router has two pairs; without cut-off and with perfect
swaps that is over at the same time.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from lab.kernels import runtime
from lab.kernels._philox import philox_uniform, uniform
from lab.kernels.declaration import Compile, Cost, Declaration, Example
from lab.kernels.operator import operator
from lab.kernels.runtime import cdiv, next_power_of_2

MOST_HOPS = 32
MOST_TIME = 1 << 29  # three of it fit into int32
SWAP = 1 << 16  # in place of a hop, for the draws of the swaps


class Chains(NamedTuple):
    """What became of B trials of C chains."""

    time: Tensor  # [C, B] int32, until the pair from end to end; -1: not yet
    drops: Tensor  # [C, B] int32, pairs that grew too old
    waited: Tensor  # [C, B] int64, how long the swapped pairs waited in all


def chain_mc(
    p: Tensor,
    step: Tensor,
    trials: int,
    cutoff: int,
    limit: int,
    swap: float,
    seed: int,
) -> Chains:
    """Run ``trials`` of the chains with p [C, H] and int32 steps [C, H].

    A hop whose step is 0 is not there. No pair waits longer than ``cutoff``,
    and no trial runs longer than ``limit``, in the unit of the steps; a
    cut-off of ``limit`` is none. Every swap succeeds with probability
    ``swap``. On a CPU, probabilities outside (0, 1] and chains without a hop
    are refused; on a GPU, where a check would stall it, such a hop never has
    a pair, and such a chain takes no time.
    """
    if p.ndim != 2 or not 1 <= p.shape[1] <= MOST_HOPS:
        raise ValueError(
            f"p has shape {tuple(p.shape)}; give [chains, hops] with 1 to"
            f" {MOST_HOPS} hops"
        )
    if not p.is_floating_point():
        raise TypeError(f"p is {p.dtype}; use a floating type")
    if step.shape != p.shape or step.dtype != torch.int32:
        raise ValueError(
            f"step is {step.dtype} of shape {tuple(step.shape)}; give int32"
            f" of p's shape {tuple(p.shape)}"
        )
    if trials < 0:
        raise ValueError(f"trials={trials} is not allowed; use 0 or more")
    if not 1 <= limit <= MOST_TIME:
        raise ValueError(f"limit={limit} is not within 1 to {MOST_TIME}")
    if not 0 <= cutoff <= limit:
        raise ValueError(
            f"cutoff={cutoff} is not within 0 to the limit, {limit}"
        )
    if not 0 < swap <= 1:
        raise ValueError(f"swap={swap} is not within (0, 1]")
    if not 0 <= seed < 1 << 63:
        raise ValueError(f"seed={seed} is not within 0 to 2^63 - 1")
    if runtime.may_look(p) and p.numel():
        _check_values(p, step, limit)
    return Chains(
        *_chain_mc(p, step, trials, cutoff, limit, float(swap), seed)
    )


def _check_values(p, step, limit):
    there = step > 0
    if (step < 0).any() or (step > limit).any():
        raise ValueError(
            f"steps run from {int(step.min())} to {int(step.max())}; use 0"
            f" for no hop, or 1 to the limit, {limit}"
        )
    if not there.any(1).all():
        raise ValueError("a chain has no hop; give each one a step above 0")
    if not ((p > 0) & (p <= 1) | ~there).all():
        raise ValueError(
            "p holds entries that are not within (0, 1]; a hop that never"
            " succeeds has no step"
        )


def per_try(p: Tensor) -> Tensor:
    """ln(1 - p) in float64; next to 0 for a hop that never succeeds."""
    wide = p.double()
    return torch.where((wide > 0) & (wide <= 1), torch.log1p(-wide), -1e-300)


def all_swaps(step: Tensor, swap: float) -> Tensor:
    """The probability [C] that all swaps of a chain succeed."""
    hops = (step > 0).sum(1).double()
    return swap ** (hops - 1).clamp(min=0)


def chain_mc_reference(
    p: Tensor,
    step: Tensor,
    trials: int,
    cutoff: int,
    limit: int,
    swap: float,
    seed: int,
) -> Chains:
    """The trials in plain PyTorch, all of them at once."""
    C, H = p.shape
    shape = C, trials, H
    rate, given = per_try(p)[:, None].expand(shape), step
    step = given[:, None].expand(shape)
    there, lucky = step > 0, all_swaps(given, swap)
    c, b, h = torch.meshgrid(
        *(torch.arange(n, device=p.device) for n in shape), indexing="ij"
    )

    def next_pair(of: Tensor) -> Tensor:
        """How long the hops in the mask ``of`` try until they have a pair."""
        u = uniform(seed, b[of], h[of], turn[of])
        turn[of] += 1
        tries = (u.log() / rate[of]).ceil().clamp(min=1)
        return (tries * step[of]).clamp(max=limit + 1).long()

    turn, rise = (torch.zeros_like(c) for _ in range(2))
    rise[there] = next_pair(there)
    drops, fails, waited = (c.new_zeros((C, trials)) for _ in range(3))
    time = torch.full_like(drops, -1)
    open = torch.ones_like(drops, dtype=torch.bool)
    while True:
        last = rise.amax(2)
        open &= last <= limit
        if not open.any():
            return Chains(time.int(), drops.int(), waited)
        old = open[..., None] & there & (rise + cutoff < last[..., None])
        drops += old.sum(2)
        ready = open & ~old.any(2)
        u = uniform(seed, b[ready][:, 0], torch.tensor(SWAP), fails[ready])
        swapped = u < lucky[c[ready][:, 0]]
        ended, failed = ready.clone(), ready.clone()
        ended[ready], failed[ready] = swapped, ~swapped
        time[ended] = last[ended]
        ages = (last[..., None] - rise).masked_fill(~there, 0)
        waited[ended] = ages.sum(2)[ended]
        open &= ~ended
        fails += failed
        rise[old] += cutoff + next_pair(old)
        anew = failed[..., None] & there
        rise[anew] = last[..., None].expand(shape)[anew] + next_pair(anew)


@triton.jit
def chain_mc_kernel(
    rate_ptr,
    step_ptr,
    lucky_ptr,
    time_ptr,
    drops_ptr,
    waited_ptr,
    B,
    H,
    cutoff,
    limit,
    seed,
    SWAP: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    chain = tl.program_id(0).to(tl.int64)
    b = tl.program_id(1) * BLOCK_B + tl.arange(0, BLOCK_B)
    h = tl.arange(0, BLOCK_H)
    at = chain * H + h
    rate = tl.load(rate_ptr + at, mask=h < H, other=-1.0).to(tl.float64)
    step = tl.load(step_ptr + at, mask=h < H, other=0)
    lucky = tl.load(lucky_ptr + chain).to(tl.float64)
    there = (step > 0)[None, :]
    trial = b[:, None] + tl.zeros([BLOCK_B, BLOCK_H], tl.int32)
    hop = h[None, :] + tl.zeros([BLOCK_B, BLOCK_H], tl.int32)
    turn = tl.zeros([BLOCK_B, BLOCK_H], tl.int32)
    rise = next_pair(seed, trial, hop, turn, rate, step, limit)
    rise = tl.where(there, rise, 0)
    drops = tl.zeros([BLOCK_B], tl.int32)
    fails = tl.zeros([BLOCK_B], tl.int32)
    time = tl.full([BLOCK_B], -1, tl.int32)
    waited = tl.zeros([BLOCK_B], tl.int64)
    last = tl.max(rise, 1)
    open = ((b < B) & (last <= limit)).to(tl.int32)
    while tl.max(open, 0) > 0:
        old = there & (open > 0)[:, None] & (rise + cutoff < last[:, None])
        count = tl.sum(old.to(tl.int32), 1)
        drops += count
        ready = (open > 0) & (count == 0)
        u = philox_uniform(seed, b, b * 0 + SWAP, fails)
        ended = ready & (u < lucky)
        ages = tl.where(there, last[:, None] - rise, 0).to(tl.int64)
        time = tl.where(ended, last, time)
        waited = tl.where(ended, tl.sum(ages, 1), waited)
        failed = ready & (u >= lucky)
        fails += failed.to(tl.int32)
        # what was dropped at its cut-off, and all if a swap failed
        again = old | (there & failed[:, None])
        turn += again.to(tl.int32)
        begins = tl.where(old, rise + cutoff, last[:, None])
        pair = next_pair(seed, trial, hop, turn, rate, step, limit)
        rise = tl.where(again, begins + pair, rise)
        last = tl.max(rise, 1)
        open = ((open > 0) & (ended == 0) & (last <= limit)).to(tl.int32)
    at = chain * B + b
    tl.store(time_ptr + at, time, mask=b < B)
    tl.store(drops_ptr + at, drops, mask=b < B)
    tl.store(waited_ptr + at, waited, mask=b < B)


@triton.jit
def next_pair(seed, trial, hop, turn, rate, step, limit):
    """How long each hop tries until it has a pair; at most limit + 1."""
    u = philox_uniform(seed, trial, hop, turn)
    tries = tl.maximum(tl.ceil(tl.log(u) / rate[None, :]), 1.0)
    most = tl.cast(limit, tl.float64) + 1.0
    time = tl.minimum(tries * step[None, :].to(tl.float64), most)
    return time.to(tl.int32)


def blocks(H: int) -> dict:
    """Trials and hops of a program: 4 draws a lane at a time."""
    block_h = next_power_of_2(H)
    return {"SWAP": SWAP, "BLOCK_B": 512 // block_h, "BLOCK_H": block_h}


def chain_mc_triton(
    p: Tensor,
    step: Tensor,
    trials: int,
    cutoff: int,
    limit: int,
    swap: float,
    seed: int,
) -> Chains:
    """Launch the kernel; a program for some trials of one chain."""
    C, H = p.shape
    rate, step = per_try(p).contiguous(), step.contiguous()
    lucky = all_swaps(step, swap)
    time, drops, waited = _shapes(p, step, trials, cutoff, limit, swap, seed)
    if C and trials:
        tile = blocks(H)
        grid = C, cdiv(trials, tile["BLOCK_B"])
        chain_mc_kernel[grid](
            rate, step, lucky, time, drops, waited,
            trials, H, cutoff, limit, seed,
            **tile, num_warps=4,
        )  # fmt: skip
    return Chains(time, drops, waited)


def _shapes(p, step, trials, cutoff, limit, swap, seed):
    shape = p.shape[0], trials
    time, drops = (p.new_empty(shape, dtype=torch.int32) for _ in range(2))
    return time, drops, p.new_empty(shape, dtype=torch.int64)


_chain_mc = operator(
    "chain_mc(Tensor p, Tensor step, SymInt trials, SymInt cutoff,"
    " SymInt limit, float swap, SymInt seed) -> (Tensor, Tensor, Tensor)",
    cpu=chain_mc_reference,
    cuda=chain_mc_triton,
    shapes=_shapes,
)


def _inputs(
    seed, device, dtype, C, B, H, low=0.05, high=0.5, cutoff=None, limit=20000,
    swap=1.0, longest=1, ragged=False,
):  # fmt: skip
    """Probabilities between ``low`` and ``high``, steps up to ``longest``."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.rand(C, H, generator=generator, dtype=torch.float64)
    step = torch.randint(1, longest + 1, (C, H), generator=generator)
    if ragged:
        # chains of 1, 2, 3 hops and so on
        step *= torch.arange(H)[None, :] <= torch.arange(C)[:, None] % H
    return {
        "p": (low + (high - low) * drawn).to(device, dtype),
        "step": step.int().to(device),
        "trials": B,
        "cutoff": limit if cutoff is None else cutoff,
        "limit": limit,
        "swap": swap,
        "seed": seed,
    }


def _cost(p, step, trials, cutoff, limit, swap, seed) -> Cost:
    C, H = p.shape
    # integer work is not counted; a logarithm and a division for each draw
    return Cost(8 * C * H + 16 * C * trials, 2 * C * H * trials)


def _compile(H: int) -> Compile:
    return Compile(
        f"H{H}",
        chain_mc_kernel,
        signature={
            "rate_ptr": "*fp64", "step_ptr": "*i32", "lucky_ptr": "*fp64",
            "time_ptr": "*i32", "drops_ptr": "*i32", "waited_ptr": "*i64",
            "B": "i32", "H": "i32", "cutoff": "i32", "limit": "i32",
            "seed": "i64",
        },
        constants=blocks(H),
    )  # fmt: skip


DECLARATION = Declaration(
    name="chain_mc",
    operation=chain_mc,
    reference=chain_mc_reference,
    triton=chain_mc_triton,
    inputs=_inputs,
    exact=("time", "drops", "waited"),
    examples=(
        Example("three hops", {"C": 2, "B": 150, "H": 3}),
        Example("seven hops, pairs grow old",
                {"C": 1, "B": 70, "H": 7, "cutoff": 30}),
        Example("swaps fail", {"C": 2, "B": 77, "H": 3, "swap": 0.8}),
        Example("tries of different length, chains of different length",
                {"C": 3, "B": 33, "H": 3, "longest": 40, "cutoff": 200,
                 "swap": 0.9, "ragged": True}),
        Example("one hop", {"C": 1, "B": 65, "H": 1, "swap": 0.5},
                degenerate=True),
        Example("every try succeeds",
                {"C": 1, "B": 10, "H": 5, "low": 1.0, "high": 1.0},
                degenerate=True),
        Example("pairs last for no time",
                {"C": 1, "B": 9, "H": 2, "low": 0.4, "cutoff": 0},
                degenerate=True),
        Example("most do not end in time",
                {"C": 1, "B": 50, "H": 6, "cutoff": 2, "limit": 12},
                degenerate=True),
        Example("hardly ever a pair",
                {"C": 1, "B": 20, "H": 3, "low": 1e-12, "high": 1e-9,
                 "limit": MOST_TIME}, degenerate=True),
        Example("32 hops", {"C": 1, "B": 9, "H": 32, "low": 0.3},
                degenerate=True),
        Example("no trial", {"C": 2, "B": 0, "H": 3}, degenerate=True),
        Example("no chain", {"C": 0, "B": 4, "H": 3}, degenerate=True),
        Example("large", {"C": 64, "B": 1 << 16, "H": 8, "cutoff": 400,
                          "limit": 1 << 20}, large=True),
    ),
    cost=_cost,
    compiles=tuple(_compile(H) for H in (1, 4, 8, 32)),
)  # fmt: skip
