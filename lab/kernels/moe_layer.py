"""Mixture-of-experts layer: dispatch, expert network, combine.

    y[t] = sum over the filled slots s of w[t, s] expert_{e(t, s)}(x_t)

The gate comes in from outside, so that one layer serves every router: top-k,
top-p, null experts. A slot with -1 costs nothing.

How many rows the experts compute is known on the GPU only. A top-k gate has
T k slots, a bound close enough to allocate: no synchronisation, and the layer
can be captured in a CUDA graph. A gate with as many slots as experts (top-p)
has T E, many times what it uses; there the host waits once for the one number
offsets[E] and allocates what is needed. ``max_rows``, a bound of your own,
makes that case, too, free of waiting.

Launches on a GPU, whatever the number of experts: dispatch 3 (few pairs: 1),
first product with gather and activation 1, second product 1, combine 1.
Backward: combine 1 (many rows: 2), gradient of the hidden layer 1, of the
weights 2, of the rows 1, sum by token 1. Only a T4 takes more, see
`expert_mlp`.
"""

from torch import Tensor

from lab.kernels.combine import combine, combine_reference, combine_triton
from lab.kernels.dispatch import dispatch, dispatch_reference, dispatch_triton
from lab.kernels.expert_mlp import (
    check_experts,
    expert_mlp,
    expert_mlp_reference,
    expert_mlp_triton,
)
from lab.kernels.topk_gate import Gate

LAUNCHES = 6
LAUNCHES_FEW = 4  # where `few` pairs are sorted
LAUNCHES_BACKWARD = 6  # of few rows, see `combine_backward`


def moe_layer(
    tokens: Tensor,
    gate: Gate,
    w_up: Tensor,
    w_down: Tensor,
    activation: str = "swiglu",
    max_rows: int | None = None,
) -> Tensor:
    """Outputs [T, H] of tokens [T, H] through the experts that gate chose.

    ``w_up`` is [E, H, F] (swiglu: [E, H, 2F], gate half first), ``w_down``
    [E, F, H]. ``max_rows`` promises that no more slots are filled; a broken
    promise is refused on a CPU, and on a GPU, where looking would stall it,
    the last rows count as empty. Differentiable in the tokens, the gate's
    weights and both weights of the experts.
    """
    check_experts(tokens, w_up, w_down, activation)
    if gate.experts.shape[0] != tokens.shape[0]:
        raise ValueError(
            f"the gate decided for {len(gate.experts)} tokens,"
            f" but there are {len(tokens)}"
        )
    steps = dispatch, expert_mlp, combine
    return _layer(
        steps, tokens.is_cpu, tokens, gate, w_up, w_down, activation, max_rows
    )


def moe_layer_reference(
    tokens: Tensor,
    gate: Gate,
    w_up: Tensor,
    w_down: Tensor,
    activation: str = "swiglu",
    max_rows: int | None = None,
) -> Tensor:
    """The layer from the references of its steps."""
    steps = dispatch_reference, expert_mlp_reference, combine_reference
    return _layer(
        steps, True, tokens, gate, w_up, w_down, activation, max_rows
    )


def moe_layer_triton(
    tokens: Tensor,
    gate: Gate,
    w_up: Tensor,
    w_down: Tensor,
    activation: str = "swiglu",
    max_rows: int | None = None,
) -> Tensor:
    """The layer from the kernels of its steps, without a gradient."""
    steps = dispatch_triton, expert_mlp_triton, combine_triton
    return _layer(
        steps, False, tokens, gate, w_up, w_down, activation, max_rows
    )


def _layer(steps, look, tokens, gate, w_up, w_down, activation, max_rows):
    """The three steps; ``look`` if reading a number stalls nothing."""
    sort, compute, gather = steps
    E, S = w_up.shape[0], gate.experts.shape[1]
    _, offsets, pairs, rows = sort(gate.experts, E)
    if max_rows is None:
        if look or S == E > 1:
            max_rows = int(offsets[-1])  # the one wait of a GPU
    else:
        if look and offsets[-1] > max_rows:
            raise ValueError(
                f"max_rows={max_rows} is less than the {int(offsets[-1])}"
                " filled slots; raise it, or leave it out"
            )
        offsets = offsets.clamp(max=max_rows)
    if max_rows is not None:
        pairs = pairs[:max_rows]
    expert_rows = compute(
        tokens, pairs, rows, offsets, w_up, w_down, activation
    )
    return gather(expert_rows, rows, gate.weights)
