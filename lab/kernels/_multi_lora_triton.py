"""The Triton side of `multi_lora`: through the waist, out again, gradients.

A program owns a tile of tokens and visits the adapters one after the other,
but works only for those that some token of its tile has chosen. Nothing is
sorted, no two programs write to one place, and no number travels to the host.
All three kernels take matrices by strides, so that the backward pass runs the
same two with transposed matrices.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from lab.kernels.declaration import Compile

BLOCK_K = 32  # columns of one step or one program
WARPS = 8  # with 4, tiles of full precision spill registers
FEWEST = 16  # rows or columns that a matrix product takes


@triton.jit
def multi_lora_shrink_kernel(
    tokens_ptr, experts_ptr, down_ptr, hidden_ptr,
    T, S, N, n, r, stride_e, stride_r, stride_n,
    BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """hidden[t, s] = down[e] tokens[t] for the adapter e of slot s."""
    t = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    rank = tl.arange(0, BLOCK_R)
    for e in range(0, N):
        chose = tl.zeros([BLOCK_T], tl.int32)
        for s in range(0, S):
            expert = tl.load(experts_ptr + t * S + s, mask=t < T, other=-1)
            chose += (expert == e).to(tl.int32)
        if tl.sum(chose, 0) > 0:
            h = tl.zeros([BLOCK_T, BLOCK_R], tl.float32)
            for start in range(0, n, BLOCK_N):
                k = start + tl.arange(0, BLOCK_N)
                x = tl.load(
                    tokens_ptr + t[:, None] * n + k[None, :],
                    mask=(chose[:, None] > 0) & (k[None, :] < n), other=0.0,
                )  # fmt: skip
                at = k[:, None] * stride_n + rank[None, :] * stride_r
                a = tl.load(
                    down_ptr + at,
                    mask=(k[:, None] < n) & (rank[None, :] < r), other=0.0,
                )  # fmt: skip
                h = tl.dot(x, a, h, input_precision="ieee")
            for s in range(0, S):
                expert = tl.load(experts_ptr + t * S + s, mask=t < T, other=-1)
                tl.store(
                    hidden_ptr + (t * S + s)[:, None] * r + rank[None, :], h,
                    mask=(expert == e)[:, None] & (rank[None, :] < r),
                )  # fmt: skip
        # a moving pointer needs no wide product
        down_ptr += stride_e


@triton.jit
def weighted_rows(
    hidden_ptr, experts_ptr, weights_ptr, t, e, T, S, r,
    BLOCK_T: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """Sum over the slots of e of weight times hidden, and who has one."""
    rank = tl.arange(0, BLOCK_R)
    g = tl.zeros([BLOCK_T, BLOCK_R], tl.float32)
    chose = tl.zeros([BLOCK_T], tl.int32)
    for s in range(0, S):
        expert = tl.load(experts_ptr + t * S + s, mask=t < T, other=-1)
        mine = expert == e
        chose += mine.to(tl.int32)
        w = tl.load(weights_ptr + t * S + s, mask=mine, other=0.0)
        h = tl.load(
            hidden_ptr + (t * S + s)[:, None] * r + rank[None, :],
            mask=mine[:, None] & (rank[None, :] < r), other=0.0,
        )  # fmt: skip
        g += w.to(tl.float32)[:, None] * h.to(tl.float32)
    return g, chose


@triton.jit
def multi_lora_expand_kernel(
    hidden_ptr, experts_ptr, weights_ptr, up_ptr, out_ptr,
    T, S, N, m, r, stride_e, stride_m, stride_r,
    BLOCK_T: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """out[t] = sum over the slots of weight times up[e] hidden[t, s]."""
    t = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    j = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    rank = tl.arange(0, BLOCK_R)
    y = tl.zeros([BLOCK_T, BLOCK_M], tl.float32)
    for e in range(0, N):
        g, chose = weighted_rows(
            hidden_ptr, experts_ptr, weights_ptr, t, e, T, S, r,
            BLOCK_T, BLOCK_R,
        )  # fmt: skip
        if tl.sum(chose, 0) > 0:
            at = rank[:, None] * stride_r + j[None, :] * stride_m
            b = tl.load(
                up_ptr + at,
                mask=(rank[:, None] < r) & (j[None, :] < m), other=0.0,
            )  # fmt: skip
            y = tl.dot(g.to(b.dtype), b, y, input_precision="ieee")
        up_ptr += stride_e
    tl.store(
        out_ptr + t[:, None] * m + j[None, :],
        y.to(out_ptr.dtype.element_ty),
        mask=(t[:, None] < T) & (j[None, :] < m),
    )


@triton.jit
def multi_lora_outer_kernel(
    hidden_ptr, experts_ptr, weights_ptr, rows_ptr, out_ptr,
    T, S, n, r, stride_e, stride_r, stride_n,
    BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """out[e] = sum over its tokens of weight, hidden [r] and row [n]."""
    e = tl.program_id(0)
    k = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    rank = tl.arange(0, BLOCK_R)
    total = tl.zeros([BLOCK_R, BLOCK_N], tl.float32)
    for start in range(0, T, BLOCK_T):
        t = start + tl.arange(0, BLOCK_T).to(tl.int64)
        g, chose = weighted_rows(
            hidden_ptr, experts_ptr, weights_ptr, t, e, T, S, r,
            BLOCK_T, BLOCK_R,
        )  # fmt: skip
        if tl.sum(chose, 0) > 0:
            x = tl.load(
                rows_ptr + t[:, None] * n + k[None, :],
                mask=(chose[:, None] > 0) & (k[None, :] < n), other=0.0,
            )  # fmt: skip
            # [BLOCK_R, BLOCK_T] times [BLOCK_T, BLOCK_N]
            total = tl.dot(
                tl.trans(g.to(x.dtype)), x, total, input_precision="ieee"
            )
    at = out_ptr + e.to(tl.int64) * stride_e
    tl.store(
        at + rank[:, None] * stride_r + k[None, :] * stride_n,
        total.to(out_ptr.dtype.element_ty),
        mask=(rank[:, None] < r) & (k[None, :] < n),
    )


def blocks(rank: int, dtype: torch.dtype) -> tuple[int, int]:
    """Tokens of a tile, and lanes that hold a hidden row of the adapter."""
    lanes = max(FEWEST, triton.next_power_of_2(rank))
    # full precision has no matrix units and wants smaller tiles
    small = dtype == torch.float32 or lanes > 32
    return (32 if small else 64), lanes


def shrink(tokens: Tensor, experts: Tensor, down: Tensor) -> Tensor:
    """down[e] tokens[t] for each slot, [T, S, r] fp32; 0 where none is."""
    T, S = experts.shape
    N, r, n = down.shape
    hidden = tokens.new_zeros(T, S, r, dtype=torch.float32)
    block_t, block_r = blocks(r, tokens.dtype)
    if hidden.numel():
        multi_lora_shrink_kernel[(triton.cdiv(T, block_t),)](
            tokens.contiguous(), experts.contiguous(), down, hidden,
            T, S, N, n, r, *down.stride(),
            BLOCK_T=block_t, BLOCK_N=BLOCK_K, BLOCK_R=block_r, num_warps=WARPS,
        )  # fmt: skip
    return hidden


def expand(
    hidden: Tensor, experts: Tensor, weights: Tensor, up: Tensor
) -> Tensor:
    """The weighted sum of up[e] hidden[t, s] over the slots, [T, m]."""
    T, S, r = hidden.shape
    N, m, _ = up.shape
    out = up.new_empty(T, m)
    block_t, block_r = blocks(r, out.dtype)
    if out.numel():
        grid = (triton.cdiv(T, block_t), triton.cdiv(m, BLOCK_K))
        multi_lora_expand_kernel[grid](
            hidden, experts.contiguous(), weights.contiguous(), up, out,
            T, S, N, m, r, *up.stride(),
            BLOCK_T=block_t, BLOCK_M=BLOCK_K, BLOCK_R=block_r, num_warps=WARPS,
        )  # fmt: skip
    return out


def outer(
    hidden: Tensor, experts: Tensor, weights: Tensor, rows: Tensor, out: Tensor
) -> None:
    """Fill out [N, r, n], any strides, with each adapter's sum of products
    of its weighted hidden rows and ``rows`` [T, n]."""
    T, S, r = hidden.shape
    N, _, n = out.shape
    block_t, block_r = blocks(r, out.dtype)
    if out.numel():
        multi_lora_outer_kernel[(N, triton.cdiv(n, BLOCK_K))](
            hidden, experts.contiguous(), weights.contiguous(),
            rows.contiguous(), out, T, S, n, r, *out.stride(),
            BLOCK_T=block_t, BLOCK_N=BLOCK_K, BLOCK_R=block_r, num_warps=WARPS,
        )  # fmt: skip


def compiles(kernel, ranks: tuple[int, ...] = (8, 64)) -> tuple[Compile, ...]:
    """What to compile of a kernel: both dtypes at a thin and a wide waist."""
    found = []
    for rank in ranks:
        for kind, dtype in (("fp32", torch.float32), ("fp16", torch.float16)):
            block_t, block_r = blocks(rank, dtype)
            signature = {}
            for name in kernel.arg_names:
                if name.startswith("BLOCK"):
                    continue
                wide = name in ("hidden_ptr", "weights_ptr")
                if name == "experts_ptr":
                    signature[name] = "*i32"
                elif name.endswith("_ptr"):
                    signature[name] = "*fp32" if wide else f"*{kind}"
                else:
                    signature[name] = "i32"
            found.append(
                Compile(
                    f"r{rank} {kind}",
                    kernel,
                    signature=signature,
                    constants={
                        name: {"BLOCK_T": block_t, "BLOCK_R": block_r}.get(
                            name, BLOCK_K
                        )
                        for name in kernel.arg_names
                        if name.startswith("BLOCK")
                    },
                    num_warps=WARPS,
                    matrix_units=kind == "fp16",
                    targets=("sm_80", "sm_90", "sm_100", "gfx942"),
                )
            )
    return tuple(found)
