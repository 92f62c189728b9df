"""How far an actor of a supply chain sees, and what disclosure adds.

Who knows its direct suppliers alone has a horizon of one step. All horizons
come from one call of `lab.kernels.reach_bits` per step. An actor that
**discloses** makes its own list public: whoever sees the actor sees its
suppliers, too, at no further step.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from lab.kernels.mask_overlap import unpack
from lab.kernels.reach_bits import own_bits, reach_bits
from lab.models.supply_chain import Chain, from_lists

LARGE = 10  # suppliers, direct or not: a chain that is worth looking at


def steps(chain: Chain) -> Tensor:
    """The steps from i up to j, [V, V] int64; -1 where there is no way."""
    V = chain.size
    far = torch.full((V, V), -1)
    marks = own_bits(V, chain.rowptr.device)
    for h in range(V):
        seen = unpack(marks, V).cpu()
        new = seen & (far < 0)
        if not new.any():
            break
        far[new] = h
        marks = reach_bits(marks, chain.rowptr, chain.col, 1).words
    return far


def upstream(far: Tensor) -> Tensor:
    """How many suppliers each actor has, direct or not, [V]."""
    return (far > 0).sum(dim=1)


def dependents(far: Tensor) -> Tensor:
    """How many actors build on each one, directly or not, [V]."""
    return (far > 0).sum(dim=0)


def products(far: Tensor) -> list[int]:
    """The actors with `LARGE` chains, ascending."""
    return (upstream(far) >= LARGE).nonzero()[:, 0].tolist()


def visible(far: Tensor, h: int) -> Tensor:
    """The share of its suppliers that each actor sees in h steps, [V].

    An actor without suppliers sees all there is.
    """
    if h < 0:
        raise ValueError(f"h={h} is less than 0; use 0 steps or more")
    every = upstream(far)
    seen = ((far > 0) & (far <= h)).sum(dim=1)
    return torch.where(every > 0, seen / every.clamp_min(1), 1.0)


def disclosed(chain: Chain, who: Iterable[int]) -> Chain:
    """The chain as it looks when these actors disclose their lists."""
    seen = chain.matrix.fill_diagonal_(True)
    for d in who:
        seen = shown_by(seen, d)
    lists = [row.nonzero()[:, 0].tolist() for row in seen.fill_diagonal_(0)]
    return from_lists(chain.names, chain.owners, lists)


def shown_by(seen: Tensor, d: int) -> Tensor:
    """Who sees whom [V, V] once actor d discloses: who sees d sees all that d
    sees. This is the inner step of Warshall's algorithm, so the order in
    which actors disclose does not matter."""
    return seen | seen[:, d, None] & seen[d]


def best_disclosers(chain: Chain, rows: list[int], count: int) -> list[int]:
    """Who should disclose, chosen one after the other, [count].

    Each choice raises the mean share that ``rows`` see in one step the most.
    Of equal ones the first is taken.
    """
    seen = chain.matrix.fill_diagonal_(True)
    weight = 1 / upstream(steps(chain))[rows].clamp_min(1).double()
    chosen = []
    for _ in range(count):
        mine = seen[rows].double()
        # news[i, d]: what d could show i, if i sees d
        news = (1 - mine) @ seen.double().T * mine
        # rounded, so that the order of a sum breaks no tie
        gain = (weight @ news).round(decimals=9)
        chosen.append(int(gain.argmax()))
        seen = shown_by(seen, chosen[-1])
    return chosen


def most_depended_on(chain: Chain, count: int) -> list[int]:
    """The actors with most dependents that have a list to disclose."""
    many = dependents(steps(chain))
    many = torch.where(chain.matrix.any(dim=1), many, -1)
    order = many.argsort(descending=True, stable=True)
    return order[:count].tolist()
