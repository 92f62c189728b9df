"""Mixed-factor LoRA: each task mixes the factors of shared adapters by block.

    A_j = the blocks  sum over s of weights[j, q, s] down[q, s],  below another
    B_j = the blocks  sum over s of weights[j, q, s] up[q, s],  side by side
    y[t] = (u[t] A_j) B_j        for every token t of task j

Block q of A_j takes n / h of the n inputs, block q of B_j gives m / h of the m
outputs, and both use the same weights. The factors are mixed, not the updates:
A_j B_j also holds products of one adapter's A with another adapter's B.
Tokens are sorted by task: those of task j are the rows offsets[j] to
offsets[j + 1].

Eager PyTorch writes A_j and B_j of every task to memory and reads them again.
Here a program takes a tile of tokens of one task and mixes the rows that it
needs in registers, so that neither a mixed factor nor u A_j reaches memory.
Every input finds the weight of its own block, so blocks may have any size.

FLOPs: 2 T (n + m) r for the tokens and 2 J S (n + m) r to mix for J tasks
once; this kernel mixes once for every tile. Bytes: T (n + m), and the
inventory of S (n + m) r numbers, which the cache holds. So it is bound by
memory, at about r FLOPs per byte in 16 bits.

The backward pass mixes again and leaves its products to PyTorch.

Source: Page-Caccia et al. 2023; `SkilledLoRA` of microsoft/mttl, which mixes
one adapter per example and multiplies with `bmm`.
"""

import torch
from torch import Tensor

from lab.kernels import runtime
from lab.kernels._by_expert import products, sums_of_products
from lab.kernels._mixed_factor_lora_triton import compiles, launch
from lab.kernels._mixed_factor_lora_triton import (
    mixed_factor_lora_kernel as mixed_factor_lora_kernel,
)
from lab.kernels.declaration import Cost, Declaration, Example
from lab.kernels.operator import operator

WIDEST = 64  # rank
MOST_TASKS = 4096  # every program looks at all offsets


def mixed_factor_lora(
    tokens: Tensor, offsets: Tensor, weights: Tensor, down: Tensor, up: Tensor
) -> Tensor:
    """The updates [T, m] of tokens [T, n], sorted by task.

    ``offsets`` [J + 1] int32 rise from 0 to T; a task may have no token.
    ``weights`` [J, h, S] say how much of each adapter a task takes in each
    block; they need not sum to 1. ``down`` is [h, S, n / h, r] and ``up``
    [h, S, r, m / h], r up to 64. Differentiable in all but ``offsets``. On a
    CPU, wrong offsets and tokens or weights that are not finite are refused.
    On a GPU, where a check would stall it, offsets must be right, and a token
    that is not finite spoils its own update alone. O(T r (n + m)).
    """
    check_mix(tokens, offsets, weights, down, up)
    return _mixed_factor_lora(tokens, offsets, weights, down, up)


def check_mix(tokens, offsets, weights, down, up) -> None:
    """Raise an error for arguments that do not fit together."""
    h, S, width, r = down.shape if down.ndim == 4 else (0, 0, 0, 0)
    if up.ndim != 4 or not h * S * width * r * up.shape[-1] or (
        up.shape[:3] != (h, S, r)
    ):  # fmt: skip
        raise ValueError(
            f"down {tuple(down.shape)} and up {tuple(up.shape)} do not fit;"
            " adapters need [h, S, n / h, r] and [h, S, r, m / h], all from 1"
        )
    if r > WIDEST:
        raise ValueError(f"rank {r} is too large; use 1 to {WIDEST}")
    if max(down.numel(), up.numel()) >= 2**31:
        raise ValueError("the adapters have 2^31 numbers or more; use fewer")
    if tokens.ndim != 2 or tokens.shape[1] != h * width:
        raise ValueError(
            f"tokens have shape {tuple(tokens.shape)}; {h} blocks of {width}"
            f" inputs need [tokens, {h * width}]"
        )
    if weights.ndim != 3 or weights.shape[1:] != (h, S) or not len(weights):
        raise ValueError(
            f"weights have shape {tuple(weights.shape)}; {S} adapters in {h}"
            f" blocks need [tasks, {h}, {S}], with a task at least"
        )
    J = len(weights)
    if J > MOST_TASKS:
        raise ValueError(f"{J} tasks are too many; use 1 to {MOST_TASKS}")
    if offsets.shape != (J + 1,) or offsets.dtype != torch.int32:
        raise ValueError(
            f"offsets are {offsets.dtype} of shape {tuple(offsets.shape)};"
            f" {J} tasks need int32 [{J + 1}]"
        )
    if not tokens.dtype == down.dtype == up.dtype:
        raise TypeError(
            f"tokens are {tokens.dtype}, down {down.dtype} and up {up.dtype};"
            " use one dtype"
        )
    if not weights.is_floating_point():
        raise TypeError(
            f"weights are {weights.dtype}; mixing adapters needs fractions,"
            " so use float32"
        )
    if not runtime.may_look(tokens):
        return
    rising = [0, *offsets.tolist(), len(tokens)]
    if rising[0] != rising[1] or rising != sorted(rising) or (
        rising[-2] != rising[-1]
    ):  # fmt: skip
        raise ValueError(
            f"offsets do not rise from 0 to the {len(tokens)} tokens; sort"
            " the tokens by task and count them"
        )
    for name, tensor in (("tokens", tokens), ("weights", weights)):
        if not tensor.isfinite().all():
            raise ValueError(
                f"{name} hold NaN or infinity; look for the step that"
                " produced it"
            )


