"""Which spine every flow of a leaf-spine fabric takes: by table or exactly.

A table counts how many flows each link already has, up [L, S] and down
[L, S]. A flow from leaf a to leaf b takes the spine k that is least used:

    k* = argmin over k of max(up_ak, down_bk),  then both counts go up

Links that died are left out. `exact` needs no luck: flows are the edges
between sending and receiving leaves, and by Koenig's theorem the edges of
a bipartite graph in which no node has more than D of them can be coloured with
D colours, so that no two at a node are alike. A colour is a spine: with D of
them, every flow has its links to itself.
"""

import numpy as np
import torch
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching
from torch import Tensor

from lab.networks.leaf_spine import Fabric, Flows, Subflows, ends


def least_used(
    flows: Flows,
    fabric: Fabric,
    order: list[int],
    alive: Tensor | None = None,
) -> Subflows:
    """Whole flows in the given order, each on its least used living spine.

    A link counts the sizes of its flows; ties go to the lowest spine. Links
    with ``alive`` [L, S] False, up and down, carry nothing. O(F S).
    """
    leaf, other = (x.tolist() for x in ends(flows, fabric))
    S, size = fabric.spines, flows.size.tolist()
    up, down = ([[0.0] * S for _ in range(fabric.leaves)] for _ in range(2))
    # a dead link is full before the first flow comes
    if alive is not None:
        _check_paths(flows, fabric, alive)
        for table in (up, down):
            for i, k in (~alive).nonzero().tolist():
                table[i][k] = float("inf")
    spine = torch.full((len(size),), -1)
    for f in order:
        if leaf[f] == other[f]:
            continue
        rises, falls = up[leaf[f]], down[other[f]]
        fill = [max(u, d) for u, d in zip(rises, falls, strict=True)]
        k = fill.index(min(fill))
        rises[k] += size[f]
        falls[k] += size[f]
        spine[f] = k
    return Subflows(torch.arange(len(size)), spine, flows.size)


def exact(flows: Flows, fabric: Fabric) -> Subflows:
    """Whole equal flows on spines, as evenly as whole flows allow.

    With D flows at the busiest leaf, no link has more than ceil(D / S), and
    no assignment does better. D perfect matchings of the leaves; equal ones
    are found together.
    """
    L, S = fabric.leaves, fabric.spines
    leaf, other = (x.numpy() for x in ends(flows, fabric))
    waiting = [[[] for _ in range(L)] for _ in range(L)]
    crossing = np.flatnonzero(leaf != other)
    for f in crossing[::-1].tolist():
        waiting[leaf[f]][other[f]].append(f)
    count = np.array([[len(flows) for flows in row] for row in waiting])
    count += _padding(count)
    spine, colour = torch.full((len(leaf),), -1), 0
    while count.any():
        partner = maximum_bipartite_matching(
            csr_array(count > 0), perm_type="column"
        )
        pairs = list(enumerate(partner.tolist()))
        times = min(int(count[i, j]) for i, j in pairs)
        for i, j in pairs:
            count[i, j] -= times
            for c in range(min(times, len(waiting[i][j]))):
                spine[waiting[i][j].pop()] = (colour + c) % S
        colour += times
    return Subflows(torch.arange(len(leaf)), spine, flows.size)


def _padding(count: np.ndarray) -> np.ndarray:
    """Flows that nobody sends, so that every leaf sends and gets the same."""
    most = max(count.sum(0).max(), count.sum(1).max())
    out, into = most - count.sum(1), most - count.sum(0)
    extra = np.zeros_like(count)
    for i in range(len(count)):
        for j in range(len(count)):
            extra[i, j] = min(out[i], into[j])
            out[i] -= extra[i, j]
            into[j] -= extra[i, j]
    return extra


def rehashed(
    plan: Subflows, flows: Flows, fabric: Fabric, alive: Tensor, seed: int
) -> Subflows:
    """The same plan, but flows on a dead link take a random living spine."""
    _check_paths(flows, fabric, alive)
    leaf, other = ends(flows, fabric)
    random = np.random.default_rng(seed)
    spine = plan.spine.clone()
    living = alive[leaf] & alive[other]  # [F, S]
    hit = (spine >= 0) & ~living.gather(1, spine.clamp(min=0)[:, None])[:, 0]
    for f in hit.nonzero()[:, 0].tolist():
        spine[f] = int(random.choice(living[f].nonzero()[:, 0].numpy()))
    return plan._replace(spine=spine)


def _check_paths(flows: Flows, fabric: Fabric, alive: Tensor) -> None:
    """Refuse flows between two leaves that no living spine joins."""
    shape = (fabric.leaves, fabric.spines)
    if alive.shape != shape:
        raise ValueError(
            f"alive has shape {tuple(alive.shape)}; give one truth value for"
            f" each of {shape[0]} leaves and {shape[1]} spines"
        )
    leaf, other = ends(flows, fabric)
    cut = ~(alive[leaf] & alive[other]).any(1) & (leaf != other)
    if cut.any():
        f = int(cut.nonzero()[0])
        raise ValueError(
            f"no living spine joins leaves {int(leaf[f])} and"
            f" {int(other[f])}; leave them at least one in common"
        )
