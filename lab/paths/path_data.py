"""Networks, the paths of a training set, and what these paths have shown.

A network is a directed acyclic graph (DAG), as a boolean table A[i, k]: is
there an edge from i to k? All other tables have a row for each target t:

    R[t, k]    k reaches t by edges of the network
    seen[t, k] k followed as the next node on a training path to t

A path from s to t is written ``s t s u1 u2 ... t``: a header with source and
target, then the path. The source of a path is in no row of ``seen`` on its
own account; it must follow somewhere else.

Everything is drawn from the seed at once, whatever the training fraction, so
a higher fraction only adds pairs, and more walks only add paths.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

FAR = 99  # the degree of a pair that no path joins
LAST = 3  # degrees from here on are counted together


class Paths(NamedTuple):
    """The training paths of one network; V nodes, N paths."""

    edges: Tensor  # [V, V] bool, A
    reach: Tensor  # [V, V] bool, R
    trained: Tensor  # [V, V] bool, [t, s]: pairs with training paths
    sequences: Tensor  # [N, L] long, s t s u1 ... t, then -1
    triples: Tensor  # [3, B] int32, each (current, target, next) once
    counts: Tensor  # [B] how often each came


def network(nodes: int, density: float, seed: int) -> Tensor:
    """A random DAG: an edge from i to each later j with chance ``density``.

    ``nodes`` from 4 up. The numbers of the nodes mean nothing to a model that
    has a row of weights for each.
    """
    if nodes < 4:
        raise ValueError(f"nodes={nodes} leave nothing to join; use 4 or more")
    if not 0 < density <= 1:
        raise ValueError(f"density={density} is not above 0 and up to 1")
    generator = torch.Generator().manual_seed(seed)
    edges = torch.rand(nodes, nodes, generator=generator) < density
    return edges.triu(1)


def reachability(edges: Tensor) -> Tensor:
    """R [t, k]: does k reach t? By squaring, O(V^3 log V).

    A cycle is refused, because a walk on it might never end.
    """
    paths = edges.float()
    for _ in range(len(edges).bit_length()):
        # paths of up to twice as many edges
        paths = (paths + paths @ paths).clamp_max(1)
    if paths.diagonal().any():
        node = int(paths.diagonal().argmax())
        raise ValueError(
            f"node {node} lies on a cycle; use a network without cycles"
        )
    return paths.T > 0


def training_pairs(edges: Tensor, fraction: float, seed: int) -> Tensor:
    """The pairs [t, s] with training paths.

    All pairs with an edge, of the other reachable ones a share ``fraction``,
    but one for each target at least, if there is one.
    """
    if not 0 <= fraction <= 1:
        raise ValueError(f"fraction={fraction} is not a share from 0 to 1")
    joined = reachability(edges) & ~edges.T
    generator = torch.Generator().manual_seed(seed)
    chance = torch.rand(edges.shape, generator=generator)
    chance = chance.masked_fill(~joined, 2.0)
    first = chance == chance.min(dim=1, keepdim=True).values
    return edges.T | joined & (first | (chance < fraction))


def training_paths(
    edges: Tensor, fraction: float, walks: int, seed: int
) -> Paths:
    """Random walks to the target: ``walks`` for each pair of the training.

    A walk visits only nodes that reach its target. A pair with an edge has
    the path along this edge as well.
    """
    if walks < 1:
        raise ValueError(f"walks={walks} shows no path; use 1 or more")
    V = len(edges)
    reach = reachability(edges)
    trained = training_pairs(edges, fraction, seed)
    target, source = trained.nonzero(as_tuple=True)
    if not len(target):
        raise ValueError("the network has no edge; use a higher density")
    generator = torch.Generator().manual_seed(seed)
    found = [torch.stack([source, target, source, target], dim=1)]
    found[0] = found[0][edges[source, target]]
    for _ in range(walks):
        # for every pair, trained or not
        draws = torch.rand(V, V, V, generator=generator)
        draws = draws[target, source]
        path = walk(edges, reach, source, target, draws)
        found.append(torch.cat([source[:, None], target[:, None], path], 1))
    longest = max(part.shape[1] for part in found)
    sequences = torch.cat(
        [F.pad(x, (0, longest - x.shape[1]), value=-1) for x in found]
    )
    triples, counts = count(sequences)
    return Paths(edges, reach, trained, sequences, triples, counts)


def handmade(edges: Tensor, lines: list[list[int]]) -> Paths:
    """Training paths given as ``lines``, each a list s, t, s, u1, ..., t."""
    longest = max(map(len, lines))
    rows = torch.tensor([x + [-1] * (longest - len(x)) for x in lines])
    trained = torch.zeros_like(edges)
    trained[rows[:, 1], rows[:, 0]] = True
    return Paths(edges, reachability(edges), trained, rows, *count(rows))


def walk(
    edges: Tensor, reach: Tensor, source: Tensor, target: Tensor, draws: Tensor
) -> Tensor:
    """Algorithm 1 of the paper, for many pairs: paths [N, L], then -1.

    From node i, choose one of the k with an edge from i that reach the target
    (or are it), all with the same chance, until k is the target. ``draws``
    [N, V] are uniform numbers from 0 to 1, one for each step.
    """
    useful = reach | torch.eye(len(reach), dtype=torch.bool)
    here, path = source, [source]
    for step in range(draws.shape[1]):
        if (here == target).all():
            break
        allowed = edges[here] & useful[target]
        number = allowed.sum(1)
        chosen = (draws[:, step] * number).long().clamp_max(number - 1)
        following = (allowed.cumsum(1) > chosen[:, None]).long().argmax(1)
        arrived = (here == target) | (number == 0)
        here = torch.where(arrived, here, following)
        path.append(torch.where(arrived, -1, following))
    return torch.stack(path, dim=1)


def count(sequences: Tensor) -> tuple[Tensor, Tensor]:
    """Each (current, target, next) [3, B] of the paths, and how often.

    The header is left out: its steps from s to t and back are no edges.
    """
    current, following = sequences[:, 2:-1], sequences[:, 3:]
    target = sequences[:, 1:2].expand_as(current)
    steps = torch.stack([current, target, following])[:, following >= 0]
    triples, counts = steps.unique(dim=1, return_counts=True)
    return triples.int(), counts


def observed(paths: Paths) -> tuple[Tensor, Tensor]:
    """A and R as the training paths show them: edges and ``seen``."""
    current, target, following = paths.triples.long()
    edges, seen = (torch.zeros_like(paths.edges) for _ in range(2))
    edges[current, following] = True
    seen[target, following] = True
    return edges, seen


def degrees(edges: Tensor, seen: Tensor) -> Tensor:
    """The degree [t, s] of every pair: 0 if s was ``seen`` under target t.

    Otherwise 1 more than the least degree of a next node, where the target
    itself has degree 0; `FAR` if no path leads to t. To follow a path of
    degree 2 or more, one must join pieces that were never seen together.
    """
    degree = torch.full(edges.shape, FAR)
    degree[seen | torch.eye(len(edges), dtype=torch.bool)] = 0
    for _ in range(len(edges)):
        ahead = degree[:, None, :].where(edges[None], FAR).amin(2)
        new = torch.minimum(degree, ahead + 1).clamp_max(FAR)
        if torch.equal(new, degree):
            break
        degree = new
    return degree
