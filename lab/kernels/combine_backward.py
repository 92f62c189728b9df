"""Combine backward: from the gradient of tokens to expert rows and weights.

With g the gradient of y[t] = sum over s of w[t, s] v[r(t, s)]:

    dv[r(t, s)] = w[t, s] g[t]          0 for a row that no slot points to
    dw[t, s]    = v[r(t, s)] . g[t]     0 for an empty slot

A row belongs to one slot at most, so each token writes its own rows and no
two programs meet: no atomics, the same bits on every run.

Bytes: g and v read once, dv written twice (it starts at zero, because rows
past the last expert must not hold garbage), 12 per slot.
"""

import torch
from torch import Tensor


def combine_backward(
    expert_rows: Tensor, rows: Tensor, weights: Tensor, grad: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of expert_rows [R, H] and weights [T, S] from grad [T, H].

    ``rows`` [T, S] points from slots to rows, -1 from an empty slot, and
    no two slots to the same row. O(T S H).
    """
    if grad.shape != (rows.shape[0], expert_rows.shape[1]):
        raise ValueError(
            f"grad has shape {tuple(grad.shape)}; {len(rows)} tokens of width"
            f" {expert_rows.shape[1]} were combined"
        )
    return _combine_backward(expert_rows, rows, weights, grad)


def combine_backward_reference(
    expert_rows: Tensor, rows: Tensor, weights: Tensor, grad: Tensor
) -> tuple[Tensor, Tensor]:
    """Both formulas in plain PyTorch, over the filled slots."""
    token, slot = (rows >= 0).nonzero(as_tuple=True)
    row = rows[token, slot].long()
    wide = torch.promote_types(expert_rows.dtype, weights.dtype)
    w, v, g = weights[token, slot], expert_rows[row].to(wide), grad.to(wide)
    grad_rows = torch.zeros_like(expert_rows)
    grad_rows[row] = (w[:, None] * g[token]).to(expert_rows.dtype)
    grad_weights = torch.zeros_like(weights)
    grad_weights[token, slot] = (v * g[token]).sum(dim=1).to(weights.dtype)
    return grad_rows, grad_weights


@torch.library.custom_op(
    "lab::combine_backward", mutates_args=(), device_types="cpu"
)
def _combine_backward(
    expert_rows: Tensor, rows: Tensor, weights: Tensor, grad: Tensor
) -> tuple[Tensor, Tensor]:
    return combine_backward_reference(expert_rows, rows, weights, grad)


@_combine_backward.register_fake
def _(expert_rows, rows, weights, grad):
    return tuple(
        torch.empty_like(x, memory_format=torch.contiguous_format)
        for x in (expert_rows, weights)
    )
