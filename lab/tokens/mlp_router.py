"""A router of two layers with as many parameters as RMoE's (chapter 05)."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lab.tokens.routers import BALANCE, Router, Routing, balanced_top_k


class MLPRouter(Router):
    """A router of two layers, the control for "is it only the parameters?"."""

    def __init__(
        self,
        dim: int,
        experts: int,
        k: int,
        hidden: int,
        balance: float = BALANCE,
    ) -> None:
        super().__init__(hidden, experts)
        self.enter = nn.Parameter(torch.empty(dim, hidden))
        self.k = k
        self.balance = balance

    def forward(self, hidden: Tensor, memory: Any = None) -> Routing:
        logits = F.relu(hidden @ self.enter) @ self.weight
        return balanced_top_k(logits, self.k, self.balance)


def router_parameters(
    layers: int, dim: int, experts: int, width: int = 0
) -> int:
    """Parameters of all routers, linear or, given ``width``, with a GRU."""
    if not width:
        return layers * dim * experts
    own = dim * width + width * experts
    return layers * own + 6 * width**2 + 6 * width


def mlp_width(layers: int, dim: int, experts: int, width: int) -> int:
    """Hidden units that give MLP routers as many parameters as RMoE's."""
    total = router_parameters(layers, dim, experts, width)
    return round(total / (layers * (dim + experts)))
