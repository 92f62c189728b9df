"""Mixture-of-experts layer: dispatch, expert network, combine.

    y[t] = sum over the filled slots s of w[t, s] expert_{e(t, s)}(x_t)

The gate is an argument, so that one layer works with every router: top-k,
top-p, null experts. A slot with -1 costs nothing.

Only the GPU knows how many rows the experts compute. A top-k gate has T k
slots, a bound close enough to allocate memory for: there is no
synchronisation, and the layer can be captured in a CUDA graph. A gate with as
many slots as experts (top-p) has T E slots, many times what it uses. There the
host waits once, for the single number offsets[E], and allocates what is
needed. ``max_rows``, a bound of your own, avoids the wait in that case, too.

Launches on a GPU, whatever the number of experts: dispatch 3 (few pairs: 1),
first product with gather and activation 1, second product 1, combine 1.
Backward: combine 1, gradient of the hidden layer 1, of the weights 2, of the
rows 1, sum by token 1. Only a T4 needs more, see `expert_mlp`.

Everything after dispatch is one PyTorch operator with one backward pass, so
that Python runs only once where few tokens leave it little time.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lab.kernels._wanted import like, or_none, wanted
from lab.kernels.combine import combine_reference, combine_triton
from lab.kernels.combine_backward import (
    combine_backward_reference,
    combine_backward_unfilled,
)
from lab.kernels.dispatch import dispatch, dispatch_reference, dispatch_triton
from lab.kernels.expert_mlp import (
    check_experts,
    output_and_hidden_on_gpu,
    output_and_hidden_reference,
)
from lab.kernels.expert_mlp_backward import (
    expert_mlp_backward_on_gpu,
    expert_mlp_backward_reference,
)
from lab.kernels.operator import operator
from lab.kernels.topk_gate import Gate

LAUNCHES = 6
LAUNCHES_FEW = 4  # where pairs are `few`
LAUNCHES_BACKWARD = 6


class LayerGradients(NamedTuple):
    tokens: Tensor  # [T, H]
    weights: Tensor  # [T, S], 0 in an empty slot
    w_up: Tensor  # [E, H, G]
    w_down: Tensor  # [E, F, H]


def moe_layer(
    tokens: Tensor,
    gate: Gate,
    w_up: Tensor,
    w_down: Tensor,
    activation: str = "swiglu",
    max_rows: int | None = None,
) -> Tensor:
    """Outputs [T, H] of the experts that the gate chose for tokens [T, H].

    ``w_up`` is [E, H, F] (swiglu: [E, H, 2F], gate half first), ``w_down``
    [E, F, H]. ``max_rows`` promises that no more slots are filled. A broken
    promise is refused on a CPU; on a GPU, where a check would stall it, the
    last rows count as empty. Differentiable in the tokens, the gate's weights
    and both weights of the experts.
    """
    check_experts(tokens, w_up, w_down, activation)
    if gate.experts.shape[0] != tokens.shape[0]:
        raise ValueError(
            f"the gate decided for {len(gate.experts)} tokens,"
            f" but there are {len(tokens)}"
        )
    if gate.experts.shape != gate.weights.shape:
        raise ValueError(
            f"the gate's experts {tuple(gate.experts.shape)} and weights"
            f" {tuple(gate.weights.shape)} must both be [tokens, slots]"
        )
    # only the backward pass needs the pre-activation; else save the memory
    keep = torch.is_grad_enabled() and any(
        x.requires_grad for x in (tokens, w_up, w_down)
    )
    by_expert = _sort(dispatch, tokens.is_cpu, gate, len(w_up), max_rows)
    return _moe_layer(
        tokens, gate.weights, *by_expert, w_up, w_down, activation, keep
    )[0]


def moe_layer_reference(
    tokens: Tensor,
    gate: Gate,
    w_up: Tensor,
    w_down: Tensor,
    activation: str = "swiglu",
    max_rows: int | None = None,
) -> Tensor:
    """The layer from the references of its steps."""
    by_expert = _sort(dispatch_reference, True, gate, len(w_up), max_rows)
    return _by_torch(
        tokens, gate.weights, *by_expert, w_up, w_down, activation, False
    )[0]


def moe_layer_triton(
    tokens: Tensor,
    gate: Gate,
    w_up: Tensor,
    w_down: Tensor,
    activation: str = "swiglu",
    max_rows: int | None = None,
) -> Tensor:
    """The layer from the kernels of its steps, without a gradient."""
    by_expert = _sort(dispatch_triton, False, gate, len(w_up), max_rows)
    return _on_gpu(
        tokens, gate.weights, *by_expert, w_up, w_down, activation, False
    )[0]


def _sort(dispatch, look, gate, E, max_rows):
    """Pairs, rows and offsets; ``look`` if reading a number stalls nothing."""
    _, offsets, pairs, rows = dispatch(gate.experts, E)
    if max_rows is None:
        if look or gate.experts.shape[1] == E > 1:
            max_rows = int(offsets[-1])  # the only wait for a GPU
    else:
        if look and offsets[-1] > max_rows:
            raise ValueError(
                f"max_rows={max_rows} is less than the {int(offsets[-1])}"
                " filled slots; raise it, or leave it out"
            )
        offsets = offsets.clamp(max=max_rows)
    if max_rows is not None:
        pairs = pairs[:max_rows]
    return pairs, rows, offsets


def _by_torch(tokens, weights, pairs, rows, offsets, *experts_and_keep):
    """The tokens' outputs, their experts' rows, and the pre-activation."""
    expert_rows, hidden = output_and_hidden_reference(
        tokens, pairs, rows, offsets, *experts_and_keep
    )
    return combine_reference(expert_rows, rows, weights), expert_rows, hidden


def _on_gpu(tokens, weights, pairs, rows, offsets, *experts_and_keep):
    expert_rows, hidden = output_and_hidden_on_gpu(
        tokens, pairs, rows, offsets, *experts_and_keep
    )
    return combine_triton(expert_rows, rows, weights), expert_rows, hidden


def _shapes(
    tokens, weights, pairs, rows, offsets, w_up, w_down, activation, keep
):
    R, H = pairs.shape[0], tokens.shape[1]
    return (
        tokens.new_empty(rows.shape[0], H),
        tokens.new_empty(R, H),
        tokens.new_empty(R if keep else 0, w_up.shape[2]),
    )


def _remember(ctx, inputs, output):
    *tensors, ctx.activation, ctx.kept = inputs
    _, expert_rows, hidden = output
    ctx.mark_non_differentiable(expert_rows, hidden)
    ctx.save_for_backward(*tensors, expert_rows, hidden)


def _backward(ctx, grad, *_):
    *inputs, expert_rows, hidden = ctx.saved_tensors
    needed = wanted(ctx, 0, 1, 5, 6)
    of_tokens, _, *of_experts = needed
    # the forward pass kept no pre-activation: compute it again
    if not ctx.kept and (of_tokens or any(of_experts)):
        hidden = _moe_layer(*inputs, ctx.activation, True)[2]
    found = _moe_layer_backward(
        *inputs, expert_rows, hidden, grad.contiguous(), ctx.activation,
        needed,
    )  # fmt: skip
    x, weights, w_up, w_down = or_none(found, needed)
    return x, weights, None, None, None, w_up, w_down, None, None


_moe_layer = operator(
    "moe_layer(Tensor tokens, Tensor weights, Tensor pairs, Tensor rows, "
    "Tensor offsets, Tensor w_up, Tensor w_down, str activation, bool keep)"
    " -> (Tensor, Tensor, Tensor)",
    cpu=_by_torch,
    cuda=_on_gpu,
    shapes=_shapes,
    backward=_backward,
    remember=_remember,
)


def moe_layer_backward_reference(*inputs) -> LayerGradients:
    """From the outputs' gradient to those of all inputs, in PyTorch."""
    return _pull_back(
        combine_backward_reference, expert_mlp_backward_reference, *inputs
    )


