"""Union of Experts in the character model: its experts are slices of one MLP.

The eight experts of a layer, 32 hidden units each, are treated as the slices
of one dense network of 256. Together, at weight 1, they are that network, so
the router switches off parts of one function; see `union_of_experts`.
"""

from typing import Any

import torch
from torch import Tensor, nn

from lab.kernels.topc_select import topc_select
from lab.kernels.topk_gate import Gate, topk_gate
from lab.tokens.routers import Router, Routing, weight_table


class UnionRouter(Router):
    """Union of Experts: k slices of one MLP per token, c tokens per slice.

    Each token chooses k slices, weighted by n P, which is 1 where the gate is
    indifferent. In training a slice then keeps its best
    c = ``capacity`` T k / n tokens of the batch, as in the paper's language
    code (k = n / 2 there, so c = T / 2), and the others lose that slice. This
    top-c is not causal: whether a token keeps a slice depends on the tokens
    that share its batch. So it is off at inference. ``capacity=0`` leaves it
    out of training too.
    """

    def __init__(
        self, dim: int, experts: int, k: int, capacity: float = 1.0
    ) -> None:
        super().__init__(dim, experts)
        self.bias = nn.Parameter(torch.zeros(experts))
        self.k = k
        self.capacity = capacity

    def forward(self, hidden: Tensor, memory: Any = None) -> Routing:
        T, n = len(hidden), self.weight.shape[1]
        logits = hidden @ self.weight + self.bias
        experts, scores_of_chosen = topk_gate(
            logits, self.k, renormalize=False
        )
        gate = Gate(experts, n * scores_of_chosen)
        c = int(self.capacity * T * self.k / n)
        if self.training and 1 <= c < T:
            gate = best_tokens(gate, n, c)
        # the paper trains without an auxiliary loss
        return Routing(gate, logits.softmax(dim=1), logits.new_zeros(()))


def best_tokens(gate: Gate, num_experts: int, c: int) -> Gate:
    """``gate`` [T, S] cut to the c tokens of largest weight for each expert.

    A slot that loses its expert becomes empty: -1 with weight 0. An expert
    that fewer than c tokens chose keeps them all; the authors' code fills its
    free seats with tokens that did not choose it.
    """
    column = weight_table(gate, num_experts).T  # [E, T]
    taken = topc_select(column[None], c)[0].long()
    kept = torch.zeros_like(column, dtype=torch.bool).scatter(1, taken, True)
    lost = ~kept.T.gather(1, gate.experts.clamp(min=0).long())
    return Gate(
        gate.experts.masked_fill(lost, -1), gate.weights.masked_fill(lost, 0.0)
    )
