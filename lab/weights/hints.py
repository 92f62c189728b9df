"""A hint for the whole query on top of local gates: GLIDER's mechanism.

Every expert has a description, and so has the query. The cosine c_i of the two
is a score for the expert, the same for all tokens and modules. It is added to
PHATGOOSE's local scores s_i, times a scale alpha:

    z_i = s_i + alpha c_i,   w = softmax over the k largest z

    alpha = beta + (gamma - 1) [max c_i >= p]

With alpha = 0 this is PHATGOOSE. The larger alpha, the more the descriptions
alone decide: local scores lie between -sqrt(n) and sqrt(n), so from a lead of
alpha (c_i - c_j) > 2 sqrt(n) on, no gate can put j before i. A hint that is
equal for all experts changes nothing, since a softmax only sees differences.
"""

from functools import cache

import torch
from torch import Tensor

from lab.kernels.multi_lora import multi_lora
from lab.kernels.topk_gate import Gate, topk_gate
from lab.weights import phatgoose
from lab.weights.adapters import Adapter, Experts, own

GAMMA, BETA = 98.0, 3.0  # alpha is 100 or 3


def is_familiar(cosines: Tensor, p: float) -> bool:
    """Whether some expert's description is as alike as p; cosines [N]."""
    if not -1 <= p <= 1:
        raise ValueError(f"p={p} is not a cosine; use -1 to 1")
    # in the cosines' own precision, so that 0.9 reaches 0.9
    return bool(cosines.max() >= p)


def scale(
    cosines: Tensor, p: float, gamma: float = GAMMA, beta: float = BETA
) -> float:
    """alpha for a query with these cosines [N], by the rule with p."""
    return beta + (gamma - 1) * is_familiar(cosines, p)


def route(local: Tensor, cosines: Tensor, alpha: float, k: int = 2) -> Gate:
    """The k best experts of each token by local scores [T, N] and one hint
    [N], the cosines of the query with the experts' descriptions."""
    if cosines.shape != local.shape[1:]:
        raise ValueError(
            f"a hint for {len(cosines)} experts does not fit"
            f" {local.shape[1]}; give one cosine for each expert"
        )
    if not alpha >= 0:
        raise ValueError(
            f"alpha={alpha} would prefer the wrong experts; use 0 or more"
        )
    return topk_gate(local + alpha * cosines, k)


def guided(
    experts: Experts,
    gates: Tensor,
    cosines: Tensor,
    alpha: float,
    k: int = 2,
    seen: list[Gate] | None = None,
    shuffled: bool = False,
) -> Adapter:
    """The adapter that routes by gates [modules, N, n] and one hint [N].

    Each module's choice is appended to ``seen``. With ``shuffled``, a token
    gets the local scores of another token: the same numbers, but they know
    nothing about it.
    """
    for rows in gates:
        phatgoose.check_trained(rows)

    def adapter(module: int, u: Tensor) -> Tensor:
        local = phatgoose.scores(u, gates[module])
        if shuffled:
            local = local[_order(len(u))]
        gate = route(local, cosines, alpha, k)
        if seen is not None:
            seen.append(gate)
        return multi_lora(u, *gate, experts.down[module], experts.up[module])

    return adapter


@cache
def _order(tokens: int) -> Tensor:
    return torch.randperm(tokens, generator=torch.Generator().manual_seed(0))


def described(experts: Experts, cosines: Tensor, k: int = 2) -> Adapter:
    """The rival without gates: the k experts that are described most alike,
    weighted by their cosines; none where nothing is alike."""
    best = cosines.argsort(descending=True, stable=True)[:k]
    kept = cosines[best].clamp(min=0)
    slots = best.int().masked_fill(kept == 0, -1)
    weights = kept / kept.sum().clamp(min=1e-9)

    def adapter(module: int, u: Tensor) -> Tensor:
        every = slots.expand(len(u), k), weights.expand(len(u), k)
        return own(experts, *every)(module, u)

    return adapter


def groups_per_tile(experts: Tensor, tokens: int, adapters: int) -> float:
    """How many groups of ``adapters`` side by side a tile of ``tokens`` needs
    for its choices [T, S], mean over the tiles.

    `multi_lora` multiplies a tile by whole groups, and leaves out those that
    none of its tokens chose.
    """
    groups = [
        part.unique().numel() for part in (experts // adapters).split(tokens)
    ]
    return sum(groups) / len(groups)
