"""Top-k gate: each token picks its k best experts and a weight for each.

Scores P = softmax(z) over all E columns of the logits z [T, E]. A token fills
k slots with its k largest; ties go to the lowest index. The last
``null_experts`` columns stand for experts that do nothing (AdaMoE): a slot
that picked one is empty.

    renormalized   w_i = P_i / sum of P_j over the chosen true experts
    raw            w_i = P_i

The renormalized weights are computed as a softmax over the chosen logits,
which gives the same numbers and does not underflow when the null experts hold
nearly all the mass. A token whose slots are all empty has weights 0.

Bytes per token: 4 E read (2 E for 16-bit logits) and 8 k written. On a large
GPU the limit is comparing, not memory: in a cycle a multiprocessor compares,
selects or shifts for only 64 lanes, though it issues for 128. So each lane
first sorts its logits, as integers, in groups of four. In each of the k
rounds only the first of each group is compared, and the group whose first is
taken moves up. A 16-bit logit leaves room for its column in the same integer,
so no two integers are equal and the largest names its column. A token takes
1.2 to 1.3 E such instructions at k = 8 (E = 64 to 256), or 0.8 E in 16 bits;
they are three quarters or more of all its instructions.

Source: Shazeer et al. 2017 (top-k gate); Zeng et al. 2024, AdaMoE, section 3
(null experts, weights over the true experts only).
"""

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from lab.kernels.declaration import Compile, Cost, Declaration, Example
from lab.kernels.gate_backward import finite, gate_backward
from lab.kernels.operator import operator
from lab.kernels.runtime import cdiv, may_look, next_power_of_2


class Gate(NamedTuple):
    """The experts of each token and their weights, in S slots, best first."""

    experts: Tensor  # [T, S] int32, -1 in an empty slot
    weights: Tensor  # [T, S], 0 in an empty slot


def topk_gate(
    logits: Tensor, k: int, null_experts: int = 0, renormalize: bool = True
) -> Gate:
    """Pick each token's k best experts by its logits [T, E]; S = k slots.

    Weights are fp32 (float64 for float64 logits). Differentiable in
    ``logits`` through the weights; the selection itself has no gradient.
    On a CPU, NaN or infinity is refused; on a GPU, where a check would stall
    it, NaN and -inf count as the lowest number, inf as the highest. O(T E k).
    """
    check_logits(logits)
    _, E = logits.shape
    if not 1 <= k <= E:
        raise ValueError(
            f"k={k} is not within 1 to {E}, the number of experts"
        )
    if not 0 <= null_experts < E:
        raise ValueError(
            f"null_experts={null_experts} is not within 0 to {E - 1}; at"
            f" least one of {E} columns must be a true expert"
        )
    return Gate(*_topk_gate(logits, k, null_experts, renormalize))


def check_logits(logits: Tensor) -> None:
    """Raise an error for logits that no gate can use."""
    if logits.ndim != 2 or logits.shape[1] < 1:
        raise ValueError(
            f"logits have shape {tuple(logits.shape)};"
            " a gate needs [tokens, experts] with at least one expert"
        )
    if not logits.is_floating_point():
        raise TypeError(f"logits are {logits.dtype}; use a floating type")
    if may_look(logits) and not logits.isfinite().all():
        raise ValueError(
            f"logits hold {int((~logits.isfinite()).sum())} NaN or infinite"
            " entries; to rule out an expert, use a large negative number such"
            " as -1e4"
        )


def topk_gate_reference(
    logits: Tensor, k: int, null_experts: int = 0, renormalize: bool = True
) -> Gate:
    """The gate in plain PyTorch, differentiable by autograd."""
    _, E = logits.shape
    z = logits if logits.dtype == torch.float64 else logits.float()
    # a stable sort, because torch.topk leaves the order of ties open
    chosen = z.argsort(dim=1, descending=True, stable=True)[:, :k]
    is_null = chosen >= E - null_experts
    if renormalize:
        # softmax over the chosen true logits; 0 for a token without any
        kept = z.gather(1, chosen)
        if null_experts:
            none = is_null.all(dim=1, keepdim=True)
            kept = kept.masked_fill(is_null & ~none, -math.inf)
        weights = kept.softmax(dim=1)
    else:
        weights = z.softmax(dim=1).gather(1, chosen)
    experts = chosen.masked_fill(is_null, -1).to(torch.int32)
    return Gate(experts, weights.masked_fill(is_null, 0.0))


# the last column that fits beside a 16-bit logit, which takes at most 19 bits
# in fp32
LAST = tl.constexpr(2**13 - 1)
# less than the integer of any logit
GONE = tl.constexpr(-(2**31))


@triton.jit
def ordered(x):
    """Map finite fp32 to int32 of the same order, or back: its own inverse."""
    bits = x.to(tl.int32, bitcast=True)
    # the bits of negative numbers, but for the sign, have the reverse order
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def load_keys(row_ptr, column, E, PACKED: tl.constexpr):
    """Logits as int32 keys of the same order, with columns if PACKED."""
    z = tl.load(row_ptr + column, mask=column < E, other=float("-inf"))
    # + 0.0 turns -0 into 0; as an integer, -0 would be less
    key = ordered(finite(z.to(tl.float32)) + 0.0)
    # of equal logits, the first column gets the largest key
    return (key & ~LAST) | (LAST - column) if PACKED else key