def moe_layer_backward_on_gpu(*inputs) -> LayerGradients:
    """The same as `moe_layer_backward_reference`, by kernels."""
    # the experts' backward pass does not read rows without a slot
    return _pull_back(
        combine_backward_unfilled, expert_mlp_backward_on_gpu, *inputs
    )


def _pull_back(
    of_combine, of_experts,
    tokens, weights, pairs, rows, offsets, w_up, w_down, expert_rows, hidden,
    grad, activation, wanted: Sequence[bool],
):  # fmt: skip
    """The steps in reverse, as far as their gradients are ``wanted``."""
    of_tokens, of_weights, of_up, of_down = wanted
    experts_wanted = of_tokens, of_up, of_down
    grad_rows, grad_weights = of_combine(
        expert_rows, rows, weights, grad, (any(experts_wanted), of_weights)
    )
    if any(experts_wanted):
        dx, dw_up, dw_down = of_experts(
            tokens, pairs, rows, offsets, w_up, w_down, hidden, grad_rows,
            activation, experts_wanted,
        )  # fmt: skip
    else:
        dx, dw_up, dw_down = like((tokens, w_up, w_down), experts_wanted)
    return LayerGradients(dx, grad_weights, dw_up, dw_down)


def _shapes_backward(tokens, weights, pairs, rows, offsets, *others):
    w_up, w_down, *_, wanted = others
    return like((tokens, weights, w_up, w_down), wanted)


_moe_layer_backward = operator(
    "moe_layer_backward(Tensor tokens, Tensor weights, Tensor pairs, "
    "Tensor rows, Tensor offsets, Tensor w_up, Tensor w_down, "
    "Tensor expert_rows, Tensor hidden, Tensor grad, str activation, "
    "bool[] wanted) -> (Tensor, Tensor, Tensor, Tensor)",
    cpu=moe_layer_backward_reference,
    cuda=moe_layer_backward_on_gpu,
    shapes=_shapes_backward,
)
