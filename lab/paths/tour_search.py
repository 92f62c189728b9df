"""Monte Carlo tree search for tours, many tours of one instance in step.

Weights start at W = 100 H, visits Q and tries M at 0. A tour is drawn at
random with probability ~ e^W and taken to a 2-opt optimum; then k-opt actions
are simulated until one shortens it. The city a to which b is joined next is
drawn from the candidates where Z >= 1, with probability ~ Z:

    Z = W[b, a] / mean of W[b] + alpha sqrt(ln(M + 1) / (Q[b, a] + 1))

Q counts how often an edge was tried, M the moves that 2-opt tried and then the
simulated actions, as in the authors' solver; an action tries several edges.
A move that shortens a tour of length L by g adds beta (e^(g/L) - 1) to W of
the edges that it joins. After H_p n failed actions the search starts from a
new tour; W, Q and M stay. The budget counts tried edges, that is, the steps of
all simulated actions: they make up the time of a run on any machine.

The authors' solver runs one action after another. Here a pool of actions sees
the visits of the pools before it, and what comes after the first success of a
pool is thrown away. 2-opt takes the best move, not the first. Only its last
pass is counted, each city with each of its candidates; theirs counts in every
pass, counts the edge between the next cities of both as well, and skips cities
that are adjacent in the tour. Probabilities are in steps of 1/1024 of Z;
theirs are in steps of 1/1000 and give what rounding loses to the last
candidate. Where all weights are 0, W / mean is 0 here and 0/0 there.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from lab.kernels.kopt_simulate import kopt_simulate
from lab.paths.tours import (
    Instance,
    lengths,
    random_tours,
    reversed_prefixes,
    two_opt,
)

POOL = 32  # actions simulated at once on each tour
STEPS = 1024  # per unit of a potential, in fixed point
LEAST = 1e-4  # heat that an edge needs to be a candidate
POINTS = 20  # of a curve


class Settings(NamedTuple):
    """How to search; the defaults are those of the solver."""

    alpha: float = 1.0  # weight of rarely tried edges
    beta: float = 10.0  # what success adds to an edge
    patience: int = 10  # H_p, failed actions per city before a new start
    candidates: int = 1000  # at most, for each city
    by_heatmap: bool = True  # candidates by heatmap, else by distance
    depth: int = 10  # steps of an action, at most


class Arm(NamedTuple):
    """One search: a heatmap [n, n], how to use it, and a seed."""

    heatmap: Tensor
    settings: Settings
    seed: int


class Found(NamedTuple):
    """What the searches found, one row an arm."""

    curves: Tensor  # [B, POINTS + 1] best length after each part of budget
    tours: Tensor  # [B, n] the best tours
    starts: Tensor  # [B] tours that a search has started from


def search(instance: Instance, arms: list[Arm], budget: int) -> Found:
    """Search with every arm until it has tried ``budget`` edges.

    An arm that meets the optimum stops there. Arms run in groups of the same
    depth and number of candidates; the result of an arm depends on its seed
    alone, not on the arms beside it.
    """
    n = len(instance.points)
    groups: dict[tuple, list[int]] = {}
    for i, arm in enumerate(arms):
        check(arm, n)
        chosen = candidates(instance, arm.heatmap, arm.settings)
        key = min(arm.settings.depth, n // 2), chosen.shape[1]
        groups.setdefault(key, []).append(i)
    found = Found(
        torch.zeros(len(arms), POINTS + 1, dtype=torch.long),
        torch.zeros(len(arms), n, dtype=torch.long),
        torch.zeros(len(arms), dtype=torch.long),
    )
    for (depth, _), members in groups.items():
        group = _search(instance, [arms[i] for i in members], depth, budget)
        for whole, part in zip(found, group, strict=True):
            whole[members] = part
    return found


def check(arm: Arm, n: int) -> None:
    """Refuse a heatmap or settings that no search can use."""
    heat, settings = arm.heatmap, arm.settings
    if heat.shape != (n, n) or not bool((heat >= 0).all()):
        raise ValueError(
            f"a heatmap of shape {tuple(heat.shape)} with least entry"
            f" {heat.min():.3g} is not allowed; use shape {(n, n)} and"
            " entries of 0 or more"
        )
    if settings.candidates < 1 or settings.depth < 1 or settings.patience < 1:
        raise ValueError(
            f"{settings} allows no action; candidates, depth and patience"
            " must be 1 or more"
        )


def candidates(instance: Instance, heat: Tensor, settings: Settings) -> Tensor:
    """The candidates [n, C] of each city, best first, -1 for none.

    Without any heat they are ranked by distance. A heatmap that leaves no
    candidate at all is refused.
    """
    n = len(heat)
    by_heatmap = settings.by_heatmap and bool((heat > 0).any())
    keys = -heat if by_heatmap else instance.distances.double()
    keys = keys.clone().fill_diagonal_(torch.inf)
    order = keys.argsort(dim=1, stable=True)[:, : settings.candidates]
    order = order[:, : n - 1]
    if by_heatmap:
        order = order.masked_fill(heat.gather(1, order) < LEAST, -1)
        order = order[:, : int((order >= 0).sum(1).max())]
        if not order.shape[1]:
            raise ValueError(
                f"no edge of the heatmap has {LEAST:g} or more, so no city has"
                " a candidate; use larger entries, or 0 everywhere"
            )
    return order.to(torch.int32)


class _State:
    """The searches of one group: what they know and where they are."""

    def __init__(self, instance: Instance, arms: list[Arm]):
        n = len(instance.points)
        self.seeds = [arm.seed for arm in arms]
        settings = [arm.settings for arm in arms]
        self.alpha = torch.tensor([s.alpha for s in settings])
        self.beta = torch.tensor([s.beta for s in settings]).double()
        self.patience = torch.tensor([n * s.patience for s in settings])
        self.weights = 100 * torch.stack([arm.heatmap for arm in arms])
        self.sums = self.weights.sum(2)
        self.visits = torch.zeros_like(self.weights, dtype=torch.int32)
        self.total = torch.zeros(len(arms), dtype=torch.long)
        self.candidates = torch.stack(
            [candidates(instance, a.heatmap, a.settings) for a in arms]
        )
        self.distances = instance.distances[None]
        self.tours = torch.zeros(len(arms), n, dtype=torch.long)
        self.length = torch.zeros(len(arms), dtype=torch.long)
        self.starts = torch.zeros(len(arms), dtype=torch.long)
        self.failed = torch.zeros(len(arms), dtype=torch.long)

    def start(self, rows: Tensor) -> None:
        """Put new tours, 2-optimal among the candidates, into these rows."""
        B, n = len(rows), self.tours.shape[1]
        fresh = torch.empty(B, n, dtype=torch.long)
        for place, row in enumerate(rows.tolist()):
            seed = 1_000_003 * self.seeds[row] + int(self.starts[row])
            generator = torch.Generator().manual_seed(seed)
            fresh[place] = random_tours(self.weights[row, None], generator)
        distances = self.distances.expand(B, n, n)
        near = self.candidates[rows]
        tours, edges, rises = two_opt(fresh, near, distances)
        row, a, b = edges.unbind(1)
        self.learn(rows[row], a, b, rises)
        # the last pass of 2-opt tried every candidate once
        real = near >= 0
        tries = near.long().clamp_min(0)
        visits = self.visits[rows].scatter_add_(2, tries, real.int())
        self.visits[rows] = visits
        self.total[rows] += real.sum((1, 2))
        self.tours[rows] = tours
        self.length[rows] = lengths(tours, distances)
        self.starts[rows] += 1
        self.failed[rows] = 0

    def learn(self, rows: Tensor, a: Tensor, b: Tensor, rise: Tensor) -> None:
        """Add beta (e^rise - 1) to the weights of edges a - b, both ways."""
        more = (self.beta[rows] * rise.expm1()).float()
        for one, other in ((a, b), (b, a)):
            at = (rows, one, other)
            self.weights.index_put_(at, more, accumulate=True)
            self.sums.index_put_((rows, one), more, accumulate=True)

    def potentials(self, rows: Tensor) -> Tensor:
        """Z [B, n, C] of the candidates in fixed point, 0 if Z is below 1."""
        near = self.candidates[rows]
        at = near.long().clamp_min(0)
        n = at.shape[1]
        mean = self.sums[rows] / (n - 1)
        share = self.weights[rows].gather(2, at) / mean[:, :, None]
        z = share.where(mean[:, :, None] > 0, 0)
        tried = self.visits[rows].gather(2, at) + 1
        known = self.total[rows].add(1).float().log()
        alpha = self.alpha[rows][:, None, None]
        z = z + alpha * (known[:, None, None] / tried).sqrt()
        z = z.where((z >= 1) & (near >= 0), 0)
        # n candidates must add up to less than 2**31
        return (STEPS * z).round().clamp_max(2**31 // n - 1).to(torch.int32)

    def simulate(self, rows: Tensor, draws: Tensor) -> Tensor:
        """Simulate a pool for each of these rows; return its cost in edges."""
        n = self.tours.shape[1]
        pool = kopt_simulate(
            self.tours[rows].to(torch.int32), self.candidates[rows],
            self.potentials(rows), self.distances.expand(len(rows), n, n),
            draws,
        )  # fmt: skip
        place = torch.arange(draws.shape[1])
        left = self.patience[rows] - self.failed[rows]
        success = (pool.gain > 0) & (place < left[:, None])
        found, winner = success.max(1)
        used = torch.where(found, winner + 1, left.clamp_max(len(place)))
        real = place < used[:, None]
        counted = real[:, :, None] & (pool.tried >= 0)
        self.count(rows, pool.tried.long(), counted)
        self.total[rows] += used
        self.failed[rows] = self.failed[rows].add(used).where(~found, 0)
        if found.any():
            self.apply(rows[found], pool, found, winner[found])
        # an action without a step has at least cut an edge
        idle = real & (pool.tried[:, :, 0] < 0)
        return counted.sum((1, 2)) + idle.sum(1)

    def count(self, rows: Tensor, tried: Tensor, counted: Tensor) -> None:
        """Add the tried edges, b n + a, to the visits, both ways."""
        n = self.tours.shape[1]
        a, b = tried.clamp_min(0) % n, tried.clamp_min(0) // n
        row = rows[:, None, None].expand_as(tried)[counted]
        for one, other in ((a, b), (b, a)):
            at = (row, one[counted], other[counted])
            more = torch.ones(len(row), dtype=torch.int32)
            self.visits.index_put_(at, more, accumulate=True)

    def apply(self, rows: Tensor, pool, found: Tensor, winner: Tensor) -> None:
        """Carry out the winning action of each pool that has one."""
        gain, depth, start, prefixes, tried = (
            part[found, winner].long() for part in pool[0:5]
        )
        n, D = self.tours.shape[1], prefixes.shape[1]
        done = torch.arange(D) < depth[:, None]
        places = (start[:, None] + torch.arange(n)) % n
        path = self.tours[rows].gather(1, places)
        path = reversed_prefixes(path, prefixes.where(done, 0))
        rise = gain.double() / self.length[rows]
        row = rows[:, None].expand_as(tried)[done]
        a, b = tried[done] % n, tried[done] // n
        self.learn(row, b, a, rise[:, None].expand_as(tried)[done])
        self.learn(rows, path[:, 0], path[:, -1], rise)
        self.tours[rows] = path
        self.length[rows] -= gain


class _Log:
    """What the searches of one group found within their budget."""

    def __init__(self, state: _State):
        self.best, self.tours = state.length.clone(), state.tours.clone()
        self.curves = self.best[:, None].repeat(1, POINTS + 1)

    def enter(self, state: _State, spent: Tensor, budget: int) -> None:
        """Enter the present tours, unless they came after the budget."""
        better = (state.length < self.best) & (spent <= budget)
        self.best = state.length.where(better, self.best)
        self.tours[better] = state.tours[better]
        after = torch.arange(POINTS + 1) >= (spent * POINTS / budget)[:, None]
        self.curves = self.best[:, None].where(after, self.curves)


def _search(instance, arms, depth, budget):
    """Search with arms that share depth and number of candidates."""
    state = _State(instance, arms)
    streams = {s: torch.Generator().manual_seed(s) for s in state.seeds}
    state.start(torch.arange(len(arms)))
    log = _Log(state)
    spent = torch.zeros(len(arms), dtype=torch.long)
    going = spent < budget
    while len(rows := going.nonzero()[:, 0]):
        shape = (POOL, depth + 1)
        numbers = {
            s: torch.randint(2**31, shape, generator=g, dtype=torch.long)
            for s, g in streams.items()
        }
        draws = torch.stack([numbers[state.seeds[i]] for i in rows.tolist()])
        spent[rows] += state.simulate(rows, draws.to(torch.int32))
        log.enter(state, spent, budget)
        going = (spent < budget) & (log.best > instance.optimum)
        again = (state.failed >= state.patience) & going
        if again.any():
            state.start(again.nonzero()[:, 0])
            log.enter(state, spent, budget)
            going &= log.best > instance.optimum
    return Found(log.curves, log.tours, state.starts)
