"""Routed LoRA backward: from the gradient of the update to all inputs.

With h = A[e] u[t] and q = B[e]^T dy[t] for every filled slot (t, s) of e:

    dw[t, s] = q . h
    du[t]    = sum over the slots of w A[e]^T q
    dA[e]    = sum over the slots of e of w q u[t]^T
    dB[e]    = sum over the slots of e of w dy[t] h^T

q is what `multi_lora`'s first kernel makes of dy with B transposed, and du
what its second makes of q with A transposed; only the two sums of outer
products need a kernel of their own. Every sum runs in a fixed order.

FLOPs: 6 T k r (n + m), h computed again. Bytes: u and dy read twice, the
adapters and their gradients once.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from lab.kernels import runtime
from lab.kernels._multi_lora_triton import (
    compiles,
    expand,
    multi_lora_outer_kernel,
    outer,
    shrink,
)
from lab.kernels.declaration import Cost, Declaration, Example


class LoRAGradients(NamedTuple):
    tokens: Tensor  # [T, n]
    weights: Tensor  # [T, S], 0 in an empty slot
    down: Tensor  # [N, r, n]
    up: Tensor  # [N, m, r]


def multi_lora_backward(
    tokens: Tensor,
    experts: Tensor,
    weights: Tensor,
    down: Tensor,
    up: Tensor,
    grad: Tensor,
) -> LoRAGradients:
    """Gradients of the four float inputs of `multi_lora`, from grad [T, m].

    O(T S r (n + m)).
    """
    if grad.shape != (len(tokens), up.shape[1]):
        raise ValueError(
            f"grad has shape {tuple(grad.shape)}; the update of these tokens"
            f" is {(len(tokens), up.shape[1])}"
        )
    return LoRAGradients(
        *_multi_lora_backward(tokens, experts, weights, down, up, grad)
    )


def multi_lora_backward_reference(
    tokens: Tensor,
    experts: Tensor,
    weights: Tensor,
    down: Tensor,
    up: Tensor,
    grad: Tensor,
) -> LoRAGradients:
    """The formulas in plain PyTorch: a loop over the adapters."""
    found = LoRAGradients(
        torch.zeros_like(tokens, memory_format=torch.contiguous_format),
        torch.zeros_like(weights, memory_format=torch.contiguous_format),
        torch.zeros_like(down, memory_format=torch.contiguous_format),
        torch.zeros_like(up, memory_format=torch.contiguous_format),
    )
    for e in range(len(down)):
        t, s = (experts == e).nonzero(as_tuple=True)
        u, dy = tokens[t], grad[t]
        h, q = u @ down[e].T, dy @ up[e]  # [pairs of e, r]
        w = weights[t, s, None].to(h.dtype)
        found.weights[t, s] = (q * h).sum(dim=1).to(weights.dtype)
        found.tokens.index_add_(0, t, (w * q) @ down[e])
        found.down[e] = (w * q).T @ u
        found.up[e] = dy.T @ (w * h)
    return found


def multi_lora_backward_triton(
    tokens: Tensor,
    experts: Tensor,
    weights: Tensor,
    down: Tensor,
    up: Tensor,
    grad: Tensor,
) -> LoRAGradients:
    """Launch the forward kernels on transposed matrices, and two sums."""
    h = shrink(tokens, experts, down)
    q = shrink(grad, experts, up.transpose(1, 2))
    grad_down, grad_up = down.new_empty(down.shape), up.new_empty(up.shape)
    outer(q, experts, weights, tokens, grad_down)
    outer(h, experts, weights, grad, grad_up.transpose(1, 2))
    return LoRAGradients(
        expand(q, experts, weights, down.transpose(1, 2)),
        (q * h).sum(dim=2).to(weights.dtype),
        grad_down,
        grad_up,
    )


@torch.library.custom_op(
    "lab::multi_lora_backward", mutates_args=(), device_types="cpu"
)
def _multi_lora_backward(
    tokens: Tensor,
    experts: Tensor,
    weights: Tensor,
    down: Tensor,
    up: Tensor,
    grad: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return tuple(
        multi_lora_backward_reference(tokens, experts, weights, down, up, grad)
    )


@_multi_lora_backward.register_kernel("cuda")
def _on_gpu(tokens, experts, weights, down, up, grad):
    matrix_units = runtime.triton_has_tensor_cores(tokens)
    run = multi_lora_backward_reference
    if matrix_units:
        run = multi_lora_backward_triton
    return tuple(run(tokens, experts, weights, down, up, grad))


@_multi_lora_backward.register_fake
def _(tokens, experts, weights, down, up, grad):
    inputs = (tokens, weights, down, up)
    return tuple(x.new_empty(x.shape) for x in inputs)


def _inputs(seed, device, dtype, **sizes):
    from lab.kernels.multi_lora import _inputs as forward_inputs

    found = forward_inputs(seed, device, dtype, **sizes)
    generator = torch.Generator().manual_seed(seed + 1000)
    shape = (sizes["T"], sizes["m"])
    grad = torch.randn(shape, generator=generator, dtype=torch.float64)
    return found | {"grad": grad.to(device, dtype)}


def _cost(tokens, experts, weights, down, up, grad) -> Cost:
    r = down.shape[1]
    kept = int((experts >= 0).sum())
    both = tokens.shape[1] + grad.shape[1]
    numbers = 2 * tokens.numel() + grad.numel()
    numbers += 2 * (down.numel() + up.numel())
    slots = 4 * experts.numel() + 8 * weights.numel()
    return Cost(numbers * tokens.element_size() + slots, 6 * kept * r * both)


def _example(name, T, N, S, n, m, r, empty=0.0, **kind):
    sizes = {"T": T, "N": N, "S": S, "n": n, "m": m, "r": r, "empty": empty}
    return Example(name, sizes, **kind)


DECLARATION = Declaration(
    name="multi_lora_backward",
    operation=multi_lora_backward,
    reference=multi_lora_backward_reference,
    triton=multi_lora_backward_triton,
    inputs=_inputs,
    # fp16 rounds the hidden rows before each sum, 2^-11 of each entry
    tolerance={torch.float32: 1e-5, torch.float16: 3e-3},
    examples=(
        _example("top 2 of 6", 129, 6, 2, 64, 64, 8),
        _example("odd sizes", 63, 5, 3, 37, 70, 5, empty=0.3),
        _example("one of one", 5, 1, 1, 8, 8, 1, degenerate=True),
        _example("all empty", 20, 3, 2, 16, 16, 4, empty=1.0, degenerate=True),
        _example("no token", 0, 3, 2, 16, 16, 4, degenerate=True),
        _example("large", 32768, 8, 2, 2048, 2048, 16, large=True),
    ),
    cost=_cost,
    compiles=compiles(multi_lora_outer_kernel),
)
