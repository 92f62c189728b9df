"""The Triton side of `duo_ffn`: both products of a tile in one program.

The rows are sorted into big and small, and a tile has rows of one kind only,
as in `expert_mlp` with two experts; the kinds differ only in where the loop
over the hidden units begins and ends. The grid has room for a last tile of
each kind that is not full; a program without a tile returns immediately.
"""

from collections.abc import Iterator
from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor

from lab.kernels import runtime
from lab.kernels._expert_mlp_triton import find_tile, gelu, relu
from lab.kernels._expert_tiles import EACH_TARGET, HOPPER
from lab.kernels._three_parts import add_product, splits
from lab.kernels.declaration import KINDS, Compile, targets_by_tile
from lab.kernels.dispatch import dispatch_triton
from lab.kernels.runtime import cdiv, next_power_of_2

BINS = 16  # lanes for the two kinds of tile


@triton.jit
def duo_ffn_kernel(
    tokens_ptr,
    pairs_ptr,
    offsets_ptr,
    w_up_ptr,
    w_down_ptr,
    out_ptr,
    D,
    F,
    G,
    ACTIVATION: tl.constexpr,
    BINS: tl.constexpr,
    SPLIT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_F: tl.constexpr,
):
    kind, first_row, end, _ = find_tile(
        offsets_ptr, tl.program_id(0), 1, 2, BLOCK_M, BINS
    )
    if kind == 2:
        return
    row = first_row + tl.arange(0, BLOCK_M)
    token = tl.load(pairs_ptr + row, mask=row < end, other=0).to(tl.int64)
    d = tl.arange(0, BLOCK_D)
    at = token[:, None] * D + d[None, :]
    inside = (row[:, None] < end) & (d[None, :] < D)
    x = tl.load(tokens_ptr + at, mask=inside, other=0.0)
    y = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    # kind 0 is big: columns 0 to F; kind 1 is small: columns F to G
    last = tl.where(kind == 0, F, G)
    for start in range(kind * F, last, BLOCK_F):
        f = start + tl.arange(0, BLOCK_F)
        w = tl.load(
            w_up_ptr + d[:, None] * G + f[None, :],
            mask=(d[:, None] < D) & (f[None, :] < last),
            other=0.0,
        )
        # loaded before the first product: otherwise v may take the place of w
        # in shared memory, and ptxas 12.8 (Triton 3.6 and 3.7) then reads v
        # at an address that it never computed
        v = tl.load(
            w_down_ptr + f[:, None] * D + d[None, :],
            mask=(f[:, None] < last) & (d[None, :] < D),
            other=0.0,
        )
        zero = tl.zeros([BLOCK_M, BLOCK_F], tl.float32)
        z = add_product(x, w, zero, SPLIT)
        h = relu(z) if ACTIVATION == "relu" else gelu(z)
        h = h.to(out_ptr.dtype.element_ty)
        y = add_product(h, v, y, SPLIT)
    tl.store(out_ptr + at, y.to(out_ptr.dtype.element_ty), mask=inside)


def blocks(dtype: torch.dtype, D: int, target: str) -> dict:
    """Whether fp32 goes in three parts; rows, width and hidden units of one
    step; and warps.

    A wide row leaves room for only a few hidden units beside it: with more,
    some versions of Triton spill a register or two.
    """
    block_d = max(16, next_power_of_2(D))
    wide = block_d > 64
    split = splits(dtype, target)
    if split and target in HOPPER:
        tile = 128, 16 if wide else 32, 8
    elif split:
        tile = 32 if wide else 64, 16, 4
    elif dtype == torch.float32:
        # no matrix units in full precision: registers set the limit
        tile = 32, 16 if block_d > 32 else 32, 8 if wide else 4
    elif wide:
        # on HOPPER four warps multiply 64 rows at a time: with 64 rows, eight
        # would share the hidden units and do all the rest twice
        tile = 128 if target in HOPPER else 64, 32, 8
    else:
        tile = 64, 64, 4
    block_m, block_f, warps = tile
    return {
        "SPLIT": split, "BLOCK_M": block_m, "BLOCK_D": block_d,
        "BLOCK_F": block_f, "num_warps": warps,
    }  # fmt: skip


def duo_ffn_triton(
    tokens: Tensor,
    big: Tensor,
    w_up: Tensor,
    w_down: Tensor,
    small: int,
    activation: str = "gelu",
) -> Tensor:
    """Sort the tokens and launch; the host reads no number."""
    T, D = tokens.shape
    G = w_up.shape[1]
    kinds = big.logical_not().to(torch.int32)[:, None]
    _, offsets, pairs, _ = dispatch_triton(kinds, 2)
    y = tokens.new_empty((T, D))
    tile = blocks(tokens.dtype, D, runtime.target(tokens))
    if T:
        # each kind may have one tile that is not full
        duo_ffn_kernel[(cdiv(T, tile["BLOCK_M"]) + 1,)](
            tokens.contiguous(), pairs, offsets,
            w_up.contiguous(), w_down.contiguous(), y,
            D, G - small, G,
            ACTIVATION=activation, BINS=BINS, **tile,
        )  # fmt: skip
    return y


def compiled(dtype: torch.dtype, D: int, activation: str) -> Iterator[Compile]:
    """What to compile ahead of time: what is launched for these arguments."""
    kind = KINDS[dtype]
    floats = ("tokens_ptr", "w_up_ptr", "w_down_ptr", "out_ptr")
    signature = {
        name: f"*{kind}" if name in floats else "*i32"
        for name in duo_ffn_kernel.arg_names
        if name.endswith("_ptr")
    }
    # on a T4 the products go through PyTorch
    choose = partial(blocks, dtype, D)
    for tile, targets in targets_by_tile(choose, EACH_TARGET):
        warps = tile.pop("num_warps")
        rows = f"{tile['BLOCK_M']} rows" + (" split" if tile["SPLIT"] else "")
        yield Compile(
            f"{kind} D{D} {activation} {rows}",
            duo_ffn_kernel,
            signature=signature | {"D": "i32:16", "F": "i32:16", "G": "i32"},
            constants={"ACTIVATION": activation, "BINS": BINS} | tile,
            num_warps=warps,
            targets=targets,
            matrix_units=tile["SPLIT"] or dtype != torch.float32,
        )
