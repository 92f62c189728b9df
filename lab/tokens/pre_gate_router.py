"""A router for the character model that decides once, as in Read-ME."""

from typing import Any

from torch import Tensor

from lab.tokens.routers import BALANCE, Router, Routing, balanced_top_k


class PreGateRouter(Router):
    """Read-ME: one choice of k experts for all layers, before they run.

    The router of layer 0 reads the input of the network, which follows from
    the token ids alone, and its routing is handed on as memory; the routers
    of the other layers have no weights and repeat it. So the experts of the
    next layer are known without waiting for the present one.

    The router is learned, not distilled: a dense model to distil from does
    not fit the arena's budget. The loss of the language model reaches it
    through the weights of the gate (the paper's eq. 2). The balance loss
    counts once.
    """

    def __init__(
        self,
        dim: int,
        experts: int,
        k: int,
        layer: int = 0,
        balance: float = BALANCE,
    ) -> None:
        super().__init__(dim, experts)
        self.k = k
        self.balance = balance
        if layer:
            self.weight = None

    def forward(self, hidden: Tensor, memory: Any = None) -> Routing:
        if self.weight is None:
            if memory is None:
                raise ValueError(
                    "this router repeats the choice of layer 0 but was handed"
                    " none; put a router with layer=0 before it"
                )
            gate, scores = memory
            return Routing(gate, scores, scores.new_zeros(()), memory)
        routing = balanced_top_k(hidden @ self.weight, self.k, self.balance)
        return routing._replace(memory=(routing.gate, routing.scores))
