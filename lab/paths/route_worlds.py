"""Small worlds to find a route in, and what travellers did there.

A world is a graph of layers. In step h a traveller in state s of layer h takes
an action a, a road. Chance leads to state t of the next layer, with
probability P[h, s, a, t], and pays a whole number of points, R[h, s, a, t].

========  ================================================================
roads     six steps, four places a layer, three roads from each that pay 0
          to 4 points; with chance ``slip`` the traveller slips to any place
gamble    five steps: 1 point for sure, or 2 points with chance ``win`` and
          else -1; the state is how the last step ended
stitch    two halves, each with a road that pays 1 point and one that pays
          nothing; travellers take the good one either first or last
========  ================================================================

A return is the sum of all points. What a policy earns is computed exactly, by
a sum over all outcomes and never from samples.
"""

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

WORLDS = ("gamble", "roads", "stitch")
WON, SAFE, LOST = range(3)  # states of "gamble": how the last step ended


class World(NamedTuple):
    """Where each road leads, what it pays, and who travels there."""

    chances: Tensor  # [H, S, A, S] float64; 0 where there is no road
    pays: Tensor  # [H, S, A, S] int64
    roads: Tensor  # [H, S, A] bool: which actions there are
    start: int  # the state of layer 0
    # who takes which road how often; all kinds of travellers are as many
    travellers: Tensor  # [kinds, H, S, A] float64

    @property
    def uniform(self) -> Tensor:
        """The policy [H, S, A] that takes any road alike."""
        roads = self.roads.double()
        return roads / roads.sum(2, keepdim=True).clamp_min(1)


class Trajectories(NamedTuple):
    """What N travellers did."""

    states: Tensor  # [N, H + 1]
    actions: Tensor  # [N, H]
    rewards: Tensor  # [N, H] int64

    @property
    def to_go(self) -> Tensor:
        """Returns-to-go [N, H]: the points of this step and all later ones."""
        return self.rewards.flip(1).cumsum(1).flip(1)

    @property
    def returns(self) -> Tensor:
        return self.rewards.sum(1)

    def some(self, which: slice | Tensor) -> "Trajectories":
        """Those of the travellers that an index names."""
        return Trajectories(*(field[which] for field in self))


def world(
    name: str,
    seed: int = 0,
    slip: float = 0.0,
    win: float = 0.3,
    gambles: float = 0.5,
    agents: int = 2,
) -> World:
    """A world by its name; each setting matters for one of them only.

    ``gambles`` is how often travellers gamble. With ``agents=1`` each
    traveller of "stitch" draws both roads by itself.
    """
    if name not in WORLDS:
        raise ValueError(f"name={name!r} is not one of {', '.join(WORLDS)}")
    for what, chance in (("slip", slip), ("win", win), ("gambles", gambles)):
        if not 0 <= chance <= 1:
            raise ValueError(f"{what}={chance} is no chance; use 0 to 1")
    if agents not in (1, 2):
        raise ValueError(f"agents={agents} is not 1 or 2")
    if name == "roads":
        return roads(seed, slip)
    return gamble(win, gambles) if name == "gamble" else stitch(agents)


@cache
def roads(seed: int, slip: float = 0.0, H=6, S=4, A=3) -> World:
    """A random graph of roads; any road is taken alike."""
    dice = torch.Generator().manual_seed(seed)
    ends = torch.rand(H, S, S, generator=dice).argsort(2)[..., :A]
    leads = torch.nn.functional.one_hot(ends, S).double()
    pays = torch.randint(5, (H, S, A, 1), generator=dice).expand(H, S, A, S)
    there = torch.ones(H, S, A, dtype=torch.bool)
    alike = torch.full((1, H, S, A), 1 / A, dtype=torch.float64)
    return World((1 - slip) * leads + slip / S, pays, there, 1, alike)


@cache
def gamble(win: float = 0.3, gambles: float = 0.5, H=5) -> World:
    """A sure point, or two with chance ``win`` and else one less."""
    chances = torch.zeros(H, 3, 2, 3, dtype=torch.float64)
    chances[:, :, 0, SAFE] = 1
    chances[:, :, 1, WON], chances[:, :, 1, LOST] = win, 1 - win
    pays = torch.tensor([2, 1, -1]).expand(H, 3, 2, 3)
    there = torch.ones(H, 3, 2, dtype=torch.bool)
    often = torch.tensor([1 - gambles, gambles], dtype=torch.float64)
    return World(chances, pays, there, SAFE, often.expand(1, H, 3, 2))


