"""The Triton side of `expert_mlp`: two grouped matrix products.

Rows are sorted by expert, so every tile of BLOCK_M rows can belong to a single
expert if each expert's last tile may be short. That makes at most
R / BLOCK_M + E tiles (rounded up), a bound that the host knows. The grid is
that large, each program finds its own tile from the offsets, and programs
without a tile return immediately. No table is built and no number travels to
the host.
"""

import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from lab.kernels import runtime
from lab.kernels._expert_tiles import HOPPER, Tiles, choose_tiles
from lab.kernels._three_parts import add_product, splits
from lab.kernels.dispatch import lanes


@triton.jit
def find_tile(
    offsets_ptr, program, columns, E,
    BLOCK_M: tl.constexpr, BINS: tl.constexpr,
):  # fmt: skip
    """Where a program's tile lies: its expert, its first row, where that
    expert ends, and which of ``columns`` tiles in a row it is.

    A program for which no tile is left gets the expert E. The tiles of one
    expert come in the order of `in_groups`.
    """
    e = tl.arange(0, BINS)
    begin, end, tiles = tiles_of_each(offsets_ptr, E, BLOCK_M, BINS)
    last = tl.cumsum(tiles, 0)
    before = (last * columns <= program) & (e < E)
    expert = tl.sum(before.to(tl.int32), 0)
    mine = e == expert
    # where there is no tile, the numbers below are not used
    rank = program - tl.sum(tl.where(mine, last - tiles, 0), 0) * columns
    high = tl.sum(tl.where(mine, tiles, 0), 0)
    tile, column = in_groups(rank, high, columns)
    first_row = tl.sum(tl.where(mine, begin, 0), 0) + tile * BLOCK_M
    return expert, first_row, tl.sum(tl.where(mine, end, 0), 0), column


@triton.jit
def tiles_of_each(
    offsets_ptr, E, BLOCK_M: tl.constexpr, BINS: tl.constexpr
):  # fmt: skip
    """Where each expert's rows begin and end, and how many tiles they fill."""
    e = tl.arange(0, BINS)
    begin = tl.load(offsets_ptr + e, mask=e < E, other=0)
    end = tl.load(offsets_ptr + e + 1, mask=e < E, other=0)
    return begin, end, (end - begin + BLOCK_M - 1) // BLOCK_M


@triton.jit
def in_groups(rank, high, wide):
    """Row and column of a tile among ``high`` times ``wide`` of them.

    Tiles that run at the same time should cover an area about as high as
    wide: they share the rows and columns that they read, and the cache holds
    both. So the order takes 16 rows of tiles at a time, column after column.
    """
    GROUP: tl.constexpr = 16
    first = rank // (GROUP * wide) * GROUP
    rows = tl.maximum(tl.minimum(high - first, GROUP), 1)
    rank -= first * wide
    return first + rank % rows, rank // rows


@triton.jit
def relu(z):
    # not the maximum, which on a GPU turns NaN into 0
    return tl.where(z < 0.0, 0.0, z)


@triton.jit
def gelu(z):
    return z * 0.5 * (1.0 + tl.erf(z * 0.7071067811865476))


