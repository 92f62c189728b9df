"""Gate backward: the gradient of a gate's logits from that of its weights.

One rule holds for every gate, since the selection has no gradient of its own.
With w the weights of the chosen experts, g their gradients, c = sum of w g:

    renormalized   dz_i = w_i (g_i - c)       for the chosen, 0 elsewhere
    raw            dz_j = P_j (m_j g_j - c)   for all, m_j = 1 if chosen

With raw weights even an expert that was not chosen gets a gradient, and so
does a token's only expert. With renormalized weights a token with one expert
sends no gradient (derived by hand, checked against autograd in float64).

Bytes per token: 12 S read and 4 E written; raw weights need 4 E more.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from lab.kernels.declaration import Compile, Cost, Declaration, Example
from lab.kernels.operator import operator
from lab.kernels.runtime import cdiv, next_power_of_2


def gate_backward(
    logits: Tensor,
    experts: Tensor,
    weights: Tensor,
    grad_weights: Tensor,
    renormalize: bool,
) -> Tensor:
    """Gradient [T, E] of the logits [T, E] of a gate with S slots a token.

    ``experts`` [T, S] (-1 in an empty slot), ``weights`` and ``grad_weights``
    [T, S] are the gate's result and the gradient of its weights. The result
    has the dtype of the logits. O(T (E + S)).
    """
    if not experts.shape == weights.shape == grad_weights.shape:
        raise ValueError(
            f"experts {tuple(experts.shape)}, weights {tuple(weights.shape)}"
            f" and grad_weights {tuple(grad_weights.shape)} must have one"
            " shape, [tokens, slots]"
        )
    if len(logits) != len(experts):
        raise ValueError(
            f"the gate decided for {len(experts)} tokens, but there are"
            f" {len(logits)} rows of logits"
        )
    return _gate_backward(logits, experts, weights, grad_weights, renormalize)


def gate_backward_reference(
    logits: Tensor,
    experts: Tensor,
    weights: Tensor,
    grad_weights: Tensor,
    renormalize: bool,
) -> Tensor:
    """The two formulas in plain PyTorch."""
    # empty slots add 0 to expert 0, even where the gradient is infinite
    column = experts.long().clamp(min=0)
    pull = (weights * grad_weights).masked_fill(experts < 0, 0.0)
    c = pull.sum(dim=1, keepdim=True)
    grad = torch.zeros_like(
        logits, dtype=weights.dtype, memory_format=torch.contiguous_format
    )
    if renormalize:
        grad.scatter_add_(1, column, pull - weights * c)
    else:
        scores = logits.to(weights.dtype).softmax(dim=1)
        grad.scatter_add_(1, column, pull).sub_(scores * c)
    return grad.to(logits.dtype)


# above all bf16 numbers, and 0 in the last 13 bits, where a gate keeps columns
HIGHEST = tl.constexpr((2 - 2**-10) * 2.0**127)


@triton.jit
def finite(z):
    """Fp32 logits with NaN and -inf as the lowest number, inf as the highest.

    The gates' kernels use it too. An infinite logit would turn every weight
    of its row into NaN, and -inf marks the columns past the last expert.
    """
    # NaN fails every comparison
    z = tl.where(z > -HIGHEST, z, -HIGHEST)
    return tl.where(z < HIGHEST, z, HIGHEST)


@triton.jit
def gate_backward_kernel(
    logits_ptr,
    experts_ptr,
    weights_ptr,
    grad_weights_ptr,
    grad_logits_ptr,
    T,
    E,
    S,
    RENORMALIZE: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    t = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    e = tl.arange(0, BLOCK_E)
    slots = tl.arange(0, BLOCK_S)
    at = t[:, None] * S + slots[None, :]
    taken = (t[:, None] < T) & (slots[None, :] < S)
    expert = tl.load(experts_ptr + at, mask=taken, other=-1)
    taken = expert >= 0
    weight = tl.load(weights_ptr + at, mask=taken, other=0.0)
    grad = tl.load(grad_weights_ptr + at, mask=taken, other=0.0)
    c = tl.sum(weight * grad, 1)  # [BLOCK_T]

    inside = (t[:, None] < T) & (e[None, :] < E)
    at_logits = t[:, None] * E + e[None, :]
    if RENORMALIZE:
        result = tl.zeros([BLOCK_T, BLOCK_E], tl.float32)
    else:
        z = tl.load(logits_ptr + at_logits, mask=inside, other=0.0)
        z = finite(z.to(tl.float32))
        z = tl.where(e[None, :] < E, z, float("-inf"))
        share = tl.exp(z - tl.max(z, 1)[:, None])
        result = -share / tl.sum(share, 1)[:, None] * c[:, None]

    # scatter slot by slot: each logit receives from the slot that chose it;
    # slots past the last one in use are empty in the whole block
    used = tl.max(tl.max(tl.where(taken, slots[None, :] + 1, 0), 1), 0)
    for slot in range(0, used):
        at_slot = t * S + slot
        chosen = tl.load(experts_ptr + at_slot, mask=t < T, other=-1)
        is_taken = (t < T) & (chosen >= 0)
        w = tl.load(weights_ptr + at_slot, mask=is_taken, other=0.0)
        g = tl.load(grad_weights_ptr + at_slot, mask=is_taken, other=0.0)
        pull = w * (g - c) if RENORMALIZE else w * g
        result += tl.where(e[None, :] == chosen[:, None], pull[:, None], 0.0)

    tl.store(grad_logits_ptr + at_logits, result, mask=inside)


def blocks(E: int, S: int) -> tuple[int, int, int, int]:
    """Tokens, logits and slots of one program's tile, and its warps.

    A warp holds whole rows: if four shared them, each would load every slot.
    """
    block_e, block_s = next_power_of_2(E), next_power_of_2(S)
    # S is at most E
    block_t = max(1, min(64, 1024 // block_e))
    return block_t, block_e, block_s, 1 if E <= 1024 else 4


def gate_backward_triton(
    logits: Tensor,
    experts: Tensor,
    weights: Tensor,
    grad_weights: Tensor,
    renormalize: bool,
) -> Tensor:
    """Launch the kernel; one program holds a block of whole rows."""
    T, E = logits.shape
    S = experts.shape[1]
    grad_logits = torch.empty_like(
        logits, memory_format=torch.contiguous_format
    )
    block_t, block_e, block_s, warps = blocks(E, S)
    if T:
        gate_backward_kernel[(cdiv(T, block_t),)](
            logits.contiguous(), experts.contiguous(), weights.contiguous(),
            grad_weights.contiguous(), grad_logits,
            T, E, S,
            RENORMALIZE=renormalize,
            BLOCK_T=block_t, BLOCK_E=block_e, BLOCK_S=block_s,
            num_warps=warps,
        )  # fmt: skip
    return grad_logits


def _shapes(logits, experts, weights, grad_weights, renormalize):
    return torch.empty_like(logits, memory_format=torch.contiguous_format)


_gate_backward = operator(
    "gate_backward(Tensor logits, Tensor experts, Tensor weights, "
    "Tensor grad_weights, bool renormalize) -> Tensor",
    cpu=gate_backward_reference,
    cuda=gate_backward_triton,
    shapes=_shapes,
)


def _inputs(seed, device, dtype, T, E, S, renormalize):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(T, E, generator=generator, dtype=torch.float64)
    order = logits.argsort(dim=1, descending=True, stable=True)[:, :S]
    empty = torch.rand(T, S, generator=generator) < 0.25
    weights = logits.softmax(dim=1).gather(1, order)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    grad = torch.randn(T, S, generator=generator, dtype=torch.float64)
    return {
        "logits": logits.to(device, dtype),
        "experts": order.masked_fill(empty, -1).to(device, torch.int32),
        "weights": weights.masked_fill(empty, 0.0).to(device, wide),
        "grad_weights": grad.to(device, wide),
        "renormalize": renormalize,
    }


def _cost(logits, experts, weights, grad_weights, renormalize) -> Cost:
    T, E = logits.shape
    S = experts.shape[1]
    passes = 1 if renormalize else 2
    return Cost(
        T * (12 * S + passes * E * logits.element_size()),
        T * (3 * S + 4 * E * (passes - 1)),
    )


def _example(name, T, E, S, renormalize, **kind):
    sizes = {"T": T, "E": E, "S": S, "renormalize": renormalize}
    return Example(name, sizes, **kind)


def _compile(E: int, S: int, renormalize: bool) -> Compile:
    block_t, block_e, block_s, warps = blocks(E, S)
    # Triton compiles separate, better code for sizes that 16 divides
    size = "i32:16" if E % 16 == 0 else "i32"
    return Compile(
        f"E{E} S{S}" if renormalize else f"E{E} S{S} raw",
        gate_backward_kernel,
        signature={
            "logits_ptr": "*fp32", "experts_ptr": "*i32",
            "weights_ptr": "*fp32", "grad_weights_ptr": "*fp32",
            "grad_logits_ptr": "*fp32", "T": "i32", "E": size, "S": "i32",
        },
        constants={
            "RENORMALIZE": renormalize,
            "BLOCK_T": block_t, "BLOCK_E": block_e, "BLOCK_S": block_s,
        },
        num_warps=warps,
    )  # fmt: skip


DECLARATION = Declaration(
    name="gate_backward",
    operation=gate_backward,
    reference=gate_backward_reference,
    triton=gate_backward_triton,
    inputs=_inputs,
    # the gradient is rounded once to the dtype of the logits
    tolerance={
        torch.float32: 1e-5, torch.float16: 6e-4, torch.bfloat16: 5e-3,
    },
    examples=(
        _example("renormalized", 1000, 8, 2, True),
        _example("raw", 1000, 8, 8, False),
        _example("awkward", 63, 12, 5, False),
        _example("one expert", 3, 1, 1, True, degenerate=True),
        _example("no token", 0, 8, 2, True, degenerate=True),
        _example("large", 32768, 128, 8, True, large=True),
    ),
    cost=_cost,
    compiles=(
        *(_compile(E, 8, True) for E in (8, 64, 128, 256)),
        *(_compile(E, E, False) for E in (8, 64, 128, 256)),
    ),
)  # fmt: skip
