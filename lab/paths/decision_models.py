"""Clone, condition or plan: three ways to act, learned from the same data.

Yang, Nachum, Du, Wei, Abbeel and Schuurmans's survey (2023) sorts the ways to
turn logged trajectories into a policy. Generative models of behaviour imitate
the actions, plainly or given an outcome; generative models of the world
predict states and rewards, and a planner does the rest. In small worlds
(`route_worlds`) each is an exact table (`policy_tables`), and
`return_gpt` is conditioning with a network in place of the table.

The survey has no experiment of its own. The claims are those of works on
conditioning, tested in three worlds; a world and its trajectories follow from
the seed, and what a table earns is computed without sampling. Language models
as agents, and all that needs pretraining, are left out.
"""

from functools import cache, partial
from typing import NamedTuple

import torch

from lab.claims import Claim, second_look
from lab.exercises import Exercise
from lab.paths import return_gpt
from lab.paths.policy_tables import (
    cloned,
    conditioned,
    earns,
    planned,
    plans,
    targets,
    truth,
)
from lab.paths.route_worlds import (
    Trajectories,
    World,
    bounds,
    expected,
    travel,
    world,
)

NUMBER = 3000  # trajectories
SHARES = (0.1, 0.25, 0.4, 1.0)  # of the best trajectories, to clone
ROLLOUTS = 1000  # travellers that follow a network, for each target


class Task(NamedTuple):
    """A world, what was logged there, and what there is to gain."""

    world: World
    logged: Trajectories
    best: float  # the mean return of the best policy

    @property
    def highest(self) -> int:
        return int(self.logged.returns.max())


@cache
def task(name: str, seed: int, number: int = NUMBER, **settings) -> Task:
    """The task of a seed: the world of ``settings`` and its trajectories."""
    one = world(name, seed, **settings)
    logged = travel(one, one.travellers, number, seed)
    best = plans([truth(one)]).value[0, 0, one.start].item()
    return Task(one, logged, best)


def at_the_highest(one: Task) -> float:
    """What conditioning on the highest return logged earns."""
    grid = targets(one.world)
    policy = conditioned(one.world, one.logged, grid)
    return expected(one.world, policy)[one.highest - grid.low].item()


def best_share(one: Task) -> float:
    """What cloning the best trajectories earns, at the best of `SHARES`."""
    order = one.logged.returns.argsort(descending=True, stable=True)
    few = [order[: max(1, round(share * len(order)))] for share in SHARES]
    return max(
        earns(one.world, cloned(one.world, one.logged.some(some)))
        for some in few
    )


@cache
def follows(name: str, seed: int, steps: int, **settings) -> dict[int, float]:
    """What a transformer earns, for each target that was ever logged."""
    one, logged, _ = task(name, seed, **settings)
    asked = logged.returns.unique().tolist()
    net = return_gpt.train(one, logged, seed, steps)
    found = return_gpt.mean_returns(net, one, asked, ROLLOUTS, seed)
    return dict(zip(asked, found.tolist(), strict=True))


def _misses(seed: int, steps: int) -> float:
    """How far a transformer is from what is asked, in % of what is possible.

    The mean over the targets at 10, 50 and 90 % of the returns logged.
    """
    one, found = task("roads", seed), follows("roads", seed, steps)
    ranks = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    asked = one.logged.returns.double().quantile(ranks, interpolation="lower")
    missed = [abs(found[int(g)] - g) for g in asked.tolist()]
    low, high = bounds(one.world)
    return 100 * sum(missed) / 3 / (high - low)


def _over_shares(seed: int, steps: int) -> float:
    """A transformer at the highest return logged, over cloning the best."""
    one, found = task("roads", seed), follows("roads", seed, steps)
    return found[one.highest] - best_share(one)


def _stitches(seed: int, number: int) -> float:
    """What planning earns over conditioning, from few trajectories."""
    one = task("roads", seed, number)
    plan = earns(one.world, planned(one.world, one.logged))
    return plan - at_the_highest(one)


def _luck(seed: int, number: int) -> float:
    """What conditioning on the highest return earns over cloning."""
    one = task("gamble", seed, number)
    clone = earns(one.world, cloned(one.world, one.logged))
    return at_the_highest(one) - clone


def _network_luck(seed: int, steps: int) -> float:
    """A transformer at its best target, over the sure road."""
    found = follows("gamble", seed, steps)
    return max(found.values()) - task("gamble", seed).best


def _slips(seed: int, number: int) -> float:
    """Percent of what can be gained over cloning that conditioning gains."""
    one = task("roads", seed, number, slip=0.3)
    clone = earns(one.world, cloned(one.world, one.logged))
    return 100 * (at_the_highest(one) - clone) / (one.best - clone)


def _coverage(seed: int, number: int) -> float:
    """What planning earns over cloning where travellers rarely gamble."""
    one = task("gamble", seed, number, gambles=0.05)
    plan = earns(one.world, planned(one.world, one.logged))
    return plan - earns(one.world, cloned(one.world, one.logged))


TABLES = (
    "Worlds of at most six steps and four states, and exact tables in place of"
    " networks."
)
NETWORK = (
    "A transformer of one layer and width 32, 600 steps, 3000 trajectories;"
    " the authors' are larger and act on images and joints. On the roads of"
    " the view, which no claim uses, 1500 steps brought 0.6 points more at the"
    " highest return."
)
LUCK = "Paster, McIlraith, Ba 2022, abstract"
ASKED = "Chen et al. 2021 (Decision Transformer), abstract"

_claim = partial(Claim, chapter="57", limits=TABLES)

