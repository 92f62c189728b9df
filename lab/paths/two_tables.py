"""A planner that adds two rows: one of the current node, one of the target.

The simplified transformer of Wang et al. 2024: attention is fixed on the
target, nodes are one-hot, and the feed-forward part is linear. Then the next
node k follows from two tables alone,

    u(k) = softmax over k of  M[i, k] + T[j, k],   i current, j target

and `learn` finds them by descent on the training paths. Beside it stand
planners that know tables of truths instead (Algorithm 1 of the paper). Each is
given as ``steps`` [t, i, k]: the chance to go from i to k if t is the target.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from lab.descent import one_cycle_adam
from lab.kernels.runtime import device
from lab.kernels.two_table_loss import two_table_loss
from lab.paths.path_data import Paths

STEPS = 400
PEAK_RATE = 0.3


def learn(paths: Paths, steps: int = STEPS) -> tuple[Tensor, Tensor]:
    """The tables M and T [V, V], from zeros, by Adam on all paths at once."""
    if steps < 1:
        raise ValueError(f"steps={steps} trains nothing; use 1 or more")
    shape, where = paths.edges.shape, device()
    tables = [
        torch.zeros(shape, device=where, requires_grad=True) for _ in range(2)
    ]
    triples = paths.triples.to(where)
    share = (paths.counts / paths.counts.sum()).to(where)

    def loss(_: int) -> Tensor:
        return (two_table_loss(*tables, *triples) * share).sum()

    one_cycle_adam(tables, loss, steps, PEAK_RATE, fused=True)
    return tables[0].detach().cpu(), tables[1].detach().cpu()


def written(by_current: Tensor, by_target: Tensor, greedy: bool) -> Tensor:
    """The steps of two tables: the likeliest node, or drawn by softmax."""
    scores = by_current[None] + by_target[:, None]
    if greedy:
        return F.one_hot(scores.argmax(dim=2), len(by_current))
    return scores.softmax(dim=2)


def planner(edges: Tensor, reach: Tensor) -> Tensor:
    """The steps of Algorithm 1, which believes ``reach`` [t, k].

    From i it takes any edge to a node that reaches the target, or to the
    target, each with the same chance. Where it knows of none it takes any
    edge. With a table of ones it is a random walk.
    """
    useful = reach | torch.eye(len(edges), dtype=torch.bool)
    allowed = edges & useful[:, None, :]
    lost = ~allowed.any(dim=2, keepdim=True)
    allowed = torch.where(lost, edges, allowed)
    return allowed / allowed.sum(dim=2, keepdim=True).clamp_min(1)


def arrival(steps: Tensor, edges: Tensor) -> Tensor:
    """The chance [t, s] that a path written by ``steps`` leads from s to t.

    Exact: a step without an edge ends the path. With K the steps that remain,
    the chances p of all sources solve p = K p + e_t; there is no cycle, so no
    path comes to t twice, and there is one solution.
    """
    kept = (steps * edges).double()
    one = torch.eye(len(edges), dtype=torch.double)
    return torch.linalg.solve(one - kept, one[:, :, None])[:, :, 0]


def separation(weights: Tensor, high: Tensor, low: Tensor) -> float:
    """How often a weight of ``high`` is above one of ``low`` in its row.

    The area under the ROC curve over all such pairs of one row, ties counted
    half: 1 is perfect, 0.5 chance. ``high`` and ``low`` mark entries of
    weights [R, V]. Rows are not compared, for a constant on a row changes no
    prediction.
    """
    pairs = high[:, :, None] & low[:, None, :]
    if not pairs.any():
        raise ValueError("no row has both kinds, so nothing can be compared")
    one, other = weights[:, :, None], weights[:, None, :]
    above, same = (
        int((found & pairs).sum()) for found in (one > other, one == other)
    )
    return (above + same / 2) / int(pairs.sum())