def mix(
    weights: Tensor, down: Tensor, up: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Every task's own factors, A [J, n, r] and B [J, r, m].

    Sums are in the dtype of the weights, the result in ``dtype``.
    """
    wide = weights.dtype
    a = torch.einsum("jqs,qsdr->jqdr", weights, down.to(wide))
    b = torch.einsum("jqs,qsrd->jrqd", weights, up.to(wide))
    return a.flatten(1, 2).to(dtype), b.flatten(2).to(dtype)


def mixed_factor_lora_reference(
    tokens: Tensor, offsets: Tensor, weights: Tensor, down: Tensor, up: Tensor
) -> Tensor:
    """The updates in plain PyTorch: mix, then two products for each task."""
    a, b = mix(weights, down, up, tokens.dtype)
    return by_task(by_task(tokens, offsets, a), offsets, b)


def by_task(x: Tensor, offsets: Tensor, matrices: Tensor) -> Tensor:
    """Rows x [T, K] times the matrix of their own task of [J, K, N]."""
    if even(offsets):
        return (x.unflatten(0, (len(matrices), -1)) @ matrices).flatten(0, 1)
    return products(x, offsets, matrices)


def even(offsets: Tensor) -> bool:
    """Whether all tasks have equally many tokens, and so need no loop."""
    counts = offsets.diff()
    return bool(counts[0] > 0) and bool((counts == counts[0]).all())


def mixed_factor_lora_triton(
    tokens: Tensor, offsets: Tensor, weights: Tensor, down: Tensor, up: Tensor
) -> Tensor:
    """Launch the kernel."""
    return launch(tokens, offsets, weights, down, up)


def _on_gpu(tokens, offsets, weights, down, up):
    # on a T4 Triton's products miss the matrix units, PyTorch's do not
    run = mixed_factor_lora_reference
    if runtime.triton_has_tensor_cores(tokens):
        run = mixed_factor_lora_triton
    return run(tokens, offsets, weights, down, up)


def _shapes(tokens, offsets, weights, down, up):
    return tokens.new_empty(tokens.shape[0], up.shape[0] * up.shape[3])


def _remember(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _backward(ctx, grad):
    found = _gradients(*ctx.saved_tensors, grad.contiguous())
    of_tokens, of_weights, of_down, of_up = found
    return of_tokens, None, of_weights, of_down, of_up


def gradients(
    tokens: Tensor, offsets: Tensor, weights: Tensor, down: Tensor,
    up: Tensor, grad: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of tokens, weights, down and up, from grad [T, m]: those of
    every task's own factors first, then through the mix."""
    h, wide = len(down), weights.dtype
    a, b = mix(weights, down, up, tokens.dtype)
    hidden, back = by_task(tokens, offsets, a), by_task(grad, offsets, b.mT)
    # [J, h, n / h, r] and [J, r, h, m / h]
    of_a = sum_by_task(tokens, back, offsets).to(wide).unflatten(1, (h, -1))
    of_b = sum_by_task(hidden, grad, offsets).to(wide).unflatten(2, (h, -1))
    of_weights = torch.einsum("qsdr,jqdr->jqs", down.to(wide), of_a)
    of_weights += torch.einsum("qsrd,jrqd->jqs", up.to(wide), of_b)
    return (
        by_task(back, offsets, a.mT),
        of_weights,
        torch.einsum("jqs,jqdr->qsdr", weights, of_a).to(down.dtype),
        torch.einsum("jqs,jrqd->qsrd", weights, of_b).to(up.dtype),
    )


def sum_by_task(x: Tensor, y: Tensor, offsets: Tensor) -> Tensor:
    """The sum of x_t^T y_t over the tokens of each task, [J, K, N]."""
    if even(offsets):
        J = len(offsets) - 1
        return x.unflatten(0, (J, -1)).mT @ y.unflatten(0, (J, -1))
    return sums_of_products(x, y, offsets)


def _shapes_of_gradients(tokens, offsets, weights, down, up, grad):
    return tuple(x.new_empty(x.shape) for x in (tokens, weights, down, up))


# an operator of its own, because which products it takes depends on offsets
_gradients = operator(
    "mixed_factor_lora_gradients(Tensor tokens, Tensor offsets, Tensor "
    "weights, Tensor down, Tensor up, Tensor grad)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    cpu=gradients,
    cuda=gradients,
    shapes=_shapes_of_gradients,
)

_mixed_factor_lora = operator(
    "mixed_factor_lora(Tensor tokens, Tensor offsets, Tensor weights, "
    "Tensor down, Tensor up) -> Tensor",
    cpu=mixed_factor_lora_reference,
    cuda=_on_gpu,
    shapes=_shapes,
    backward=_backward,
    remember=_remember,
)


def _inputs(seed, device, dtype, T, J, h, S, n, m, r, only=None, same=False):
    """Tokens of random tasks, or of ``only`` one, or of each the ``same``
    number."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    task = torch.randint(J, (T,), generator=generator)
    if only is not None:
        task = torch.full((T,), only)
    if same:
        task = torch.arange(T) % J
    counts = torch.bincount(task, minlength=J)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
    weights = torch.sigmoid(2 * normal(J, h, S))
    weights /= weights.sum(dim=2, keepdim=True)
    down = normal(h, S, n // h, r) * (S / n) ** 0.5
    up = normal(h, S, r, m // h) * (S / r) ** 0.5
    wide = torch.promote_types(dtype, torch.float32)
    return {
        "tokens": normal(T, n).to(device, dtype),
        "offsets": offsets.to(device, torch.int32),
        "weights": weights.to(device, wide),
        "down": down.to(device, dtype),
        "up": up.to(device, dtype),
    }


def _cost(tokens, offsets, weights, down, up) -> Cost:
    (T, n), (h, S, r, width) = tokens.shape, up.shape
    J, m = len(weights), h * width
    numbers = T * (n + m) + down.numel() + up.numel()
    small = 4 * (offsets.numel() + weights.numel())
    return Cost(
        numbers * tokens.element_size() + small,
        2 * (T + J * S) * (n + m) * r,
    )


def _example(name, T, J, h, S, n, m, r, only=None, same=False, **kind):
    sizes = {"T": T, "J": J, "h": h, "S": S, "n": n, "m": m, "r": r}
    return Example(name, sizes | {"only": only, "same": same}, **kind)


DECLARATION = Declaration(
    name="mixed_factor_lora",
    operation=mixed_factor_lora,
    reference=mixed_factor_lora_reference,
    triton=mixed_factor_lora_triton,
    inputs=_inputs,
    differentiable=("tokens", "weights", "down", "up"),
    # fp16 rounds the mixed factors, the hidden row and the result
    tolerance={torch.float32: 1e-5, torch.float16: 3e-3},
    examples=(
        _example("8 blocks", 129, 5, 8, 8, 64, 64, 2),
        _example("Poly", 70, 3, 1, 4, 40, 48, 4),
        _example("even tasks", 144, 6, 4, 3, 80, 16, 2, same=True),
        _example("odd sizes", 63, 4, 3, 5, 33, 21, 5),
        _example("blocks of one", 40, 3, 16, 2, 16, 16, 1),
        _example("rank 40", 40, 2, 2, 3, 34, 20, 40),
        _example("one of each", 1, 1, 1, 1, 1, 1, 1, degenerate=True),
        _example("one adapter", 33, 3, 4, 1, 16, 8, 2, degenerate=True),
        _example("more tasks than tokens", 9, 40, 2, 3, 8, 8, 2,
                 degenerate=True),
        _example("all in the last", 130, 4, 2, 2, 16, 16, 3, only=3,
                 degenerate=True),
        _example("no token", 0, 3, 2, 2, 8, 8, 2, degenerate=True),
        _example("large", 32768, 64, 64, 8, 2048, 2048, 16, large=True),
    ),
    cost=_cost,
    compiles=(
        *compiles(1), *compiles(16), *compiles(2, "i32"), *compiles(64),
    ),
)  # fmt: skip
