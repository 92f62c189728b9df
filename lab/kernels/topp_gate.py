"""Top-p gate: each token takes its best experts until their mass reaches p.

Scores P = softmax(z) over the E logits z of a token. Sorted best first, a
token takes the smallest number t of experts with P_(1) + ... + P_(t) >= p, so
always at least one.

    keep i   iff   the mass strictly ahead of i is below p

    raw            w_i = P_i                          (the paper's)
    renormalized   w_i = P_i / sum of the kept P_j

Ties go to the lowest index; p = 1 keeps every expert, however small. A sum
that equals p exactly is enough, as in the paper (>=). The authors' code
requires >, and takes one more expert in that case.

Bytes per token: 4 E read (2 E for 16-bit logits) and 8 E written. The work is
done in rounds: in each, a token takes the best expert it has left, and the
tokens of a warp wait for the one that takes most. On a large GPU a token
takes 1.5 E instructions and 0.23 to 0.3 E more a round, most of them
comparisons and selections, of which a multiprocessor does two a cycle, not
four. A 16-bit logit leaves room for its column in the same integer: no two
integers are equal, the largest names its column, and a round takes 0.14 to
0.2 E. Computing how much mass is ahead of each expert would need no rounds,
but 0.4 E^2 instructions.

When few lanes share a row, one instruction works on many rows, but more rows
of a warp wait for one another. At E = 64, four rows of eight lanes are faster
than eight rows of four, though a round takes 19 instructions a token instead
of 14.5.

Source: Huang et al. 2024, "Harder Tasks Need More Experts", section 3.2.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from lab.kernels.declaration import Compile, Cost, Declaration, Example
from lab.kernels.gate_backward import finite, gate_backward
from lab.kernels.operator import operator
from lab.kernels.runtime import cdiv, next_power_of_2
from lab.kernels.topk_gate import (
    GONE,
    LAST,
    Gate,
    check_logits,
    logits_of,
    ordered,
)


def topp_gate(logits: Tensor, p: float, renormalize: bool = False) -> Gate:
    """Pick each token's best experts up to mass p by its logits [T, E].

    Each token has S = E slots; the empty ones come last.

    Weights are fp32 (float64 for float64 logits). Differentiable in
    ``logits`` through the weights; the selection itself has no gradient.
    Sums are in fp32, so a mass within 1e-6 of p may fall on either side.
    NaN and infinity are treated as in `topk_gate`. O(T E k) on a GPU, without
    a sort, where k is the most experts that a token of a block takes.
    """
    check_logits(logits)
    if not 0 < p <= 1:
        raise ValueError(
            f"p={p} is not within (0, 1]; use 1 to keep every expert or a"
            " small p such as 0.01 to keep only the best"
        )
    # a smaller p would be 0 in fp32 and keep no expert
    p = max(p, torch.finfo(torch.float32).tiny)
    return Gate(*_topp_gate(logits, p, renormalize))


def topp_gate_reference(
    logits: Tensor, p: float, renormalize: bool = False
) -> Gate:
    """The gate in plain PyTorch, differentiable by autograd."""
    z = logits if logits.dtype == torch.float64 else logits.float()
    order = z.argsort(dim=1, descending=True, stable=True)
    scores = z.softmax(dim=1).gather(1, order)
    # an exclusive cumulative sum: the mass ahead of each expert
    ahead = scores.detach().cumsum(dim=1).roll(1, dims=1)
    ahead[:, 0] = 0.0
    kept = (ahead < p) | (p == 1)
    experts = order.masked_fill(~kept, -1).to(torch.int32)
    weights = scores.masked_fill(~kept, 0.0)
    if renormalize:
        weights = weights / weights.sum(dim=1, keepdim=True)
    return Gate(experts, weights)


@triton.jit
def topp_gate_kernel(
    logits_ptr,
    experts_ptr,
    weights_ptr,
    T,
    E,
    p,
    stride_t,
    RENORMALIZE: tl.constexpr,
    PACKED: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    first = tl.program_id(0) * BLOCK_T
    logits_ptr += first.to(tl.int64) * stride_t
    experts_ptr += first.to(tl.int64) * E
    weights_ptr += first.to(tl.int64) * E
    # neighbouring lanes load different rows, so that few lanes share a row
    at = tl.arange(0, BLOCK_E * BLOCK_T)
    # past the end, repeat the last row; it writes the same numbers again
    row = tl.minimum(at % BLOCK_T, T - 1 - first)
    column = at // BLOCK_T
    z = tl.load(
        logits_ptr + row * stride_t + column, mask=column < E, other=0.0
    )
    z = tl.where(column < E, finite(z.to(tl.float32)), float("-inf"))
    z = tl.reshape(z, [BLOCK_E, BLOCK_T])
    top = tl.max(z, 0)
    share = tl.exp(z - top[None, :])
    total = tl.sum(share, 0)
    enough = p * total

    # + 0.0 turns -0 into 0; as an integer, -0 would be less
    left = ordered(z + 0.0)
    e = tl.arange(0, BLOCK_E)[:, None]
    if PACKED:
        # no two keys are equal; of equal logits the first has the largest
        left = (left & ~LAST) | (LAST - e)
    mass = tl.zeros([BLOCK_T], tl.float32)
    count = tl.zeros([BLOCK_T], tl.int32)
    slot = 0
    while (slot < E) & (tl.max((mass < enough).to(tl.int32), 0) > 0):
        best = tl.max(left, 0)
        taken = left == best[None, :]
        if not PACKED:
            # the first of equal logits
            index = tl.min(tl.where(taken, e, BLOCK_E), 0)
            taken = e == index[None, :]
        # less than any logit, so out of the way, and it remembers the slot
        left = tl.where(taken, slot + GONE, left)
        # a row that has enough stops counting
        count += (mass < enough).to(tl.int32)
        mass += tl.exp(logits_of(best, PACKED) - top)
        slot += 1

    kept = left < count[None, :] + GONE
    if RENORMALIZE:
        total = tl.sum(tl.where(kept, share, 0.0), 0)
    weights = share * (1.0 / total)[None, :]

    # each slot is written once: by the expert in it, or as empty
    kept = tl.ravel(kept)
    at = row * E + tl.ravel(left - GONE)
    tl.store(experts_ptr + at, column, mask=kept)
    tl.store(weights_ptr + at, tl.ravel(weights), mask=kept)
    empty = tl.ravel(e >= count[None, :]) & (column < E)
    at = row * E + column
    tl.store(experts_ptr + at, -1, mask=empty)
    tl.store(weights_ptr + at, 0.0, mask=empty)


def blocks(E: int) -> tuple[int, int, int]:
    """Rows and columns of one program's tile, and its warps.

    A warp holds whole rows, so that no maximum crosses warps; 512 logits need
    few enough of its registers. Where these would be many rows, it holds half
    as many, because all its rows continue until the last one has enough.
    """
    block_e = next_power_of_2(E)
    logits = 256 if block_e <= 64 else 512
    return max(1, min(32, logits // block_e)), block_e, 1 if E <= 512 else 4


def topp_gate_triton(
    logits: Tensor, p: float, renormalize: bool = False
) -> Gate:
    """Launch the kernel; one program holds a block of whole rows."""
    T, E = logits.shape
    logits = logits.contiguous()
    experts = logits.new_empty((T, E), dtype=torch.int32)
    weights = logits.new_empty((T, E), dtype=torch.float32)
    block_t, block_e, warps = blocks(E)
    if T:
        topp_gate_kernel[(cdiv(T, block_t),)](
            logits, experts, weights,
            T, E, float("inf") if p == 1 else p, logits.stride(0),
            RENORMALIZE=renormalize,
            PACKED=logits.element_size() == 2 and block_e <= LAST + 1,
            BLOCK_T=block_t, BLOCK_E=block_e,
            num_warps=warps,
        )  # fmt: skip
    return Gate(experts, weights)


def _shapes(logits, p, renormalize):
    wide = logits.dtype == torch.float64
    return (
        logits.new_empty(logits.shape, dtype=torch.int32),
        logits.new_empty(
            logits.shape, dtype=torch.float64 if wide else torch.float32
        ),
    )


def _remember(ctx, inputs, output):
    logits, _, ctx.renormalize = inputs
    experts, weights = output
    ctx.mark_non_differentiable(experts)
    ctx.save_for_backward(logits, experts, weights)


def _backward(ctx, _, grad_weights):
    grad = gate_backward(*ctx.saved_tensors, grad_weights, ctx.renormalize)
    return grad, None, None


_topp_gate = operator(
    "topp_gate(Tensor logits, float p, bool renormalize) -> (Tensor, Tensor)",
    cpu=topp_gate_reference,
    cuda=topp_gate_triton,
    shapes=_shapes,
    backward=_backward,
    remember=_remember,
)


def near_threshold(logits: Tensor, p: float, margin: float) -> Tensor:
    """Tokens [T] with a cumulative mass within ``margin`` of p, in float64.

    For these tokens the set may depend on the order of a sum. For all others
    reference and kernel must agree exactly, so tests compare those.
    """
    scores = logits.double().softmax(dim=1).sort(dim=1, descending=True)[0]
    # the last sum is 1 whatever the logits, and no expert follows it
    sums = scores.cumsum(dim=1)[:, :-1]
    return (p != 1) & ((sums - p).abs() <= margin).any(dim=1)


def _inputs(seed, device, dtype, T, E, p, renormalize=False, ties=False):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(T, E, generator=generator, dtype=torch.float64)
    if ties:
        logits = logits.round()
    logits = logits.to(dtype)
    # sharpen, little by little, the tokens that lie on the threshold
    while (near := near_threshold(logits, p, 1e-5)).any():
        logits[near] *= 1.01
    return {"logits": logits.to(device), "p": p, "renormalize": renormalize}


def _cost(logits, p, renormalize=False) -> Cost:
    T, E = logits.shape
    return Cost(T * E * (logits.element_size() + 8), T * 4 * E)


def _compile(E: int, renormalize: bool = False, kind: str = "fp32") -> Compile:
    block_t, block_e, warps = blocks(E)
    # Triton compiles separate, better code for sizes that 16 divides
    size = "i32:16" if E % 16 == 0 else "i32"
    return Compile(
        f"E{E} {kind} renormalized" if renormalize else f"E{E} {kind}",
        topp_gate_kernel,
        signature={
            "logits_ptr": f"*{kind}", "experts_ptr": "*i32",
            "weights_ptr": "*fp32", "T": "i32", "E": size, "p": "fp32",
            "stride_t": size,
        },
        constants={
            "RENORMALIZE": renormalize, "PACKED": kind != "fp32",
            "BLOCK_T": block_t, "BLOCK_E": block_e,
        },
        num_warps=warps,
    )  # fmt: skip


DECLARATION = Declaration(
    name="topp_gate",
    operation=topp_gate,
    reference=topp_gate_reference,
    triton=topp_gate_triton,
    inputs=_inputs,
    exact=("experts",),
    differentiable=("logits",),
    # softmax is in fp32 whatever the dtype of the logits
    tolerance={
        torch.float32: 1e-5, torch.float16: 1e-5, torch.bfloat16: 1e-5,
    },
    examples=(
        Example("p 0.4 of 8", {"T": 1000, "E": 8, "p": 0.4}),
        Example("p 0.4 of 16", {"T": 257, "E": 16, "p": 0.4}),
        Example("p 0.9 of 64", {"T": 63, "E": 64, "p": 0.9}),
        Example(
            "renormalized", {"T": 129, "E": 12, "p": 0.7, "renormalize": True}
        ),
        Example("p = 1", {"T": 65, "E": 7, "p": 1.0}, degenerate=True),
        Example("tiny p", {"T": 33, "E": 5, "p": 1e-3}, degenerate=True),
        Example("one expert", {"T": 5, "E": 1, "p": 0.4}, degenerate=True),
        Example("no token", {"T": 0, "E": 8, "p": 0.4}, degenerate=True),
        Example(
            "ties",
            {"T": 65, "E": 16, "p": 0.6, "ties": True},
            degenerate=True,
            smooth=False,
        ),
        Example("large", {"T": 32768, "E": 64, "p": 0.4}, large=True),
    ),
    cost=_cost,
    compiles=(
        *map(_compile, (8, 64, 128, 256, 1024)),
        _compile(64, renormalize=True), _compile(64, kind="bf16"),
        _compile(64, kind="fp16"),
    ),
)  # fmt: skip
