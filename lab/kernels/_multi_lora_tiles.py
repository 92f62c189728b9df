"""Which tiles the kernels of `multi_lora` use, and what to compile for them.

Adapters stand side by side in groups; the size of a group and its lanes follow
from the number of adapters, their rank and the dtype.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from lab.kernels._expert_tiles import EACH_TARGET
from lab.kernels._three_parts import HAVE_ROOM, TAKE_IT_WHOLE
from lab.kernels.declaration import Compile
from lab.kernels.runtime import next_power_of_2

STAGES = 3
FEWEST = 16  # rows or columns that a matrix product needs


class Blocks(NamedTuple):
    """What a program works on at a time."""

    BLOCK_T: int  # tokens
    BLOCK_N: int  # columns of the tokens, or of a result
    BLOCK_E: int  # adapters of a group
    BLOCK_R: int  # lanes that hold a hidden row of one adapter


def blocks(N: int, rank: int, dtype: torch.dtype, split: bool) -> Blocks:
    """The tiles for N adapters of a rank; ``split``: fp32 in three parts."""
    lanes = next_power_of_2(rank)
    tokens, columns, widest = 128, 64, 128
    # fp32 needs smaller tiles: the three parts and their sums fill the
    # registers, or, without matrix units, whole numbers do
    if dtype == torch.float32:
        tokens, columns, widest = 128 if split else 64, 32, 64
    group = next_power_of_2(N) * lanes
    if group > widest:
        # the rows of two groups at a time need the registers
        group, tokens = widest, tokens // 2
    return Blocks(tokens, columns, max(FEWEST, group) // lanes, lanes)


def warps(split: bool, *sizes: int) -> int:
    """How many warps share a tile; measured on an H200 (data/bench).

    Four warps have no registers left for the addresses of rows of odd sizes.
    """
    return 4 if split and all(size % 16 == 0 for size in sizes) else 8


def turned(block: Blocks) -> Blocks:
    """The tile of a sum over tokens, where each step takes some tokens.

    If there are several groups, `shrink` writes no rows of a group that its
    tile did not choose. So a step must not reach beyond a tile of `shrink`.
    """
    return block._replace(BLOCK_T=block.BLOCK_N, BLOCK_N=block.BLOCK_T)


def stages_of_sum(split: bool) -> int:
    """How many tiles of a sum over tokens are in flight at the same time: the
    three parts leave no registers for the addresses of a third tile."""
    return 2 if split else STAGES


def compiles(kernel) -> tuple[Compile, ...]:
    """What to compile of a kernel: both dtypes, one group and several, sizes
    that 16 divides (of contiguous matrices) and other sizes."""
    found = []
    kinds = (
        ("fp32", torch.float32, True, HAVE_ROOM),
        ("fp32", torch.float32, False, TAKE_IT_WHOLE),
        ("fp16", torch.float16, False, EACH_TARGET),
    )
    for N, rank, size in ((8, 16, "i32:16"), (4, 16, "i32"), (8, 64, "i32")):
        for kind, dtype, split, targets in kinds:
            block = blocks(N, rank, dtype, split)
            known = {"SPLIT": split, "MANY": N > block.BLOCK_E, "KEEP": True}
            stages = STAGES
            if "sums_ptr" in kernel.arg_names:
                block, stages = turned(block), stages_of_sum(split)
                known["S"] = 2
            known |= block._asdict()
            if size != "i32":
                # Triton makes a constant of a stride of 1
                copied = kind == "fp32" and not split
                known[unit(kernel.arg_names, copied)] = 1
            pointers = {"experts_ptr": "*i32"} | dict.fromkeys(
                ("weights_ptr", "hidden_ptr", "sums_ptr"), "*fp32"
            )
            constants, signature = {}, {}
            for name in kernel.arg_names:
                if name in known:
                    constants[name] = known[name]
                elif name.endswith("_ptr"):
                    signature[name] = pointers.get(name, f"*{kind}")
                else:
                    signature[name] = size
            found.append(
                Compile(
                    f"{N} of r{rank} {kind}",
                    kernel,
                    signature=signature,
                    constants=constants,
                    num_warps=warps(split, 16 if size != "i32" else 1),
                    num_stages=stages,
                    matrix_units=split or kind == "fp16",
                    targets=targets,
                )
            )
    return tuple(found)


def unit(arguments: Sequence[str], copied: bool) -> str:
    """The stride that is 1 in the forward pass, see `for_lanes`."""
    shrinks = "stride_n" in arguments
    if copied:
        return "stride_r" if shrinks else "stride_m"
    return "stride_n" if shrinks else "stride_r"
