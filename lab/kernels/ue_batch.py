"""User equilibrium of many road networks at once, by Frank-Wolfe.

B networks share their E links and differ in capacity c [B, E] and perhaps in
demand d [B, N, N], the trips from node i to node s. A link with flow x takes

    t(x) = free + rise (x / c)^power

At equilibrium no driver gains by taking another route. One iteration:

    D_is, next_is = shortest time from i to s, and the node after i
    y             = all demand loaded on these routes
    x            <- x + lambda (y - x)

Lambda is the largest multiple of 2^-16, found bit by bit, at which the slope
sum t(x) (y - x) of the Beckmann objective is not positive yet. Without flows
to start from, the first iteration takes all of y. At the end

    total = sum t x        gap = 1 - sum d D / total

so the gap is the share of all time that drivers seem to lose by not being on
the shortest route; it is 0 at equilibrium. Flows of one network may be the
start of another one with the same demand: a capacity forbids no flow.

D comes from N rounds of Floyd-Warshall; a route changes only for a shorter
one, so the first of equals stays. Loading adds the demand of i to every node
on its way by pointer doubling: after k rounds ``at[i, s]`` is the node 2^k
links ahead, and a node has got what starts less than 2^k links behind it. So
log2 N rounds serve all routes, and sums have one order.

One program holds one network in registers, as tiles of N x N nodes in which
most pairs have no link. Bytes: 4 (2 B E + 2 B + 4 E), 4 N^2 for each demand
and 4 B E for a start. An iteration takes 2 N^3 operations for D and, in rounds
of one row or column each, N (2 log2 N + 5) sums over the tile that bring this
row to all lanes. Those sums are the limit, not memory.

Source: LeBlanc, Morlok, Pierskalla 1975; the lower level of Madadi and Correia
2024, who take its bi-conjugate variant, one network at a time.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from lab.kernels._ue_batch_triton import blocks, launch, ue_batch_kernel
from lab.kernels.declaration import Compile, Cost, Declaration, Example
from lab.kernels.operator import operator
from lab.kernels.runtime import may_look

MOST_NODES = 32  # of a network whose tiles fit into registers
HALVINGS = 16  # of the step, so that lambda is a multiple of 2^-16
POWERS = (1, 2, 4)  # of the flow, which two squarings reach


class Equilibrium(NamedTuple):
    """What drivers do in each of B networks."""

    flows: Tensor  # [B, E], trips on each link
    total: Tensor  # [B], time of all drivers together
    gap: Tensor  # [B], share of it that they could save


def ue_batch(
    capacity: Tensor,
    demand: Tensor,
    links: Tensor,
    free: Tensor,
    rise: Tensor,
    iterations: int,
    power: int = 4,
    start: Tensor | None = None,
) -> Equilibrium:
    """Equilibria for capacity [B, E] and demand [B or 1, N, N].

    ``links`` [2, E] int32 hold the node that each link leaves and the one
    that it enters; ``free`` and ``rise`` [E] give its time. ``start`` [B, E]
    are flows that serve the same demand. No two links join the same nodes in
    the same direction, and links of time 0 form no circle. Numbers that make
    no sense, and demand without a route, are refused on a CPU. On a GPU a
    check would stall it: there demand without a route makes gap and total
    NaN or infinite. O(B iterations N^3).
    """
    E = links.shape[-1]
    if capacity.ndim != 2 or capacity.shape[1] != E or links.ndim != 2:
        raise ValueError(
            f"capacity has shape {tuple(capacity.shape)} and links"
            f" {tuple(links.shape)}; give [networks, links] and [2, links]"
        )
    if demand.ndim != 3 or len(demand) not in (1, len(capacity)):
        raise ValueError(
            f"demand has shape {tuple(demand.shape)}; give [1 or"
            f" {len(capacity)}, nodes, nodes]"
        )
    N = demand.shape[1]
    if demand.shape[2] != N or not 2 <= N <= MOST_NODES:
        raise ValueError(
            f"demand is for {N} by {demand.shape[2]} nodes; use 2 to"
            f" {MOST_NODES} of them"
        )
    if links.dtype != torch.int32:
        raise TypeError(f"links are {links.dtype}; use int32")
    if free.shape != (E,) or rise.shape != (E,):
        raise ValueError(
            f"free and rise have shapes {tuple(free.shape)} and"
            f" {tuple(rise.shape)}; give one number for each of {E} links"
        )
    if power not in POWERS:
        raise ValueError(f"power={power} is not one of {POWERS}")
    if iterations < 1:
        raise ValueError(f"iterations={iterations} are too few; use 1 or more")
    if start is not None and start.shape != capacity.shape:
        raise ValueError(
            f"start has shape {tuple(start.shape)}; give one flow for each"
            f" link of each network, {tuple(capacity.shape)}"
        )
    if may_look(capacity):
        _refuse(capacity, demand, links, free, rise, start)
    return Equilibrium(
        *_ue_batch(
            capacity, demand, links, free, rise, iterations, power, start
        )
    )


def _refuse(capacity, demand, links, free, rise, start):
    N = demand.shape[1]
    if links.numel() and not 0 <= int(links.min()) <= int(links.max()) < N:
        raise ValueError(f"links name nodes outside 0 to {N - 1}")
    ends = links[0].long() * N + links[1]
    if len(ends.unique()) < len(ends) or (links[0] == links[1]).any():
        raise ValueError(
            "two links join the same nodes in the same direction, or one"
            " joins a node to itself; add their capacities up, or leave it out"
        )
    if not (capacity > 0).all():
        raise ValueError(
            f"{int((~(capacity > 0)).sum())} capacities are not above 0;"
            " leave such a link out"
        )
    checked = {"demand": demand, "free": free, "rise": rise}
    if start is not None:
        checked["start"] = start
    for name, numbers in checked.items():
        wrong = ~((numbers >= 0) & numbers.isfinite())
        if wrong.any():
            raise ValueError(
                f"{name} holds {int(wrong.sum())} entries that are negative"
                " or not finite"
            )
    reach = torch.eye(N, dtype=torch.bool, device=links.device)
    reach[links[0].long(), links[1].long()] = True
    for k in range(N):
        reach |= reach[:, k : k + 1] & reach[k]
    lost = ((demand > 0) & ~reach).any(0).nonzero()
    if len(lost):
        raise ValueError(
            f"no route leads from node {int(lost[0, 0])} to node"
            f" {int(lost[0, 1])}, but somebody wants to travel there"
        )


def ue_batch_reference(
    capacity: Tensor,
    demand: Tensor,
    links: Tensor,
    free: Tensor,
    rise: Tensor,
    iterations: int,
    power: int = 4,
    start: Tensor | None = None,
) -> Equilibrium:
    """The same in plain PyTorch, all networks in step."""
    wide = capacity.dtype if capacity.dtype == torch.float64 else torch.float32
    c, d, f, r = (x.to(wide) for x in (capacity, demand, free, rise))

    def times(x):
        ratio = x / c
        for _ in range(power // 2):
            ratio = ratio * ratio
        return f + r * ratio

    x = torch.zeros_like(c) if start is None else start.to(wide)
    for k in range(iterations):
        _, after = shortest(times(x), links, d.shape[1])
        step = loaded(after, links, d) - x
        share = torch.zeros_like(c[:, :1])
        for bit in range(1, HALVINGS + 1):
            further = share + 2.0**-bit
            slope = (times(x + further * step) * step).sum(1, keepdim=True)
            share = torch.where(slope <= 0, further, share)
        x = x + (step if k == 0 and start is None else share * step)
    t = times(x)
    D, _ = shortest(t, links, d.shape[1])
    total = (t * x).sum(1)
    best = (d * torch.where(d > 0, D.movedim(2, 0), 0.0)).sum((1, 2))
    # nobody travels: nobody can save
    gap = 1 - best / torch.where(total == 0, 1.0, total)
    return Equilibrium(x, total, torch.where(total == 0, 0.0, gap))


def shortest(times: Tensor, links: Tensor, N: int) -> tuple[Tensor, Tensor]:
    """Shortest times between N nodes, and the next node on the way.

    Both are [N, N, B] for link times [B, E]: with the networks last, each
    round of Floyd-Warshall runs over whole rows of memory.
    """
    tail, head = links.long()
    D = times.new_full((N, N, len(times)), float("inf"))
    D[tail, head] = times.T
    D.diagonal().zero_()
    after = torch.arange(N, dtype=torch.int32, device=times.device)
    after = after[:, None].expand(N, N, len(times)).clone()
    for k in range(N):
        by_k = D[:, k : k + 1] + D[k : k + 1]
        after = torch.where(by_k < D, after[:, k : k + 1], after)
        D = torch.minimum(D, by_k)
    return D, after


def loaded(after: Tensor, links: Tensor, demand: Tensor) -> Tensor:
    """All demand [B or 1, N, N] on the routes of ``after``: flows [B, E]."""
    N, _, B = after.shape
    tail, head = links.long()
    after = after.long()
    at, moving = after, demand.movedim(0, 2).expand(N, N, B).contiguous()
    for _ in range((N - 1).bit_length()):
        moving = moving + torch.zeros_like(moving).scatter_add(0, at, moving)
        at = at.gather(0, at)
    # who has arrived stays: the diagonal means nothing, and no link is there
    y = torch.zeros_like(moving).scatter_add(1, after, moving)
    return y[tail, head].T


def ue_batch_triton(
    capacity: Tensor,
    demand: Tensor,
    links: Tensor,
    free: Tensor,
    rise: Tensor,
    iterations: int,
    power: int = 4,
    start: Tensor | None = None,
) -> Equilibrium:
    """Launch the kernel, one program per network."""
    return Equilibrium(
        *launch(
            capacity, demand, links, free, rise, iterations, power, start,
            HALVINGS,
        )
    )  # fmt: skip


def _shapes(capacity, demand, links, free, rise, iterations, power, start):
    wide = torch.float64 if capacity.dtype == torch.float64 else torch.float32
    B, E = capacity.shape
    return (
        capacity.new_empty((B, E), dtype=wide),
        capacity.new_empty(B, dtype=wide),
        capacity.new_empty(B, dtype=wide),
    )


_ue_batch = operator(
    "ue_batch(Tensor capacity, Tensor demand, Tensor links, Tensor free,"
    " Tensor rise, SymInt iterations, SymInt power, Tensor? start)"
    " -> (Tensor, Tensor, Tensor)",
    cpu=ue_batch_reference,
    cuda=ue_batch_triton,
    shapes=_shapes,
)


def _inputs(
    seed, device, dtype, B, N, chords, iterations, power=4, days=1,
    warm=False, plain=False, trips=1.0,
):  # fmt: skip
    """A ring of N nodes with some chords; ``days`` demands, or one for all.

    With ``plain`` links take whole minutes whatever their flow, so that many
    routes are equal. A ``warm`` start sends everybody round the ring.
    """
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape):
        return torch.rand(shape, generator=generator, dtype=torch.float64)

    tail = torch.arange(N).repeat(chords + 1)
    ahead = torch.arange(1, chords + 2).repeat_interleave(N)
    links = torch.stack([tail, (tail + ahead) % N]).int()
    E = links.shape[1]
    free = ahead + drawn(E) if not plain else ahead.double()
    rise = 0.15 * free if not plain else 0 * free
    demand = trips * drawn(days, N, N)
    capacity = (trips or 1.0) * N * (0.2 + drawn(B, E))
    start = None
    if warm:
        # a trip from i to s is on the link from n to n + 1 if n is between
        node = torch.arange(N)
        between = (node[None, None] - node[:, None, None]) % N < (
            node[None, :, None] - node[:, None, None]
        ) % N
        round_it = (demand[..., None] * between).sum((1, 2))
        start = torch.zeros(B, E, dtype=torch.float64)
        start[:, :N] = round_it
    numbers = {"capacity": capacity, "demand": demand, "free": free}
    numbers |= {"rise": rise, "start": start}
    inputs = {
        name: x if x is None else x.to(device, dtype)
        for name, x in numbers.items()
    }
    inputs |= {"links": links.to(device), "power": power}
    return inputs | {"iterations": iterations}


def _specified(result, **inputs):
    """The gap on the scale of all time, of which it is a share."""
    return result._replace(gap=1 + result.gap)


def _cost(
    capacity, demand, links, free, rise, iterations, power=4, start=None
) -> Cost:
    (B, E), N, size = capacity.shape, demand.shape[1], capacity.element_size()
    read = B * E * (1 if start is None else 2) + demand.numel() + 2 * E
    written = 4 * B * (E + 2)
    # per iteration: shortest times, and the slope at each halving
    each = 2 * N**3 + HALVINGS * E * (5 + power // 2)
    return Cost(size * read + 8 * E + written, B * iterations * each)


def _compile(N: int, fresh: bool, power: int = 4) -> Compile:
    constants = blocks(N)
    return Compile(
        f"N{N} power {power} {'fresh' if fresh else 'warm'}",
        ue_batch_kernel,
        num_warps=constants.pop("num_warps"),
        signature={
            "capacity_ptr": "*fp32", "demand_ptr": "*fp32",
            "index_ptr": "*i32", "free_ptr": "*fp32", "rise_ptr": "*fp32",
            "start_ptr": "*fp32", "flows_ptr": "*fp32", "total_ptr": "*fp32",
            "gap_ptr": "*fp32", "N": "i32:16" if N % 16 == 0 else "i32",
            "E": "i32", "stride_d": "i32:16" if N % 4 == 0 else "i32",
            "iterations": "i32",
        },
        constants={
            "FRESH": fresh, "SQUARINGS": power // 2, "HALVINGS": HALVINGS,
            **constants,
        },
    )  # fmt: skip


DECLARATION = Declaration(
    name="ue_batch",
    operation=ue_batch,
    reference=ue_batch_reference,
    triton=ue_batch_triton,
    inputs=_inputs,
    specified=_specified,
    # another rounding may prefer another of two nearly equal routes, and moves
    # what travels there by a part of the step
    tolerance={torch.float32: 1e-3},
    examples=(
        Example("6 nodes", {"B": 2, "N": 6, "chords": 2, "iterations": 2}),
        Example("24 nodes", {"B": 1, "N": 24, "chords": 2, "iterations": 1}),
        Example("warm", {"B": 2, "N": 5, "chords": 2, "iterations": 2,
                         "days": 2, "warm": True}),
        Example("linear times", {"B": 1, "N": 4, "chords": 2, "power": 1,
                                 "iterations": 4}),
        Example("squared times", {"B": 1, "N": 7, "chords": 1, "power": 2,
                                  "iterations": 2}),
        Example("equal routes", {"B": 1, "N": 8, "chords": 3,
                                 "iterations": 1, "plain": True},
                degenerate=True, smooth=False),
        Example("one way round", {"B": 2, "N": 3, "chords": 0,
                                  "iterations": 2}, degenerate=True),
        Example("two nodes", {"B": 2, "N": 2, "chords": 0, "iterations": 1},
                degenerate=True),
        Example("nobody travels", {"B": 1, "N": 4, "chords": 1,
                                   "iterations": 2, "trips": 0.0},
                degenerate=True),
        Example("no network", {"B": 0, "N": 4, "chords": 1, "iterations": 2},
                degenerate=True),
        Example("large", {"B": 4096, "N": 24, "chords": 2, "iterations": 8},
                large=True),
    ),
    cost=_cost,
    compiles=(
        _compile(4, True, 1), _compile(24, True), _compile(24, False),
    ),
)  # fmt: skip
