"""Your own router in the arena, briefly trained: a function that chooses."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lab.kernels.topk_gate import Gate
from lab.tokens.arena import BASELINE, above_line, run
from lab.tokens.arena_records import POSITIONS, points, train_and_measure
from lab.tokens.char_lm import DIM
from lab.tokens.entrants import EXPERTS, Entrant, Training
from lab.tokens.routers import BALANCE, Router, Routing, balance_loss


class OwnRouter(Router):
    """A linear router that leaves the choice to a function of yours.

    ``choose(scores [T, E])`` returns which experts work, as booleans [T, E];
    their weights are their scores, made to add up to 1.
    """

    def __init__(self, dim: int, experts: int, choose: Callable) -> None:
        super().__init__(dim, experts)
        self.choose = choose

    def forward(self, hidden: Tensor, memory: Any = None) -> Routing:
        scores = (hidden @ self.weight).softmax(dim=1)
        # a copy, so that a function that writes into it changes no weight
        chosen = self.choose(scores.detach().clone())
        weights = scores * chosen
        # a token that chose no expert keeps its weights at 0
        weights = weights / weights.sum(1, keepdim=True).clamp_min(1e-9)
        each = torch.arange(scores.shape[1], device=scores.device).int()
        gate = Gate(each.where(chosen, -1), weights)
        loss = BALANCE * balance_loss(gate.experts, scores)
        return Routing(gate, scores, loss)


def enter(choose: Callable, seed: int = 0, steps: int = 100) -> str:
    """Let ``choose`` compete for ``steps`` steps, and say how it did.

    `OwnRouter` says what ``choose`` should return. An empty function is not
    trained; the answer is then "not attempted yet".
    """
    T = 4
    probe = choose(torch.full((T, EXPERTS), 1 / EXPERTS))
    if probe is None or probe is Ellipsis:
        return "not attempted yet"
    found = type(probe).__name__
    if isinstance(probe, Tensor):
        found = f"{probe.dtype} of shape {tuple(probe.shape)}"
    if found != f"torch.bool of shape {(T, EXPERTS)}":
        raise ValueError(
            f"choose returned {found} for {T} tokens; return a tensor of"
            f" booleans of shape ({T}, {EXPERTS})"
        )
    own = Entrant(
        "yours",
        "",
        "",
        (0,),
        lambda _: lambda layer: OwnRouter(DIM, EXPERTS, choose),
    )
    new, _ = train_and_measure(own, Training(0, seed, steps))
    line = [run(p, seed, steps, POSITIONS) for p in points([BASELINE])]
    far = above_line(
        new.multiply_adds,
        new.bits,
        [one.multiply_adds for one in line],
        [one.bits for one in line],
    )
    return (
        f"after {steps} steps: {new.experts:.2f} experts per token,"
        f" {new.bits:.3f} bits per character, {abs(far):.3f}"
        f" {'above' if far > 0 else 'below'} the top-k line"
    )