@triton.jit
def logits_of(key, PACKED: tl.constexpr):
    """The fp32 logits that became these keys."""
    bits = ordered(key)
    return (bits & ~LAST if PACKED else bits).to(tl.float32, bitcast=True)


@triton.jit
def larger_first(a, a_column, b, b_column):
    """Two keys and their columns, the larger key first; equals stay put."""
    turn = b > a
    return (
        tl.maximum(a, b), tl.where(turn, b_column, a_column),
        tl.minimum(a, b), tl.where(turn, a_column, b_column),
    )  # fmt: skip


@triton.jit
def mass(key, column, top, E, PACKED: tl.constexpr):
    """Sum of exp(logit - top) over a quarter of the columns."""
    share = tl.exp(logits_of(key, PACKED) - top[:, None])
    return tl.sum(tl.where(column < E, share, 0.0), 1)


@triton.jit
def topk_gate_kernel(
    logits_ptr,
    experts_ptr,
    weights_ptr,
    T,
    E,
    true_experts,
    stride_t,
    K: tl.constexpr,
    RENORMALIZE: tl.constexpr,
    PACKED: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    t = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    slots = tl.arange(0, BLOCK_K)[None, :]
    # past the end, repeat the last row; its results are not stored
    row_ptr = logits_ptr + tl.minimum(t, T - 1)[:, None] * stride_t
    # i, j, k and m are a quarter of the columns each: [BLOCK_T, BLOCK_E / 4]
    i = tl.arange(0, BLOCK_E // 4)[None, :]
    i = tl.broadcast_to(i, [BLOCK_T, BLOCK_E // 4])
    j = i + BLOCK_E // 4
    k = i + BLOCK_E // 2
    m = k + BLOCK_E // 4
    a = load_keys(row_ptr, i, E, PACKED)
    b = load_keys(row_ptr, j, E, PACKED)
    c = load_keys(row_ptr, k, E, PACKED)
    d = load_keys(row_ptr, m, E, PACKED)
    if not RENORMALIZE:
        top = tl.max(tl.maximum(tl.maximum(a, b), tl.maximum(c, d)), 1)
        top = logits_of(top, PACKED)
        total = mass(a, i, top, E, PACKED) + mass(b, j, top, E, PACKED)
        total += mass(c, k, top, E, PACKED) + mass(d, m, top, E, PACKED)

    # four experts stand in line, the best in front; the rounds below compare
    # only those in front
    a, i, b, j = larger_first(a, i, b, j)
    b, j, c, k = larger_first(b, j, c, k)
    c, k, d, m = larger_first(c, k, d, m)
    a, i, b, j = larger_first(a, i, b, j)
    b, j, c, k = larger_first(b, j, c, k)
    a, i, b, j = larger_first(a, i, b, j)

    experts = tl.zeros([BLOCK_T, BLOCK_K], tl.int32)
    chosen = tl.full([BLOCK_T, BLOCK_K], GONE, tl.int32)
    for slot in tl.static_range(K):
        best = tl.max(a, 1)[:, None]
        if PACKED:
            index = LAST - (best & LAST)
            taken = a == best
        else:
            # the first of equal logits
            index = tl.min(tl.where(a == best, i, BLOCK_E), 1)[:, None]
            taken = i == index
        experts = tl.where(slots == slot, index, experts)
        chosen = tl.where(slots == slot, best, chosen)
        # the line moves up
        a, i = tl.where(taken, b, a), tl.where(taken, j, i)
        b, j = tl.where(taken, c, b), tl.where(taken, k, j)
        c, k = tl.where(taken, d, c), tl.where(taken, m, k)
        d = tl.where(taken, GONE, d)

    true = (slots < K) & (experts < true_experts)
    experts = tl.where(true, experts, -1)
    chosen = tl.where(true, logits_of(chosen, PACKED), float("-inf"))
    if RENORMALIZE:
        top = tl.max(chosen, 1)
        # for a token with no true expert any finite number does: its sum is 0
        top = tl.where(top == float("-inf"), 0.0, top)
    share = tl.exp(chosen - top[:, None])
    if RENORMALIZE:
        total = tl.sum(share, 1)
        total = tl.where(total > 0.0, total, 1.0)

    at = t[:, None] * K + slots
    inside = (t[:, None] < T) & (slots < K)
    tl.store(experts_ptr + at, experts, mask=inside)
    tl.store(weights_ptr + at, share / total[:, None], mask=inside)


def blocks(E: int) -> tuple[int, int, int]:
    """Rows and columns of one program's tile, and its warps.

    A warp holds whole rows, so that no maximum crosses warps; 512 logits need
    few enough of its registers.
    """
    block_e = next_power_of_2(max(4, E))
    return max(1, min(32, 512 // block_e)), block_e, 1 if E <= 512 else 4


def topk_gate_triton(
    logits: Tensor, k: int, null_experts: int = 0, renormalize: bool = True
) -> Gate:
    """Launch the kernel; one program holds a block of whole rows."""
    T, E = logits.shape
    logits = logits.contiguous()
    experts = logits.new_empty((T, k), dtype=torch.int32)
    weights = logits.new_empty((T, k), dtype=torch.float32)
    block_t, block_e, warps = blocks(E)
    if T:
        topk_gate_kernel[(cdiv(T, block_t),)](
            logits, experts, weights,
            T, E, E - null_experts, logits.stride(0),
            K=k, RENORMALIZE=renormalize,
            PACKED=logits.element_size() == 2 and block_e <= LAST + 1,
            BLOCK_T=block_t, BLOCK_E=block_e,
            BLOCK_K=next_power_of_2(k),
            num_warps=warps,
        )  # fmt: skip
    return Gate(experts, weights)


def _shapes(logits, k, null_experts, renormalize):
    shape = (logits.shape[0], k)
    wide = logits.dtype == torch.float64
    return (
        logits.new_empty(shape, dtype=torch.int32),
        logits.new_empty(
            shape, dtype=torch.float64 if wide else torch.float32
        ),
    )


def _remember(ctx, inputs, output):
    logits, _, _, ctx.renormalize = inputs
    experts, weights = output
    ctx.mark_non_differentiable(experts)
    ctx.save_for_backward(logits, experts, weights)


def _backward(ctx, _, grad_weights):
    grad = gate_backward(*ctx.saved_tensors, grad_weights, ctx.renormalize)
    return grad, None, None, None


_topk_gate = operator(
    "topk_gate(Tensor logits, SymInt k, SymInt null_experts, "
    "bool renormalize) -> (Tensor, Tensor)",
    cpu=topk_gate_reference,
    cuda=topk_gate_triton,
    shapes=_shapes,
    backward=_backward,
    remember=_remember,
)


def _inputs(
    seed, device, dtype, T, E, k, null_experts=0, renormalize=True, ties=False
):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(T, E, generator=generator, dtype=torch.float64)
    if ties:
        logits = logits.round()
    return {
        "logits": logits.to(device, dtype),
        "k": k,
        "null_experts": null_experts,
        "renormalize": renormalize,
    }


def _cost(logits, k, null_experts=0, renormalize=True) -> Cost:
    T, E = logits.shape
    return Cost(T * (E * logits.element_size() + 8 * k), T * 4 * E)


def _compile(
    E: int, k: int, renormalize: bool = True, kind: str = "fp32"
) -> Compile:
    block_t, block_e, warps = blocks(E)
    # Triton compiles separate, better code for sizes that 16 divides
    size = "i32:16" if E % 16 == 0 else "i32"
    return Compile(
        f"E{E} k{k} {kind}" if renormalize else f"E{E} k{k} {kind} raw",
        topk_gate_kernel,
        signature={
            "logits_ptr": f"*{kind}", "experts_ptr": "*i32",
            "weights_ptr": "*fp32", "T": "i32", "E": size,
            "true_experts": "i32", "stride_t": size,
        },
        constants={
            "K": k, "RENORMALIZE": renormalize, "PACKED": kind != "fp32",
            "BLOCK_T": block_t, "BLOCK_E": block_e,
            "BLOCK_K": next_power_of_2(k),
        },
        num_warps=warps,
    )  # fmt: skip


DECLARATION = Declaration(
    name="topk_gate",
    operation=topk_gate,
    reference=topk_gate_reference,
    triton=topk_gate_triton,
    inputs=_inputs,
    exact=("experts",),
    differentiable=("logits",),
    # softmax is in fp32 whatever the dtype of the logits
    tolerance={
        torch.float32: 1e-5, torch.float16: 1e-5, torch.bfloat16: 1e-5,
    },
    examples=(
        Example("top 2 of 8", {"T": 1000, "E": 8, "k": 2}),
        Example("top 8 of 64", {"T": 63, "E": 64, "k": 8}),
        Example("raw", {"T": 63, "E": 12, "k": 3, "renormalize": False}),
        Example("null", {"T": 129, "E": 16, "k": 3, "null_experts": 8}),
        Example("one expert", {"T": 5, "E": 1, "k": 1}, degenerate=True),
        Example("k = E", {"T": 33, "E": 7, "k": 7}, degenerate=True),
        Example("no token", {"T": 0, "E": 8, "k": 2}, degenerate=True),
        Example(
            "ties",
            {"T": 65, "E": 16, "k": 5, "null_experts": 9, "ties": True},
            degenerate=True,
            smooth=False,
        ),
        Example("large", {"T": 32768, "E": 128, "k": 8}, large=True),
    ),
    cost=_cost,
    compiles=(
        _compile(8, 2), _compile(64, 8), _compile(128, 8), _compile(256, 8),
        _compile(1024, 8), _compile(16, 3, renormalize=False),
        _compile(128, 8, kind="bf16"), _compile(128, 8, kind="fp16"),
    ),
)  # fmt: skip
