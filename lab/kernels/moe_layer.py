"""Mixture-of-experts layer: dispatch, expert network, combine.

    y[t] = sum over the filled slots s of w[t, s] expert_{e(t, s)}(x_t)

The gate comes in from outside, so that one layer serves every router: top-k,
top-p, null experts. A slot with -1 costs nothing.

How many rows the experts compute is known on the GPU only. A top-k gate has
T k slots, a bound close enough to allocate: no synchronisation, and the layer
can be captured in a CUDA graph. A gate with as many slots as experts (top-p)
has T E, many times what it uses, so there the host reads the one number
offsets[E] and allocates what is needed. ``max_rows`` gives another bound and
makes that case, too, free of synchronisation.

Launches on a GPU: `LAUNCHES` forward, whatever the number of experts.
"""

from torch import Tensor

from lab.kernels.combine import combine
from lab.kernels.dispatch import dispatch
from lab.kernels.expert_mlp import check_experts, expert_mlp
from lab.kernels.topk_gate import Gate


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
    [E, F, H]. ``max_rows`` promises that no more slots are filled; beyond
    it, slots of the last experts count as empty on a GPU, where looking
    would stall it. Differentiable in tokens, gate weights and both weights.
    """
    check_experts(tokens, w_up, w_down, activation)
    E, T, S = len(w_up), *gate.experts.shape
    if T != len(tokens):
        raise ValueError(
            f"the gate decided for {T} tokens, but there are {len(tokens)}"
        )
    sent = dispatch(gate.experts, E)
    if max_rows is None and (tokens.device.type == "cpu" or S == E > 1):
        max_rows = int(sent.offsets[-1])  # the one synchronisation
    pairs = sent.pairs[:max_rows]
    expert_rows = expert_mlp(
        tokens, pairs, sent.rows, sent.offsets, w_up, w_down, activation
    )
    return combine(expert_rows, sent.rows, gate.weights)


def moe_layer_reference(
    tokens: Tensor,
    gate: Gate,
    w_up: Tensor,
    w_down: Tensor,
    activation: str = "swiglu",
) -> Tensor:
    """The same from the references of its three steps."""
    from lab.kernels.combine import combine_reference
    from lab.kernels.dispatch import dispatch_reference
    from lab.kernels.expert_mlp import expert_mlp_reference

    sent = dispatch_reference(gate.experts, len(w_up))
    kept = int(sent.offsets[-1])
    expert_rows = expert_mlp_reference(
        tokens, sent.pairs[:kept], sent.rows, sent.offsets,
        w_up, w_down, activation,
    )  # fmt: skip
    return combine_reference(expert_rows, sent.rows, gate.weights)