@triton.jit
def halves(x):
    """The left and right half of a tile's columns; no register moves."""
    ROWS: tl.constexpr = x.shape[0]
    COLUMNS: tl.constexpr = x.shape[1]
    x = tl.reshape(x, (ROWS, 2, COLUMNS // 2))
    return tl.split(tl.permute(x, (0, 2, 1)))


@triton.jit
def expert_up_kernel(
    tokens_ptr, pairs_ptr, offsets_ptr, w_up_ptr, hidden_ptr, active_ptr,
    E, H, F,
    S: tl.constexpr, ACTIVATION: tl.constexpr, KEEP: tl.constexpr,
    EVEN: tl.constexpr, SPLIT: tl.constexpr, BINS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """First product: rows gathered by pointer, activation at the end.

    Writes act(x W_up) [R, F], and x W_up [R, G] if a gradient needs it. A
    tile of the product has BLOCK_N columns; for swiglu half of them are gates
    and half are their partners, F columns further on. EVEN: tiles cover H and
    F exactly. SPLIT: fp32 numbers go in three parts, see `add_product`.
    """
    HALVES: tl.constexpr = 2 if ACTIVATION == "swiglu" else 1
    WIDTH: tl.constexpr = BLOCK_N // HALVES
    expert, first_row, end, column = find_tile(
        offsets_ptr, tl.program_id(0), tl.cdiv(F, WIDTH), E, BLOCK_M, BINS
    )
    if expert == E:
        return
    row = first_row + tl.arange(0, BLOCK_M)
    # past the end, repeat the last row; its results are not stored
    pair = tl.load(pairs_ptr + tl.minimum(row, end - 1))
    token = (pair // S).to(tl.int64)
    first_n = column * WIDTH
    G = HALVES * F
    half = tl.arange(0, BLOCK_N) // WIDTH
    n = first_n + tl.arange(0, BLOCK_N) % WIDTH
    k = tl.arange(0, BLOCK_K)
    x_at = tokens_ptr + token[:, None] * H + k[None, :]
    w_at = w_up_ptr + expert.to(tl.int64) * H * G + k[:, None].to(tl.int64) * G
    w_at += (n + half * F)[None, :]
    z = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in range(0, H, BLOCK_K):
        if EVEN:
            x = tl.load(x_at + start)
            w = tl.load(w_at + tl.cast(start, tl.int64) * G)
        else:
            inside = start + k < H
            x = tl.load(x_at + start, mask=inside[None, :], other=0.0)
            inside = inside[:, None] & (n < F)[None, :]
            step = tl.cast(start, tl.int64) * G
            w = tl.load(w_at + step, mask=inside, other=0.0)
        z = add_product(x, w, z, SPLIT)

    row = row.to(tl.int64)
    hidden_ptr += row[:, None] * G
    active_ptr += row[:, None] * F
    if ACTIVATION == "swiglu":
        z, u = halves(z)
    else:
        u = z
    if BLOCK_N >= 256:
        # one half after the other: both together would spill registers
        z, right_z = halves(z)
        u, right_u = halves(u)
        store_active(
            right_z, right_u, hidden_ptr, active_ptr, row, end,
            first_n + WIDTH // 2, F, ACTIVATION, KEEP,
        )  # fmt: skip
    store_active(
        z, u, hidden_ptr, active_ptr, row, end, first_n, F, ACTIVATION, KEEP
    )


@triton.jit
def store_active(
    z, u, hidden_at, active_at, row, end, first_n, F,
    ACTIVATION: tl.constexpr, KEEP: tl.constexpr,
):  # fmt: skip
    """Store the columns of act(z), or of act([z, u]), from ``first_n`` on,
    and those of z and u if KEEP."""
    n = first_n + tl.arange(0, z.shape[1])[None, :]
    inside = (row[:, None] < end) & (n < F)
    dtype = active_at.dtype.element_ty
    if KEEP:
        tl.store(hidden_at + n, z.to(dtype), mask=inside)
        if ACTIVATION == "swiglu":
            tl.store(hidden_at + F + n, u.to(dtype), mask=inside)
    if ACTIVATION == "relu":
        h = relu(z)
    elif ACTIVATION == "gelu":
        h = gelu(z)
    else:
        h = z * tl.sigmoid(z) * u
    tl.store(active_at + n, h.to(dtype), mask=inside)


@triton.jit
def expert_product_kernel(
    a_ptr, w_ptr, out_ptr, offsets_ptr,
    E, K, N, stride_we, stride_wk, stride_wn,
    EVEN: tl.constexpr, SPLIT: tl.constexpr, BINS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Rows a [R, K] times their expert's matrix [K, N] of any strides."""
    expert, first_row, end, column = find_tile(
        offsets_ptr, tl.program_id(0), tl.cdiv(N, BLOCK_N), E, BLOCK_M, BINS
    )
    if expert == E:
        return
    row = first_row.to(tl.int64) + tl.arange(0, BLOCK_M)
    n = column * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    # past the end, repeat the last row; its results are not stored
    a_at = a_ptr + tl.minimum(row, end - 1)[:, None] * K + k[None, :]
    w_at = w_ptr + expert.to(tl.int64) * stride_we
    w_at += k[:, None].to(tl.int64) * stride_wk + n[None, :] * stride_wn
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in range(0, K, BLOCK_K):
        if EVEN:
            a = tl.load(a_at + start)
            w = tl.load(w_at + tl.cast(start, tl.int64) * stride_wk)
        else:
            inside = start + k < K
            a = tl.load(a_at + start, mask=inside[None, :], other=0.0)
            inside = inside[:, None] & (n < N)[None, :]
            step = tl.cast(start, tl.int64) * stride_wk
            w = tl.load(w_at + step, mask=inside, other=0.0)
        total = add_product(a, w, total, SPLIT)
    tl.store(
        out_ptr + row[:, None] * N + n[None, :],
        total.to(out_ptr.dtype.element_ty),
        mask=(row[:, None] < end) & (n[None, :] < N),
    )


@triton.jit
def expert_product_tma_kernel(
    a_desc, w_desc, out_ptr, offsets_ptr,
    E, K, N,
    TRANSPOSED: tl.constexpr, PROGRAMS: tl.constexpr, BINS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """`expert_product_kernel` for a GPU with hardware that copies tiles.

    No thread computes an address. Each program works on one tile after the
    other, so that the copies for the next tile begin while this one is
    stored. Tiles cover K exactly. The weights are laid out as [E K, N], or as
    [E N, K] if TRANSPOSED.
    """
    columns = tl.cdiv(N, BLOCK_N)
    _, _, high = tiles_of_each(offsets_ptr, E, BLOCK_M, BINS)
    tiles = tl.sum(high, 0) * columns
    for tile in tl.range(tl.program_id(0), tiles, PROGRAMS, flatten=True):
        expert, first_row, end, column = find_tile(
            offsets_ptr, tile, columns, E, BLOCK_M, BINS
        )
        first_n = column * BLOCK_N
        total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        for start in range(0, K, BLOCK_K):
            a = a_desc.load([first_row, start])
            if TRANSPOSED:
                w = w_desc.load([expert * N + first_n, start]).T
            else:
                w = w_desc.load([expert * K + start, first_n])
            total = tl.dot(a, w, total, input_precision="ieee")
        row = first_row.to(tl.int64) + tl.arange(0, BLOCK_M)
        n = first_n + tl.arange(0, BLOCK_N)
        tl.store(
            out_ptr + row[:, None] * N + n[None, :],
            total.to(out_ptr.dtype.element_ty),
            mask=(row[:, None] < end) & (n[None, :] < N),
        )


def up(tokens, pairs, rows, offsets, w_up, activation, keep, tiles=None):
    """Launch the first product; returns act(z) and z (or an empty z)."""
    R, (E, H, G) = pairs.shape[0], w_up.shape
    F = G // 2 if activation == "swiglu" else G
    target = runtime.target(tokens)
    if tiles is None:
        tiles = choose_tiles(tokens.dtype, R / E, target)
    active = tokens.new_empty(R, F)
    hidden = tokens.new_empty(R if keep else 0, G)
    width = tiles.n // 2 if activation == "swiglu" else tiles.n
    if R:
        grid = ((runtime.cdiv(R, tiles.m) + E) * runtime.cdiv(F, width),)
        expert_up_kernel[grid](
            tokens.contiguous(), pairs.contiguous(), offsets.contiguous(),
            w_up.contiguous(), hidden if keep else active, active,
            E, H, F,
            S=rows.shape[1], ACTIVATION=activation, KEEP=keep,
            EVEN=H % tiles.k == 0 and F % width == 0,
            SPLIT=splits(tokens.dtype, target), BINS=lanes(E),
            BLOCK_M=tiles.m, BLOCK_N=tiles.n, BLOCK_K=tiles.k,
            num_warps=tiles.warps, num_stages=tiles.stages,
        )  # fmt: skip
    return active, hidden


def product(
    a: Tensor, weight: Tensor, offsets: Tensor, tiles: Tiles | None = None
) -> Tensor:
    """Each row of a [R, K] times its expert's matrix of weight [E, K, N]."""
    R, (E, K, N) = a.shape[0], weight.shape
    target = runtime.target(a)
    if tiles is None:
        tiles = choose_tiles(a.dtype, R / E, target)
    out = a.new_empty(R, N)
    if not R:
        return out
    a, offsets = a.contiguous(), offsets.contiguous()
    blocks = {
        "BINS": lanes(E), "BLOCK_M": tiles.m, "BLOCK_N": tiles.n,
        "BLOCK_K": tiles.k, "num_warps": tiles.warps,
        "num_stages": tiles.stages,
    }  # fmt: skip
    count = (runtime.cdiv(R, tiles.m) + E) * runtime.cdiv(N, tiles.n)
    programs = runtime.multiprocessors(a)
    # descriptors do not pay if no program has a second tile
    if count > programs and suits_descriptors(a, weight, tiles):
        transposed = weight.stride(2) != 1
        flat = (weight.mT if transposed else weight).flatten(0, 1)
        tile = [tiles.n, tiles.k] if transposed else [tiles.k, tiles.n]
        expert_product_tma_kernel[(programs,)](
            TensorDescriptor.from_tensor(a, [tiles.m, tiles.k]),
            TensorDescriptor.from_tensor(flat, tile),
            out, offsets, E, K, N,
            TRANSPOSED=transposed, PROGRAMS=programs, **blocks,
        )  # fmt: skip
        return out
    expert_product_kernel[(count,)](
        a, weight, out, offsets, E, K, N, *weight.stride(),
        EVEN=K % tiles.k == 0 and N % tiles.n == 0,
        SPLIT=splits(a.dtype, target), **blocks,
    )  # fmt: skip
    return out


def suits_descriptors(a: Tensor, weight: Tensor, tiles: Tiles) -> bool:
    """Whether `expert_product_tma_kernel` can and should do this product.

    With few rows per expert it would not pay: describing the tensors costs
    the host more time than the kernel saves.
    """
    E, K, N = weight.shape
    dense = weight if weight.stride(2) == 1 else weight.mT
    return (
        tiles.m >= 128
        and K % tiles.k == 0
        and dense.is_contiguous()
        and copies_tiles(a, dense)
    )


def copies_tiles(*matrices: Tensor) -> bool:
    """Whether hardware copies tiles of these contiguous matrices: on HOPPER,
    in 16 bits, if rows begin at multiples of 16 bytes."""
    return runtime.target(matrices[0]) in HOPPER and all(
        x.itemsize == 2 and x.shape[-1] % 8 == 0 and x.data_ptr() % 16 == 0
        for x in matrices
    )
