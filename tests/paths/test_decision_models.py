"""Chapter 57: worlds and policies against plain loops over all outcomes."""

import itertools
import math
from collections import Counter, defaultdict
from fractions import Fraction
from functools import cache

import pytest
import torch
from seed_0 import in_the_ledger, measured

from lab.exercises import judge
from lab.paths import decision_models, decision_models_recorded, return_gpt
from lab.paths.decision_models import EXERCISES, _given, task
from lab.paths.policy_tables import (
    NEVER,
    cloned,
    conditioned,
    earns,
    hindsight,
    learned,
    planned,
    plans,
    targets,
    truth,
)
from lab.paths.route_worlds import (
    LOST,
    SAFE,
    WON,
    Trajectories,
    bounds,
    expected,
    gamble,
    roads,
    stitch,
    travel,
    world,
)

SMALL = {
    "gamble": gamble(0.3, 0.4, H=3),
    "roads": roads(3, 0.2, H=3),
    "sure roads": roads(4, 0.0, H=4),
    "stitch": stitch(),
}


def outcomes(one, policy, asked=None, low=0):
    """Every trajectory there is, as (probability, steps).

    A step is (state, action, points). ``policy`` is a function of step, state
    and what is still asked for.
    """
    H, S, A = one.roads.shape
    todo = [(1.0, one.start, asked, ())]
    for h in range(H):
        later = []
        for p, s, left, steps in todo:
            for a, t in itertools.product(range(A), range(S)):
                q = p * policy(h, s, left)[a] * one.chances[h, s, a, t].item()
                if q:
                    points = one.pays[h, s, a, t].item()
                    rest = None if left is None else left - points
                    step = (s, a, points)
                    later.append((q, t, rest, (*steps, step)))
        todo = later
    return [(p, steps) for p, _, _, steps in todo]


def total(steps):
    return sum(points for _, _, points in steps)


def by_table(policy):
    return lambda h, s, left: policy[h, s].tolist()


def as_steps(logged):
    """Trajectories as lists of (state, action, points)."""
    rows = zip(*(field.tolist() for field in logged), strict=True)
    return [list(zip(s, a, r)) for s, a, r in rows]  # noqa: B905


@pytest.mark.parametrize("name", SMALL)
def test_a_world_is_one(name):
    one = SMALL[name]
    sums = one.chances.sum(3)
    torch.testing.assert_close(sums, one.roads.double())
    for kind in one.travellers:
        assert not kind[~one.roads].any()
        there = one.roads.any(2)
        assert kind.sum(2)[there].sub(1).abs().max() < 1e-12
    assert (one.uniform > 0).equal(one.roads)


@pytest.mark.parametrize("name", SMALL)
def test_bounds_are_those_of_all_trajectories(name):
    one = SMALL[name]
    every = [total(s) for _, s in outcomes(one, by_table(one.uniform))]
    assert bounds(one) == (min(every), max(every))


