"""Routed LoRA: every token sums the low-rank updates of its own adapters.

    y[t] = sum over the filled slots s of w[t, s] B[e] A[e] u[t]
    e = experts[t, s],  A [N, r, n] called ``down``,  B [N, m, r] called ``up``

-1 in a slot means no adapter; a token without any adapter gets 0. The frozen
matrix W of the layer is not touched: add y to its output. With one slot and
weight 1 this is a batch of requests that each use their own adapter; with a
gate's top-k it is PHATGOOSE.

Bytes: u, experts, weights and the used adapters read once, y written once.
Between the two products N r numbers per token are written and read again, in
u's dtype and 0 for adapters not chosen. FLOPs: 2 T k r (n + m). But a tile of
tokens is multiplied with whole groups of adapters, each of as many adapters as
have 128 ranks together (64 in fp32), which makes up to N / k times as many
FLOPs. While all adapters fit one group, the operation is bound by memory in 16
bits. With more groups the time grows with the groups that tiles use, and a
batch sorted by task uses few.

Source: Chen et al. 2023, Punica (shrink and expand for many adapters), here
without sorting or atomics; Muqeeth et al. 2024 for the weights.
"""

import torch
from torch import Tensor

from lab.kernels import runtime
from lab.kernels._multi_lora_tiles import compiles
from lab.kernels._multi_lora_triton import (
    expand,
    multi_lora_expand_kernel,
    multi_lora_shrink_kernel,
    shrink,
)
from lab.kernels._wanted import or_none, wanted
from lab.kernels.declaration import Cost, Declaration, Example
from lab.kernels.multi_lora_backward import multi_lora_backward
from lab.kernels.operator import operator

WIDEST = 64  # rank; a larger one is no longer cheap, and is not compiled


def multi_lora(
    tokens: Tensor, experts: Tensor, weights: Tensor, down: Tensor, up: Tensor
) -> Tensor:
    """The update [T, m] of tokens [T, n]; experts and weights are [T, S].

    ``down`` is [N, r, n] and ``up`` [N, m, r]. Differentiable in all but
    ``experts``. On a CPU, an adapter that does not exist or a token that is
    not finite is refused. On a GPU, where a check would stall it, such an
    adapter counts as none. A token that is not finite spreads: in the backward
    pass even to adapters that the token did not choose, unless it chose none.
    An adapter that is not finite spreads to tokens that did not choose it.
    O(T N r (n + m)) on a GPU, O(T S r (n + m)) on a CPU.
    """
    check_adapters(tokens, experts, weights, down, up)
    return _multi_lora(tokens, experts, weights, down, up)


def check_adapters(tokens, experts, weights, down, up) -> None:
    """Raise an error for arguments that do not fit together."""
    N, r, n = down.shape if down.ndim == 3 else (0, 0, 0)
    if up.ndim != 3 or not N * r or (up.shape[0], up.shape[2]) != (N, r):
        raise ValueError(
            f"down {tuple(down.shape)} and up {tuple(up.shape)} do not fit;"
            " adapters need [N, r, n] and [N, m, r], with N and r from 1 up"
        )
    if r > WIDEST:
        raise ValueError(f"rank {r} is too large; use 1 to {WIDEST}")
    if tokens.ndim != 2 or tokens.shape[1] != n:
        raise ValueError(
            f"tokens have shape {tuple(tokens.shape)}; these adapters need"
            f" [tokens, {n}]"
        )
    wanted = (len(tokens), experts.shape[-1] if experts.ndim else 0)
    if experts.shape != wanted or weights.shape != wanted:
        raise ValueError(
            f"experts {tuple(experts.shape)} and weights"
            f" {tuple(weights.shape)} must both be [{len(tokens)}, slots]"
        )
    if experts.dtype != torch.int32:
        raise TypeError(f"experts are {experts.dtype}; use int32")
    if not tokens.dtype == down.dtype == up.dtype:
        raise TypeError(
            f"tokens are {tokens.dtype}, down {down.dtype} and up"
            f" {up.dtype}; use one dtype"
        )
    if not runtime.may_look(tokens):
        return
    if experts.numel() and not -1 <= experts.min() <= experts.max() < N:
        raise ValueError(
            f"experts run from {int(experts.min())} to {int(experts.max())};"
            f" use 0 to {N - 1}, and -1 for an empty slot"
        )
    if not tokens.isfinite().all():
        raise ValueError(
            "tokens hold NaN or infinity; look for the step that produced it"
        )


def multi_lora_reference(
    tokens: Tensor, experts: Tensor, weights: Tensor, down: Tensor, up: Tensor
) -> Tensor:
    """The update in plain PyTorch: a loop over the adapters."""
    y = tokens.new_zeros(len(tokens), up.shape[1])
    for e in range(len(down)):
        t, s = (experts == e).nonzero(as_tuple=True)
        hidden = tokens[t] @ down[e].T  # [pairs of e, r]
        scaled = weights[t, s, None].to(hidden.dtype) * hidden
        y = y.index_add(0, t, scaled @ up[e].T)
    return y


