"""Three ways to turn trajectories into a policy: clone, condition, plan.

Each has an exact form in a small world (`route_worlds`), a table of counts.
N_h(s, a) says how often action a was taken in state s of step h, and G is the
return-to-go, the points of this step and all later ones:

    clone      pi(a | s) = N_h(s, a) / N_h(s)
    condition  pi(a | s, g) = N_h(s, a, G = g) / N_h(s, G = g)
    plan       V_h(s) = max over seen a of r_h(s, a) + sum P_h(t | s, a) V(t)

After a step, g falls by what it paid. If g was never seen in (h, s), the
nearest one that was stands in for it; in a state never seen, any road is taken
alike. The planner leaves out actions that it has never seen; V(t) is the value
in the next step, and `lab.kernels.backward_induction` finds it.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from lab.kernels.backward_induction import Plan, backward_induction
from lab.kernels.runtime import device
from lab.paths.route_worlds import Trajectories, World, bounds, expected

NEVER = float("-inf")  # what an action pays that was never seen


class Targets(NamedTuple):
    """What may still be asked for: index g stands for ``low + g`` points."""

    low: int
    size: int


def targets(one: World, beyond: int = 0) -> Targets:
    """All that may be left of a return asked for, somewhere on the way.

    One may ask for anything possible, and for up to ``beyond`` points more.
    """
    low, high = bounds(one)
    least = low - max(high, 0)
    return Targets(least, high + beyond - min(low, 0) - least + 1)


def _places(one: World, logged: Trajectories) -> Tensor:
    """The step and state of each action [N, H], as one number."""
    H, S, _ = one.roads.shape
    return torch.arange(H) * S + logged.states[:, :-1]


def counted(one: World, logged: Trajectories) -> Tensor:
    """N_h(s, a) [H, S, A]: how often each action was taken."""
    A = one.roads.shape[2]
    key = _places(one, logged) * A + logged.actions
    counts = key.flatten().bincount(minlength=one.roads.numel())
    return counts.view(one.roads.shape).double()


def shares(counts: Tensor, otherwise: Tensor) -> Tensor:
    """Counts [..., A] as probabilities; without a count, ``otherwise``."""
    total = counts.sum(-1, keepdim=True)
    return (counts / total.clamp_min(1)).where(total > 0, otherwise)


def cloned(one: World, logged: Trajectories) -> Tensor:
    """Behaviour cloning [H, S, A]: pi(a | s) = N_h(s, a) / N_h(s)."""
    return shares(counted(one, logged), one.uniform)


def hindsight(one: World, logged: Trajectories, grid: Targets) -> Tensor:
    """N_h(s, a, G = g) [H, S, G, A]: actions by the return that followed."""
    H, S, A = one.roads.shape
    g = logged.to_go - grid.low
    if g.min() < 0 or g.max() >= grid.size:
        raise ValueError(
            f"returns-to-go from {logged.to_go.min()} to {logged.to_go.max()}"
            " lie outside the targets; use those of this world"
        )
    key = (_places(one, logged) * grid.size + g) * A + logged.actions
    counts = key.flatten().bincount(minlength=H * S * grid.size * A)
    return counts.view(H, S, grid.size, A).double()


def conditioned(one: World, logged: Trajectories, grid: Targets) -> Tensor:
    """pi(a | s, g) [H, S, G, A] = N_h(s, a, G = g) / N_h(s, G = g).

    The nearest g that was seen stands in for others, of two the lower.
    """
    counts = hindsight(one, logged, grid)
    H, S, G, _ = counts.shape
    seen = counts.sum(3) > 0
    g = torch.arange(G)
    # [H, S, G, G]; further than any where nothing was seen
    far = (g[:, None] - g).abs().expand(H, S, G, G)
    nearest = far.masked_fill(~seen[:, :, None], G).argmin(3)
    step, state = torch.arange(H)[:, None, None], torch.arange(S)[:, None]
    return shares(counts[step, state, nearest], one.uniform[:, :, None])


class Model(NamedTuple):
    """What a planner believes of a world."""

    chances: Tensor  # [H, S, A, S]
    rewards: Tensor  # [H, S, A], mean; `NEVER` for an unknown action


def learned(one: World, logged: Trajectories) -> Model:
    """The world as counted: P_h(t | s, a), and mean rewards."""
    H, S, A = one.roads.shape
    taken = counted(one, logged)
    pair = _places(one, logged) * A + logged.actions
    key = (pair * S + logged.states[:, 1:]).flatten()
    led = key.bincount(minlength=H * S * A * S).view(H, S, A, S)
    points = logged.rewards.flatten().double()
    total = pair.flatten().bincount(points, minlength=H * S * A)
    tries = taken.clamp_min(1)
    rewards = (total.view(H, S, A) / tries).masked_fill(taken == 0, NEVER)
    return Model(led / tries[..., None], rewards)


def truth(one: World) -> Model:
    """The world as it is."""
    rewards = (one.chances * one.pays).sum(3)
    return Model(one.chances, rewards.masked_fill(~one.roads, NEVER))


def plans(models: list[Model]) -> Plan:
    """Plan in many worlds at once, on the GPU if there is one."""
    parts = zip(*models, strict=True)
    stacked = [torch.stack(part).float().to(device()) for part in parts]
    return Plan(*(part.cpu() for part in backward_induction(*stacked)))


def planned(one: World, logged: Trajectories) -> Tensor:
    """The policy [H, S, A] that is best in the world as learned."""
    return as_policy(one, plans([learned(one, logged)]).choice[0])


def as_policy(one: World, choice: Tensor) -> Tensor:
    """Choices [H, S] as a policy [H, S, A]; -1 takes any road alike."""
    A = one.roads.shape[2]
    sure = torch.nn.functional.one_hot(choice.long().clamp_min(0), A)
    return sure.double().where((choice >= 0)[..., None], one.uniform)


def earns(one: World, policy: Tensor) -> float:
    """The mean return of a policy [H, S, A] in the true world, exactly."""
    return expected(one, policy[:, :, None]).item()
