"""Serving simulated: when does each request get its first and its last token?

A request has a prompt of p tokens and an output of o, the first of which comes
from the prefill and the others from o - 1 decode steps. C placements, each at
a rate of its own, serve S streams of N requests, every pair by itself:

    arrive    the prefill instance with the fewest requests takes it
    prefill   of the requests that wait in order, as many as fit into a batch
              takes  a + b sum p + c sum p^2
    move      the keys and values, p tokens over the instance's own link
    decode    the decode instance with the fewest requests takes it; a step
              of n requests  takes  a + b sum (p + tokens so far) + c n
              with other a, b, c from 95 requests on

    TTFT = first token - arrival      TPOT = (last - first token) / (o - 1)

Without decode instances, the prefill instances decode as well and nothing
moves: the two are colocated. A prefill then goes first, or in turn with single
decode steps. A request keeps p + o tokens of memory where it decodes, and
waits until there is room. Ties go to the lowest index; of events at the same
time arrivals come first, then moves.

Between two events a batch keeps its n requests, so its steps last p, p + q,
p + 2 q and so on, and k of them last  k p + q k (k - 1) / 2. No step has to be
simulated by itself: a request costs about five events, however long it is.

One program does one simulation. Every request is a lane of a vector, and
queues are masks. Times are float64, in milliseconds.

Bytes: 12 S N + 20 C + 44 C read, 8 C S N written. The limit is the chain of
5 N events, each some 20 passes over the N lanes, so many simulations side by
side are as fast as one.

Source: the simulator of Zhong et al. 2024, DistServe, sections 4.1 and 4.3;
see `lab.serving.distserve` for what differs.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from lab.kernels._serve_sim_events import Simulation as Simulation
from lab.kernels._serve_sim_triton import blocks, launch, serve_sim_kernel
from lab.kernels.declaration import Compile, Cost, Declaration, Example
from lab.kernels.operator import operator
from lab.kernels.runtime import may_look

MOST_REQUESTS = 1024  # of a stream; all are held in registers
MOST_INSTANCES = 16
MOST_TOKENS = 1 << 20  # of one request, so that squares and sums stay exact

# the columns of ``pools`` and of ``costs``
POOLS = ("prefill", "decode", "batch", "memory", "in_turn")
COSTS = ("rate", "link")  # then a, b, c of prefill, decode, large decode


class Served(NamedTuple):
    """What every request waited for, in milliseconds."""

    ttft: Tensor  # [C, S, N], from arrival to first token
    tpot: Tensor  # [C, S, N], mean of a further token; 0 if there is none


def serve_sim(
    arrivals: Tensor,
    prompts: Tensor,
    outputs: Tensor,
    pools: Tensor,
    costs: Tensor,
) -> Served:
    """Serve S streams of N requests with C placements, each at its own rate.

    ``arrivals`` [S, N] fp32 rise along a row and are divided by the rate, so
    they are seconds at one request per second; ``prompts`` and ``outputs``
    [S, N] int32 are tokens. ``pools`` [C, 5] int32: prefill instances, decode
    instances (0: colocated), tokens of a prefill batch, tokens of memory, and
    1 for prefills in turn with decode steps. ``costs`` [C, 11] fp32: requests
    per second, milliseconds to move a token, then a, b, c of prefill, of
    decode, and of decode with 95 or more requests.

    A prompt longer than a batch is a batch of its own. On a CPU wrong numbers
    are refused; on a GPU a check would stall it, and what is never served has
    NaN. O(C S N log N).
    """
    shapes = {
        "prompts": (prompts, arrivals.shape, torch.int32),
        "outputs": (outputs, arrivals.shape, torch.int32),
        "pools": (pools, (len(costs), len(POOLS)), torch.int32),
        "costs": (costs, (len(costs), len(COSTS) + 9), arrivals.dtype),
    }
    if arrivals.ndim != 2 or not 1 <= arrivals.shape[1] <= MOST_REQUESTS:
        raise ValueError(
            f"arrivals have shape {tuple(arrivals.shape)}; give [streams,"
            f" requests] with 1 to {MOST_REQUESTS} requests"
        )
    if not arrivals.is_floating_point():
        raise ValueError(f"arrivals are {arrivals.dtype}; use torch.float32")
    for name, (tensor, shape, kind) in shapes.items():
        if tensor.shape != shape or tensor.dtype != kind:
            raise ValueError(
                f"{name} are {tensor.dtype} of shape {tuple(tensor.shape)};"
                f" give {kind} of shape {tuple(shape)}"
            )
    if may_look(arrivals) and arrivals.numel() and len(pools):
        _look(arrivals, prompts, outputs, pools, costs)
    return Served(*_serve_sim(arrivals, prompts, outputs, pools, costs))


def _look(arrivals, prompts, outputs, pools, costs) -> None:
    """Refuse numbers that no simulation can serve."""
    if not (arrivals.isfinite().all() and (arrivals >= 0).all()):
        raise ValueError("arrivals are not all finite and 0 or more")
    if (arrivals.diff(dim=1) < 0).any():
        raise ValueError("arrivals fall within a stream; sort them")
    longest = int((prompts.long() + outputs).max())
    if min(int(prompts.min()), int(outputs.min())) < 1:
        raise ValueError("a request has no prompt or no output; use 1 or more")
    if longest > min(MOST_TOKENS, int(pools[:, 3].min())):
        raise ValueError(
            f"a request of {longest} tokens is more than the"
            f" {int(pools[:, 3].min())} of an instance's memory or"
            f" {MOST_TOKENS}; leave it out"
        )
    if not (costs.isfinite().all() and (costs >= 0).all()):
        raise ValueError("costs are not all finite and 0 or more")
    if (costs[:, 0] <= 0).any() or (costs[:, [2, 5, 8]] <= 0).any():
        raise ValueError("a rate or a constant a is 0; use more than 0")
    few, most = pools[:, 0].min(), pools[:, :2].sum(1).max()
    if few < 1 or pools[:, 1].min() < 0 or most > MOST_INSTANCES:
        raise ValueError(
            f"a placement has {int(few)} or up to {int(most)} instances; use"
            f" 1 prefill instance or more, and {MOST_INSTANCES} at most"
        )
    if pools[:, 2].min() < 1 or not ((pools[:, 4] | 1) == 1).all():
        raise ValueError(
            "batch or in_turn is wrong; a batch has 1 token or more, and"
            " in_turn is 0 or 1"
        )


def serve_sim_reference(
    arrivals: Tensor,
    prompts: Tensor,
    outputs: Tensor,
    pools: Tensor,
    costs: Tensor,
) -> Served:
    """The simulations in plain Python, one after the other."""
    shape = (len(pools), *arrivals.shape)
    served = Served(*(arrivals.new_empty(shape) for _ in Served._fields))
    streams = zip(
        arrivals.double().tolist(), prompts.tolist(), outputs.tolist(),
        strict=True,
    )  # fmt: skip
    streams, pools = list(streams), pools.tolist()
    for c, cost in enumerate(costs.double().tolist()):
        for s, stream in enumerate(streams):
            waits = Simulation(*stream, pools[c], cost).serve()
            for result, wait in zip(served, waits, strict=True):
                result[c, s] = torch.tensor(wait, dtype=torch.float64)
    return served


def serve_sim_triton(
    arrivals: Tensor,
    prompts: Tensor,
    outputs: Tensor,
    pools: Tensor,
    costs: Tensor,
) -> Served:
    """One program for each placement and stream."""
    shape = (len(pools), *arrivals.shape)
    served = Served(
        *(arrivals.new_full(shape, math.nan) for _ in Served._fields)
    )
    if served.ttft.numel():
        given = (arrivals, prompts, outputs, pools, costs)
        launch(*(tensor.contiguous() for tensor in given), *served)
    return served


def _shapes(arrivals, prompts, outputs, pools, costs):
    shape = (len(pools), *arrivals.shape)
    return tuple(arrivals.new_empty(shape) for _ in Served._fields)


_serve_sim = operator(
    "serve_sim(Tensor arrivals, Tensor prompts, Tensor outputs, Tensor pools,"
    " Tensor costs) -> (Tensor, Tensor)",
    cpu=serve_sim_reference,
    cuda=serve_sim_triton,
    shapes=_shapes,
)


def _inputs(
    seed, device, dtype, C, S, N, rate=8.0, colocated=False, alike=False,
    memory=1500, single=False, instances=2,
):  # fmt: skip
    """Random requests; placements of 1 to ``instances`` a pool."""
    generator = torch.Generator().manual_seed(seed)

    def whole(low, high, *shape):
        return torch.randint(low, high, shape, generator=generator)

    gaps = torch.rand(S, N, generator=generator, dtype=torch.float64)
    arrivals = 0 * gaps if alike else (-gaps.log()).cumsum(1)
    pools = torch.stack(
        (
            whole(1, instances + 1, C),
            whole(1, instances + 1, C) * (0 if colocated else 1),
            whole(100, 700, C),
            torch.full((C,), memory),
            whole(0, 2, C),
        ),
        dim=1,
    )
    usual = torch.tensor(
        [rate, 0.2, 18.0, 0.1, 7e-6, 22.0, 7e-4, 0.04, 9.0, 7e-4, 0.16],
        dtype=torch.float64,
    )
    spread = torch.rand(C, 11, generator=generator, dtype=torch.float64)
    tensors = {
        "arrivals": arrivals.to(dtype),
        "prompts": whole(1, 700, S, N).int(),
        "outputs": (whole(1, 2, S, N) if single else whole(1, 60, S, N)).int(),
        "pools": pools.int(),
        "costs": (usual * (0.5 + spread)).to(dtype),
    }
    return {name: tensor.to(device) for name, tensor in tensors.items()}


def _cost(arrivals, prompts, outputs, pools, costs) -> Cost:
    C, (S, N) = len(pools), arrivals.shape
    return Cost(12 * S * N + 64 * C + 8 * C * S * N, 0)


def _compile(N: int) -> Compile:
    tile = blocks(N)
    return Compile(
        f"{N} requests",
        serve_sim_kernel,
        signature={
            "arrivals_ptr": "*fp32", "prompts_ptr": "*i32",
            "outputs_ptr": "*i32", "pools_ptr": "*i32", "costs_ptr": "*fp32",
            "ttft_ptr": "*fp32", "tpot_ptr": "*fp32", "S": "i32", "N": "i32",
        },
        constants={k: v for k, v in tile.items() if k != "num_warps"},
        num_warps=tile["num_warps"],
    )  # fmt: skip


DECLARATION = Declaration(
    name="serve_sim",
    operation=serve_sim,
    reference=serve_sim_reference,
    triton=serve_sim_triton,
    inputs=_inputs,
    examples=(
        Example("two pools", {"C": 2, "S": 1, "N": 7}),
        Example("colocated", {"C": 2, "S": 1, "N": 7, "colocated": True}),
        Example("six instances", {"C": 1, "S": 1, "N": 12, "rate": 40.0,
                                  "instances": 3}),
        Example("all at once", {"C": 1, "S": 1, "N": 6, "alike": True},
                degenerate=True),
        Example("all at once, colocated",
                {"C": 1, "S": 1, "N": 6, "alike": True, "colocated": True},
                degenerate=True),
        Example("room for one", {"C": 1, "S": 1, "N": 4, "memory": 759},
                degenerate=True),
        Example("room for one, colocated",
                {"C": 1, "S": 1, "N": 4, "memory": 759, "colocated": True},
                degenerate=True),
        Example("one token each", {"C": 1, "S": 1, "N": 4, "single": True},
                degenerate=True),
        Example("one request", {"C": 1, "S": 2, "N": 1}, degenerate=True),
        Example("no placement", {"C": 0, "S": 2, "N": 5}, degenerate=True),
        Example("no stream", {"C": 2, "S": 0, "N": 5}, degenerate=True),
        Example("large", {"C": 256, "S": 8, "N": 1024, "memory": 66144,
                          "instances": 8}, large=True),
    ),
    cost=_cost,
    compiles=tuple(_compile(N) for N in (16, 256, 1024)),
)  # fmt: skip