def multi_lora_triton(
    tokens: Tensor, experts: Tensor, weights: Tensor, down: Tensor, up: Tensor
) -> Tensor:
    """Launch both products."""
    _, spread = shrink(tokens, experts, weights, down, keep=False)
    return expand(spread, experts, up)


def _on_gpu(tokens, experts, weights, down, up):
    # on a T4 Triton's products miss the matrix units, PyTorch's do not
    if runtime.triton_has_tensor_cores(tokens):
        return multi_lora_triton(tokens, experts, weights, down, up)
    return multi_lora_reference(tokens, experts, weights, down, up)


def _shapes(tokens, experts, weights, down, up):
    return tokens.new_empty(tokens.shape[0], up.shape[1])


def _remember(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _backward(ctx, grad):
    needed = wanted(ctx, 0, 2, 3, 4)
    found = multi_lora_backward(*ctx.saved_tensors, grad.contiguous(), needed)
    tokens, *others = or_none(found, needed)
    return tokens, None, *others


_multi_lora = operator(
    "multi_lora(Tensor tokens, Tensor experts, Tensor weights, Tensor down, "
    "Tensor up) -> Tensor",
    cpu=multi_lora_reference,
    cuda=_on_gpu,
    shapes=_shapes,
    backward=_backward,
    remember=_remember,
)


def _inputs(
    seed, device, dtype, T, N, S, n, m, r,
    empty=0.0, only=None, by_task=False,
):  # fmt: skip
    """Distinct adapters per token as a gate gives them, or ``only`` one; or a
    batch sorted ``by_task``, where a token may have the same adapter twice."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    experts = torch.rand(T, N, generator=generator).argsort(dim=1)[:, :S]
    if only is not None:
        experts = torch.full((T, S), only)
    if by_task:
        experts = experts.sort(dim=0).values
    dropped = torch.rand(T, S, generator=generator) < empty
    weights = normal(T, S).softmax(dim=1).masked_fill(dropped, 0.0)
    wide = torch.promote_types(dtype, torch.float32)
    return {
        "tokens": normal(T, n).to(device, dtype),
        "experts": experts.masked_fill(dropped, -1).to(device, torch.int32),
        "weights": weights.to(device, wide),
        "down": (normal(N, r, n) / n**0.5).to(device, dtype),
        "up": (normal(N, m, r) / r**0.5).to(device, dtype),
    }


def _cost(tokens, experts, weights, down, up) -> Cost:
    (T, n), (N, m, r) = tokens.shape, up.shape
    kept = int((experts >= 0).sum())
    used = len(experts[experts >= 0].unique()) / N
    numbers = T * (n + m) + used * (down.numel() + up.numel())
    slots = 4 * experts.numel() + 4 * weights.numel()
    return Cost(
        int(numbers * tokens.element_size()) + slots, 2 * kept * r * (n + m)
    )


def _example(
    name, T, N, S, n, m, r, empty=0.0, only=None, by_task=False, **kind
):
    sizes = {"T": T, "N": N, "S": S, "n": n, "m": m, "r": r}
    chosen = {"empty": empty, "only": only, "by_task": by_task}
    return Example(name, sizes | chosen, **kind)


EXAMPLES = (
    _example("top 2 of 6", 129, 6, 2, 64, 64, 8),
    _example("odd sizes", 63, 5, 3, 37, 70, 5, empty=0.3),
    _example("rank 40", 40, 3, 1, 33, 20, 40),
    _example("many", 140, 24, 2, 40, 72, 16, empty=0.1),
    _example("many by task", 300, 24, 2, 40, 72, 16, by_task=True),
    _example("one of one", 5, 1, 1, 8, 8, 1, degenerate=True),
    _example("k = N", 33, 4, 4, 16, 16, 2, degenerate=True),
    _example("all to the last", 70, 4, 2, 20, 24, 4, only=3, degenerate=True),
    _example("all empty", 20, 3, 2, 16, 16, 4, empty=1.0, degenerate=True),
    _example("no token", 0, 3, 2, 16, 16, 4, degenerate=True),
    _example("large", 32768, 8, 2, 2048, 2048, 16, large=True),
)

DECLARATION = Declaration(
    name="multi_lora",
    operation=multi_lora,
    reference=multi_lora_reference,
    triton=multi_lora_triton,
    inputs=_inputs,
    differentiable=("tokens", "weights", "down", "up"),
    # fp16 rounds the hidden row and the result, 2^-11 of each entry
    tolerance={torch.float32: 1e-5, torch.float16: 3e-3},
    examples=EXAMPLES,
    cost=_cost,
    compiles=(
        *compiles(multi_lora_shrink_kernel),
        *compiles(multi_lora_expand_kernel),
    ),
)
