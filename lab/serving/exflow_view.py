"""What the widget of chapter 12 shows: one placement, judged on new tokens.

The traces are recorded, or made with as much affinity as wanted.
"""

from functools import cache, partial
from typing import NamedTuple

from torch import Tensor

from lab.kernels.placement_cost import placement_cost
from lab.kernels.transition_counts import transition_counts
from lab.serving.placement import (
    SOLVERS,
    crossing,
    independent,
    random_placements,
    staged,
    states,
)
from lab.serving.routing_traces import made, recorded

QUICK_STATES = 1000  # set partitions that a moving slider can wait for
GUESSES = 1000  # random placements, for comparison
AFFINITIES = ("0", "0.25", "0.5", "0.75", "1", "real")


class Picture(NamedTuple):
    """One setting, for a picture."""

    counts: Tensor  # [L - 1, E, E] of the test tokens
    placed: Tensor  # [L, E]
    solver: str  # the one that ran
    crossings: dict[str, float]  # percent of the steps
    node_crossing: float | None  # percent that leave the node, with two nodes

    @property
    def note(self) -> str:
        """What ran, what chance would give, and the nodes if there are two."""
        chance = self.crossings["mean of all placements"]
        words = f"{self.solver} placement; {chance:.1f} % at random"
        if self.node_crossing is not None:
            words += f"; {self.node_crossing:.1f} % change the node"
        return words


def picture(
    affinity: str = "real",
    tokens: int = 3000,
    gpus: int = 4,
    solver: str = "exact",
    experts: int = 8,
    nodes: int = 1,
) -> Picture:
    """Plan on a few tokens, judge on others, and on the control.

    A solver that would take seconds gives way to the descent, and
    ``Picture.solver`` says so. Unless there are more GPUs than nodes, there
    is one node.
    """
    plan, test = _counts(affinity, experts, tokens)
    if solver == "exact" and states(experts, gpus) > QUICK_STATES:
        solver = "descent"
    nodes = nodes if gpus > nodes else 1
    place = partial(staged, gpus=gpus, nodes=nodes, solver=SOLVERS[solver])
    placed, blind = place(plan), place(independent(plan))
    shown = {
        "mean of all placements": 1 - 1 / gpus,
        f"best of {GUESSES} random": _best_guess(plan, test, gpus),
        "placed, planning tokens": crossing(placed, plan),
        "placed, new tokens": crossing(placed, test),
        "control: no affinity": crossing(blind, independent(test)),
    }
    node = placed // (gpus // nodes)
    return Picture(
        test,
        placed,
        solver,
        {name: 100 * share for name, share in shown.items()},
        100 * crossing(node, test) if nodes > 1 else None,
    )


@cache
def _counts(affinity: str, experts: int, tokens: int):
    if affinity == "real":
        trace = recorded(experts)
    else:
        trace = made(experts, float(affinity))
    return (
        transition_counts(trace.train[:tokens], experts),
        transition_counts(trace.test, experts),
    )


def _best_guess(plan: Tensor, test: Tensor, gpus: int) -> float:
    """The best of many random placements on the plan, judged on the test."""
    guesses = _guesses(plan.shape[0] + 1, plan.shape[1], gpus)
    costs = placement_cost(guesses, plan.float())
    return crossing(guesses[int(costs.argmin())], test)


@cache
def _guesses(layers: int, experts: int, gpus: int) -> Tensor:
    return random_placements(layers, experts, gpus, GUESSES)
