"""Simulated k-opt moves on many tours at once, without copying a tour.

A simulation cuts the edge from a random city a_1 to the next one, b_1, which
leaves a path from b_1 to a_1. Then, up to D times, from the free end b:

    choose a      a candidate of b with probability ~ potential[b, a]
    cut           the edge from a back to the city c ahead of it in the path
    reverse       the path from b to c, so that b joins a; c is the free end
    gain         += d(c, a) - d(b, a)

until joining the free end to a_1 shortens the tour (closing gain > 0) or no
candidate is left. a_1 and the present neighbour of b are not allowed as a.

Each step reverses the first p places of the path. No city has to be moved: the
prefix lengths p_1..p_t say where every city is now. The rule
x <- p - 1 - x if x < p  for p_1, ..., p_t leads from a city's place x in the
first path to its place now; the same rule for p_t, ..., p_1 leads back.

All numbers are whole: lengths, potentials (fixed point) and draws (31 bits).
So the result has the same bits everywhere. Bytes per simulation: 4 D for the
draws, 8 D for prefixes and tried edges, 12 for the result; and once per tour
8 n C for candidates and potentials, 4 n^2 for distances. The D (8 C + 16)
bytes read by a simulation are at random places. The kernel is bound by
latency, so its speed comes from many tours at once.

Source: Fu, Qiu, Zha 2021, the search that Pan et al. 2024 examine; their
solver walks one doubly linked list, one simulation after another.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from lab.kernels._kopt_simulate_triton import (
    blocks,
    kopt_simulate_kernel,
    launch,
)
from lab.kernels.declaration import Compile, Cost, Declaration, Example
from lab.kernels.operator import operator

NO_GAIN = -(2**31) + 1  # of a simulation without a single step
MOST_CITIES = 46340  # an edge's number b * n + a is an int32


class KOpt(NamedTuple):
    """What every simulation found; D steps at most."""

    gain: Tensor  # [B, S] int32, the best closing gain, or NO_GAIN
    depth: Tensor  # [B, S] int32, steps up to the best closing
    start: Tensor  # [B, S] int32, place of b_1 in the tour
    prefixes: Tensor  # [B, S, D] int32, prefix lengths, 0 past the last
    tried: Tensor  # [B, S, D] int32, edges b * n + a, -1 past the last


def kopt_simulate(
    tours: Tensor,
    candidates: Tensor,
    potentials: Tensor,
    distances: Tensor,
    draws: Tensor,
) -> KOpt:
    """Simulate S moves of up to D steps on each of B tours, changing none.

    ``tours`` [B, n], ``candidates`` [B, n, C] with -1 for none, fixed-point
    ``potentials`` [B, n, C] where 0 is never chosen, ``distances`` [B, n, n]
    (an expanded matrix costs nothing) and ``draws`` [B, S, D + 1] below 2**31,
    all int32. The potentials of a city must add up to less than 2**31.
    O(D (C + D)) a simulation.
    """
    tensors = dict(
        tours=tours, candidates=candidates, potentials=potentials,
        distances=distances, draws=draws,
    )  # fmt: skip
    for name, tensor in tensors.items():
        if tensor.dtype != torch.int32:
            raise ValueError(f"{name} are {tensor.dtype}; use torch.int32")
    B, n = tours.shape
    if not 5 <= n <= MOST_CITIES:
        raise ValueError(
            f"a tour of {n} cities cannot be searched; use 5, the fewest with"
            f" a move, to {MOST_CITIES}"
        )
    shapes = {
        "candidates": (B, n, candidates.shape[-1]),
        "potentials": tuple(candidates.shape),
        "distances": (B, n, n),
        "draws": (B, *draws.shape[1:]) if draws.ndim == 3 else (B, "S", "D"),
    }
    for name, shape in shapes.items():
        if tuple(tensors[name].shape) != shape:
            raise ValueError(
                f"{name} have shape {tuple(tensors[name].shape)}; use {shape}"
            )
    if draws.shape[2] < 2:
        raise ValueError(
            "draws allow 0 steps; give 2 or more numbers for each simulation"
        )
    return KOpt(*_kopt_simulate(*tensors.values()))


def kopt_simulate_reference(
    tours: Tensor,
    candidates: Tensor,
    potentials: Tensor,
    distances: Tensor,
    draws: Tensor,
) -> KOpt:
    """The simulations in plain PyTorch, all together, step by step."""
    B, n = tours.shape
    D = draws.shape[2] - 1
    tours, row = tours.long(), torch.arange(B, device=tours.device)[:, None]
    places = tours.argsort(dim=1)
    start = (scaled(draws[:, :, 0], n) + 1) % n  # [B, S]
    first, end = tours[row, start - 1], tours[row, start]  # a_1, b_1
    gain = distances[row, first, end]
    best = torch.full_like(gain, NO_GAIN)
    depth = torch.zeros_like(gain)
    beside = tours[row, (start + 1) % n]  # the present neighbour of b
    alive = torch.ones_like(gain, dtype=torch.bool)
    prefixes, tried = [], []
    for t in range(D):
        choices = candidates[row, end]  # [B, S, C]
        allowed = (choices >= 0) & (choices != first[:, :, None])
        allowed &= choices != beside[:, :, None]
        mass = potentials[row, end].where(allowed, 0)
        sums = mass.cumsum(dim=2)
        alive = alive & (sums[:, :, -1] > 0)
        if not alive.any():
            break
        below = scaled(draws[:, :, t + 1], sums[:, :, -1])
        chosen = (sums <= below[:, :, None]).sum(dim=2, keepdim=True)
        chosen = chosen.clamp_max(choices.shape[2] - 1)
        a = choices.gather(2, chosen)[:, :, 0].long().where(alive, end)
        prefix = (places.gather(1, a) - start) % n
        for p in prefixes:
            prefix = torch.where(prefix < p, p - 1 - prefix, prefix)
        # the two cities ahead of a; the first becomes the free end
        ahead = torch.stack((prefix - 1, prefix - 2)).clamp_min(0)
        for p in reversed(prefixes):
            ahead = torch.where(ahead < p, p - 1 - ahead, ahead)
        cut, beside = tours[row, (start + ahead) % n]
        gain = gain + distances[row, cut, a] - distances[row, end, a]
        closing = gain - distances[row, cut, first]
        # a prefix of 0 reverses nothing
        prefixes.append(prefix.where(alive, 0))
        tried.append((end * n + a).where(alive, -1))
        better = alive & (closing > best)
        best, depth = closing.where(better, best), depth.where(~better, t + 1)
        end = cut.where(alive, end)
        alive = alive & (closing <= 0)
    none = torch.zeros_like(start)
    prefixes += [none] * (D - len(prefixes))
    tried += [none - 1] * (D - len(tried))
    return KOpt(
        best, depth, start.to(torch.int32),
        torch.stack(prefixes, dim=2).to(torch.int32),
        torch.stack(tried, dim=2).to(torch.int32),
    )  # fmt: skip


def scaled(draws: Tensor, high) -> Tensor:
    """Draws below 2**31 as whole numbers below ``high``."""
    return (draws.long() * high) >> 31


def kopt_simulate_triton(
    tours: Tensor,
    candidates: Tensor,
    potentials: Tensor,
    distances: Tensor,
    draws: Tensor,
) -> KOpt:
    """Simulate on a GPU; the kernel writes into what is allocated here."""
    B, n = tours.shape
    S, D = draws.shape[1], draws.shape[2] - 1
    tours, draws = tours.contiguous(), draws.contiguous()
    places = tours.argsort(dim=1).to(torch.int32)
    result = KOpt(
        *(tours.new_empty((B, S)) for _ in range(3)),
        prefixes=tours.new_zeros((B, S, D)),
        tried=tours.new_full((B, S, D), -1),
    )
    if B and S:
        launch(
            tours, places, candidates.contiguous(), potentials.contiguous(),
            distances, draws, *result,
        )  # fmt: skip
    return result


def _shapes(tours, candidates, potentials, distances, draws):
    B, S, D = draws.shape
    few = (tours.new_empty((B, S)) for _ in range(3))
    return *few, *(tours.new_empty((B, S, D - 1)) for _ in range(2))


_kopt_simulate = operator(
    "kopt_simulate(Tensor tours, Tensor candidates, Tensor potentials, "
    "Tensor distances, Tensor draws)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    cpu=kopt_simulate_reference,
    cuda=kopt_simulate_triton,
    shapes=_shapes,
)


def _inputs(seed, device, dtype, B, n, C, S, D, holes=0, closed=False):
    generator = torch.Generator().manual_seed(seed)

    def whole(high, *shape):
        return torch.randint(high, shape, generator=generator)

    points = whole(1000, B, n, 2).double()
    distances = torch.cdist(points, points).round()
    # nearest first, without the city itself; some missing, some never chosen
    candidates = distances.argsort(dim=2, stable=True)[:, :, 1 : C + 1]
    candidates[whole(100, B, n, C) < holes] = -1
    potentials = whole(5000, B, n, C)
    potentials[potentials < 50 * holes] = 0
    tensors = {
        "tours": torch.rand(B, n, generator=generator).argsort(dim=1),
        "candidates": candidates,
        "potentials": 0 * potentials if closed else potentials,
        "distances": distances,
        "draws": whole(2**31, B, S, D + 1),
    }
    return {name: t.to(device, torch.int32) for name, t in tensors.items()}


def _cost(tours, candidates, potentials, distances, draws) -> Cost:
    B, n = tours.shape
    S, D, C = draws.shape[1], draws.shape[2] - 1, candidates.shape[2]
    per_tour = 8 * n + 8 * n * C + 4 * n * n
    return Cost(B * (per_tour + S * (4 + 12 * D + 12)), 0)


def _compile(C: int, hip: bool) -> Compile:
    pointers = (
        "tours", "places", "candidates", "potentials", "distances", "draws",
        "gain", "depth", "start", "prefixes", "tried",
    )  # fmt: skip
    block_s, block_c = blocks(C, hip)
    nvidia = ("sm_75", "sm_80", "sm_90", "sm_100")
    sizes = ("S", "n", "C", "D", "stride_b", "stride_i", "stride_j")
    return Compile(
        f"{C} candidates",
        kopt_simulate_kernel,
        signature={f"{name}_ptr": "*i32" for name in pointers}
        | dict.fromkeys(sizes, "i32"),
        constants={"BLOCK_S": block_s, "BLOCK_C": block_c},
        num_warps=1,
        targets=("gfx942",) if hip else nvidia,
    )


DECLARATION = Declaration(
    name="kopt_simulate",
    operation=kopt_simulate,
    reference=kopt_simulate_reference,
    triton=kopt_simulate_triton,
    inputs=_inputs,
    exact=KOpt._fields,
    examples=(
        Example("5 candidates", {"B": 3, "n": 50, "C": 5, "S": 40, "D": 8}),
        Example(
            "holes", {"B": 2, "n": 63, "C": 7, "S": 33, "D": 12, "holes": 30}
        ),
        Example(
            "all cities", {"B": 1, "n": 21, "C": 20, "S": 9, "D": 10}
        ),
        Example(
            "five cities",
            {"B": 2, "n": 5, "C": 4, "S": 31, "D": 6},
            degenerate=True,
        ),
        Example(
            "nothing to choose",
            {"B": 2, "n": 9, "C": 3, "S": 5, "D": 4, "closed": True},
            degenerate=True,
        ),
        Example(
            "one candidate, one step",
            {"B": 1, "n": 30, "C": 1, "S": 32, "D": 1},
            degenerate=True,
        ),
        Example(
            "no tour", {"B": 0, "n": 9, "C": 3, "S": 5, "D": 4},
            degenerate=True,
        ),
        Example(
            "large", {"B": 64, "n": 500, "C": 10, "S": 256, "D": 50},
            large=True,
        ),
    ),
    cost=_cost,
    compiles=tuple(
        _compile(C, hip) for C in (5, 16, 64, 512) for hip in (False, True)
    ),
)  # fmt: skip
