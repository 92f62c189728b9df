"""The Triton side of `expert_mlp`: two grouped matrix products.

Rows are sorted by expert, so a tile of BLOCK_M rows belongs to one expert if
each expert's last tile may be short. That makes at most R / BLOCK_M + E tiles
(rounded up), a bound the host knows: the grid is that large, each program
finds its own tile among the offsets, and those without one leave at once. No
table is built and no number travels to the host.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from lab.kernels.declaration import Compile

BF16, FP32 = torch.bfloat16, torch.float32
# every tile that `choose_tiles` knows, as what asks for it
EACH_TILE = (
    (BF16, 1024), (BF16, 64), (BF16, 24), (BF16, 8), (FP32, 1024), (FP32, 8),
)  # fmt: skip
NVIDIA = ("sm_80", "sm_90", "sm_100")


class Tiles(NamedTuple):
    """One launch: rows x columns of a tile, step along the sum, warps."""

    m: int
    n: int
    k: int
    warps: int
    stages: int


def choose_tiles(
    dtype: torch.dtype, mean: float, hip: bool = bool(torch.version.hip)
) -> Tiles:
    """Tiles for a mean number of rows per expert: small experts would leave
    large tiles empty. No autotuner: a first call costs one compilation."""
    if dtype == torch.float32:
        # no matrix units in full precision: registers set the limit
        return (
            Tiles(64, 64, 32, 8, 2) if mean > 32 else Tiles(16, 64, 32, 4, 2)
        )
    # three stages of two 128 x 64 tiles fill more than an AMD chip's 64 KiB
    stages = 2 if hip else 3
    if mean > 96:
        return Tiles(128, 128, 64, 8, stages)
    if mean > 32:
        return Tiles(64, 128, 64, 4, stages)
    return Tiles(16 if mean <= 16 else 32, 128, 64, 4, stages)


@triton.jit
def find_tile(offsets_ptr, tile, E, BLOCK_M: tl.constexpr, BINS: tl.constexpr):
    """The expert of a tile, its first row, and where that expert ends.

    An expert that no tile has left over is E; then first row = end = 0.
    """
    e = tl.arange(0, BINS)
    begin = tl.load(offsets_ptr + e, mask=e < E, other=0)
    end = tl.load(offsets_ptr + e + 1, mask=e < E, other=0)
    tiles = (end - begin + BLOCK_M - 1) // BLOCK_M
    last = tl.cumsum(tiles, 0)
    expert = tl.sum(((last <= tile) & (e < E)).to(tl.int32), 0)
    mine = e == expert
    first = begin + (tile - last + tiles) * BLOCK_M
    first_row = tl.sum(tl.where(mine & (e < E), first, 0), 0)
    return expert, first_row, tl.sum(tl.where(mine, end, 0), 0)


@triton.jit
def gelu(z):
    return z * 0.5 * (1.0 + tl.erf(z * 0.7071067811865476))


@triton.jit
def expert_up_kernel(
    tokens_ptr, pairs_ptr, offsets_ptr, w_up_ptr, hidden_ptr, active_ptr,
    E, S, H, F,
    ACTIVATION: tl.constexpr, KEEP: tl.constexpr, BINS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """First product: rows gathered by pointer, activation at the end.

    Writes act(x W_up) [R, F], and x W_up [R, G] if a gradient needs it.
    """
    columns = tl.cdiv(F, BLOCK_N)
    # neighbours share their rows of x and sweep one expert's weights
    expert, first_row, end = find_tile(
        offsets_ptr, tl.program_id(0) // columns, E, BLOCK_M, BINS
    )
    if expert == E:
        return
    row = first_row.to(tl.int64) + tl.arange(0, BLOCK_M)
    pair = tl.load(pairs_ptr + row, mask=row < end, other=0)
    token = (pair // S).to(tl.int64)
    n = tl.program_id(0) % columns * BLOCK_N + tl.arange(0, BLOCK_N)
    G = 2 * F if ACTIVATION == "swiglu" else F
    x_at = tokens_ptr + token[:, None] * H
    w_at = w_up_ptr + expert.to(tl.int64) * H * G + n[None, :]
    z = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    u = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in range(0, H, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        x = tl.load(
            x_at + k[None, :],
            mask=(row[:, None] < end) & (k[None, :] < H), other=0.0,
        )  # fmt: skip
        inside = (k[:, None] < H) & (n[None, :] < F)
        w = tl.load(w_at + k[:, None] * G, mask=inside, other=0.0)
        z = tl.dot(x, w, z, input_precision="ieee")
        if ACTIVATION == "swiglu":
            w = tl.load(w_at + k[:, None] * G + F, mask=inside, other=0.0)
            u = tl.dot(x, w, u, input_precision="ieee")

    inside = (row[:, None] < end) & (n[None, :] < F)
    dtype = active_ptr.dtype.element_ty
    if KEEP:
        at = hidden_ptr + row[:, None] * G + n[None, :]
        tl.store(at, z.to(dtype), mask=inside)
        if ACTIVATION == "swiglu":
            tl.store(at + F, u.to(dtype), mask=inside)
    if ACTIVATION == "relu":
        h = tl.maximum(z, 0.0)
    elif ACTIVATION == "gelu":
        h = gelu(z)
    else:
        h = z * tl.sigmoid(z) * u
    at = active_ptr + row[:, None] * F + n[None, :]
    tl.store(at, h.to(dtype), mask=inside)


@triton.jit
def expert_product_kernel(
    a_ptr, w_ptr, out_ptr, offsets_ptr,
    E, K, N, stride_we, stride_wk, stride_wn,
    BINS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Rows a [R, K] times their expert's matrix [K, N], by any strides."""
    columns = tl.cdiv(N, BLOCK_N)
    expert, first_row, end = find_tile(
        offsets_ptr, tl.program_id(0) // columns, E, BLOCK_M, BINS
    )
    if expert == E:
        return
    row = first_row.to(tl.int64) + tl.arange(0, BLOCK_M)
    n = tl.program_id(0) % columns * BLOCK_N + tl.arange(0, BLOCK_N)
    w_at = w_ptr + expert.to(tl.int64) * stride_we + n[None, :] * stride_wn
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in range(0, K, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        a = tl.load(
            a_ptr + row[:, None] * K + k[None, :],
            mask=(row[:, None] < end) & (k[None, :] < K), other=0.0,
        )  # fmt: skip
        w = tl.load(
            w_at + k[:, None] * stride_wk,
            mask=(k[:, None] < K) & (n[None, :] < N), other=0.0,
        )  # fmt: skip
        total = tl.dot(a, w, total, input_precision="ieee")
    tl.store(
        out_ptr + row[:, None] * N + n[None, :],
        total.to(out_ptr.dtype.element_ty),
        mask=(row[:, None] < end) & (n[None, :] < N),
    )


def up(tokens, pairs, rows, offsets, w_up, activation, keep):
    """Launch the first product; returns act(z) and z (or an empty z)."""
    R, (E, H, G) = len(pairs), w_up.shape
    F = G // 2 if activation == "swiglu" else G
    tiles = choose_tiles(tokens.dtype, R / E)
    active = tokens.new_empty(R, F)
    hidden = tokens.new_empty(R if keep else 0, G)
    # two accumulators share the registers of one
    n = tiles.n // 2 if activation == "swiglu" else tiles.n
    if R:
        grid = ((triton.cdiv(R, tiles.m) + E) * triton.cdiv(F, n),)
        expert_up_kernel[grid](
            tokens.contiguous(), pairs.contiguous(), offsets.contiguous(),
            w_up.contiguous(), hidden if keep else active, active,
            E, rows.shape[1], H, F,
            ACTIVATION=activation, KEEP=keep, BINS=bins(E),
            BLOCK_M=tiles.m, BLOCK_N=n, BLOCK_K=tiles.k,
            num_warps=tiles.warps, num_stages=tiles.stages,
        )  # fmt: skip
    return active, hidden


def product(a: Tensor, weight: Tensor, offsets: Tensor) -> Tensor:
    """Each row of a [R, K] times its expert's matrix of weight [E, K, N]."""
    R, (E, K, N) = len(a), weight.shape
    tiles = choose_tiles(a.dtype, R / E)
    out = a.new_empty(R, N)
    if R:
        grid = ((triton.cdiv(R, tiles.m) + E) * triton.cdiv(N, tiles.n),)
        expert_product_kernel[grid](
            a.contiguous(), weight, out, offsets.contiguous(),
            E, K, N, *weight.stride(),
            BINS=bins(E),
            BLOCK_M=tiles.m, BLOCK_N=tiles.n, BLOCK_K=tiles.k,
            num_warps=tiles.warps, num_stages=tiles.stages,
        )  # fmt: skip
    return out


def bins(experts: int) -> int:
    """Lanes that hold one number per expert, at least a warp's half."""
    return max(16, triton.next_power_of_2(experts))


def compiles(
    name: str,
    kernel,
    constants: dict,
    halves: bool = False,
    loads: tuple = ((BF16, 1024),),
) -> tuple[Compile, ...]:
    """What to compile of a kernel ahead of time: just what is launched for
    these dtypes and mean rows per expert, ``halves`` of a tile's columns.

    On a T4 the products go through PyTorch, so it is not a target.
    """
    found = []
    for dtype, mean in loads:
        for hip in (False, True):
            tiles = choose_tiles(dtype, mean, hip)
            n = tiles.n // 2 if halves else tiles.n
            blocks = {"BLOCK_M": tiles.m, "BLOCK_N": n, "BLOCK_K": tiles.k}
            kind = "*fp32" if dtype == FP32 else "*bf16"
            signature = {
                argument: kind if argument.endswith("_ptr") else "i32:16"
                for argument in kernel.arg_names
                if not argument.isupper() or len(argument) == 1
            }
            signature |= dict.fromkeys(("offsets_ptr", "pairs_ptr"), "*i32")
            signature |= dict.fromkeys(("E", "S"), "i32")
            shape = "x".join(map(str, blocks.values()))
            found.append(
                Compile(
                    f"{name} {kind[1:]} {shape}",
                    kernel,
                    signature={
                        argument: signature[argument]
                        for argument in kernel.arg_names
                        if argument in signature and argument not in constants
                    },
                    constants=constants | blocks,
                    num_warps=tiles.warps,
                    num_stages=tiles.stages,
                    targets=("gfx942",) if hip else NVIDIA,
                    matrix_units=dtype != FP32,
                )
            )
    return tuple(found)
