"""Task vectors, and ways to add them to one model.

A task vector is what fine-tuning changed, tau = fine-tuned - base, layer by
layer. Merging adds a sum of them to the base, with one coefficient alpha:

    merged = base + alpha (tau_1 + ... + tau_T)

That is task arithmetic (Ilharco et al. 2023); alpha = 1 / T averages the
fine-tuned models. Its rivals here change the vectors first. TIES (Yadav et
al. 2023) keeps each vector's largest entries, lets every entry elect a sign
by the sum over the tasks, and takes the mean of those that agree.
"""

import torch
from torch import Tensor

from lab.weights.digit_tasks import Weights


def task_vectors(base: Weights, tasks: Weights) -> Weights:
    """What fine-tuning changed, [T, ...] for each layer."""
    if any(b.shape != t.shape[1:] for b, t in zip(base, tasks, strict=True)):
        raise ValueError(
            "base and fine-tuned models differ in shape; only models that"
            " come from one base can be merged"
        )
    return Weights(*(t - b for b, t in zip(base, tasks, strict=True)))


def merge(base: Weights, vectors: Weights, alphas: Tensor) -> Weights:
    """One model [M, ...] per coefficient of alphas [M]."""
    if not alphas.isfinite().all():
        raise ValueError(f"alpha={alphas.tolist()} must be finite")
    return Weights(
        *(
            b + alphas.view(-1, *[1] * b.ndim) * v.sum(dim=0)
            for b, v in zip(base, vectors, strict=True)
        )
    )


def first(vectors: Weights, tasks: Tensor | int) -> Weights:
    """The vectors of some tasks, by number or the first few."""
    at = slice(tasks) if isinstance(tasks, int) else tasks
    return Weights(*(v[at] for v in vectors))


def norms(vectors: Weights) -> Weights:
    """The length of every layer of every task, [T, 1, ...]."""
    return Weights(
        *(
            v.flatten(1).norm(dim=1).view(-1, *[1] * (v.ndim - 1))
            for v in vectors
        )
    )


def shortened(vectors: Weights, like: Weights) -> Weights:
    """The vectors with all their entries, every layer as long as in
    ``like``."""
    lengths = zip(norms(vectors), norms(like), strict=True)
    shares = [
        torch.where(whole > 0, part / whole, 0) for whole, part in lengths
    ]
    return Weights(*(s * v for s, v in zip(shares, vectors, strict=True)))


def at_random(vectors: Weights, density: float, seed: int) -> Weights:
    """The vectors with a random share of their entries, the others 0."""
    generator = torch.Generator().manual_seed(seed)
    return Weights(
        *(
            v * (torch.rand(v.shape, generator=generator) < density)
            for v in vectors
        )
    )


def ties(vectors: Weights, density: float) -> Weights:
    """What TIES adds, as one vector [1, ...].

    The largest entries are those of a task's whole vector, all layers
    together. An entry whose sum is 0 takes the sign of the majority.
    """
    T = len(vectors[0])
    flat = torch.cat([v.reshape(T, -1) for v in vectors], dim=1)
    kept = max(1, round(density * flat.shape[1]))
    least = flat.abs().topk(kept, dim=1).values[:, -1:]
    flat = torch.where(flat.abs() >= least, flat, 0)
    sign = flat.sum(dim=0).sign()
    sign = torch.where(sign == 0, sign.sum().sign(), sign)
    agree = flat * sign > 0
    mean = (flat * agree).sum(dim=0) / agree.sum(dim=0).clamp(min=1)
    sizes = [v[0].numel() for v in vectors]
    parts = mean.split(sizes)
    return Weights(
        *(
            part.view(1, *v.shape[1:])
            for part, v in zip(parts, vectors, strict=True)
        )
    )