@pytest.mark.parametrize("name", SMALL)
def test_what_a_policy_earns_is_the_sum_over_all_outcomes(name):
    one = SMALL[name]
    logged = travel(one, one.travellers, 40, 1)
    grid = targets(one, 2)
    policy = conditioned(one, logged, grid)
    found = expected(one, policy)
    low, high = bounds(one)
    for asked in (low, (low + high) // 2, high + 2):
        every = outcomes(
            one,
            lambda h, s, left: policy[h, s, left - grid.low].tolist(),
            asked,
        )
        assert sum(p for p, _ in every) == pytest.approx(1)
        right = sum(p * total(steps) for p, steps in every)
        assert found[asked - grid.low].item() == pytest.approx(right)
    clone = cloned(one, logged)
    right = sum(p * total(s) for p, s in outcomes(one, by_table(clone)))
    assert earns(one, clone) == pytest.approx(right, abs=1e-12)


def test_travellers_do_what_the_chances_say():
    one = gamble(0.3, 0.4, H=2)
    N = 20_000
    logged = travel(one, one.travellers, N, 5)
    found = Counter(tuple(steps) for steps in as_steps(logged))
    for p, steps in outcomes(one, by_table(one.travellers[0])):
        # four standard errors
        off = abs(found.pop(steps) / N - p)
        assert off < 4 * (p * (1 - p) / N) ** 0.5
    assert not found


def test_travellers_of_two_kinds_keep_to_their_kind():
    logged = travel(stitch(), stitch().travellers, 400, 0)
    assert set(logged.returns.tolist()) == {1}
    first = (logged.states[:, 1] == 0).double().mean().item()
    assert abs(first - 0.5) < 4 * 0.5 / 20
    alone = travel(stitch(1), stitch(1).travellers, 400, 0)
    assert set(alone.returns.tolist()) == {0, 1, 2}


def test_travellers_read_what_is_still_asked_for():
    one = gamble(1.0, 0.5)
    logged = travel(one, one.travellers, 300, 0)
    grid = targets(one)
    policy = conditioned(one, logged, grid)
    for asked in range(5, 11):
        sent = travel(one, policy[None], 50, 1, asked - grid.low)
        assert set(sent.returns.tolist()) == {asked}


def test_more_travellers_keep_those_that_were_there():
    few, many = (travel(gamble(), gamble().travellers, n, 3) for n in (50, 90))
    for one, other in zip(few, many.some(slice(50)), strict=True):
        assert torch.equal(one, other)


def test_returns_to_go_include_the_step_itself():
    rewards = torch.tensor([[1, 2, -1], [0, 0, 4]])
    logged = Trajectories(torch.zeros(2, 4), torch.zeros(2, 3), rewards)
    assert logged.to_go.tolist() == [[2, 1, -1], [4, 4, 4]]
    assert logged.returns.tolist() == [2, 4]


@pytest.mark.parametrize("name", SMALL)
def test_tables_are_those_of_loops(name):
    one = SMALL[name]
    logged = travel(one, one.travellers, 30, 7)
    grid = targets(one)
    paths = as_steps(logged)
    clone, condition = cloned(one, logged), conditioned(one, logged, grid)
    model = learned(one, logged)
    H, S, A = one.roads.shape
    for h, s in itertools.product(range(H), range(S)):
        here = [p for p in paths if p[h][0] == s]
        if not here:
            assert torch.equal(clone[h, s], one.uniform[h, s])
            assert (condition[h, s] == one.uniform[h, s]).all()
            assert (model.rewards[h, s] == NEVER).all()
            continue
        by_return = defaultdict(list)
        for path in here:
            by_return[total(path[h:])].append(path[h][1])
        for a in range(A):
            taken = [p for p in here if p[h][1] == a]
            assert clone[h, s, a].item() == len(taken) / len(here)
            if not taken:
                assert model.rewards[h, s, a] == NEVER
                continue
            mean = sum(p[h][2] for p in taken) / len(taken)
            assert model.rewards[h, s, a].item() == pytest.approx(mean)
            if h + 1 < H:
                led = Counter(p[h + 1][0] for p in taken)
                for t in range(S):
                    share = model.chances[h, s, a, t].item()
                    assert share == led[t] / len(taken)
        for g in range(grid.low, grid.low + grid.size):
            # of two equally near, min takes the lower
            near = min(sorted(by_return), key=lambda x: (abs(x - g), x))
            actions = by_return[near]
            for a in range(A):
                share = condition[h, s, g - grid.low, a].item()
                assert share == actions.count(a) / len(actions)


def test_conditioning_is_the_rule_of_bayes():
    # chances of a half, so every trajectory can be logged as often as it is
    # likely, and the counts are exact
    one = gamble(0.5, 0.5, H=3)
    every = outcomes(one, by_table(one.travellers[0]))
    states, actions, rewards = [], [], []
    last = {2: WON, 1: SAFE, -1: LOST}
    for p, steps in every:
        times = Fraction(p) * 4**3
        assert times.denominator == 1
        for _ in range(int(times)):
            states.append([*(s for s, _, _ in steps), last[steps[-1][2]]])
            actions.append([a for _, a, _ in steps])
            rewards.append([r for _, _, r in steps])
    logged = Trajectories(*map(torch.tensor, (states, actions, rewards)))
    grid = targets(one)
    policy = conditioned(one, logged, grid)
    counts = hindsight(one, logged, grid)
    for h, s in itertools.product(range(3), range(3)):
        for g in range(-3, 7):
            joint = [
                sum(
                    p for p, x in every
                    if x[h][:2] == (s, a) and total(x[h:]) == g
                )
                for a in range(2)
            ]  # fmt: skip
            at = g - grid.low
            assert counts[h, s, at].sum().item() == 64 * sum(joint)
            if sum(joint):
                right = [p / sum(joint) for p in joint]
                found = policy[h, s, at].tolist()
                assert found == pytest.approx(right, abs=1e-12)


def best_by_recursion(one):
    """The most that any policy earns, state by state."""
    H, S, A = one.roads.shape

    @cache
    def value(h, s):
        if h == H:
            return 0.0
        return max(
            sum(
                p * (one.pays[h, s, a, t].item() + value(h + 1, t))
                for t, p in enumerate(one.chances[h, s, a].tolist())
                if p
            )
            for a in range(A)
            if one.roads[h, s, a]
        )

    return value(0, one.start)


@pytest.mark.parametrize("name", SMALL)
def test_planning_with_the_truth_is_optimal(name):
    one = SMALL[name]
    found = plans([truth(one), truth(one)])
    right = best_by_recursion(one)
    assert found.value[1, 0, one.start].item() == pytest.approx(right, 1e-6)
    logged = travel(one, one.travellers, 3000, 0)
    assert earns(one, planned(one, logged)) == pytest.approx(right, 1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_without_chance_every_logged_return_is_reached(seed):
    one = roads(seed)
    logged = travel(one, one.travellers, 30, seed)
    grid = targets(one, 9)
    found = expected(one, conditioned(one, logged, grid))
    for g in set(logged.returns.tolist()):
        assert found[g - grid.low].item() == pytest.approx(g)
    # whoever asks for more takes the best way on from each place
    assert found[-1].item() >= logged.returns.max()


def test_all_wins_asked_for_is_to_gamble_always():
    one = gamble(0.3, 0.5, H=4)
    logged = travel(one, one.travellers, 3000, 0)
    assert logged.returns.max() == 8
    grid = targets(one)
    policy = conditioned(one, logged, grid)
    assert policy[0, SAFE, 8 - grid.low].tolist() == [0, 1]
    found = expected(one, policy)[8 - grid.low].item()
    # 0.3 x 2 - 0.7 a step, and 1 for whoever does not gamble
    assert found == pytest.approx(-0.1 * 4)
    assert best_by_recursion(one) == 4


def test_one_action_that_was_never_seen_is_not_planned():
    one = gamble(1.0, 0.0)
    logged = travel(one, one.travellers, 50, 0)
    assert earns(one, planned(one, logged)) == 5
    assert best_by_recursion(one) == 10


def network(one=None, steps=3, seed=0):
    one = one or roads(0, H=4)
    return return_gpt.train(
        one, travel(one, one.travellers, 200, 0), seed, steps
    ), one


def test_a_network_sees_nothing_that_comes_later():
    net, one = network()
    dice = torch.Generator().manual_seed(0)
    to_go = torch.randint(9, (6, 4), generator=dice).float()
    states = torch.randint(4, (6, 4), generator=dice)
    actions = torch.randint(3, (6, 4), generator=dice)
    scores = net(to_go, states, actions)
    other = actions.clone()
    # not even the action itself
    other[:, 2:] = (other[:, 2:] + 1) % 3
    later = states.clone()
    later[:, 3] = (later[:, 3] + 1) % 4
    hopes = to_go.clone()
    hopes[:, 3] += 5
    found = net(hopes, later, other)
    assert torch.allclose(found[:, :3], scores[:, :3], atol=1e-6)
    assert not torch.allclose(found[:, 3], scores[:, 3], atol=1e-6)
    # but what is asked for now, and what was done before
    assert not torch.allclose(net(to_go + 3, states, actions), scores)
    before = actions.clone()
    before[:, 0] = (before[:, 0] + 1) % 3
    assert not torch.allclose(net(to_go, states, before)[:, 1], scores[:, 1])


def test_a_network_takes_no_road_that_is_not_there():
    net, one = network(stitch())
    sent = return_gpt.follow(net, one, torch.full((200,), 2), 0)
    steps = torch.arange(4)
    assert one.roads[steps, sent.states[:, :-1], sent.actions].all()
    # and is led and paid as the world says
    row = (steps, sent.states[:, :-1], sent.actions, sent.states[:, 1:])
    assert torch.equal(one.pays[row], sent.rewards)
    assert (one.chances[row] > 0).all()


def test_a_network_is_told_what_is_left(monkeypatch):
    net, one = network(gamble(1.0, H=3))
    told = []

    def scores(to_go, states, actions):
        told.append(to_go.clone())
        return torch.zeros(*states.shape, 2)

    monkeypatch.setattr(net, "forward", scores)
    asked = torch.tensor([4, 6])
    sent = return_gpt.follow(net, one, asked, 0)
    paid = sent.rewards.cumsum(1)
    for h, seen in enumerate(told):
        assert torch.equal(seen[:, 0], asked.float())
        for k in range(1, h + 1):
            assert torch.equal(seen[:, k], (asked - paid[:, k - 1]).float())


def test_a_network_learns_to_do_what_it_is_asked():
    net, one = network(gamble(1.0, H=2), steps=120)
    found = return_gpt.mean_returns(net, one, [2, 3, 4], 300, 0)
    assert found.tolist() == pytest.approx([2, 3, 4], abs=0.3)


def test_training_depends_on_its_seed_alone():
    nets = [network(seed=s)[0] for s in (0, 0, 1)]
    line = torch.ones(1, 2), torch.ones(1, 2).long(), torch.zeros(1, 2).long()
    one, same, other = (net(*line) for net in nets)
    assert torch.equal(one, same) and not torch.equal(one, other)


NETWORKS = (
    "luck-fools-a-network", "achieves-what-is-asked",
    "more-than-cloning-the-best",
)  # fmt: skip


def test_the_cheap_claims_measure_what_the_ledger_says():
    found = measured(decision_models, but=NETWORKS)
    kept = in_the_ledger(decision_models)
    assert found == pytest.approx({s: kept[s] for s in found}, abs=1e-6)


def test_a_network_that_reaches_all_answers_its_claims(monkeypatch):
    monkeypatch.setattr(
        decision_models, "follows",
        lambda name, seed, steps: {g: g - 1.5 for g in range(-20, 30)},
    )  # fmt: skip
    one = task("roads", 0)
    low, high = bounds(one.world)
    assert decision_models._misses(0, 1) == pytest.approx(150 / (high - low))
    assert decision_models._network_luck(0, 1) == pytest.approx(29 - 1.5 - 5)
    logged, returns = one.logged, one.logged.returns
    best = returns.sort(descending=True, stable=True).indices[:300]
    tenth = earns(one.world, cloned(one.world, logged.some(best)))
    assert decision_models._over_shares(0, 1) == pytest.approx(
        one.highest - 1.5 - tenth
    )


def test_a_quickly_trained_network_knows_all_targets():
    found = decision_models.follows("gamble", 0, 2)
    one = task("gamble", 0)
    assert sorted(found) == sorted(set(one.logged.returns.tolist()))
    assert all(-5 <= earned <= 10 for earned in found.values())


KNOBS = list(
    itertools.product(
        (0, 55, 125), ("gamble", "roads", "stitch"), (0.0, 1.0), (0.0, 0.3),
        (10, 3000), (0.05, 0.5),
    )
)  # fmt: skip


def test_every_setting_of_the_knobs_has_a_picture():
    for asked, name, win, slip, number, gambles in KNOBS:
        view = decision_models_recorded.picture(
            asked, name, win, slip, number, gambles
        )
        numbers = [x for line in view.lines.values() for x in line]
        assert all(map(math.isfinite, numbers))
        assert {len(line) for line in view.lines.values()} == {
            len(view.found.asked)
        }
        assert f" of {number} trajectories brought" in view.reached
        assert view.found.planning <= view.found.task.best + 1e-6
        drawn = sum(len(paths) for _, paths in view.logged.values())
        assert drawn == min(number, 60)
        assert bool(view.network) == (number == 3000 and gambles == 0.5)
        assert view.places and view.roads


def test_a_chance_may_be_a_whole_number():
    for name in ("gamble", "roads"):
        whole = decision_models_recorded.picture(50, name, win=1, slip=0)
        same = decision_models_recorded.picture(50, name, win=1.0, slip=0.0)
        assert whole.network and whole.network == same.network


def test_asking_for_luck_earns_less_than_cloning():
    low, high = (decision_models_recorded.picture(x) for x in (50, 100))
    assert low.target == 3 and high.target == 10
    assert high.earned < high.found.cloning < low.earned
    sure = decision_models_recorded.picture(100, win=1.0)
    assert sure.earned == pytest.approx(sure.target)
    _, near = high.logged["nearest to what is asked"]
    assert (torch.tensor(near)[:, 1:] != LOST).all()
    assert "Asked for 10 points: conditioning earns -0.5" in high.title
    wins = (high.found.task.logged.returns == 10).sum()
    assert high.reached == f"{wins} of 3000 trajectories brought 10 points"


def test_the_recorded_networks_are_those_of_the_worlds():
    kept = decision_models_recorded.recorded()
    assert len(kept) == 6 + 3 + 1
    for name, win, slip in (("gamble", 0.3, 0.0), ("roads", 0.3, 0.3)):
        view = decision_models_recorded.picture(50, name, win, slip)
        low, high = bounds(view.found.task.world)
        assert all(low <= x <= high for x in view.network)
    found = decision_models_recorded.network_returns("stitch", 0.3, 0.0, 2)
    assert found.shape == kept["stitch"].shape


def test_a_network_stitches_no_more_than_its_data():
    view = decision_models_recorded.picture(100, "stitch")
    assert max(view.network) < 1.75
    assert view.found.planning == 2


RIGHT = {
    "exercise-1": -0.1,
    "exercise-2": (1.5, 2),
    "exercise-3": _given,
}
WRONG = {
    "exercise-1": 0.6,
    "exercise-2": (1, 2),
    # what was paid so far in place of what is to go
    "exercise-3": lambda paths, h, s, g: _given(
        [p for p in paths if sum(x[2] for x in p[: h + 1]) == g], h, s, g
    ),
}


@pytest.mark.parametrize("slug", RIGHT)
def test_the_checker_knows_right_from_wrong(slug):
    assert judge(EXERCISES[slug], RIGHT[slug]) == "correct"
    assert judge(EXERCISES[slug], WRONG[slug]) != "correct"


@pytest.mark.parametrize("agents", [2, 1])
def test_the_second_exercise_is_what_stitch_earns(agents):
    one = stitch(agents)
    every = [
        steps
        for kind in one.travellers
        for _, steps in outcomes(one, by_table(kind))
    ]
    states = [[s for s, _, _ in steps] + [1] for steps in every]
    logged = Trajectories(
        torch.tensor(states),
        torch.tensor([[a for _, a, _ in steps] for steps in every]),
        torch.tensor([[r for _, _, r in steps] for steps in every]),
    )
    grid = targets(one)
    found = expected(one, conditioned(one, logged, grid))[2 - grid.low].item()
    assert found == EXERCISES["exercise-2"].answer[2 - agents]


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: world("river"), "name='river'"),
        (lambda: world("gamble", win=1.5), "win=1.5 is no chance"),
        (lambda: world("roads", slip=-0.1), "slip=-0.1"),
        (lambda: world("gamble", gambles=2), "gambles=2"),
        (lambda: world("stitch", agents=3), "agents=3"),
        (lambda: travel(stitch(), stitch().travellers, 0, 0), "number=0"),
        (lambda: network(steps=0), "steps=0"),
        (
            lambda: hindsight(
                gamble(), travel(gamble(), gamble().travellers, 9, 0),
                targets(gamble())._replace(size=4),
            ), "lie outside the targets",
        ),
    ],
)  # fmt: skip
def test_wrong_arguments_are_refused_in_a_sentence(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()
