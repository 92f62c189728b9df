"""A layer that is cheap with few experts on and with all on (chapter 04)."""

from torch import Tensor

from lab.kernels.moe_layer import moe_layer
from lab.kernels.topk_gate import Gate
from lab.tokens.routers import weight_table


def slimmable_layer(
    tokens: Tensor, gate: Gate, w_up: Tensor, w_down: Tensor, activation: str
) -> Tensor:
    """Run the experts that ``gate`` chose for tokens [T, D], the cheaper way.

    With half of the experts on, or more, it is cheaper (measured on a CPU) to
    compute all experts and weight the others by 0 than to send rows to and
    fro.
    """
    N, (_, k) = len(w_up), gate.experts.shape
    if 2 * k < N:
        return moe_layer(tokens, gate, w_up, w_down, activation)
    return all_experts(tokens, weight_table(gate, N), w_up, w_down)


def all_experts(
    tokens: Tensor, weights: Tensor, w_up: Tensor, w_down: Tensor
) -> Tensor:
    """Compute the layer without routing, as two products for tokens [T, D].

    ``weights`` [T, N] scale each expert's hidden units, after the ReLU.
    """
    N, D, F = w_up.shape
    hidden = (tokens @ w_up.transpose(0, 1).reshape(D, N * F)).relu()
    hidden = hidden * weights.repeat_interleave(F, dim=1)
    return hidden @ w_down.reshape(N * F, D)
