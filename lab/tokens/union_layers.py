"""One layer cut into slices that add up to it, each over its own tokens.

    E_i(x) = W2_i phi(W1_i x + b1_i)       slice i has D / n hidden units
    MLP(x) = sum over all i of E_i(x) + b2       exactly, b2 once
    attention(x) = sum over the heads i of head_i(x) W_o_i + b_o

The cut of tensor parallelism: W1 by rows, W2 by columns, attention by heads.
It is exact for any activation that acts on each hidden unit separately. Which
slices work on which tokens is chosen elsewhere, by the gates of `union_gate`.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lab.kernels.moe_layer import moe_layer
from lab.kernels.topk_gate import Gate
from lab.tokens.digit_model import DIM, HEADS, HIDDEN, DigitModel
from lab.tokens.routers import BALANCE, balance_loss
from lab.tokens.union_gate import Choice, UnionGate

SLICES, K, SHARE = 4, 2, 0.5


class Slices(NamedTuple):
    """An MLP cut into n experts; its output bias belongs to none of them."""

    up: Tensor  # [n, d, D / n]
    up_bias: Tensor  # [n, D / n]
    down: Tensor  # [n, D / n, d]


def decompose(
    up: Tensor, up_bias: Tensor, down: Tensor, slices: int
) -> Slices:
    """Cut the layer of W1 [D, d], b1 [D] and W2 [d, D] into equal slices."""
    D, d = up.shape
    if slices < 1 or D % slices:
        raise ValueError(
            f"{D} hidden units cannot be cut into slices={slices} equal parts;"
            f" use a divisor of {D}"
        )
    width = D // slices
    return Slices(
        up.reshape(slices, width, d).transpose(1, 2),
        up_bias.reshape(slices, width),
        down.T.reshape(slices, width, d),
    )


def union_mlp(x: Tensor, weights: Tensor, chosen: Tensor, s: Slices) -> Tensor:
    """Sum of the chosen slices of tokens x [B, S, d], without b2.

    ``chosen`` [B, S, n] says which slices work, ``weights`` [B, S, n] with
    what weight. The kernel of `moe_layer` has no bias, so each token carries
    a 1 behind its features, and b1 is one more row of W1.
    """
    B, S, d = x.shape
    n = len(s.up)
    each = torch.arange(n, device=x.device, dtype=torch.int32)
    gate = Gate(
        each.where(chosen, -1).reshape(B * S, n),
        (weights * chosen).reshape(B * S, n),
    )
    tokens = torch.cat([x, x.new_ones(B, S, 1)], dim=2).reshape(B * S, d + 1)
    up = torch.cat([s.up, s.up_bias[:, None]], dim=1)
    down = F.pad(s.down, (0, 1))
    y = moe_layer(tokens, gate, up, down, "gelu")
    return y[:, :d].reshape(B, S, d)


def selective_attention(
    x: Tensor, weights: Tensor, taken: Tensor, qkv: Tensor, out: Tensor
) -> Tensor:
    """Each head attends among its own tokens only; without output bias.

    ``taken`` [B, n, c] are the tokens of each head, ``weights`` [B, S, n] the
    weight of a head's output for a token, ``qkv`` [3, n, d, h] the heads'
    projections and ``out`` [n, h, d] their rows of W_o. The scores of a head
    cost (c / S)^2 of those over all tokens.
    """
    B, S, d = x.shape
    index = taken.long()[..., None]  # [B, n, c, 1]
    n = index.shape[1]
    wide = x[:, None].expand(B, n, S, d)
    mine = wide.gather(2, index.expand(-1, -1, -1, d))
    q, k, v = torch.einsum("bncd,pndh->pbnch", mine, qkv)
    seen = F.scaled_dot_product_attention(q, k, v)
    mine = torch.einsum("bnch,nhd->bncd", seen, out)
    mine = mine * weights.transpose(1, 2).gather(2, index[..., 0])[..., None]
    # each head writes its own rows, so every run adds up to the same bits
    y = torch.zeros_like(wide).scatter(2, index.expand(-1, -1, -1, d), mine)
    return y.sum(dim=1)


class UnionMLP(nn.Module):
    """An MLP of D hidden units whose slices are switched on by a gate."""

    def __init__(self, dim: int, hidden: int, gate: UnionGate) -> None:
        super().__init__()
        self.up = nn.Linear(dim, hidden)
        self.down = nn.Linear(hidden, dim)
        self.gate = gate
        self.loss: Tensor | float = 0.0
        self.choice: Choice | None = None  # of the latest forward pass

    def forward(self, x: Tensor) -> Tensor:
        choice = self.choice = self.gate(x)
        n = choice.scores.shape[2]
        if self.gate.rule == "top-k":
            each = torch.arange(n, device=x.device)
            experts = each.where(choice.chosen, -1).reshape(-1, n)
            scores = choice.scores.reshape(-1, n)
            self.loss = BALANCE * balance_loss(experts, scores)
        if self.gate.rule == "dense":
            return self.down(F.gelu(self.up(x)))
        s = decompose(self.up.weight, self.up.bias, self.down.weight, n)
        return union_mlp(x, choice.weights, choice.chosen, s) + self.down.bias


class UnionAttention(nn.Module):
    """Attention whose heads are experts, each over its own c tokens."""

    def __init__(self, dim: int, heads: int, gate: UnionGate | None) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.out = nn.Linear(dim, dim)
        self.gate = gate
        self.choice: Choice | None = None

    def forward(self, x: Tensor) -> Tensor:
        B, S, d = x.shape
        n = self.heads
        if self.gate is None:
            every = torch.arange(S, device=x.device, dtype=torch.int32)
            taken, weights = every.expand(B, n, S), x.new_ones(B, S, n)
        else:
            self.choice = self.gate(x)
            taken, weights = self.choice.taken, self.choice.weights
        qkv = self.qkv.weight.reshape(3, n, d // n, d).transpose(2, 3)
        out = self.out.weight.T.reshape(n, d // n, d)
        return selective_attention(x, weights, taken, qkv, out) + self.out.bias


def untrained(
    rule: str,
    selective: bool = False,
    slices: int = SLICES,
    k: int = K,
    share: float = SHARE,
    seed: int = 0,
) -> DigitModel:
    """The digit model with unions as MLPs, and as attention if ``selective``.

    A head is a slice of attention; there, each token asks for half of them.
    """

    def attention() -> UnionAttention:
        gate = UnionGate(DIM, HEADS, HEADS // 2, share, rule)
        return UnionAttention(DIM, HEADS, gate if selective else None)

    def mlp() -> UnionMLP:
        return UnionMLP(DIM, HIDDEN, UnionGate(DIM, slices, k, share, rule))

    return DigitModel(attention, mlp, seed)
