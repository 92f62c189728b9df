"""What the pictures of chapter 57 show: three policies, and a recorded one."""

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lab.atomic import write_arrays
from lab.data import DATA, read_arrays
from lab.paths import return_gpt
from lab.paths.decision_models import NUMBER, ROLLOUTS, Task, task
from lab.paths.policy_tables import (
    Targets,
    as_policy,
    cloned,
    conditioned,
    earns,
    learned,
    plans,
    targets,
)
from lab.paths.route_worlds import (
    World,
    bounds,
    expected,
    travel,
)

RECORDED = "decision_models/recorded.npz"
SEED = 100  # of the roads and of all trajectories; no claim uses it
WINS = (0.0, 0.1, 0.3, 0.5, 0.7, 1.0)
SLIPS = (0.0, 0.1, 0.3)
NUMBERS = (10, 30, 100, 300, 1000, 3000)
GAMBLES = (0.05, 0.5)
ASKED = tuple(range(0, 121, 10))  # percent of what is possible
MOST = 125  # percent of it that the axis shows
LOGGED, SENT = 48, 12  # lines drawn: of the data, and of each policy
PLACES = {
    "gamble": ("won", "sure", "lost"),
    "roads": ("a", "b", "c", "d"),
    "stitch": ("upper", "middle", "lower"),
}


class Learned(NamedTuple):
    """What three learners made of the same trajectories."""

    task: Task
    grid: Targets
    asked: list[int]  # every target on the axis
    clone: Tensor  # [H, S, A]
    condition: Tensor  # [H, S, G, A]
    plan: Tensor  # [H, S, A]
    cloning: float  # mean returns in the true world
    conditioning: list[float]  # for each target
    planning: float
    believed: float  # what the planner expects


