"""The Triton side of `serve_sim`: a simulation in registers.

Every request is a lane, every instance a lane of a shorter vector. Which
requests wait where is a mask, so no queue is kept; the price is a pass over
all lanes for each event.
"""

import triton
import triton.language as tl
from torch import Tensor

from lab.kernels.runtime import next_power_of_2

LARGE = 95  # requests of a decode step from which other costs hold
LANES = 16  # the most instances
NEVER = tl.constexpr(float("inf"))
LAST = tl.constexpr(1 << 30)  # more than any lane, load or number of steps
# stages of a request
QUEUED, PREFILL, MOVING, WAITING, DECODE, SERVED = (
    tl.constexpr(stage) for stage in range(1, 7)
)


@triton.jit
def at(values, lane, j):
    """The value of lane j."""
    return tl.sum(tl.where(lane == j, values, 0), 0)


@triton.jit
def lowest(mask, lane):
    """The first lane of the mask."""
    return tl.min(tl.where(mask, lane, LAST), 0)


@triton.jit
def lasts(k, first, more):
    """How long k steps last: first, first + more, first + 2 more, ..."""
    k = k.to(tl.float64)
    return k * first + more * (k * (k - 1.0) / 2.0)


@triton.jit
def steps_until(now, begun, first, more, most):
    """The fewest of ``most`` steps after which it is ``now`` or later."""
    half = first - more / 2.0
    time = now - begun
    root = half + tl.sqrt(half * half + 2.0 * more * time)
    k = tl.ceil(2.0 * time / root).to(tl.int32)
    k = tl.minimum(tl.maximum(k, 1), most)
    # the root is right up to its last digit
    less = (k > 1) & (begun + lasts(k - 1, first, more) >= now)
    k = tl.where(less, k - 1, k)
    again = (k < most) & (begun + lasts(k, first, more) < now)
    return tl.where(again, k + 1, k)


@triton.jit
def admit(stage, moved, here, need, held, memory, r):
    """Let those who wait decode, in the order they came, while they fit."""
    waits = here & (stage == WAITING)
    look = tl.sum(waits.to(tl.int32), 0) > 0
    while look:
        soonest = tl.min(tl.where(waits, moved, NEVER), 0)
        who = r == lowest(waits & (moved == soonest), r)
        held += tl.sum(tl.where(who, need, 0), 0)
        look = held <= memory
        stage = tl.where(who & look, DECODE, stage)
        waits = waits & (stage == WAITING)
        look = look & (tl.sum(waits.to(tl.int32), 0) > 0)
    return stage


