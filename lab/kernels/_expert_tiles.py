"""Which tiles the expert network's kernels use, and what to compile for them.

A tile is chosen by dtype, by how many rows an expert has on average, and by
the GPU. What is compiled ahead of time follows from the same choice.
"""

from typing import NamedTuple

import torch

from lab.kernels._three_parts import HAVE_ROOM, TAKE_IT_WHOLE, splits
from lab.kernels.declaration import Compile, targets_by_tile

BF16, FP32 = torch.bfloat16, torch.float32
# these GPUs copy tiles by descriptor, and have room for the largest tiles
HOPPER = ("sm_90", "sm_100", "sm_103")
MANY = 1024  # rows, enough for the largest tile
NVIDIA = ("sm_80", "sm_90", "sm_100")
EACH_TARGET = (*NVIDIA, "gfx942")


class Tiles(NamedTuple):
    """Rows and columns of a product's tile, step of its sum, and launch
    options."""

    m: int
    n: int
    k: int
    warps: int
    stages: int


class Load(NamedTuple):
    """What a tile is chosen for: a dtype and the mean rows per expert."""

    dtype: torch.dtype
    mean: float
    targets: tuple[str, ...] = EACH_TARGET


# loads that together get every tile that `choose_tiles` knows
IN_16 = tuple(Load(BF16, mean) for mean in (1024, 40, 16, 4))
SPLIT_32 = tuple(Load(FP32, mean, HAVE_ROOM) for mean in (1024, 4))
WHOLE_32 = tuple(Load(FP32, mean, TAKE_IT_WHOLE) for mean in (1024, 8))
EACH_TILE = *IN_16, *SPLIT_32, *WHOLE_32
MANY_ROWS = IN_16[:1]


def choose_tiles(dtype: torch.dtype, mean: float, target: str) -> Tiles:
    """Tiles for a mean number of rows per expert.

    Experts with few rows would leave large tiles empty. There is no
    autotuner, so a first call costs one compilation.

    The tiles in 16 bits follow vLLM's tuned tables for an H200, an A100 and
    an MI300X (128 experts of 768, 64 of 1280, 8 of 14336); where these
    differ, the smaller tile is taken. The number of stages fits the GPU with
    the least shared memory of a family.
    """
    if splits(dtype, target):
        # the three parts and their sums fill the registers; on an A100 these
        # also hold the operands of the matrix units, so its steps are of 16
        if mean > 24:
            return Tiles(64, 128, 32 if target in HOPPER else 16, 4, 3)
        return Tiles(16, 128, 32, 4, 3)
    if dtype == torch.float32:
        # no matrix units in full precision: registers set the limit
        return (
            Tiles(64, 64, 32, 8, 2) if mean > 32 else Tiles(16, 64, 32, 4, 2)
        )
    if target.startswith("gfx"):  # 64 KiB
        if mean > 96:
            return Tiles(128, 128, 64, 8, 2)
        rows = 64 if mean > 24 else 32 if mean > 8 else 16
        return Tiles(rows, 128, 64, 4, 2)
    # 227 KiB hold tiles that read a quarter less from the cache (data/bench)
    if target in HOPPER and mean > 48:
        return Tiles(128, 256, 64, 8, 4)
    if mean > 96:
        return Tiles(128, 128, 64, 8, 4)
    if mean > 24:
        return Tiles(64, 128, 64, 4, 3)
    return Tiles(32 if mean > 8 else 16, 128, 128, 4, 3)


def choose_hidden_tiles(dtype: torch.dtype, mean: float, target: str) -> Tiles:
    """Tiles for a mean number of rows per expert.

    A finished tile loads and stores so much that two smaller tiles at a time,
    one of them still multiplying, beat a large one. Measured on an H200
    (data/bench).
    """
    if target in HOPPER and dtype != torch.float32 and mean > 768:
        return Tiles(128, 128, 64, 8, 3)
    return choose_tiles(dtype, mean, target)


def choose_weight_tiles(dtype: torch.dtype, mean: float, target: str) -> Tiles:
    """Tiles for a mean number of rows per expert, which are summed over.

    Where the rows are few, the time goes into writing the result, so tiles
    are small and many run at the same time. Measured on an H200 (data/bench).
    """
    if splits(dtype, target):
        if mean > 48 and target in HOPPER:
            return Tiles(128, 128, 32, 8, 3)
        return Tiles(64, 128, 16, 4, 2)
    large = 768 if target in HOPPER else 192
    if dtype == torch.float32 or mean > large:
        return choose_tiles(dtype, MANY, target)
    if mean > 192:
        return Tiles(128, 128, 64, 4, 3)
    if mean > 12:
        return Tiles(128, 128, 32, 4, 3)
    return Tiles(64, 128, 16, 4, 2)


def compiles(
    name: str,
    kernel,
    constants: dict,
    loads: tuple[Load, ...] = MANY_ROWS,
    choose=choose_tiles,
) -> tuple[Compile, ...]:
    """What to compile of a kernel ahead of time: exactly what is launched for
    these dtypes and mean rows per expert, with the tiles that ``choose``
    gives.

    A T4 is not a target, because there the products go through PyTorch.
    """
    found = []
    for dtype, mean, targets in loads:

        def chosen(target, dtype=dtype, mean=mean):
            return choose(dtype, mean, target), splits(dtype, target)

        for (tiles, split), same in targets_by_tile(chosen, targets):
            blocks = {
                "SPLIT": split, "BLOCK_M": tiles.m, "BLOCK_N": tiles.n,
                "BLOCK_K": tiles.k,
            }  # fmt: skip
            if "BY_TILE" in kernel.arg_names:
                blocks["BY_TILE"] = constants["EVEN"] and tiles.n >= 256
            kind = "*fp32" if dtype == FP32 else "*bf16"
            signature = {
                argument: kind if argument.endswith("_ptr") else "i32:16"
                for argument in kernel.arg_names
                if not argument.isupper() or len(argument) == 1
            }
            signature |= dict.fromkeys(("offsets_ptr", "pairs_ptr"), "*i32")
            signature |= {"E": "i32"}
            shape = "x".join(map(str, tiles[:3]))
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
                    targets=same,
                    matrix_units=split or dtype != FP32,
                )
            )
    return tuple(found)


def compiles_tma(name: str, kernel, transposed: bool) -> Compile:
    """The same for the product that copies by tile, with many rows."""
    m, n, k, warps, stages = choose_tiles(BF16, 1024, HOPPER[0])
    w = [n, k] if transposed else [k, n]
    return Compile(
        f"{name} bf16 {m}x{n}x{k}",
        kernel,
        signature={
            "a_desc": f"tensordesc<bf16{[m, k]}>",
            "w_desc": f"tensordesc<bf16{w}>",
            "out_ptr": "*bf16", "offsets_ptr": "*i32",
            "E": "i32", "K": "i32:16", "N": "i32:16",
        },
        constants={
            "TRANSPOSED": transposed, "PROGRAMS": 132, "BINS": 128,
            "BLOCK_M": m, "BLOCK_N": n, "BLOCK_K": k,
        },
        num_warps=warps,
        num_stages=stages,
        targets=tuple(target for target in NVIDIA if target in HOPPER),
        matrix_units=True,
    )  # fmt: skip
