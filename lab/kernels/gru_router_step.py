"""Router step with a memory: one GRU cell, then the scores of the experts.

The router of one layer reads a token's projected input x [T, P] and the state
h [T, P] that the previous layer's router left, updates the state, and scores
the E experts from it (RMoE):

    r = sigmoid(x W_ir + b_ir + h W_hr + b_hr)
    u = sigmoid(x W_iu + b_iu + h W_hu + b_hu)
    n = tanh(x W_in + b_in + r (h W_hn + b_hn))
    h' = (1 - u) n + u h        z = h' G

The columns of ``w_input`` and ``w_state`` [P, 3P] hold r, u, n in this order,
as in `torch.nn.GRUCell` with its weights transposed. State and logits are in
fp32 whatever the dtype of the input: rounding a logit changes which experts
are chosen.

In eager PyTorch a step is about a dozen kernels; here it is one, and neither
gates nor candidates reach memory. The weights are read in slices, so P is not
limited by the registers. `topk_gate` makes the choice itself, and the
projection of the hidden vector is a plain matrix product.

The matrix units multiply 16-bit numbers exactly and add in fp32, so x and its
weights lose nothing there if they have 16 bits. With bf16 weights, an fp32
state is multiplied as the sum of three bf16 parts, 24 bits in all. With other
weights both factors are split, on GPUs whose matrix units are fast enough for
that (`_three_parts`). On other GPUs these products are plain multiply-adds,
which then limit the kernel.

FLOPs: 12 P^2 + 2 P E per token. Bytes: x and h read, h' and z written, the
weights once. The backward pass recomputes the gates from x and h, so that only
the inputs and h' are kept, and is left to PyTorch's products.

Source: Qiu et al. 2025, RMoE, section 3; `CustomGRUCell` of its code.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from lab.kernels import runtime
from lab.kernels._gru_router_step_triton import NAMES, compiled, launch
from lab.kernels._gru_router_step_triton import (
    gru_router_step_kernel as gru_router_step_kernel,
)
from lab.kernels.declaration import Cost, Declaration, Example
from lab.kernels.operator import operator


class RouterStep(NamedTuple):
    """What a router with a memory passes on, and its scores."""

    state: Tensor  # [T, P], for the next layer's router
    logits: Tensor  # [T, E], for the gate of this layer


def gru_router_step(
    x: Tensor,
    state: Tensor,
    w_input: Tensor,
    w_state: Tensor,
    input_bias: Tensor,
    state_bias: Tensor,
    w_gate: Tensor,
) -> RouterStep:
    """Update the ``state`` [T, P] with x [T, P] and score the experts.

    ``w_input`` and ``w_state`` are [P, 3P], their biases [3P], ``w_gate`` is
    [P, E]. Results are fp32 (float64 for float64 x). Differentiable in every
    argument. O(T (P^2 + P E)).
    """
    arguments = x, state, w_input, w_state, input_bias, state_bias, w_gate
    check_step(*arguments)
    return RouterStep(*_gru_router_step(*arguments))


def check_step(x, state, w_input, w_state, input_bias, state_bias, w_gate):
    """Raise an error for shapes that do not fit together."""
    if x.ndim != 2 or x.shape[1] < 1:
        raise ValueError(
            f"x has shape {tuple(x.shape)}; a router's state needs"
            " [tokens, width] with a width of at least 1"
        )
    if state.shape != x.shape:
        raise ValueError(
            f"state {tuple(state.shape)} does not fit x {tuple(x.shape)};"
            " every token carries its own state from layer to layer, so drop"
            " or reorder both together"
        )
    P = x.shape[1]
    shapes = {
        "w_input": (w_input, (P, 3 * P)), "w_state": (w_state, (P, 3 * P)),
        "input_bias": (input_bias, (3 * P,)),
        "state_bias": (state_bias, (3 * P,)),
    }  # fmt: skip
    for name, (tensor, wanted) in shapes.items():
        if tensor.shape != wanted:
            raise ValueError(
                f"{name} {tuple(tensor.shape)} does not fit a state of width"
                f" {P}; it needs {wanted}"
            )
    if w_gate.ndim != 2 or w_gate.shape[0] != P or w_gate.shape[1] < 1:
        raise ValueError(
            f"w_gate {tuple(w_gate.shape)} does not fit a state of width {P};"
            f" it needs ({P}, experts) with at least one expert"
        )


def gru_router_step_reference(
    x: Tensor,
    state: Tensor,
    w_input: Tensor,
    w_state: Tensor,
    input_bias: Tensor,
    state_bias: Tensor,
    w_gate: Tensor,
) -> RouterStep:
    """The step in plain PyTorch, differentiable by autograd."""
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    x, h = x.to(wide), state.to(wide)
    from_input = torch.addmm(input_bias.to(wide), x, w_input.to(wide))
    from_state = torch.addmm(state_bias.to(wide), h, w_state.to(wide))
    r, u, n = _gates(from_input, from_state)
    new = torch.lerp(n, h, u)
    return RouterStep(new, new @ w_gate.to(wide))


def _gates(from_input, from_state):
    """Reset, update and candidate from the products of input and state."""
    a_r, a_u, a_n = from_input.chunk(3, dim=1)
    c_r, c_u, c_n = from_state.chunk(3, dim=1)
    r = torch.sigmoid(a_r + c_r)
    u = torch.sigmoid(a_u + c_u)
    return r, u, torch.tanh(a_n + r * c_n)


def gru_router_step_triton(
    x: Tensor,
    state: Tensor,
    w_input: Tensor,
    w_state: Tensor,
    input_bias: Tensor,
    state_bias: Tensor,
    w_gate: Tensor,
) -> RouterStep:
    """Launch the kernel."""
    return RouterStep(
        *launch(x, state, w_input, w_state, input_bias, state_bias, w_gate)
    )


def _on_gpu(x, *tensors):
    on_gpu = runtime.triton_has_tensor_cores(x)
    step = gru_router_step_triton if on_gpu else gru_router_step_reference
    return step(x, *tensors)


def _shapes(x, state, w_input, w_state, input_bias, state_bias, w_gate):
    (T, P), E = x.shape, w_gate.shape[1]
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    return (
        x.new_empty((T, P), dtype=wide),
        x.new_empty((T, E), dtype=wide),
    )


def _remember(ctx, inputs, output):
    ctx.save_for_backward(*inputs, output[0])


def _backward(ctx, grad_state, grad_logits):
    """Go back from the logits to h', then through the cell; the gates are
    recomputed."""
    *inputs, new = ctx.saved_tensors
    if grad_state is None:
        grad_state = torch.zeros_like(new)
    if grad_logits is None:
        grad_logits = new.new_zeros(len(new), inputs[-1].shape[1])
    x, h, w_input, w_state, input_bias, state_bias, w_gate = (
        tensor.to(new.dtype) for tensor in inputs
    )
    from_state = torch.addmm(state_bias, h, w_state)
    r, u, n = _gates(torch.addmm(input_bias, x, w_input), from_state)
    g = grad_state + grad_logits @ w_gate.T
    to_n = g * (1 - u) * (1 - n * n)
    to_u = g * (h - n) * u * (1 - u)
    to_r = to_n * from_state.chunk(3, dim=1)[2] * r * (1 - r)
    to_input = torch.cat([to_r, to_u, to_n], dim=1)
    to_state = torch.cat([to_r, to_u, to_n * r], dim=1)
    grads = (
        to_input @ w_input.T,
        to_state @ w_state.T + g * u,
        x.T @ to_input,
        h.T @ to_state,
        to_input.sum(dim=0),
        to_state.sum(dim=0),
        new.T @ grad_logits,
    )
    pairs = zip(grads, inputs, strict=True)
    return tuple(grad.to(tensor.dtype) for grad, tensor in pairs)


_gru_router_step = operator(
    "gru_router_step(Tensor x, Tensor state, Tensor w_input, Tensor w_state, "
    "Tensor input_bias, Tensor state_bias, Tensor w_gate)"
    " -> (Tensor, Tensor)",
    cpu=gru_router_step_reference,
    cuda=_on_gpu,
    shapes=_shapes,
    backward=_backward,
    remember=_remember,
)


def _inputs(seed, device, dtype, T, P, E, scale=1.0):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape, std):
        values = torch.randn(*shape, generator=generator, dtype=torch.float64)
        return (std * values).to(device, dtype)

    return {
        "x": normal(T, P, std=scale),
        "state": normal(T, P, std=0.5).tanh(),
        "w_input": normal(P, 3 * P, std=P**-0.5),
        "w_state": normal(P, 3 * P, std=P**-0.5),
        "input_bias": normal(3 * P, std=0.5),
        "state_bias": normal(3 * P, std=0.5),
        "w_gate": normal(P, E, std=P**-0.5),
    }


def _cost(x, state, w_input, w_state, input_bias, state_bias, w_gate) -> Cost:
    (T, P), E = x.shape, w_gate.shape[1]
    read = sum(
        tensor.numel() * tensor.element_size()
        for tensor in (x, state, w_input, w_state, input_bias, w_gate)
    )
    return Cost(
        read + state_bias.numel() * state_bias.element_size()
        + 4 * T * (P + E),
        T * (12 * P * P + 2 * P * E),
    )  # fmt: skip


DECLARATION = Declaration(
    name="gru_router_step",
    operation=gru_router_step,
    reference=gru_router_step_reference,
    triton=gru_router_step_triton,
    inputs=_inputs,
    differentiable=tuple(NAMES),
    # everything is in fp32, whatever the dtype of the inputs
    tolerance={
        torch.float32: 1e-5, torch.float16: 1e-5, torch.bfloat16: 1e-5,
    },
    examples=(
        Example("16 wide, 8 experts", {"T": 129, "P": 16, "E": 8}),
        Example("the paper's width", {"T": 63, "P": 128, "E": 16}),
        Example("odd width", {"T": 65, "P": 37, "E": 5}),
        Example("one of each", {"T": 1, "P": 1, "E": 1}, degenerate=True),
        Example("no token", {"T": 0, "P": 16, "E": 8}, degenerate=True),
        Example(
            "saturated gates",
            {"T": 33, "P": 8, "E": 3, "scale": 40.0},
            degenerate=True,
        ),
        Example(
            "many experts", {"T": 17, "P": 16, "E": 130}, degenerate=True
        ),
        Example("large", {"T": 32768, "P": 128, "E": 64}, large=True),
    ),
    cost=_cost,
    compiles=(
        *compiled(16, 8, "fp32"), *compiled(37, 5, "fp32"),
        *compiled(128, 64, "fp32"), *compiled(128, 128, "fp32"),
        *compiled(128, 256, "fp32"), *compiled(128, 16, "bf16"),
        *compiled(128, 64, "bf16"), *compiled(128, 128, "bf16"),
        *compiled(128, 256, "bf16"), *compiled(37, 5, "bf16"),
        *compiled(128, 64, "bf16", state="bf16"),
        *compiled(128, 64, "fp16", state="fp16"),
        *compiled(128, 128, "fp16", state="fp16"),
        *compiled(128, 64, "fp16"),
    ),
)  # fmt: skip