@triton.jit
def serve_sim_kernel(
    arrivals_ptr,
    prompts_ptr,
    outputs_ptr,
    pools_ptr,
    costs_ptr,
    ttft_ptr,
    tpot_ptr,
    S,
    N,
    LARGE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_I: tl.constexpr,
):
    simulation = tl.program_id(0).to(tl.int64)
    placement, stream = simulation // S, simulation % S
    pools_ptr += placement * 5
    prefillers = tl.load(pools_ptr)
    decoders = tl.load(pools_ptr + 1)
    limit = tl.load(pools_ptr + 2)
    memory = tl.load(pools_ptr + 3)
    in_turn = tl.load(pools_ptr + 4)
    costs_ptr += placement * 11
    rate = tl.load(costs_ptr).to(tl.float64)
    link = tl.load(costs_ptr + 1).to(tl.float64)
    a = tl.load(costs_ptr + 2).to(tl.float64)
    b = tl.load(costs_ptr + 3).to(tl.float64)
    c = tl.load(costs_ptr + 4).to(tl.float64)

    i = tl.arange(0, BLOCK_I)
    takes = i < prefillers
    steps_there = tl.where(
        decoders > 0, (i >= prefillers) & (i < prefillers + decoders), takes
    )
    load = tl.zeros([BLOCK_I], tl.int32)
    begun = tl.zeros([BLOCK_I], tl.float64)
    end = tl.full([BLOCK_I], NEVER, tl.float64)  # idle
    run = tl.zeros([BLOCK_I], tl.int32)  # steps until it looks up; 0: prefill
    first_step = tl.zeros([BLOCK_I], tl.float64)
    more = tl.zeros([BLOCK_I], tl.float64)
    free = tl.zeros([BLOCK_I], tl.float64)  # when the link is

    r = tl.arange(0, BLOCK_N)
    inside = r < N
    arrivals_ptr += stream * N
    prompt = tl.load(prompts_ptr + stream * N + r, mask=inside, other=0)
    output = tl.load(outputs_ptr + stream * N + r, mask=inside, other=0)
    seconds = tl.load(arrivals_ptr + r, mask=inside, other=NEVER)
    arrival = 1000.0 * seconds.to(tl.float64) / rate
    stage = tl.zeros([BLOCK_N], tl.int32)
    place = tl.zeros([BLOCK_N], tl.int32)
    left = output - 1  # decode steps
    first = tl.full([BLOCK_N], float("nan"), tl.float64)
    moved = tl.zeros([BLOCK_N], tl.float64)
    tpot = tl.full([BLOCK_N], float("nan"), tl.float64)

    arrived = tl.full([], 0, tl.int32)
    events = tl.full([], 0, tl.int32)
    to_come = tl.full([], 0, tl.int32) + N
    while (to_come > 0) & (events < 8 * N + 8):
        events += 1
        t_arrive = tl.min(tl.where(r == arrived, arrival, NEVER), 0)
        t_move = tl.min(tl.where(stage == MOVING, moved, NEVER), 0)
        t_done = tl.min(end, 0)
        now = tl.minimum(t_arrive, tl.minimum(t_move, t_done))
        prefilled = tl.full([], 0, tl.int1)
        if t_arrive <= tl.minimum(t_move, t_done):
            fewest = tl.min(tl.where(takes, load, LAST), 0)
            j = lowest(takes & (load == fewest), i)
            who = r == arrived
            stage = tl.where(who, QUEUED, stage)
            place = tl.where(who, j, place)
            load += (i == j).to(tl.int32)
            arrived += 1
        elif t_move <= t_done:
            fewest = tl.min(tl.where(steps_there, load, LAST), 0)
            j = lowest(steps_there & (load == fewest), i)
            who = r == lowest((stage == MOVING) & (moved == t_move), r)
            stage = tl.where(who, WAITING, stage)
            place = tl.where(who, j, place)
            load += (i == j).to(tl.int32)
        else:
            j = lowest(end == t_done, i)
            k = at(run, i, j)
            if k == 0:
                prefilled = k == 0
                who = (stage == PREFILL) & (place == j)
                first = tl.where(who, now, first)
                short = who & (output == 1)
                tpot = tl.where(short, 0.0, tpot)
                stage = tl.where(short, SERVED, stage)
                to_come -= tl.sum(short.to(tl.int32), 0)
                who = who & (output > 1)
                gone = short
                if decoders > 0:
                    stage = tl.where(who, MOVING, stage)
                    gone = short | who
                    # one after the other over the link
                    starts = tl.maximum(at(free, i, j), now)
                    mine = tl.where(who, prompt, 0)
                    moved = tl.where(
                        who, starts + link * tl.cumsum(mine, 0), moved
                    )
                    done = starts + link * tl.sum(mine, 0)
                    free = tl.where(i == j, done, free)
                else:
                    stage = tl.where(who, DECODE, stage)
                load -= tl.where(i == j, tl.sum(gone.to(tl.int32), 0), 0)
            else:
                who = (stage == DECODE) & (place == j)
                left = tl.where(who, left - k, left)
                who = who & (left == 0)
                further = tl.maximum(output - 1, 1).to(tl.float64)
                tpot = tl.where(who, (now - first) / further, tpot)
                stage = tl.where(who, SERVED, stage)
                count = tl.sum(who.to(tl.int32), 0)
                to_come -= count
                load -= tl.where(i == j, count, 0)
            end = tl.where(i == j, NEVER, end)

        if at((end < NEVER).to(tl.int32), i, j) == 0:
            # the next prefill or the next decode steps, or nothing to do
            here = place == j
            need = tl.where(here, prompt + output, 0)
            held = tl.sum(tl.where(stage == DECODE, need, 0), 0)
            stage = admit(stage, moved, here, need, held, memory, r)
            active = here & (stage == DECODE)
            n = tl.sum(active.to(tl.int32), 0)
            queued = here & (stage == QUEUED)
            tokens = tl.cumsum(tl.where(queued, prompt, 0), 0)
            room = held + tl.cumsum(tl.where(queued, need, 0), 0)
            # the first one goes even if it is longer than a batch
            batch = queued & ((tokens <= limit) | (r == lowest(queued, r)))
            batch = batch & ((room <= memory) | (decoders > 0))
            someone = tl.sum(queued.to(tl.int32), 0) > 0
            stepping = (in_turn > 0) & prefilled & (n > 0)
            batch = batch & (stepping == 0)
            begun = tl.where(i == j, now, begun)
            if tl.sum(batch.to(tl.int32), 0) > 0:
                stage = tl.where(batch, PREFILL, stage)
                p = tl.where(batch, prompt, 0).to(tl.int64)
                # a + b sum p + c sum p^2
                done = now + (
                    a
                    + b * tl.sum(p, 0).to(tl.float64)
                    + c * tl.sum(p * p, 0).to(tl.float64)
                )
                end = tl.where(i == j, done, end)
                run = tl.where(i == j, 0, run)
            elif n > 0:
                column = tl.where(n < LARGE, 5, 8)
                a_n = tl.load(costs_ptr + column).to(tl.float64)
                b_n = tl.load(costs_ptr + column + 1).to(tl.float64)
                c_n = tl.load(costs_ptr + column + 2).to(tl.float64)
                context = tl.sum(
                    tl.where(active, prompt + output - left, 0), 0
                )
                p = a_n + b_n * context.to(tl.float64)
                p += c_n * n.to(tl.float64)
                q = b_n * n.to(tl.float64)
                k = tl.min(tl.where(active, left, LAST), 0)
                k = tl.where(stepping & someone, 1, k)
                run = tl.where(i == j, k, run)
                first_step = tl.where(i == j, p, first_step)
                more = tl.where(i == j, q, more)
                end = tl.where(i == j, now + lasts(k, p, q), end)
        else:
            # somebody came: look up after the present step
            most = at(run, i, j)
            if most > 1:
                t = at(begun, i, j)
                p = at(first_step, i, j)
                q = at(more, i, j)
                k = steps_until(now, t, p, q, most)
                run = tl.where(i == j, k, run)
                sooner = tl.where(k < most, t + lasts(k, p, q), NEVER)
                end = tl.where(i == j, tl.minimum(end, sooner), end)

    row = simulation * N + r
    tl.store(ttft_ptr + row, (first - arrival).to(tl.float32), mask=inside)
    tl.store(tpot_ptr + row, tpot.to(tl.float32), mask=inside)


def blocks(N: int) -> dict:
    """The lanes, at most 4 requests for each thread."""
    block_n = next_power_of_2(max(N, 16))
    return {
        "LARGE": LARGE,
        "BLOCK_N": block_n,
        "BLOCK_I": LANES,
        "num_warps": max(1, min(8, block_n // 64)),
    }


def launch(arrivals, prompts, outputs, pools, costs, ttft, tpot: Tensor):
    """A program for each placement and stream; all tensors are contiguous."""
    C, S, N = ttft.shape
    serve_sim_kernel[(C * S,)](
        arrivals, prompts, outputs, pools, costs, ttft, tpot, S, N, **blocks(N)
    )
