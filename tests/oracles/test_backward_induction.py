"""Plans against a linear programme, every plan there is, and a plain loop."""

import itertools
import math

import numpy as np
import pytest
import torch
from on_device import on_device
from scipy.optimize import linprog

from lab.kernels.backward_induction import (
    backward_induction,
    backward_induction_triton,
)

BOTH = [backward_induction, on_device(backward_induction_triton)]


def worlds(E=2, H=3, S=5, A=3, seed=0, dtype=torch.float64):
    dice = torch.Generator().manual_seed(seed)
    chances = torch.rand(E, H, S, A, S, generator=dice, dtype=dtype) ** 3
    chances = chances / chances.sum(-1, keepdim=True)
    rewards = torch.randn(E, H, S, A, generator=dice, dtype=dtype)
    return chances, rewards


def by_occupancy(chances, rewards, start):
    """The most that one world can pay from ``start``, as a linear programme.

    The unknowns say how often each action of each step and state is taken;
    what flows into a state flows out again.
    """
    H, S, A = rewards.shape
    flow, supply = np.zeros((H, S, H, S, A)), np.zeros((H, S))
    supply[0, start] = 1
    for h, s in itertools.product(range(H), range(S)):
        flow[h, s, h, s] = 1
        if h:
            flow[h, s, h - 1] -= chances[h - 1, :, :, s].numpy()
    found = linprog(
        -rewards.numpy().ravel(),
        A_eq=flow.reshape(H * S, -1), b_eq=supply.ravel(),
    )  # fmt: skip
    assert found.status == 0
    return -found.fun


@pytest.mark.parametrize("seed", range(3))
def test_values_are_those_of_the_linear_programme(seed):
    chances, rewards = worlds(seed=seed)
    value, _ = backward_induction(chances, rewards)
    for e, s in itertools.product(range(2), range(5)):
        right = by_occupancy(chances[e], rewards[e], s)
        assert value[e, 0, s].item() == pytest.approx(right, abs=1e-8)


def paid(chances, rewards, plan, s, h=0):
    """What a plan, an action for each step and state, brings on average."""
    if h == len(rewards):
        return 0.0
    a = plan[h][s]
    return rewards[h][s][a] + sum(
        p * paid(chances, rewards, plan, t, h + 1)
        for t, p in enumerate(chances[h][s][a])
        if p
    )


@pytest.mark.parametrize("function", BOTH)
def test_no_plan_is_better(function):
    chances, rewards = worlds(E=1, H=2, S=3, A=2, seed=4)
    value, choice = function(chances.float(), rewards.float())
    chances, rewards = chances[0].tolist(), rewards[0].tolist()
    states = list(itertools.product(range(2), repeat=3))
    for s in range(3):
        best = max(
            paid(chances, rewards, plan, s)
            for plan in itertools.product(states, repeat=2)
        )
        assert value[0, 0, s].item() == pytest.approx(best, abs=1e-5)
        mine = paid(chances, rewards, choice[0].tolist(), s)
        assert mine == pytest.approx(best, abs=1e-5)


def by_loop(chances, rewards):
    """Value and choice of one world; the first of equal actions stays."""
    H, S, A = rewards.shape
    value = [[0.0] * S for _ in range(H + 1)]
    choice = [[-1] * S for _ in range(H)]
    for h in range(H - 1, -1, -1):
        for s in range(S):
            best = -math.inf
            for a in range(A):
                worth = rewards[h, s, a].item()
                for t in range(S):
                    worth += chances[h, s, a, t].item() * value[h + 1][t]
                if worth > best:
                    best, choice[h][s] = worth, a
            value[h][s] = best if choice[h][s] >= 0 else 0.0
    return value, choice


@pytest.mark.parametrize("function", BOTH)
@pytest.mark.parametrize("S", [1, 3, 33])
def test_it_is_the_loop_with_ties_and_missing_actions(function, S):
    dice = torch.Generator().manual_seed(S)
    E, H, A = 3, 3, 3
    places = torch.randint(S, (E, H, S, A), generator=dice)
    chances = torch.nn.functional.one_hot(places, S).float()
    rewards = torch.randint(3, (E, H, S, A), generator=dice).float()
    rewards[torch.rand(rewards.shape, generator=dice) < 0.4] = -math.inf
    value, choice = function(chances, rewards)
    for e in range(E):
        right = by_loop(chances[e], rewards[e])
        assert (value[e].tolist(), choice[e].tolist()) == right


@pytest.mark.parametrize("function", BOTH)
def test_a_chain_of_steps_is_a_discounted_sum(function):
    # 0.9 to stay, else the world ends: 1 + 0.9 + 0.81 + ...
    chances = torch.full((1, 30, 1, 1, 1), 0.9)
    value, _ = function(chances, torch.ones(1, 30, 1, 1))
    right = (1 - 0.9**30) / (1 - 0.9)
    assert value[0, 0, 0].item() == pytest.approx(right, rel=1e-5)


@pytest.mark.parametrize("function", BOTH)
def test_each_world_has_its_own_plan(function):
    chances, rewards = (x.float() for x in worlds(E=7, S=6))
    value, choice = function(chances, rewards)
    for e in range(7):
        alone = function(chances[e : e + 1], rewards[e : e + 1])
        assert torch.equal(alone.value[0], value[e])
        assert torch.equal(alone.choice[0], choice[e])


@pytest.mark.parametrize(
    "function", [on_device(backward_induction_triton)]
)  # fmt: skip
def test_on_a_gpu_an_action_worth_nan_is_not_available(function):
    chances, rewards = (x.float() for x in worlds(E=1))
    rewards[0, 2, :, 1] = math.nan
    value, choice = function(chances, rewards)
    right = function(chances, rewards.nan_to_num(nan=-math.inf))
    assert torch.equal(value, right.value)
    assert torch.equal(choice, right.choice)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"rewards": torch.zeros(2, 3, 5)}, "do not fit"),
        ({"chances": torch.zeros(2, 3, 5, 3, 4)}, "do not fit"),
        (
            {"chances": torch.zeros(2, 0, 5, 3, 5),
             "rewards": torch.zeros(2, 0, 5, 3)}, "nothing to decide",
        ),
        ({"rewards": torch.zeros(2, 3, 5, 3).double()}, "torch.float64"),
        (
            {"chances": torch.zeros(2, 3, 5, 3, 5).half(),
             "rewards": torch.zeros(2, 3, 5, 3).half()}, "torch.float16",
        ),
        ({"chances": torch.full((2, 3, 5, 3, 5), 0.21)}, "1.05 in sum"),
        ({"chances": torch.full((2, 3, 5, 3, 5), -0.1)}, "from -0.1"),
        ({"chances": torch.full((2, 3, 5, 3, 5), math.nan)}, "from nan"),
        ({"rewards": torch.full((2, 3, 5, 3), math.nan)}, "hold NaN"),
        ({"rewards": torch.full((2, 3, 5, 3), math.inf)}, "hold NaN"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_refused_in_a_sentence(change, sentence):
    chances, rewards = (x.float() for x in worlds())
    given = {"chances": chances, "rewards": rewards} | change
    with pytest.raises(ValueError, match=sentence):
        backward_induction(**given)
