"""Experts on GPUs: how a placement is judged, searched and solved exactly.

A placement is a table [L, E] int8: the GPU of every expert of every layer,
each GPU with E / G experts a layer. What it costs depends on the trace only
through the transition counts W [L - 1, E, E] (`lab.kernels.placement_cost`).

The objective is a chain of layers, so a Viterbi pass solves it: the states
of a layer are its balanced placements, E! / ((E / G)!)^G of them. But the
names of the GPUs are free: renaming the GPUs of all layers together changes no
cost. So the best chain that ends in a state is worth the same for all
renamings of that state, and set partitions are enough as states: 105 instead
of 2520 for E = 8 and G = 4. The cost of a step is then that under the best
renaming of the next layer, an assignment of G groups to G groups.
"""

import itertools
import math
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import LinearConstraint, linear_sum_assignment, milp
from scipy.sparse import coo_array
from torch import Tensor

from lab.kernels.placement_cost import placement_cost

MOST_STATES = 10_000  # set partitions of one layer, for the Viterbi pass


def check_sizes(experts: int, gpus: int) -> None:
    """Refuse experts that cannot be shared out evenly."""
    if not 1 <= gpus <= experts or experts % gpus:
        raise ValueError(
            f"gpus={gpus} cannot hold the {experts} experts of a layer in"
            f" equal parts; use a divisor of {experts}"
        )


def crossing(placement: Tensor, counts: Tensor) -> float:
    """Share of the steps from layer to layer that change the GPU, f(pi)."""
    cost = placement_cost(placement[None], counts.double()).item()
    return cost / max(1.0, counts.sum().item())


def independent(counts: Tensor) -> Tensor:
    """The counts [L - 1, E, E] if neighbouring layers were independent.

    They are the product of the two marginals, so each layer keeps its load.
    What a solver still saves on them comes from imbalance alone.
    """
    W = counts.double()
    total = W.sum(dim=(1, 2), keepdim=True).clamp_min(1)
    return W.sum(2, keepdim=True) * W.sum(1, keepdim=True) / total


def conditional(counts: Tensor) -> Tensor:
    """The affinity P(next expert j | expert i), rows of counts over sums."""
    W = counts.double()
    return W / W.sum(dim=-1, keepdim=True).clamp_min(1)


def vanilla(counts: Tensor, gpus: int, seed: int = 0) -> Tensor:
    """Expert i of every layer on GPU floor(i / (E / G))."""
    pairs, E, _ = counts.shape
    check_sizes(E, gpus)
    row = torch.arange(E) * gpus // E
    return row.to(torch.int8).repeat(pairs + 1, 1)


