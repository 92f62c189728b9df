"""A router in Read-ME's manner for the character model: it decides once."""

from typing import Any

from torch import Tensor

from lab.kernels.topk_gate import topk_gate
from lab.tokens.routers import Router, Routing, balance_loss


class PreGateRouter(Router):
    """Read-ME: one choice of k experts for all layers, before they run.

    The router of layer 0 reads what entered the network, which follows from
    the token ids alone, and its routing is handed on as memory; the routers
    of the other layers have no weights and repeat it. Nobody waits for a
    layer to know which experts the next one needs.

    Learned, not distilled: the loss of the language model reaches it through
    the weights of the gate (the paper's eq. 2), because a dense model to
    distil from does not fit the arena's budget. The balance loss counts once.
    """

    def __init__(
        self,
        dim: int,
        experts: int,
        k: int,
        layer: int = 0,
        balance: float = 0.01,
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
                    "this router repeats what layer 0 chose and was handed"
                    " nothing; put a router of layer=0 before it"
                )
            gate, scores = memory
            return Routing(gate, scores, scores.new_zeros(()), memory)
        logits = hidden @ self.weight
        # a lone expert keeps its raw score, or it would have no gradient
        gate = topk_gate(logits, self.k, renormalize=self.k > 1)
        scores = logits.softmax(dim=1)
        loss = self.balance * balance_loss(gate.experts, scores)
        return Routing(gate, scores, loss, (gate, scores))
