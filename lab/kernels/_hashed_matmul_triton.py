"""The Triton side of `hashed_matmul`: look up, multiply, and fold back.

A program of the product takes a tile of the result. It walks over the sum,
looks a tile of W up in the table, and multiplies. Rows and columns of W may
lie any number of positions apart, so the gradient of x needs no other kernel.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from lab.kernels import runtime
from lab.kernels._expert_tiles import EACH_TARGET
from lab.kernels._three_parts import (
    HAVE_ROOM,
    TAKE_IT_WHOLE,
    add_product,
    splits,
)
from lab.kernels.declaration import KINDS, Compile

FOLDED = 256  # cells that a program collects


@triton.jit
def cell_and_sign(i, turns_ptr, m, key, known):
    """Where the weight at each position stands, m if nowhere, and its sign."""
    c = i // m
    cell = tl.load(turns_ptr + c, mask=known, other=0) + (i - c * m)
    cell = tl.where(cell < m, cell, cell - m)
    cell = tl.where(known & (cell >= 0), cell, m)
    x = (i ^ key).to(tl.uint32)
    x = (x ^ (x >> 16)) * 0x21F0AAAD
    x = (x ^ (x >> 15)) * 0x735A2D97
    x = x ^ (x >> 15)
    return cell, tl.where((x >> 31) == 0, 1.0, -1.0)


@triton.jit
def hashed_matmul_kernel(
    x_ptr, table_ptr, turns_ptr, out_ptr,
    M, A, B, m, offset, stride_a, stride_b, key, scale,
    BLOCK_M: tl.constexpr, BLOCK_A: tl.constexpr, BLOCK_B: tl.constexpr,
    SPLIT: tl.constexpr,
):  # fmt: skip
    """out[t, a] = sum over b of x[t, b] W(a, b), where W(a, b) stands at
    position offset + a stride_a + b stride_b."""
    t = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    a = tl.program_id(1) * BLOCK_A + tl.arange(0, BLOCK_A)
    first = offset + tl.where(a < A, a, 0) * stride_a
    dtype = table_ptr.dtype.element_ty
    total = tl.zeros([BLOCK_M, BLOCK_A], tl.float32)
    for start in range(0, B, BLOCK_B):
        b = start + tl.arange(0, BLOCK_B)
        x = tl.load(
            x_ptr + t[:, None] * B + b[None, :],
            mask=(t < M)[:, None] & (b < B)[None, :], other=0.0,
        )  # fmt: skip
        # [BLOCK_B, BLOCK_A], looked up
        known = (b < B)[:, None] & (a < A)[None, :]
        i = first[None, :] + tl.where(b < B, b, 0)[:, None] * stride_b
        cell, sign = cell_and_sign(i, turns_ptr, m, key, known)
        w = tl.load(table_ptr + cell, mask=cell < m, other=0.0)
        w = scale * sign * w.to(tl.float32)
        total = add_product(x, w.to(dtype), total, SPLIT)
    tl.store(
        out_ptr + t[:, None] * A + a[None, :], total.to(dtype),
        mask=(t < M)[:, None] & (a < A)[None, :],
    )  # fmt: skip


@triton.jit
def hashed_matmul_fold_kernel(
    grad_ptr, turns_ptr, out_ptr, count, m, offset, key, scale,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """out[j] = scale times the sum of sign(i) grad[i - offset] over the
    positions i, one in each piece, that stand on cell j."""
    j = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    for c in range(offset // m, (offset + count - 1) // m + 1):
        turn = tl.load(turns_ptr + c)
        back = tl.where(j >= turn, j - turn, j - turn + m)
        i = tl.cast(c, tl.int64) * m + back
        here = (j < m) & (i >= offset) & (i < offset + count)
        _, sign = cell_and_sign(i, turns_ptr, m, key, here)
        grad = tl.load(grad_ptr + i - offset, mask=here, other=0.0)
        total += sign * grad.to(tl.float32)
    tl.store(out_ptr + j, scale * total, mask=j < m)


class Blocks(NamedTuple):
    """What a program works on at a time."""

    BLOCK_M: int  # rows of x
    BLOCK_A: int  # rows of W
    BLOCK_B: int  # columns of W


def blocks(dtype: torch.dtype) -> Blocks:
    """The tile: addresses and signs of a tile of W fill the registers."""
    return Blocks(64, 64, 16 if dtype == torch.float32 else 32)


def warps(dtype: torch.dtype) -> int:
    """How many warps share a tile: fp32 leaves four no registers."""
    return 8 if dtype == torch.float32 else 4


def launch(x, table, turns, A, offset, key, scale, strides) -> Tensor:
    """One program for each tile of the product [M, A]."""
    (M, B), block = x.shape, blocks(x.dtype)
    out = x.new_empty(M, A)
    if M:
        tiles = runtime.cdiv(M, block.BLOCK_M), runtime.cdiv(A, block.BLOCK_A)
        hashed_matmul_kernel[tiles](
            x.contiguous(), table.contiguous(), turns.contiguous(), out,
            M, A, B, len(table), offset, *strides, key, scale,
            **block._asdict(), SPLIT=splits(x.dtype, runtime.target(x)),
            num_warps=warps(x.dtype),
        )  # fmt: skip
    return out


def fold(of_w: Tensor, turns: Tensor, m: int, offset, key, scale) -> Tensor:
    """The gradient [m] of the table, from that of W."""
    out = of_w.new_empty(m)
    hashed_matmul_fold_kernel[(runtime.cdiv(m, FOLDED),)](
        of_w.contiguous(), turns.contiguous(), out, of_w.numel(), m, offset,
        key, scale, BLOCK=FOLDED,
    )  # fmt: skip
    return out


def _compile(
    dtype: torch.dtype, split: bool, targets, even=True, back=False
) -> Compile:
    kind, size = KINDS[dtype], "i32:16" if even else "i32"
    one, other = ("a", "b") if back else ("b", "a")
    return Compile(
        f"{'even' if even else 'odd'} {kind}{' back' if back else ''}",
        hashed_matmul_kernel,
        signature={
            "x_ptr": f"*{kind}", "table_ptr": f"*{kind}", "turns_ptr": "*i32",
            "out_ptr": f"*{kind}", "M": "i32", "A": size, "B": size,
            "m": "i32", "offset": "i32", f"stride_{other}": size,
            "key": "i32", "scale": "fp32",
        },
        constants={
            f"stride_{one}": 1, "SPLIT": split, **blocks(dtype)._asdict(),
        },
        num_warps=warps(dtype),
        matrix_units=split or dtype == torch.float16,
        targets=targets,
    )  # fmt: skip


def _compile_fold(dtype: torch.dtype) -> Compile:
    kind = KINDS[dtype]
    return Compile(
        f"fold {kind}",
        hashed_matmul_fold_kernel,
        signature={
            "grad_ptr": f"*{kind}", "turns_ptr": "*i32",
            "out_ptr": f"*{kind}", "count": "i32", "m": "i32",
            "offset": "i32", "key": "i32", "scale": "fp32",
        },
        constants={"BLOCK": FOLDED},
    )  # fmt: skip


def compiles() -> tuple[Compile, ...]:
    """Both dtypes; sizes that 16 divides, as models have them, or any."""
    found = []
    for back in (False, True):
        found += [
            _compile(torch.float32, True, HAVE_ROOM, back=back),
            _compile(torch.float32, False, TAKE_IT_WHOLE, back=back),
            _compile(torch.float16, False, EACH_TARGET, back=back),
            _compile(torch.float16, False, EACH_TARGET, False, back),
        ]
    return (
        *found,
        *(_compile_fold(dtype) for dtype in (torch.float32, torch.float16)),
    )
