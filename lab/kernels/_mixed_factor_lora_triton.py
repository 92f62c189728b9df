"""The Triton side of `mixed_factor_lora`: one kernel, its tile and its launch.

A program takes a tile of tokens of one task. It first walks over the inputs,
mixes the rows of A that it needs and adds up the hidden rows; then it walks
over the outputs, mixes columns of B and writes the updates.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from lab.kernels import runtime
from lab.kernels._expert_mlp_triton import find_tile
from lab.kernels._expert_tiles import EACH_TARGET
from lab.kernels._three_parts import (
    HAVE_ROOM,
    TAKE_IT_WHOLE,
    add_product,
    splits,
)
from lab.kernels.declaration import Compile
from lab.kernels.dispatch import lanes

FEWEST = 16  # lanes that a matrix product needs


@triton.jit
def mixed_factor_lora_kernel(
    tokens_ptr, offsets_ptr, weights_ptr, down_ptr, up_ptr, out_ptr,
    J, h, S, n, m, r,
    BINS: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_R: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """out[t] = (tokens[t] A) B for a tile of tokens of one task."""
    task, first, end, _ = find_tile(
        offsets_ptr, tl.program_id(0), 1, J, BLOCK_T, BINS
    )
    if task == J:
        return
    dtype = tokens_ptr.dtype.element_ty
    t = first + tl.arange(0, BLOCK_T)
    here = (t < end)[:, None]
    t = t.to(tl.int64)[:, None]
    weights_ptr += task.to(tl.int64) * h * S
    rank = tl.arange(0, BLOCK_R)
    real = rank < r
    width = n // h
    hidden = tl.zeros([BLOCK_T, BLOCK_R], tl.float32)
    for start in range(0, n, BLOCK_N):
        i = start + tl.arange(0, BLOCK_N)
        q = i // width
        row = (q * (S * width) + i % width) * r
        inside = (i < n)[:, None] & real[None, :]
        # [BLOCK_N, BLOCK_R], rows of this task's A
        a = tl.zeros([BLOCK_N, BLOCK_R], tl.float32)
        for s in range(0, S):
            w = tl.load(weights_ptr + q * S + s, mask=i < n, other=0.0)
            at = down_ptr + (row + s * width * r)[:, None] + rank[None, :]
            one = tl.load(at, mask=inside, other=0.0)
            a += w[:, None] * one.to(tl.float32)
        x = tl.load(
            tokens_ptr + t * n + i[None, :],
            mask=here & (i < n)[None, :], other=0.0,
        )  # fmt: skip
        hidden = add_product(x, a.to(dtype), hidden, SPLIT)
    hidden = hidden.to(dtype)
    width = m // h
    for start in range(0, m, BLOCK_N):
        j = start + tl.arange(0, BLOCK_N)
        q = j // width
        column = q * (S * r * width) + j % width
        inside = real[:, None] & (j < m)[None, :]
        # [BLOCK_R, BLOCK_N], columns of this task's B
        b = tl.zeros([BLOCK_R, BLOCK_N], tl.float32)
        for s in range(0, S):
            w = tl.load(weights_ptr + q * S + s, mask=j < m, other=0.0)
            at = up_ptr + (column + s * r * width)[None, :]
            one = tl.load(at + rank[:, None] * width, mask=inside, other=0.0)
            b += w[None, :] * one.to(tl.float32)
        y = tl.zeros([BLOCK_T, BLOCK_N], tl.float32)
        y = add_product(hidden, b.to(dtype), y, SPLIT)
        tl.store(
            out_ptr + t * m + j[None, :], y.to(dtype),
            mask=here & (j < m)[None, :],
        )  # fmt: skip


class Blocks(NamedTuple):
    """What a program works on at a time."""

    BLOCK_T: int  # tokens
    BLOCK_N: int  # inputs or outputs
    BLOCK_R: int  # lanes that hold a hidden row


def blocks(rank: int, dtype: torch.dtype) -> Blocks:
    """The tile of a rank: fp32 and wide hidden rows fill the registers."""
    wide = 32 if dtype == torch.float32 else 64
    ranks = max(FEWEST, runtime.next_power_of_2(rank))
    return Blocks(64, wide if ranks <= 32 else wide // 2, ranks)


def warps(*sizes: int) -> int:
    """How many warps share a tile: addresses of rows of odd sizes leave four
    warps no registers."""
    return 4 if all(size % 16 == 0 for size in sizes) else 8


def launch(
    tokens: Tensor, offsets: Tensor, weights: Tensor, down: Tensor, up: Tensor
) -> Tensor:
    """Launch the kernel; one program updates a tile of one task's tokens."""
    (T, n), (h, S, r, width) = tokens.shape, up.shape
    J, m = len(weights), h * width
    out = tokens.new_empty(T, m)
    if T:
        block = blocks(r, tokens.dtype)
        # every task's last tile may be short
        tiles = runtime.cdiv(T, block.BLOCK_T) + min(T, J)
        mixed_factor_lora_kernel[(tiles,)](
            tokens.contiguous(), offsets.contiguous(), weights.contiguous(),
            down.contiguous(), up.contiguous(), out, J, h, S, n, m, r,
            BINS=lanes(J), **block._asdict(),
            SPLIT=splits(tokens.dtype, runtime.target(tokens)),
            num_warps=warps(n, m),
        )  # fmt: skip
    return out


def compiles(r: int, size: str = "i32:16") -> tuple[Compile, ...]:
    """Both dtypes; sizes that 16 divides, as in the paper's models, or any."""
    found = []
    for kind, dtype, split, targets in (
        ("fp32", torch.float32, True, HAVE_ROOM),
        ("fp32", torch.float32, False, TAKE_IT_WHOLE),
        ("fp16", torch.float16, False, EACH_TARGET),
    ):
        arguments = mixed_factor_lora_kernel.arg_names
        pointers = [name for name in arguments if name.endswith("_ptr")]
        signature = dict.fromkeys(pointers, f"*{kind}")
        signature |= {"offsets_ptr": "*i32", "weights_ptr": "*fp32"}
        signature |= dict.fromkeys(("J", "h", "S"), "i32")
        signature |= dict.fromkeys(("n", "m"), size)
        constants = {"BINS": 64, "SPLIT": split}
        constants |= blocks(r, dtype)._asdict()
        # Triton makes a constant of a rank of 1
        if r == 1:
            constants["r"] = 1
        else:
            signature["r"] = "i32:16" if r % 16 == 0 else "i32"
        found.append(
            Compile(
                f"r{r} {'even' if size != 'i32' else 'odd'} {kind}",
                mixed_factor_lora_kernel,
                signature=signature,
                constants=constants,
                num_warps=warps(16 if size == "i32:16" else 1),
                matrix_units=split or kind == "fp16",
                targets=targets,
            )
        )
    return tuple(found)
