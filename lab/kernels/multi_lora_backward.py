"""Routed LoRA backward: gradients of all inputs from that of the update.

With h = A[e] u[t] and q = B[e]^T dy[t] for every filled slot (t, s) of e:

    dw[t, s] = q . h
    du[t]    = sum over the slots of w A[e]^T q
    dA[e]    = sum over the slots of e of w q u[t]^T
    dB[e]    = sum over the slots of e of w dy[t] h^T

`multi_lora`'s first kernel computes q from dy and B transposed, and its second
kernel du from q and A transposed; only the two sums of outer products need a
kernel of their own.

In that kernel each program sums over a part of the tokens. Then the parts are
added up, always in the same order.

FLOPs: T k r (6 n + 4 m), with h computed again, and up to N / k times as many,
as in `multi_lora`. Bytes: u and dy read twice, the adapters and their
gradients once.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lab.kernels import runtime
from lab.kernels._multi_lora_tiles import compiles
from lab.kernels._multi_lora_triton import (
    expand,
    multi_lora_outer_kernel,
    outer,
    shrink,
)
from lab.kernels._wanted import like
from lab.kernels.declaration import Cost, Declaration, Example
from lab.kernels.operator import operator

ALL = True, True, True, True  # gradients wanted


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
    wanted: Sequence[bool] = ALL,
) -> LoRAGradients:
    """Gradients of the four float inputs of `multi_lora`, from grad [T, m].

    A gradient that is not ``wanted`` (in the order of the result) is empty.
    O(T N r (n + m)) on a GPU, O(T S r (n + m)) on a CPU.
    """
    if grad.shape != (len(tokens), up.shape[1]):
        raise ValueError(
            f"grad has shape {tuple(grad.shape)}; the update of these tokens"
            f" has {(len(tokens), up.shape[1])}"
        )
    return LoRAGradients(
        *_multi_lora_backward(tokens, experts, weights, down, up, grad, wanted)
    )


def multi_lora_backward_reference(
    tokens: Tensor,
    experts: Tensor,
    weights: Tensor,
    down: Tensor,
    up: Tensor,
    grad: Tensor,
    wanted: Sequence[bool] = ALL,
) -> LoRAGradients:
    """The formulas in plain PyTorch: a loop over the adapters."""
    inputs = tokens, weights, down, up
    found = LoRAGradients(*(x.zero_() for x in like(inputs, wanted)))
    of_tokens, of_weights, of_down, of_up = wanted
    for e in range(len(down)):
        t, s = (experts == e).nonzero(as_tuple=True)
        u, dy = tokens[t], grad[t]
        w = weights[t, s, None].to(u.dtype)
        if of_weights or of_up:
            h = u @ down[e].T  # [pairs of e, r]
        if of_weights or of_tokens or of_down:
            q = dy @ up[e]  # [pairs of e, r]
        if of_weights:
            found.weights[t, s] = (q * h).sum(dim=1).to(weights.dtype)
        if of_tokens:
            found.tokens.index_add_(0, t, (w * q) @ down[e])
        if of_down:
            found.down[e] = (w * q).T @ u
        if of_up:
            found.up[e] = dy.T @ (w * h)
    return found


def multi_lora_backward_triton(
    tokens: Tensor,
    experts: Tensor,
    weights: Tensor,
    down: Tensor,
    up: Tensor,
    grad: Tensor,
    wanted: Sequence[bool] = ALL,
) -> LoRAGradients:
    """Launch the forward kernels on transposed matrices, and two sums."""
    of_tokens, of_weights, of_down, of_up = wanted
    # the tokens' gradient is allocated by its own launch
    allocated = False, of_weights, of_down, of_up
    found = LoRAGradients(*like((tokens, weights, down, up), allocated))
    routes = experts, weights
    if of_weights or of_up:
        h, spread_h = shrink(tokens, *routes, down, keep=of_weights)
    if of_weights or of_tokens or of_down:
        across = up.transpose(1, 2)
        q, spread_q = shrink(grad, *routes, across, keep=of_weights)
    if of_weights:
        found.weights.copy_((q * h).sum(dim=2))
    if of_tokens:
        y = expand(spread_q, experts, down.transpose(1, 2))
        found = found._replace(tokens=y)
    if of_down:
        outer(spread_q, experts, tokens, found.down)
    if of_up:
        outer(spread_h, experts, grad, found.up.transpose(1, 2))
    return found


def _on_gpu(tokens, *others):
    run = multi_lora_backward_reference
    if runtime.triton_has_tensor_cores(tokens):
        run = multi_lora_backward_triton
    return run(tokens, *others)


def _shapes(tokens, experts, weights, down, up, grad, wanted):
    return like((tokens, weights, down, up), wanted)


_multi_lora_backward = operator(
    "multi_lora_backward(Tensor tokens, Tensor experts, Tensor weights, "
    "Tensor down, Tensor up, Tensor grad, bool[] wanted)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    cpu=multi_lora_backward_reference,
    cuda=_on_gpu,
    shapes=_shapes,
)


def _inputs(seed, device, dtype, wanted=ALL, **sizes):
    from lab.kernels.multi_lora import _inputs as forward_inputs

    found = forward_inputs(seed, device, dtype, **sizes)
    generator = torch.Generator().manual_seed(seed + 1000)
    shape = (sizes["T"], sizes["m"])
    grad = torch.randn(shape, generator=generator, dtype=torch.float64)
    return found | {"grad": grad.to(device, dtype), "wanted": wanted}


def _cost(tokens, experts, weights, down, up, grad, wanted=ALL) -> Cost:
    of_tokens, of_weights, of_down, of_up = wanted
    of_h = of_weights or of_up
    of_q = of_weights or of_tokens or of_down
    r, n, m = down.shape[1], tokens.shape[1], grad.shape[1]
    kept = int((experts >= 0).sum())
    numbers = (max(of_h, of_down) + of_tokens) * tokens.numel() + grad.numel()
    numbers += (max(of_h, of_tokens) + of_down) * down.numel()
    numbers += (of_q + of_up) * up.numel()
    slots = 4 * experts.numel() + (4 + 4 * of_weights) * weights.numel()
    columns = (of_h + of_tokens + of_down) * n + (of_q + of_up) * m
    return Cost(
        numbers * tokens.element_size() + slots, 2 * kept * r * columns
    )


def _example(
    name, T, N, S, n, m, r, empty=0.0, by_task=False, wanted=ALL, **kind
):
    sizes = {"T": T, "N": N, "S": S, "n": n, "m": m, "r": r}
    chosen = {"empty": empty, "by_task": by_task, "wanted": wanted}
    return Example(name, sizes | chosen, **kind)


def _pruned(name, *wanted):
    return _example(name, 40, 5, 2, 24, 20, 4, empty=0.2, wanted=wanted)


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
        _pruned("tokens only", True, False, False, False),
        _pruned("weights only", False, True, False, False),
        _pruned("adapters only", False, False, True, True),
        _pruned("up only", False, False, False, True),
        _example("many", 140, 24, 2, 40, 72, 16, empty=0.1),
        _example("many by task", 300, 24, 2, 40, 72, 16, by_task=True),
        _example("several parts", 600, 3, 2, 24, 20, 4, empty=0.2),
        _example("one of one", 5, 1, 1, 8, 8, 1, degenerate=True),
        _example("all empty", 20, 3, 2, 16, 16, 4, empty=1.0, degenerate=True),
        _example("no token", 0, 3, 2, 16, 16, 4, degenerate=True),
        _example("large", 32768, 8, 2, 2048, 2048, 16, large=True),
    ),
    cost=_cost,
    compiles=compiles(multi_lora_outer_kernel),
)