class Picture(NamedTuple):
    """One data set, what was asked for, and who earns what."""

    name: str
    found: Learned
    target: int  # points asked for
    network: list[float]  # the transformer's, for each target; or empty

    @property
    def roads(self) -> list[list[int]]:
        """Where some action may lead, as (step, state, next state)."""
        some = self.found.task.world.chances.amax(2) > 0
        return some.nonzero().tolist()

    @property
    def places(self) -> tuple:
        return PLACES[self.name]

    @property
    def earned(self) -> float:
        """What conditioning earns for this target."""
        at = self.found.asked.index(self.target)
        return self.found.conditioning[at]

    @property
    def title(self) -> str:
        return (
            f"Asked for {points(self.target)}: conditioning earns"
            f" {self.earned:.1f}, cloning {self.found.cloning:.1f},"
            f" planning {self.found.planning:.1f}"
        )

    @property
    def note(self) -> str:
        best, believed = self.found.task.best, self.found.believed
        said = f"the best policy earns {best:.1f}; the planner expects"
        said += f" {believed:.1f}"
        return said if self.network else said + "; no transformer recorded"

    @property
    def logged(self) -> dict:
        """The trajectories nearest the target, and some of the others."""
        data = self.found.task.logged
        far = (data.returns - self.target).abs()
        near = far.argsort(stable=True)[: min(SENT, len(far) // 3)]
        rest = torch.ones_like(far, dtype=torch.bool)
        rest[near] = False
        others = data.states[rest][:LOGGED]
        return {
            "logged": ("dropped", others.tolist()),
            "nearest to what is asked": ("mean", data.states[near].tolist()),
        }

    @property
    def sent(self) -> dict:
        """Travellers who follow each policy, with the same luck."""
        one, found = self.found.task.world, self.found
        start = self.target - found.grid.low
        return {
            "cloning": ("kept", _states(one, found.clone)),
            "conditioning": ("mean", _states(one, found.condition, start)),
            "planning": ("best", _states(one, found.plan)),
        }

    @property
    def lines(self) -> dict[str, list[float]]:
        """Returns earned, over those asked for."""
        asked = self.found.asked
        lines = {
            "as asked": [float(g) for g in asked],
            "cloning": [self.found.cloning] * len(asked),
            "planning": [self.found.planning] * len(asked),
            "conditioning": self.found.conditioning,
        }
        return lines | ({"transformer": self.network} if self.network else {})

    @property
    def reached(self) -> str:
        """How many trajectories brought what is asked for, in words."""
        returns = self.found.task.logged.returns
        number = int((returns == self.target).sum())
        said = f"{number} of {len(returns)} trajectories brought"
        return f"{said} {points(self.target)}"


COLOURS = {
    "as asked": "faint", "cloning": "kept", "planning": "best",
    "conditioning": "mean", "transformer": "null",
}  # fmt: skip


def points(number: int) -> str:
    return f"{number} point{'' if abs(number) == 1 else 's'}"


def _states(one: World, policy: Tensor, asked: int | None = None) -> list:
    return travel(one, policy[None], SENT, 0, asked).states.tolist()


def picture(
    asked: int = 50,
    name: str = "gamble",
    win: float = 0.3,
    slip: float = 0.0,
    number: int = NUMBER,
    gambles: float = 0.5,
) -> Picture:
    """Three policies from ``number`` trajectories, and what they earn.

    ``asked`` is in percent of the way from the lowest to the highest possible
    return. ``win`` and ``gambles`` matter in the gamble, ``slip`` on roads.
    """
    settings = _settings(name, win, slip, gambles)
    found = learn(name, number, **settings)
    low, high = bounds(found.task.world)
    # a half is rounded up
    target = low + int(asked * (high - low) / 100 + 0.5)
    network = []
    if number == NUMBER and gambles == max(GAMBLES):
        network = recorded()[_key(name, win, slip)].tolist()
    return Picture(name, found, target, network)


def _settings(name, win, slip, gambles) -> dict:
    """Only what matters in this world, so that nothing is learned twice."""
    if name == "gamble":
        return {"win": win, "gambles": gambles}
    return {"slip": slip} if name == "roads" else {}


def _key(name, win, slip) -> str:
    # 1 may be given for 1.0
    chance = {"gamble": win, "roads": slip}.get(name)
    return name if chance is None else f"{name} {float(chance)}"


def asked_for(one: World) -> list[int]:
    """Every number of points on the axis; the knob asks for some."""
    low, high = bounds(one)
    return list(range(low, low + int(MOST * (high - low) / 100 + 0.5) + 1))


@cache
def learn(name: str, number: int, **settings) -> Learned:
    """Let all three learn from the first ``number`` trajectories."""
    every = task(name, SEED, **settings)
    one = every._replace(logged=every.logged.some(slice(number)))
    asked = asked_for(one.world)
    grid = targets(one.world, asked[-1] - bounds(one.world)[1])
    clone = cloned(one.world, one.logged)
    condition = conditioned(one.world, one.logged, grid)
    found = plans([learned(one.world, one.logged)])
    plan = as_policy(one.world, found.choice[0])
    gains = expected(one.world, condition)
    return Learned(
        one, grid, asked, clone, condition, plan,
        earns(one.world, clone),
        [gains[g - grid.low].item() for g in asked],
        earns(one.world, plan),
        found.value[0, 0, one.world.start].item(),
    )  # fmt: skip


@cache
def recorded() -> dict[str, np.ndarray]:
    return read_arrays(RECORDED)


def train_checkpoints(progress: Callable = iter) -> None:
    """Train a transformer for each world shown: about three minutes."""
    arrays = {}
    shown = [("gamble", win, 0.0) for win in WINS]
    shown += [("roads", 0.3, slip) for slip in SLIPS]
    shown += [("stitch", 0.3, 0.0)]
    for name, win, slip in progress(shown):
        arrays[_key(name, win, slip)] = network_returns(name, win, slip)
    write_arrays(DATA / RECORDED, **arrays)


def network_returns(name, win, slip, steps=return_gpt.STEPS) -> np.ndarray:
    """What a transformer earns for each target, float32."""
    settings = _settings(name, win, slip, max(GAMBLES))
    one, logged, _ = task(name, SEED, **settings)
    net = return_gpt.train(one, logged, SEED, steps)
    found = return_gpt.mean_returns(net, one, asked_for(one), ROLLOUTS, SEED)
    return found.numpy().astype(np.float32)
