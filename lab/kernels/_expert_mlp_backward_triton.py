"""The Triton side of `expert_mlp_backward`.

Five launches: dz with h recomputed beside it, two gradients of weights, the
gradient of the rows, and the sum of each token's rows. Each output element
has one program that adds its terms in a fixed order: no atomics.
"""

import triton
import triton.language as tl
from torch import Tensor

from lab.kernels._expert_mlp_triton import bins, choose_tiles, find_tile


@triton.jit
def expert_hidden_backward_kernel(
    grad_ptr, w_down_ptr, hidden_ptr, offsets_ptr,
    active_ptr, grad_hidden_ptr,
    E, H, F,
    ACTIVATION: tl.constexpr, BINS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """dh = dy W_down^T, and from the kept z both h [R, F] and dz [R, G]."""
    columns = tl.cdiv(F, BLOCK_N)
    expert, first_row, end = find_tile(
        offsets_ptr, tl.program_id(0) // columns, E, BLOCK_M, BINS
    )
    if expert == E:
        return
    row = first_row.to(tl.int64) + tl.arange(0, BLOCK_M)
    n = tl.program_id(0) % columns * BLOCK_N + tl.arange(0, BLOCK_N)
    w_at = w_down_ptr + (expert.to(tl.int64) * F + n[None, :]) * H
    dh = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in range(0, H, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        dy = tl.load(
            grad_ptr + row[:, None] * H + k[None, :],
            mask=(row[:, None] < end) & (k[None, :] < H), other=0.0,
        )  # fmt: skip
        w = tl.load(
            w_at + k[:, None],
            mask=(k[:, None] < H) & (n[None, :] < F), other=0.0,
        )  # fmt: skip
        dh = tl.dot(dy, w, dh, input_precision="ieee")

    inside = (row[:, None] < end) & (n[None, :] < F)
    dtype = active_ptr.dtype.element_ty
    G = 2 * F if ACTIVATION == "swiglu" else F
    at = row[:, None] * G + n[None, :]
    z = tl.load(hidden_ptr + at, mask=inside, other=0.0).to(tl.float32)
    if ACTIVATION == "relu":
        h = tl.maximum(z, 0.0)
        dz = tl.where(z > 0.0, dh, 0.0)
    elif ACTIVATION == "gelu":
        below = 0.5 * (1.0 + tl.erf(z * 0.7071067811865476))
        density = 0.3989422804014327 * tl.exp(-0.5 * z * z)
        h = z * below
        dz = dh * (below + z * density)
    else:
        u = tl.load(hidden_ptr + at + F, mask=inside, other=0.0).to(tl.float32)
        s = tl.sigmoid(z)
        h = z * s * u
        dz = dh * u * s * (1.0 + z * (1.0 - s))
        du = dh * z * s
        tl.store(grad_hidden_ptr + at + F, du.to(dtype), mask=inside)
    tl.store(grad_hidden_ptr + at, dz.to(dtype), mask=inside)
    at = row[:, None] * F + n[None, :]
    tl.store(active_ptr + at, h.to(dtype), mask=inside)


@triton.jit
def expert_weight_backward_kernel(
    a_ptr, b_ptr, pairs_ptr, offsets_ptr, out_ptr,
    S, M, N,
    GATHER: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Sum over an expert's rows of a^T b, [M, N]; the rows of ``a`` are
    those of the tokens if GATHER. One program adds all rows of a tile."""
    expert = tl.program_id(1)
    columns = tl.cdiv(N, BLOCK_N)
    m = tl.program_id(0) // columns * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(0) % columns * BLOCK_N + tl.arange(0, BLOCK_N)
    begin = tl.load(offsets_ptr + expert)
    end = tl.load(offsets_ptr + expert + 1)
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in range(begin, end, BLOCK_K):
        row = (start + tl.arange(0, BLOCK_K)).to(tl.int64)
        a_row = row
        if GATHER:
            pair = tl.load(pairs_ptr + row, mask=row < end, other=0)
            a_row = (pair // S).to(tl.int64)
        # transposed: [BLOCK_M, BLOCK_K]
        a = tl.load(
            a_ptr + a_row[None, :] * M + m[:, None],
            mask=(row[None, :] < end) & (m[:, None] < M), other=0.0,
        )  # fmt: skip
        b = tl.load(
            b_ptr + row[:, None] * N + n[None, :],
            mask=(row[:, None] < end) & (n[None, :] < N), other=0.0,
        )  # fmt: skip
        total = tl.dot(a, b, total, input_precision="ieee")
    at = expert.to(tl.int64) * M * N + m[:, None] * N + n[None, :]
    tl.store(
        out_ptr + at,
        total.to(out_ptr.dtype.element_ty),
        mask=(m[:, None] < M) & (n[None, :] < N),
    )


def hidden_backward(grad, w_down, hidden, offsets, activation):
    """Launch the first kernel; returns h [R, F] and dz [R, G]."""
    R, (E, F, H) = len(grad), w_down.shape
    tiles = choose_tiles(grad.dtype, R / E)
    n = tiles.n // 2  # z, its other half and h need the other registers
    active, grad_hidden = grad.new_empty(R, F), grad.new_empty(hidden.shape)
    if R:
        grid = ((triton.cdiv(R, tiles.m) + E) * triton.cdiv(F, n),)
        expert_hidden_backward_kernel[grid](
            grad.contiguous(), w_down.contiguous(), hidden.contiguous(),
            offsets.contiguous(), active, grad_hidden,
            E, H, F,
            ACTIVATION=activation, BINS=bins(E),
            BLOCK_M=tiles.m, BLOCK_N=n, BLOCK_K=tiles.k,
            num_warps=tiles.warps, num_stages=tiles.stages,
        )  # fmt: skip
    return active, grad_hidden


def weight_backward(
    a: Tensor, b: Tensor, pairs: Tensor, offsets: Tensor, slots: int | None
) -> Tensor:
    """Launch the second kernel: [E, M, N] from rows a [R, M] and b [R, N].

    With ``slots`` S, ``a`` holds tokens and row r takes token pairs[r] // S.
    """
    E, M, N = len(offsets) - 1, a.shape[1], b.shape[1]
    # the rows are summed over here: their number does not limit the tile
    tiles = choose_tiles(a.dtype, 128)
    out = a.new_empty(E, M, N)
    grid = (triton.cdiv(M, tiles.m) * triton.cdiv(N, tiles.n), E)
    expert_weight_backward_kernel[grid](
        a.contiguous(), b.contiguous(), pairs.contiguous(),
        offsets.contiguous(), out,
        slots or 1, M, N,
        GATHER=slots is not None,
        BLOCK_M=tiles.m, BLOCK_N=tiles.n, BLOCK_K=tiles.k,
        num_warps=tiles.warps, num_stages=tiles.stages,
    )  # fmt: skip
    return out
