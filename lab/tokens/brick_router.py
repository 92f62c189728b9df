"""A router without opinions of its own: it takes the experts that react most.

Self-organised bricks (Xiao et al. 2024, section 2; MoEfication, Zhang et al.
2022): split a ReLU layer into bricks of neurons, and let every token use the
k bricks whose hidden activations are largest on average, each with weight 1,
as in a dense layer whose other activations are 0.

    m_e(x) = mean of relu(x W_up,e) over the neurons of brick e
    chosen: the k largest predictions of m_e, from a small network
    loss = mean over tokens and bricks of (prediction - m_e)^2

Computing m_e for all E bricks costs half of the dense layer, so at inference
the network predicts it, with H (D + E) multiply-adds a token for H hidden
units. The true activations are computed only in training, as targets of the
predictor. They carry no gradient, so neither bricks nor hidden vectors are
bent towards being easy to predict, and the language model's loss never reaches
the router.

Nothing balances the load: a brick that is chosen learns, and its activations
grow. The paper lets bricks form in dense training first; here they compete
from the first step, on the same budget as the other routers.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lab.kernels.topk_gate import Gate, topk_gate
from lab.tokens.routers import Router, Routing

PREDICTOR = 16  # hidden units of the predictor


def mean_activation(hidden: Tensor, w_up: Tensor) -> Tensor:
    """Mean of the ReLU activations of each brick, [T, E].

    From hidden [T, D] and the bricks' up-projections [E, D, F].
    """
    return F.relu(hidden @ w_up).mean(dim=2).T


class BrickRouter(Router):
    """Choose the k bricks with the largest predicted activation, weight 1.

    With ``oracle`` the true activations decide instead, at the price of every
    brick's up-projection for every token.
    """

    def __init__(
        self,
        dim: int,
        experts: int,
        k: int,
        oracle: bool = False,
        predictor: int = PREDICTOR,
    ) -> None:
        super().__init__(predictor, experts)
        self.enter = nn.Parameter(torch.empty(dim, predictor))
        self.enter_bias = nn.Parameter(torch.zeros(predictor))
        self.bias = nn.Parameter(torch.zeros(experts))
        self.k = k
        self.oracle = oracle
        self.seen: tuple[Tensor, ...] = ()

    def watch(self, w_up: Tensor) -> None:
        # in a tuple, so that they are not registered as the router's own
        self.seen = (w_up,)

    def predicted_activation(self, hidden: Tensor) -> Tensor:
        """The activation that the predictor expects of every brick, [T, E]."""
        inner = F.relu(hidden @ self.enter + self.enter_bias)
        return inner @ self.weight + self.bias

    def forward(self, hidden: Tensor, memory: Any = None) -> Routing:
        hidden = hidden.detach()
        logits = self.predicted_activation(hidden)
        loss = hidden.new_zeros(())
        if self.training or self.oracle:
            if not self.seen:
                raise ValueError(
                    "this router has no bricks to watch; call watch(w_up) with"
                    " their up-projections [E, D, F]"
                )
            actual = mean_activation(hidden, self.seen[0].detach())
            loss = F.mse_loss(logits, actual)
            logits = actual if self.oracle else logits
        experts = topk_gate(logits, self.k).experts
        weights = torch.ones_like(experts, dtype=hidden.dtype)
        return Routing(Gate(experts, weights), logits.softmax(dim=1), loss)
