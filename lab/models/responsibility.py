"""How responsibility flows up a supply chain, and where it is looked for.

Every actor keeps a share 1 - a of the responsibility that reaches it and
passes a on to its direct suppliers; one without suppliers keeps all.
"""

import torch
from torch import Tensor

from lab.models.supply_chain import Chain

EQUAL, POPULAR = "equally", "by their dependents"
SPLITS = (EQUAL, POPULAR)


def shares(chain: Chain, split: str = EQUAL) -> Tensor:
    """P [V, V] float64, what part of what i passes on goes to supplier j.

    *Equally*, or *by their dependents*: in proportion to the actors that
    build on j directly. A row without suppliers is 0.
    """
    if split not in SPLITS:
        raise ValueError(f"split={split!r} is not one of {', '.join(SPLITS)}")
    weight = chain.matrix.double()
    if split == POPULAR:
        weight = weight * weight.sum(dim=0)
    return weight / weight.sum(dim=1, keepdim=True).clamp_min(1)


def flow(shares: Tensor, start: int, passed: float) -> Tensor:
    """What each actor keeps of a harm that is seen at ``start``, [V].

    With x the responsibility that reaches the actors,

        x = e_start + a P^T x,    rho_j = (1 - a) x_j, or x_j for a leaf,

    and the rows of P that are 0 belong to leaves. O(V^3).
    """
    if not 0 <= passed < 1:
        raise ValueError(
            f"passed={passed} is not within 0 to 1, without 1: on a cycle"
            " responsibility would go round for ever"
        )
    V = len(shares)
    begin = torch.zeros(V, dtype=torch.float64)
    begin[start] = 1.0
    system = torch.eye(V, dtype=torch.float64) - passed * shares.T
    reached = torch.linalg.solve(system, begin)
    leaf = shares.sum(dim=1) == 0
    return torch.where(leaf, reached, (1 - passed) * reached)


def known_lists(far: Tensor, h: int, disclosing=()) -> Tensor:
    """Whose list of suppliers an actor knows that is ``far`` [V] steps away.

    It asks all it sees in fewer than h steps. At h steps it sees actors, but
    only those who disclose show their lists.
    """
    if h < 1:
        raise ValueError(f"h={h} is less than 1; an actor knows its own list")
    public = torch.zeros(len(far), dtype=torch.bool)
    public[list(disclosing)] = True
    return (far >= 0) & ((far < h) | public & (far <= h))


def as_told(shares: Tensor, known: Tensor, start: int, passed: float):
    """The same flow as told by somebody who knows only some lists, [V].

    Who has no known list looks like one without suppliers, and is told to
    keep all that reaches it.
    """
    return flow(shares * known[:, None], start, passed)


def misplaced(true: Tensor, told: Tensor) -> float:
    """The share of responsibility that is told of the wrong actor: the total
    variation between two distributions."""
    return (true - told).abs().sum().item() / 2