def random_placements(
    layers: int, experts: int, gpus: int, number: int, seed: int = 0
) -> Tensor:
    """Balanced placements [K, L, E], each layer shuffled on its own."""
    check_sizes(experts, gpus)
    generator = torch.Generator().manual_seed(seed)
    keys = torch.rand(number, layers, experts, generator=generator)
    return (keys.argsort(dim=2) * gpus // experts).to(torch.int8)


def random(counts: Tensor, gpus: int, seed: int = 0) -> Tensor:
    """One placement at random; on average 1 - 1/G of the steps cross."""
    pairs, E, _ = counts.shape
    return random_placements(pairs + 1, E, gpus, 1, seed)[0]


def greedy(counts: Tensor, gpus: int, seed: int = 0) -> Tensor:
    """Place layer by layer, each layer best for the one before it."""
    placement = vanilla(counts, gpus).numpy()
    W = counts.double().numpy()
    for layer in range(1, len(placement)):
        placement[layer] = _assigned(
            W[layer - 1].T @ _one_hot(placement[layer - 1], gpus)
        )
    return torch.from_numpy(placement)


def descent(
    counts: Tensor, gpus: int, seed: int = 0, starts: int = 20
) -> Tensor:
    """Solve layer after layer until nothing moves; keep the best start.

    With its two neighbours fixed, a layer is a linear assignment of experts
    to places. The first start is the greedy placement, the others are random.
    """
    pairs, E, _ = counts.shape
    W = counts.double().numpy()
    begins = random_placements(pairs + 1, E, gpus, starts, seed).numpy()
    begins[0] = greedy(counts, gpus).numpy()
    found = torch.from_numpy(np.stack([_descend(p, W, gpus) for p in begins]))
    costs = placement_cost(found, counts.double())
    # the first of equals, so that all devices choose alike
    return found[int(costs.argmin())]


def _descend(placement: np.ndarray, W: np.ndarray, gpus: int) -> np.ndarray:
    kept = -1.0
    while True:
        for layer in range(len(placement)):
            # tokens kept if expert i sat on GPU g, [E, G]
            gain = np.zeros((placement.shape[1], gpus))
            if layer:
                before = _one_hot(placement[layer - 1], gpus)
                gain += W[layer - 1].T @ before
            if layer < len(W):
                gain += W[layer] @ _one_hot(placement[layer + 1], gpus)
            placement[layer] = _assigned(gain)
        now = sum(
            w[a[:, None] == b[None, :]].sum()
            for w, a, b in zip(W, placement, placement[1:], strict=False)
        )
        # counts are whole numbers or nearly; a smaller gain is rounding
        if now <= kept + 1e-6:
            return placement
        kept = now


def _one_hot(row: np.ndarray, gpus: int) -> np.ndarray:
    return (row[:, None] == np.arange(gpus)).astype(float)


def _assigned(gain: np.ndarray) -> np.ndarray:
    """The best balanced row of GPUs [E] for the gain [E, G]."""
    E, G = gain.shape
    slots = np.repeat(gain, E // G, axis=1)
    return (linear_sum_assignment(slots, maximize=True)[1] * G // E).astype(
        np.int8
    )


def states(experts: int, gpus: int) -> int:
    """Number of balanced placements of one layer, GPU names aside."""
    size = experts // gpus
    ways = math.factorial(experts) // math.factorial(size) ** gpus
    return ways // math.factorial(gpus)


def exact(counts: Tensor, gpus: int, seed: int = 0) -> Tensor:
    """The optimum, by the Viterbi pass over set partitions.

    Raises ValueError if a layer has more than 10 000 of them.
    """
    pairs, E, _ = counts.shape
    check_sizes(E, gpus)
    if states(E, gpus) > MOST_STATES:
        raise ValueError(
            f"{states(E, gpus)} placements of {E} experts on {gpus} GPUs are"
            f" too many to try, with a limit of {MOST_STATES}; use the descent"
        )
    groups = _partitions(E, gpus)  # [P, E]
    score, back = np.zeros(len(groups)), []
    for w in counts.double().numpy():
        kept = score[:, None] + _best_renaming(groups, w, gpus)
        back.append(kept.argmax(axis=0))
        score = kept.max(axis=0)
    chain = [int(score.argmax())]
    for arrows in reversed(back):
        chain.append(int(arrows[chain[-1]]))
    rows = [groups[state] for state in reversed(chain)]
    # rename each layer's GPUs to fit the layer before it
    for layer, w in enumerate(counts.double().numpy()):
        flow = _one_hot(rows[layer], gpus).T @ w
        flow = flow @ _one_hot(rows[layer + 1], gpus)
        old, new = linear_sum_assignment(flow.T, maximize=True)
        rows[layer + 1] = new[old][rows[layer + 1]]
    return torch.from_numpy(np.stack(rows).astype(np.int8))


def _best_renaming(groups, w, gpus):
    """Tokens kept between two partitions under the best renaming, [P, P]."""
    hot = np.stack([groups == g for g in range(gpus)], 1)  # [P, G, E]
    hot = hot.astype(float)
    if gpus == 1:
        return np.full((1, 1), w.sum())
    if gpus == 2:
        # a split as signs: kept = (total +- a W b) / 2
        signs = hot[:, 0] - hot[:, 1]
        return (w.sum() + np.abs(signs @ w @ signs.T)) / 2
    if len(groups) == 1:
        rows, columns = linear_sum_assignment(w, maximize=True)
        return np.full((1, 1), w[rows, columns].sum())
    P, G, E = hot.shape
    hot = hot.reshape(P * G, E)
    # [G, G, P, P], so that the best of G! renamings is a maximum of rows
    flow = (hot @ w @ hot.T).reshape(P, G, P, G).transpose(1, 3, 0, 2)
    kept = _renamings(G) @ flow.reshape(G * G, P * P)
    return kept.max(axis=0).reshape(P, P)


@cache
def _renamings(gpus: int) -> np.ndarray:
    """Every renaming of the GPUs as a row of 0 and 1, [G!, G * G]."""
    names = itertools.permutations(range(gpus))
    return np.stack([np.eye(gpus)[list(p)].ravel() for p in names])


@cache
def _partitions(experts: int, gpus: int) -> np.ndarray:
    """All balanced set partitions as rows of group numbers, [P, E]."""
    size, found = experts // gpus, []

    def grow(row: list[int]) -> None:
        if len(row) == experts:
            found.append(row)
            return
        # a new group opens only after those before it, so none is renamed
        opened = max(row, default=-1) + 1
        for group in range(min(opened + 1, gpus)):
            if row.count(group) < size:
                grow([*row, group])

    grow([])
    return np.array(found, dtype=np.int64)


class Program(NamedTuple):
    """What the integer program found."""

    placement: Tensor  # [L, E] int8
    optimal: bool  # proven within the time limit
    gap: float  # between its value and the solver's bound, relative
    variables: int


def integer_program(
    counts: Tensor, gpus: int, seconds: float = 60.0
) -> Program:
    """The authors' program on counts, solved by HiGHS through SciPy.

    Binary x[l, i, g] places an expert; y[l, i, j, g] <= x[l, i, g] and
    <= x[l + 1, j, g] counts a pair that stays on GPU g. Expert 0 of layer 0
    sits on GPU 0, since the names are free.
    """
    pairs, E, _ = counts.shape
    check_sizes(E, gpus)
    L, places = pairs + 1, (pairs + 1) * E * gpus
    x = np.arange(places).reshape(L, E, gpus)
    y = places + np.arange(pairs * E * E * gpus).reshape(pairs, E, E, gpus)
    number = places + y.size
    objective = np.zeros(number)
    objective[y] = -counts.double().numpy()[..., None]
    left = np.broadcast_to(x[:-1, :, None, :], y.shape).ravel()
    right = np.broadcast_to(x[1:, None, :, :], y.shape).ravel()
    kept = y.ravel()
    below = _rows(
        [np.stack([np.r_[kept, kept], np.r_[left, right]], axis=1)],
        [1.0, -1.0], number,
    )  # fmt: skip
    once = _rows([x.reshape(L * E, gpus)], [1.0] * gpus, number)
    by_gpu = x.transpose(0, 2, 1).reshape(L * gpus, E)
    even = _rows([by_gpu], [1.0] * E, number)
    low = np.zeros(number)
    low[x[0, 0, 0]] = 1.0
    solved = milp(
        objective,
        integrality=np.r_[np.ones(places), np.zeros(y.size)],
        bounds=(low, np.ones(number)),
        constraints=[
            LinearConstraint(below, -np.inf, 0.0),
            LinearConstraint(once, 1.0, 1.0),
            LinearConstraint(even, E // gpus, E // gpus),
        ],
        options={"time_limit": seconds},
    )
    if solved.x is None:
        return Program(vanilla(counts, gpus), False, math.inf, number)
    placed = solved.x[x].argmax(axis=2).astype(np.int8)
    gap = float(solved.mip_gap or 0.0)
    return Program(torch.from_numpy(placed), solved.status == 0, gap, number)


def _rows(variables, values, number):
    """A sparse matrix: each row of ``variables`` with the same values."""
    at = np.concatenate(variables)
    rows = np.repeat(np.arange(len(at)), at.shape[1])
    data = np.tile(values, len(at))
    return coo_array((data, (rows, at.ravel())), shape=(len(at), number))


def staged(
    counts: Tensor, gpus: int, nodes: int, solver: Callable, seed: int = 0
) -> Tensor:
    """Place experts on nodes, then on each node's GPUs, both by ``solver``.

    In the second stage, a node sees only the pairs that it holds.
    """
    pairs, E, _ = counts.shape
    check_sizes(E, gpus)
    if nodes < 1 or gpus % nodes:
        raise ValueError(
            f"nodes={nodes} cannot hold {gpus} GPUs in equal parts; use a"
            f" divisor of {gpus}"
        )
    if nodes == 1:
        return solver(counts, gpus, seed=seed)
    node_of = solver(counts, nodes, seed=seed)
    placement, inside = torch.empty_like(node_of), gpus // nodes
    for node in range(nodes):
        # the experts of this node, layer by layer, [L, E / nodes]
        mine = (node_of == node).nonzero()[:, 1].view(pairs + 1, -1)
        local = torch.stack([
            w[mine[layer]][:, mine[layer + 1]]
            for layer, w in enumerate(counts)
        ])  # fmt: skip
        gpu = solver(local, inside, seed=seed) + node * inside
        placement.scatter_(1, mine, gpu.to(torch.int8))
    return placement


SOLVERS = {
    "vanilla": vanilla,
    "random": random,
    "greedy": greedy,
    "descent": descent,
    "exact": exact,
}
