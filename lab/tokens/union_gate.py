"""Which slices work on which tokens: Union of Experts' gate and its rivals.

P = softmax(x W_g + b_g) is [B, S, n]. A token takes its k best slices, then
a slice takes its c best tokens. `union_of_experts` numbers the steps.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lab.kernels.topc_select import topc_select
from lab.kernels.topk_gate import topk_gate

RULES = ("dense", "released", "weighted", "top-k", "random")


def demand(scores: Tensor, k: int) -> Tensor:
    """Step 2: scores [B, S, n] at each token's k best slices, 0 elsewhere."""
    B, S, n = scores.shape
    # the gate ranks P as it would rank the logits
    best = topk_gate(scores.detach().reshape(B * S, n), k).experts.long()
    chosen = torch.zeros_like(scores).reshape(B * S, n).scatter(1, best, 1.0)
    return scores * chosen.reshape(B, S, n)


def select(scores: Tensor, k: int, c: int, capacity: float = 1.0) -> Tensor:
    """Steps 2 to 4: the c tokens [B, n, c] that each slice takes, ascending.

    ``scores`` [B, S, n] is P. ``capacity`` is C: it scales all scores alike,
    so the choice stays the same. A C with floor(C B) = 0 is refused, because
    it would make every score 0.
    """
    M = demand(scores, k)
    B, S, _ = M.shape
    if not 1 <= c <= S:
        raise ValueError(f"c={c} is not within 1 to {S}, the number of tokens")
    if int(capacity * B) < 1:
        raise ValueError(
            f"capacity={capacity} makes every score of the {B} samples 0;"
            f" use 1, or at least 1 / {B}"
        )
    # scores compete across the batch, the first axis, as in their code
    R = M / (M.sum(dim=0, keepdim=True) + 1e-8) * int(capacity * B)
    return topc_select(R.transpose(1, 2), c)


def places(share: float, tokens: int) -> int:
    """c, how many tokens a slice takes: floor(share S), but at least 1."""
    # 0.29 * 100 is a hair below 29
    return max(1, int(share * tokens + 1e-9))


def seated(taken: Tensor, tokens: int) -> Tensor:
    """Which slice took which token, bool [B, S, n], from [B, n, c]."""
    B, n, _ = taken.shape
    table = torch.zeros(B, n, tokens, dtype=torch.bool, device=taken.device)
    return table.scatter(2, taken.long(), True).transpose(1, 2)


class Choice(NamedTuple):
    """Which slices work on which tokens."""

    scores: Tensor  # [B, S, n] P
    taken: Tensor | None  # [B, n, c], under a union's rules only
    chosen: Tensor  # [B, S, n] bool
    weights: Tensor  # [B, S, n]


class UnionGate(nn.Module):
    """Chooses among n slices by one of the `RULES`; k and share can change.

    "top-k" is an ordinary mixture over the same slices: token choice, with
    weights that add up to k and a balance loss. "random" draws k slices for
    each token in every pass. Its seed is the same for all gates, so the gates
    of one model, and models of other seeds, draw the same slices at the same
    step. "dense" takes all slices.
    """

    def __init__(
        self, dim: int, slices: int, k: int, share: float, rule: str
    ) -> None:
        super().__init__()
        if rule not in RULES:
            raise ValueError(f"rule={rule!r} is not one of {', '.join(RULES)}")
        if not 1 <= k <= slices:
            raise ValueError(
                f"k={k} is not within 1 to {slices}, the number of slices"
            )
        if not 0 < share <= 1:
            raise ValueError(
                f"share={share} is out of range; use more than 0, at most 1"
            )
        self.weight = nn.Parameter(torch.zeros(slices, dim))
        self.bias = nn.Parameter(torch.zeros(slices))
        self.k, self.share, self.rule = k, share, rule
        self.fill = True  # seats left over go to tokens that did not ask
        self.dice = torch.Generator().manual_seed(0)
        # a gate that gets no gradient is frozen explicitly
        learns = rule in ("weighted", "top-k")
        self.requires_grad_(learns)

    def forward(self, x: Tensor) -> Choice:
        B, S, _ = x.shape
        n = len(self.weight)
        P = F.linear(x, self.weight, self.bias).softmax(dim=2)
        ones = torch.ones_like(P)
        if self.rule in ("released", "weighted"):
            taken = select(P, self.k, places(self.share, S))
            chosen = seated(taken, S)
            weights = n * P if self.rule == "weighted" else ones
            if not self.fill:
                chosen = chosen & (demand(P, self.k) > 0)
                weights = weights * chosen
            return Choice(P, taken, chosen, weights)
        if self.rule == "top-k":
            M = demand(P, self.k)
            return Choice(
                P, None, M > 0, self.k * M / M.sum(dim=2, keepdim=True)
            )
        if self.rule == "random":
            draws = torch.rand(B, S, n, generator=self._stream()).to(x.device)
            chosen = draws.argsort(dim=2).argsort(dim=2) < self.k
            return Choice(P, None, chosen, ones)
        return Choice(P, None, ones.bool(), ones)

    def _stream(self) -> torch.Generator:
        """A running stream in training; always the same draw at inference."""
        return self.dice if self.training else torch.Generator().manual_seed(1)