CLAIMS = (
    _claim(
        slug="luck-is-not-skill",
        sentence="Conditioning on a return can fail dramatically where chance"
        " rules: it may have been achieved by luck alone.",
        source=LUCK + "; that it loses to cloning is our measure",
        effect="mean return in the gamble, conditioning on the highest return"
        " logged minus cloning",
        unit="points",
        experiment=_luck,
        threshold=0.0,
        side="below",
        seeds=10,
        parameters={"number": NUMBER},
        reduced={"number": 1000},
    ),
    _claim(
        slug="luck-fools-a-network",
        sentence="A Decision Transformer fails there, too, whatever it is"
        " asked for.",
        source=LUCK + "; whatever it is asked for, and one point, are ours",
        effect="mean return in the gamble, transformer at its best target"
        " minus the sure road",
        unit="points",
        experiment=_network_luck,
        threshold=-1.0,
        side="below",
        parameters={"steps": return_gpt.STEPS},
        reduced={"steps": 20},
        limits=NETWORK + " The best target is chosen in the true world, in its"
        " favour.",
    ),
    _claim(
        slug="slips-fool-it-as-well",
        sentence="It fails wherever chance has a hand, so also on roads where"
        " travellers slip (stronger than the authors' words).",
        source=LUCK + ", our reading; half is our threshold",
        effect="of what can be gained over cloning, gained by conditioning on"
        " the highest return; slip 0.3",
        unit="%",
        experiment=_slips,
        threshold=50.0,
        side="below",
        seeds=10,
        parameters={"number": NUMBER},
        reduced={"number": 1000},
    ),
    _claim(
        slug="achieves-what-is-asked",
        sentence="Conditioned on a desired return, a Decision Transformer can"
        " generate actions that achieve it.",
        source=ASKED + "; 10 % is our threshold",
        effect="distance from what was asked, roads without slips, in percent"
        " of all that is possible",
        unit="%",
        experiment=_misses,
        threshold=10.0,
        side="below",
        seeds=8,
        parameters={"steps": return_gpt.STEPS},
        reduced={"steps": 20},
        limits=NETWORK,
    ),
    _claim(
        slug="more-than-cloning-the-best",
        sentence="Conditioning does more than cloning the best trajectories.",
        source="our control, with shares of 10, 25, 40 and 100 %",
        effect="mean return on roads without slips, transformer at the highest"
        " return logged minus the best share cloned",
        unit="points",
        experiment=_over_shares,
        threshold=0.0,
        side="above",
        parameters={"steps": return_gpt.STEPS},
        reduced={"steps": 20},
        **second_look(
            "-1.1 points (-2.3 to 0.1)",
            NETWORK + " The share is chosen in the true world, in favour of"
            " cloning.",
            seeds=range(8, 28),
        ),
    ),
    _claim(
        slug="planning-stitches",
        sentence="Conditioning needs stronger assumptions than dynamic"
        " programming: that a whole trajectory shows the way, not its pieces.",
        source="Brandfonbrener et al. 2022, abstract; the second half and one"
        " point are ours",
        effect="mean return on roads without slips, 30 trajectories, planning"
        " minus conditioning on the highest return",
        unit="points",
        experiment=_stitches,
        threshold=1.0,
        side="above",
        seeds=20,
        parameters={"number": 30},
        reduced={"number": 30},
    ),
    _claim(
        slug="planning-is-safe",
        sentence="Whoever plans in the world as learned does no worse than"
        " whoever clones (taken for granted).",
        source="our control: travellers gamble in one step of twenty",
        effect="mean return in the gamble, 30 trajectories, planning minus"
        " cloning",
        unit="points",
        experiment=_coverage,
        threshold=0.0,
        side="above",
        seeds=40,
        parameters={"number": 30},
        reduced={"number": 30},
        limits=TABLES + " One world, where few gambles are logged. Planners"
        " that distrust what few tried are left out.",
    ),
    _claim(
        slug="across-many-tasks",
        sentence="Foundation models for decisions hold promise: systems that"
        " interact effectively in dialogue, driving, healthcare, education and"
        " robotics.",
        source="the survey's abstract, an outlook",
        effect="success over many tasks, pretrained minus trained for one",
        unit="points",
        experiment=None,
        threshold=0.0,
        side="above",
        out_of_reach=(
            "it needs models pretrained on text, images and many tasks, and"
            " people and machines to interact with"
        ),
    ),
)


def _given(trajectories, h, s, g):
    """Shares of the actions of all in s at h with a return-to-go of g."""
    taken = [
        path[h][1]
        for path in trajectories
        if path[h][0] == s and sum(step[2] for step in path[h:]) == g
    ]
    return {a: taken.count(a) / len(taken) for a in sorted(set(taken))}


_PATHS = [
    [(1, 0, 1), (1, 0, 1)], [(1, 1, 2), (0, 1, -1)], [(1, 1, -1), (2, 1, 2)],
    [(1, 1, 2), (0, 0, 1)], [(1, 0, 1), (1, 1, 2)], [(1, 0, 1), (1, 1, -1)],
]  # fmt: skip

EXERCISES = {
    "exercise-1": Exercise(slug="exercise-1", answer=0.3 * 2 - 0.7),
    "exercise-2": Exercise(slug="exercise-2", answer=[1.5, 2.0]),
    "exercise-3": Exercise(
        slug="exercise-3",
        answer=_given,
        cases=[
            (_PATHS, 0, 1, 3),
            (_PATHS, 0, 1, 1),
            (_PATHS, 1, 1, 2),
            (_PATHS, 1, 0, 1),
            (_PATHS, 1, 2, -1),
        ],
    ),
}
