"""What a router is, and what the routers of this part share.

A router looks at the hidden vector of each token and says which experts work
on it. In the character model, every layer has one in front of its experts.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lab.kernels.topk_gate import Gate, topk_gate

# weight of the balance loss (Fedus et al. 2021), which RMoE uses as well
BALANCE = 0.01


class Routing(NamedTuple):
    """What one router decided for T tokens."""

    gate: Gate  # the experts of each token, and their weights
    scores: Tensor  # [T, E] softmax of the logits, null experts included
    loss: Tensor | float = 0.0  # [] auxiliary, already weighted; in training
    memory: Any = None  # handed to the next layer's router (RMoE)


class Router(nn.Module):
    """A linear router without bias: logits z = x W, scores = softmax(z).

    A subclass says what follows from the scores. ``columns`` is the number
    of experts, null experts included.
    """

    def __init__(self, dim: int, columns: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(dim, columns))

    def forward(self, hidden: Tensor, memory: Any = None) -> Routing:
        """Route hidden [T, D]; ``memory`` is the previous layer's, or None."""
        raise NotImplementedError

    def watch(self, w_up: Tensor) -> None:
        """Receive the experts' up-projections [E, D, F]; most ignore them."""


class TopKRouter(Router):
    """The baseline of this part: `balanced_top_k` of the linear logits."""

    def __init__(
        self, dim: int, experts: int, k: int, balance: float = BALANCE
    ) -> None:
        super().__init__(dim, experts)
        self.k = k
        self.balance = balance

    def forward(self, hidden: Tensor, memory: Any = None) -> Routing:
        return balanced_top_k(hidden @ self.weight, self.k, self.balance)


def balanced_top_k(
    logits: Tensor, k: int, balance: float, memory: Any = None
) -> Routing:
    """Top-k of the logits [T, E], with ``balance`` times the balance loss.

    The weights of the chosen experts are renormalized, except for k = 1, where
    that would make every weight 1 and leave the router without a gradient.
    There the expert is weighted by its raw score (Switch Transformer, eq. 2).
    """
    gate = topk_gate(logits, k, renormalize=k > 1)
    scores = logits.softmax(dim=1)
    loss = balance * balance_loss(gate.experts, scores)
    return Routing(gate, scores, loss, memory)


def weight_table(gate: Gate, num_experts: int) -> Tensor:
    """The weight of every expert for every token, [T, E], 0 if not chosen."""
    T, _ = gate.experts.shape
    # empty slots fall into an extra column, which is cut off
    column = gate.experts.long().where(gate.experts >= 0, num_experts)
    table = gate.weights.new_zeros(T, num_experts + 1)
    return table.scatter(1, column, gate.weights)[:, :num_experts]


def choice_rate(experts: Tensor, num_experts: int) -> Tensor:
    """Share f_i of the tokens that chose each expert, [E], from [T, S].

    It sums to the mean number of experts per token, not to 1.
    """
    column = experts.reshape(-1).long() + 1  # empty slots count in column 0
    counts = torch.bincount(column, minlength=num_experts + 1)[1:]
    return counts / max(1, len(experts))


def balance_loss(experts: Tensor, scores: Tensor) -> Tensor:
    """Load-balancing loss E * sum of f_i Q_i (Fedus et al. 2021, eq. 4).

    ``experts`` [T, S] and ``scores`` [T, E]; Q_i is the mean score of expert
    i and carries the gradient, the choice rate f_i does not. When all experts
    are used equally the loss is the mean number of experts per token; it can
    be lower.
    """
    E = scores.shape[1]
    return E * (choice_rate(experts, E) * scores.mean(dim=0)).sum()


def entropy(logits: Tensor) -> Tensor:
    """Mean entropy in nats of softmax(logits [T, E]) over the tokens, [].

    Written as logsumexp(z) - sum P z, so that 0 log 0 is 0.
    """
    scores = logits.softmax(dim=1)
    return (logits.logsumexp(dim=1) - (scores * logits).sum(dim=1)).mean()
