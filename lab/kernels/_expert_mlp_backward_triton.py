"""The Triton side of `expert_mlp_backward`.

Five launches: dz with h recomputed beside it, two gradients of weights, the
gradient of the rows, and the sum of each token's rows. Each output element
has one program that adds its terms in a fixed order: no atomics.
"""

import contextvars
from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor

from lab.kernels import runtime
from lab.kernels._expert_mlp_triton import (
    copies_tiles,
    find_tile,
    halves,
    in_groups,
    relu,
)
from lab.kernels._expert_tiles import (
    Tiles,
    choose_hidden_tiles,
    choose_weight_tiles,
)
from lab.kernels._three_parts import add_product, is_whole, splits
from lab.kernels.dispatch import lanes


@triton.jit
def expert_hidden_backward_kernel(
    grad_ptr, w_down_ptr, hidden_ptr, offsets_ptr,
    active_ptr, grad_hidden_ptr,
    E, H, F, stride_wk, stride_wn,
    ACTIVATION: tl.constexpr, EVEN: tl.constexpr,
    SPLIT: tl.constexpr, BINS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """dh = dy W_down^T, and from the kept z both h [R, F] and dz [R, G].

    W_down^T [H, F] may have any strides. EVEN: tiles cover H and F exactly.
    SPLIT: fp32 numbers go in three parts, see `add_product`.
    """
    expert, first_row, end, column = find_tile(
        offsets_ptr, tl.program_id(0), tl.cdiv(F, BLOCK_N), E, BLOCK_M, BINS
    )
    if expert == E:
        return
    row = first_row.to(tl.int64) + tl.arange(0, BLOCK_M)
    first_n = column * BLOCK_N
    n = first_n + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    # past the end, repeat the last row; its results are not stored
    dy_at = grad_ptr + tl.minimum(row, end - 1)[:, None] * H + k[None, :]
    w_at = w_down_ptr + expert.to(tl.int64) * F * H
    w_at += k[:, None].to(tl.int64) * stride_wk + n[None, :] * stride_wn
    dh = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in range(0, H, BLOCK_K):
        if EVEN:
            dy = tl.load(dy_at + start)
            w = tl.load(w_at + tl.cast(start, tl.int64) * stride_wk)
        else:
            inside = start + k < H
            dy = tl.load(dy_at + start, mask=inside[None, :], other=0.0)
            inside = inside[:, None] & (n < F)[None, :]
            step = tl.cast(start, tl.int64) * stride_wk
            w = tl.load(w_at + step, mask=inside, other=0.0)
        dh = add_product(dy, w, dh, SPLIT)

    G = 2 * F if ACTIVATION == "swiglu" else F
    hidden_ptr += row[:, None] * G
    grad_hidden_ptr += row[:, None] * G
    active_ptr += row[:, None] * F
    # one piece after the other: all together would spill registers
    if BLOCK_N >= 256:
        left, right = halves(dh)
        HALF: tl.constexpr = BLOCK_N // 2
        store_in_quarters(
            left, hidden_ptr, active_ptr, grad_hidden_ptr, row, end,
            first_n, F, ACTIVATION,
        )  # fmt: skip
        store_in_quarters(
            right, hidden_ptr, active_ptr, grad_hidden_ptr, row, end,
            first_n + HALF, F, ACTIVATION,
        )  # fmt: skip
    elif BLOCK_N >= 128:
        store_in_quarters(
            dh, hidden_ptr, active_ptr, grad_hidden_ptr, row, end,
            first_n, F, ACTIVATION,
        )  # fmt: skip
    else:
        store_hidden_gradient(
            dh, hidden_ptr, active_ptr, grad_hidden_ptr, row, end,
            first_n, F, ACTIVATION,
        )  # fmt: skip


@triton.jit
def store_in_quarters(
    dh, hidden_at, active_at, grad_hidden_at, row, end, first_n, F,
    ACTIVATION: tl.constexpr,
):  # fmt: skip
    """`store_hidden_gradient`, one quarter of the columns after the other."""
    QUARTER: tl.constexpr = dh.shape[1] // 4
    left, right = halves(dh)
    quarters = halves(left) + halves(right)
    for i in tl.static_range(4):
        store_hidden_gradient(
            quarters[i], hidden_at, active_at, grad_hidden_at, row, end,
            first_n + i * QUARTER, F, ACTIVATION,
        )  # fmt: skip


@triton.jit
def store_hidden_gradient(
    dh, hidden_at, active_at, grad_hidden_at, row, end, first_n, F,
    ACTIVATION: tl.constexpr,
):  # fmt: skip
    """Store the columns of h and dz from ``first_n`` on, given dh and z."""
    n = first_n + tl.arange(0, dh.shape[1])[None, :]
    inside = (row[:, None] < end) & (n < F)
    dtype = active_at.dtype.element_ty
    z = tl.load(hidden_at + n, mask=inside, other=0.0).to(tl.float32)
    if ACTIVATION == "relu":
        h = relu(z)
        dz = tl.where(z > 0.0, dh, 0.0)
    elif ACTIVATION == "gelu":
        below = 0.5 * (1.0 + tl.erf(z * 0.7071067811865476))
        density = 0.3989422804014327 * tl.exp(-0.5 * z * z)
        h = z * below
        dz = dh * (below + z * density)
    else:
        u = tl.load(hidden_at + F + n, mask=inside, other=0.0).to(tl.float32)
        s = tl.sigmoid(z)
        h = z * s * u
        dz = dh * u * s * (1.0 + z * (1.0 - s))
        du = dh * z * s
        tl.store(grad_hidden_at + F + n, du.to(dtype), mask=inside)
    tl.store(grad_hidden_at + n, dz.to(dtype), mask=inside)
    tl.store(active_at + n, h.to(dtype), mask=inside)


@triton.jit
def expert_weight_backward_kernel(
    a_ptr, b_ptr, pairs_ptr, offsets_ptr, out_ptr,
    M, N,
    S: tl.constexpr, GATHER: tl.constexpr, EVEN: tl.constexpr,
    SPLIT: tl.constexpr, BY_TILE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Sum over an expert's rows of a^T b, [M, N].

    One program sums all rows for its tile. GATHER: ``a`` holds tokens, which
    are gathered by row. EVEN: tiles cover M and N exactly. SPLIT: fp32 numbers
    go in three parts, see `add_product`. BY_TILE: hardware copies the tiles,
    by a descriptor that ends with the expert's rows, so that rows past them
    count as 0.
    """
    expert = tl.program_id(1)
    tile, column = in_groups(
        tl.program_id(0), tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N)
    )
    m = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    n = column * BLOCK_N + tl.arange(0, BLOCK_N)
    begin = tl.load(offsets_ptr + expert)
    end = tl.load(offsets_ptr + expert + 1)
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    k = tl.arange(0, BLOCK_K)
    if BY_TILE:
        b_desc = tl.make_tensor_descriptor(
            b_ptr, [end, N], [N, 1], [BLOCK_K, BLOCK_N]
        )
        if not GATHER:
            a_desc = tl.make_tensor_descriptor(
                a_ptr, [end, M], [M, 1], [BLOCK_K, BLOCK_M]
            )
    if GATHER:
        # past the end, repeat the last row: b is 0 there
        at = tl.minimum(begin + k, end - 1)
        pair = tl.load(pairs_ptr + at, mask=at >= begin, other=0)
    for start in range(begin, end, BLOCK_K):
        row = start + k
        inside = row < end
        a_row = row
        if GATHER:
            a_row = pair // S
            # loaded a step ahead: an address that waits for a load would cost
            # the pipeline of the tiles half its stages
            pair = tl.load(pairs_ptr + tl.minimum(row + BLOCK_K, end - 1))
        # transposed: [BLOCK_M, BLOCK_K]
        a_at = a_ptr + a_row.to(tl.int64)[None, :] * M + m[:, None]
        b_at = b_ptr + row.to(tl.int64)[:, None] * N + n[None, :]
        if BY_TILE:
            if GATHER:
                a = tl.load(a_at)
            else:
                a = a_desc.load([start, tile * BLOCK_M]).T
            b = b_desc.load([start, column * BLOCK_N])
        elif EVEN:
            a = tl.load(a_at, mask=inside[None, :], other=0.0)
            b = tl.load(b_at, mask=inside[:, None], other=0.0)
        else:
            mask = inside[None, :] & (m < M)[:, None]
            a = tl.load(a_at, mask=mask, other=0.0)
            mask = inside[:, None] & (n < N)[None, :]
            b = tl.load(b_at, mask=mask, other=0.0)
        total = add_product(a, b, total, SPLIT)
    at = expert.to(tl.int64) * M * N + m[:, None] * N + n[None, :]
    tl.store(
        out_ptr + at,
        total.to(out_ptr.dtype.element_ty),
        mask=(m[:, None] < M) & (n[None, :] < N),
    )


def transposed(weight: Tensor) -> Tensor:
    """Each expert's matrix transposed, [E, K, N] to [E, N, K].

    The result is a view, or a copy where lanes would wait for one another, 16
    at a time (see `is_whole`).
    """
    return weight.mT.contiguous() if is_whole(weight) else weight.mT


def hidden_backward(grad, w_down, hidden, offsets, activation, tiles=None):
    """Launch the first kernel; returns h [R, F] and dz [R, G]."""
    R, (E, F, H) = grad.shape[0], w_down.shape
    target = runtime.target(grad)
    if tiles is None:
        tiles = choose_hidden_tiles(grad.dtype, R / E, target)
    active, grad_hidden = grad.new_empty(R, F), grad.new_empty(hidden.shape)
    if R:
        weight = transposed(w_down.contiguous())
        grid = ((runtime.cdiv(R, tiles.m) + E) * runtime.cdiv(F, tiles.n),)
        expert_hidden_backward_kernel[grid](
            grad.contiguous(), weight, hidden.contiguous(),
            offsets.contiguous(), active, grad_hidden,
            E, H, F, *weight.stride()[1:],
            ACTIVATION=activation,
            EVEN=H % tiles.k == 0 and F % tiles.n == 0,
            SPLIT=splits(grad.dtype, target), BINS=lanes(E),
            BLOCK_M=tiles.m, BLOCK_N=tiles.n, BLOCK_K=tiles.k,
            num_warps=tiles.warps, num_stages=tiles.stages,
        )  # fmt: skip
    return active, grad_hidden


def weight_backward(
    a: Tensor,
    b: Tensor,
    pairs: Tensor,
    offsets: Tensor,
    slots: int | None,
    tiles: Tiles | None = None,
) -> Tensor:
    """Launch the second kernel: [E, M, N] from rows a [R, M] and b [R, N].

    With ``slots`` S, ``a`` holds tokens and row r takes token pairs[r] // S.
    """
    E, M, N = offsets.shape[0] - 1, a.shape[1], b.shape[1]
    target = runtime.target(a)
    if tiles is None:
        tiles = choose_weight_tiles(a.dtype, b.shape[0] / E, target)
    a, b = a.contiguous(), b.contiguous()
    out = a.new_empty(E, M, N)
    grid = (runtime.cdiv(M, tiles.m) * runtime.cdiv(N, tiles.n), E)
    even = M % tiles.m == 0 and N % tiles.n == 0
    by_tile = even and tiles.n >= 256 and copies_tiles(a, b)

    def launch():
        expert_weight_backward_kernel[grid](
            a, b, pairs.contiguous(), offsets.contiguous(), out,
            M, N,
            S=slots or 1, GATHER=slots is not None, EVEN=even,
            SPLIT=splits(a.dtype, target), BY_TILE=by_tile,
            BLOCK_M=tiles.m, BLOCK_N=tiles.n, BLOCK_K=tiles.k,
            num_warps=tiles.warps, num_stages=tiles.stages,
        )  # fmt: skip

    if by_tile:
        with_scratch(a, launch)
    else:
        launch()
    return out


def with_scratch(tensor: Tensor, launch: Callable[[], None]) -> None:
    """Launch a kernel that describes tensors to the GPU while it runs.

    Triton asks for the memory of the descriptors through a context variable.
    It is set in a copy of the context, so that an allocator of your own stays
    in place.
    """

    def allocate(size, alignment, stream):
        return tensor.new_empty(size, dtype=torch.int8)

    def inside():
        triton.set_allocator(allocate)
        launch()

    contextvars.copy_context().run(inside)
