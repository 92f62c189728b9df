"""Routers that choose by dice: one has no gate, the other is a Switch.

The draws are uniform, one for each token or one for the whole batch. Every
layer has a random stream of its own, so that its draws can be repeated.
"""

from typing import Any

import torch
from torch import Tensor, nn

from lab.kernels.topk_gate import Gate
from lab.tokens.routers import Routing, TopKRouter


class Dice:
    """Draws experts uniformly; the same seed gives the same draws.

    In training, throws follow one another in one stream. At inference, every
    call repeats throw number ``draw``, so that a picture can be drawn again.
    """

    def __init__(self, experts: int, seed: int) -> None:
        self.experts = experts
        self.seed = seed
        self.draw = 0
        self.stream = torch.Generator().manual_seed(seed)

    def throw(self, tokens: int, per: str, training: bool) -> Tensor:
        """An expert for each token, [T] int32; one for all per "batch"."""
        if per not in ("batch", "token"):
            raise ValueError(f'per={per!r} is not "batch" or "token"')
        stream = self.stream
        if not training:
            at = self.seed + 1_000_003 * (self.draw + 1)
            stream = torch.Generator().manual_seed(at)
        size = 1 if per == "batch" else tokens
        drawn = torch.randint(self.experts, (size,), generator=stream)
        return drawn.expand(tokens).to(torch.int32)


class RandomRouter(nn.Module):
    """Routes without a gate: dice draw one expert, with weight 1.

    In training there is one throw for the whole batch; at inference, one
    ``per`` "token" or "batch". With one expert the model is dense.
    """

    def __init__(self, experts: int, seed: int = 0) -> None:
        super().__init__()
        if experts < 1:
            raise ValueError(
                f"experts={experts} leaves none to draw; use 1 or more"
            )
        self.dice = Dice(experts, seed)
        self.per = "token"

    def forward(self, hidden: Tensor, memory: Any = None) -> Routing:
        per = "batch" if self.training else self.per
        chosen = self.dice.throw(len(hidden), per, self.training)
        chosen = chosen[:, None].to(hidden.device)
        gate = Gate(chosen, torch.ones_like(chosen, dtype=hidden.dtype))
        scores = hidden.new_full((len(hidden), self.dice.experts), 1.0)
        return Routing(gate, scores / self.dice.experts, hidden.new_zeros(()))


class SwitchRouter(TopKRouter):
    """Switch: the best expert, weighted by its probability.

    With ``by_dice`` the expert is drawn for each token. The weight is still
    the gate's, so that nothing but the choice changes.
    """

    def __init__(
        self, dim: int, experts: int, seed: int = 0, by_dice: bool = False
    ) -> None:
        super().__init__(dim, experts, k=1)
        self.dice = Dice(experts, seed)
        self.per = "token"
        self.by_dice = by_dice

    def forward(self, hidden: Tensor, memory: Any = None) -> Routing:
        routing = super().forward(hidden, memory)
        if not self.by_dice:
            return routing
        per = "token" if self.training else self.per
        drawn = self.dice.throw(len(hidden), per, self.training)
        drawn = drawn[:, None].to(hidden.device)
        gate = Gate(drawn, routing.gate.weights)
        return routing._replace(gate=gate)