@cache
def stitch(agents: int = 2) -> World:
    """Two halves; one kind of traveller is good in each, or one in none."""
    top, middle, low = range(3)
    chances = torch.zeros(4, 3, 2, 3, dtype=torch.float64)
    pays = torch.zeros(4, 3, 2, 3, dtype=torch.int64)
    for h in (0, 2):
        # action 0 is the good road
        chances[h, middle, 0, top] = chances[h, middle, 1, low] = 1
        pays[h, middle, 0, top] = 1
        chances[h + 1, (top, low), 0, middle] = 1
    there = chances.sum(3) > 0
    kinds = there.double().repeat(2, 1, 1, 1)
    kinds[0, 0, middle, 1] = kinds[0, 2, middle, 0] = 0
    kinds[1, 0, middle, 0] = kinds[1, 2, middle, 1] = 0
    found = World(chances, pays, there, middle, kinds)
    return found if agents == 2 else found._replace(
        travellers=found.uniform[None]
    )  # fmt: skip


def travel(
    one: World,
    policies: Tensor,
    number: int,
    seed: int,
    asked: int | None = None,
) -> Trajectories:
    """Send travellers; each draws one of the ``policies`` [kinds, H, S, A].

    With a number of points ``asked`` for, policies are [kinds, H, S, G, A]:
    they depend on what is still asked for, an index of G.
    """
    if number < 1:
        raise ValueError(f"number={number} travellers are too few; use 1 up")
    H = len(one.chances)
    dice = torch.Generator().manual_seed(seed)
    draws = torch.rand(number, 1 + 2 * H, generator=dice, dtype=torch.float64)
    kind = (draws[:, 0] * len(policies)).long()
    s = torch.full((number,), one.start)
    states, actions, rewards = [s], [], []
    left = None if asked is None else torch.full((number,), asked)
    for h in range(H):
        row = policies[kind, h, s]
        if left is not None:
            inside = left.clamp(0, row.shape[1] - 1)
            row = row[torch.arange(number), inside]
        a = _drawn(row, draws[:, 1 + 2 * h])
        t = _drawn(one.chances[h, s, a], draws[:, 2 + 2 * h])
        points = one.pays[h, s, a, t]
        left = None if left is None else left - points
        states.append(t)
        actions.append(a)
        rewards.append(points)
        s = t
    return Trajectories(
        *(torch.stack(x, 1) for x in (states, actions, rewards))
    )


def _drawn(chances: Tensor, draws: Tensor) -> Tensor:
    """One index for each row of ``chances`` [N, K], by a number in [0, 1)."""
    past = chances.cumsum(1) <= draws[:, None] * chances.sum(1, keepdim=True)
    # a rounding error must not lead to what has no chance
    last = chances.shape[1] - 1 - (chances > 0).flip(1).int().argmax(1)
    return past.sum(1).minimum(last)


def expected(one: World, policy: Tensor) -> Tensor:
    """The mean return [G] of a policy [H, S, G, A], exactly.

    The policy reads what is still asked for, an index of G, which falls by
    the points of each step. An entry of the result is the first such index.
    """
    H, S, G, _ = policy.shape
    value = policy.new_zeros(S, G)
    arrived = torch.arange(S)[:, None]
    for h in reversed(range(H)):
        # [S, A, S, G]
        left = torch.arange(G) - one.pays[h][..., None]
        ahead = value[arrived, left.clamp(0, G - 1)]
        gain = one.pays[h][..., None] + ahead
        worth = torch.einsum("satg,sat->sga", gain, one.chances[h])
        value = (policy[h] * worth).sum(2)
    return value[one.start]


def bounds(one: World) -> tuple[int, int]:
    """The lowest and the highest return that luck and choice can bring."""
    value = torch.zeros(2, one.chances.shape[1], dtype=torch.float64)
    for h in reversed(range(len(one.chances))):
        for i, sign in enumerate((1, -1)):
            # the lowest, and minus the highest
            gain = sign * one.pays[h] + value[i]
            gain = gain.masked_fill(one.chances[h] == 0, float("inf"))
            value[i] = gain.flatten(1).amin(1)
    low, high = value[:, one.start].tolist()
    return int(low), int(-high)
