"""Link load: how much every link of a leaf-spine fabric carries.

There are B assignments of G subflows each. Subflow g of size z_g goes from
leaf i_g up to spine k_g and down to leaf j_g:

    up_ik   = sum of z_g over i_g = i, k_g = k, i_g != j_g
    down_jk = sum of z_g over j_g = j, k_g = k, i_g != j_g
    peak    = the largest of all up_ik and down_jk

A subflow inside one leaf crosses no spine, and a subflow with spine -1 is
padding; neither loads a link.

Sums by address need atomics, whose order changes from run to run. Written as a
product of two matrices of zeros and ones, one of them times the sizes, the
sums need none:

    up_ik = sum over g of  [i_g = i] * z_g [k_g = k]

One program owns one assignment and one tile of leaves and spines. It reads
the subflows block by block and multiplies on the matrix units; sources and
targets are rows of one product. The units cut fp32 to tf32, 11 of its 24 bits,
so a size is multiplied as three such parts. Zeros and ones lose nothing.

Bytes: 16 G read and 8 L S + 4 written per assignment, as long as one tile
holds all links. FLOPs: 2 per subflow; the products, 4 G L S, are the kernel's
own price for doing without atomics.

Source: the loads of Addanki, Goyal, Marinos 2024, "Challenging the Need for
Packet Spraying", where the largest one is called the maximum congestion.
"""

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from lab.kernels import runtime
from lab.kernels.declaration import (
    KINDS,
    Compile,
    Cost,
    Declaration,
    Example,
    targets_by_tile,
)
from lab.kernels.operator import operator
from lab.kernels.runtime import cdiv


class LinkLoad(NamedTuple):
    """What the links between leaves and spines carry."""

    up: Tensor  # [B, L, S], leaf to spine
    down: Tensor  # [B, L, S], spine to leaf
    peak: Tensor  # [B], the largest of all of these


def linkload(
    source: Tensor,
    target: Tensor,
    spine: Tensor,
    size: Tensor,
    leaves: int,
    spines: int,
) -> LinkLoad:
    """Add up the subflows [B, G] on the links of B fabrics.

    ``source`` and ``target`` are leaves, ``spine`` is -1 in an empty slot.
    Sums are fp32 (float64 for float64 sizes). On a CPU, ids outside the fabric
    and sizes that are negative or not finite are refused. On a GPU, where a
    check would stall it, such ids count as empty slots, and a size that is not
    finite spoils all links of its spine: at least one of them is NaN, and so
    is the peak. O(G) per assignment on a CPU, O(G L S) on a GPU.
    """
    _check_shapes(source, target, spine, size)
    if leaves < 1 or spines < 1:
        raise ValueError(
            f"a fabric of {leaves} leaves and {spines} spines carries"
            " nothing; use at least one of each"
        )
    if runtime.may_look(size) and size.numel():
        _check_values(source, target, spine, size, leaves, spines)
    return LinkLoad(*_linkload(source, target, spine, size, leaves, spines))


def _check_shapes(source, target, spine, size):
    for name, ids in _named(source, target, spine):
        if ids.dtype != torch.int32 or ids.shape != size.shape:
            raise ValueError(
                f"{name} is {ids.dtype} of shape {tuple(ids.shape)}; give"
                f" int32 of the sizes' shape {tuple(size.shape)}"
            )
    if size.ndim != 2 or not size.is_floating_point():
        raise ValueError(
            f"sizes are {size.dtype} of shape {tuple(size.shape)}; give"
            " floating [assignments, subflows]"
        )


def _check_values(source, target, spine, size, leaves, spines):
    for name, ids in _named(source, target, spine):
        low, end = (-1, spines) if name == "spine" else (0, leaves)
        least, most = (int(x) for x in ids.aminmax())
        if least < low or most >= end:
            raise ValueError(
                f"{name} runs from {least} to {most};"
                f" use {low} to {end - 1} in this fabric"
            )
    if not size.isfinite().all() or (size < 0).any():
        raise ValueError(
            "sizes hold entries that are negative, infinite or NaN; use a"
            " finite number of at least 0 for each subflow"
        )


def _named(source, target, spine):
    return ("source", source), ("target", target), ("spine", spine)


def linkload_reference(
    source: Tensor,
    target: Tensor,
    spine: Tensor,
    size: Tensor,
    leaves: int,
    spines: int,
) -> LinkLoad:
    """The loads in plain PyTorch: one scatter-add for each direction."""
    B, G = size.shape
    size = size if size.dtype == torch.float64 else size.float()
    crosses = (spine >= 0) & (source != target)
    size = size.masked_fill(~crosses, 0.0)
    spine = spine.clamp_min(0)

    def load(leaf: Tensor) -> Tensor:
        link = leaf.long() * spines + spine
        empty = size.new_zeros(B, leaves * spines)
        return empty.scatter_add(1, link, size).view(B, leaves, spines)

    up, down = load(source), load(target)
    peak = torch.maximum(up, down).flatten(1).amax(1)
    return LinkLoad(up, down, peak)


@triton.jit
def linkload_kernel(
    source_ptr,
    target_ptr,
    spine_ptr,
    size_ptr,
    up_ptr,
    down_ptr,
    peak_ptr,
    G,
    L,
    S,
    PARTS: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    b = tl.program_id(0).to(tl.int64)
    # leaves as sources, and below them the same leaves as targets
    row = tl.arange(0, 2 * BLOCK_L)
    is_up = row[:, None] < BLOCK_L
    leaf = tl.program_id(1) * BLOCK_L + row % BLOCK_L
    spine = tl.program_id(2) * BLOCK_S + tl.arange(0, BLOCK_S)
    load = tl.zeros([2 * BLOCK_L, BLOCK_S], tl.float32)
    for start in range(0, G, BLOCK_G):
        g = start + tl.arange(0, BLOCK_G)
        inside = g < G
        at = b * G + g
        i = tl.load(source_ptr + at, mask=inside, other=0)
        j = tl.load(target_ptr + at, mask=inside, other=0)
        k = tl.load(spine_ptr + at, mask=inside, other=-1)
        z = tl.load(size_ptr + at, mask=inside, other=0.0).to(tl.float32)
        # read as unsigned, an id below 0 is above every leaf
        far = tl.maximum(
            i.to(tl.uint32, bitcast=True), j.to(tl.uint32, bitcast=True)
        )
        k = tl.where((far < L) & (i != j), k, -1)
        ends = tl.where(is_up, i[None, :], j[None, :])
        meets = tl.where(ends == leaf[:, None], 1.0, 0.0)
        takes = k[:, None] == spine[None, :]
        load = add_sizes(load, meets, takes, z, PARTS, PRECISION)
    at = (b * L + leaf)[:, None] * S + spine[None, :]
    inside = (leaf < L)[:, None] & (spine < S)[None, :]
    tl.store(up_ptr + at, load, mask=inside & is_up)
    tl.store(down_ptr + at, load, mask=inside & ~is_up)
    peak = tl.max(tl.max(tl.where(inside, load, 0.0), 1), 0)
    # a maximum ignores NaN, a sum does not
    lost = tl.sum(tl.sum(tl.where(inside, load * 0.0, 0.0), 1), 0)
    tile = tl.program_id(1) * tl.num_programs(2) + tl.program_id(2)
    tiles = tl.num_programs(1) * tl.num_programs(2)
    tl.store(peak_ptr + b * tiles + tile, peak + lost)


@triton.jit
def add_sizes(
    load, meets, takes, z, PARTS: tl.constexpr, PRECISION: tl.constexpr
):
    """The load plus the sums of z [G] over the subflows that meet a leaf
    [rows, G] and take a spine [G, columns].

    When matrix units add, they cut off the bits that do not fit. So a step's
    sizes are summed from zero, and an ordinary addition, which rounds, adds
    them to the load.
    """
    if PARTS == 1:
        sizes = tl.where(takes, z[:, None], 0.0)
        # a zero that the compiler cannot see; otherwise it would leave the
        # addition to the matrix units
        zero = load * 0.0
        return load + tl.dot(meets, sizes, zero, input_precision=PRECISION)
    else:
        high = leading_bits(z)
        rest = z - high
        middle = leading_bits(rest)
        sizes = tl.where(takes, (rest - middle)[:, None], 0.0)
        total = tl.dot(meets, sizes, input_precision=PRECISION)
        sizes = tl.where(takes, middle[:, None], 0.0)
        total = tl.dot(meets, sizes, total, input_precision=PRECISION)
        sizes = tl.where(takes, high[:, None], 0.0)
        return load + tl.dot(meets, sizes, total, input_precision=PRECISION)


@triton.jit
def leading_bits(z):
    """fp32 without its last 13 bits, which tf32 does not have."""
    bits = z.to(tl.int32, bitcast=True)
    return (bits & -8192).to(tl.float32, bitcast=True)


def blocks(L: int, S: int, dtype: torch.dtype, target: str) -> dict:
    """How a size is multiplied, and subflows, leaves and spines of one step.

    A program is one warp, because each warp would build the same matrices;
    more links would spill registers. A T4 has no matrix units that Triton
    reaches; AMD's take fp32 as it is.
    """
    tf32 = target.startswith("sm_") and int(target[3:]) >= 80
    return {
        "PARTS": 3 if tf32 and dtype == torch.float32 else 1,
        "PRECISION": "tf32" if tf32 else "ieee",
        "BLOCK_G": 32,
        "BLOCK_L": 8 if L <= 8 else 16,
        "BLOCK_S": 8 if S <= 8 else 16,
    }


def linkload_triton(
    source: Tensor,
    target: Tensor,
    spine: Tensor,
    size: Tensor,
    leaves: int,
    spines: int,
) -> LinkLoad:
    """Launch the kernel; one program for each assignment and tile."""
    B, G = size.shape
    source, target, spine, size = (
        x.contiguous() for x in (source, target, spine, size)
    )
    tile = blocks(leaves, spines, size.dtype, runtime.target(size))
    tiles = cdiv(leaves, tile["BLOCK_L"]), cdiv(spines, tile["BLOCK_S"])
    up = size.new_empty((B, leaves, spines), dtype=torch.float32)
    down = torch.empty_like(up)
    peaks = size.new_empty((B, tiles[0] * tiles[1]), dtype=torch.float32)
    if B:
        linkload_kernel[(B, *tiles)](
            source, target, spine, size, up, down, peaks,
            G, leaves, spines,
            **tile, num_warps=1,
        )  # fmt: skip
    return LinkLoad(up, down, peaks.amax(1))


def _shapes(source, target, spine, size, leaves, spines):
    wide = size.dtype == torch.float64
    kind = torch.float64 if wide else torch.float32
    shape = (size.shape[0], leaves, spines)
    up, down = (size.new_empty(shape, dtype=kind) for _ in range(2))
    return up, down, size.new_empty(size.shape[0], dtype=kind)


_linkload = operator(
    "linkload(Tensor source, Tensor target, Tensor spine, Tensor size, "
    "SymInt leaves, SymInt spines) -> (Tensor, Tensor, Tensor)",
    cpu=linkload_reference,
    cuda=linkload_triton,
    shapes=_shapes,
)


def _inputs(seed, device, dtype, B, G, L, S, empty=0.0, only=None):
    """Random subflows with a share of ``empty`` slots, or all on one path."""
    generator = torch.Generator().manual_seed(seed)

    def ids(end):
        drawn = torch.randint(end, (B, G), generator=generator)
        return drawn.to(torch.int32)

    source, target, spine = ids(L), ids(L), ids(S)
    if only is not None:
        source, target, spine = (
            torch.full_like(ids, value)
            for ids, value in zip((source, target, spine), only, strict=True)
        )
    dropped = torch.rand(B, G, generator=generator) < empty
    spine = spine.masked_fill(dropped, -1)
    size = torch.rand(B, G, generator=generator, dtype=torch.float64)
    return {
        "source": source.to(device),
        "target": target.to(device),
        "spine": spine.to(device),
        "size": size.to(device, dtype),
        "leaves": L,
        "spines": S,
    }


def _cost(source, target, spine, size, leaves, spines) -> Cost:
    B, G = size.shape
    read = G * (12 + size.element_size())
    return Cost(B * (read + 8 * leaves * spines + 4), 2 * B * G)


def _example(name, B, G, L, S, **more):
    kind = {k: more.pop(k) for k in ("degenerate", "large") if k in more}
    return Example(name, {"B": B, "G": G, "L": L, "S": S, **more}, **kind)


def _compile(L: int, S: int, dtype: torch.dtype) -> Iterator[Compile]:
    kind = KINDS[dtype]
    for tile, targets in targets_by_tile(partial(blocks, L, S, dtype)):
        yield Compile(
            f"L{L} S{S} {kind} {tile['PRECISION']}",
            linkload_kernel,
            signature={
                "source_ptr": "*i32", "target_ptr": "*i32",
                "spine_ptr": "*i32", "size_ptr": f"*{kind}",
                "up_ptr": "*fp32", "down_ptr": "*fp32", "peak_ptr": "*fp32",
                "G": "i32", "L": "i32", "S": "i32",
            },
            constants=tile,
            num_warps=1,
            targets=targets,
            matrix_units=tile["PRECISION"] == "tf32",
        )  # fmt: skip


DECLARATION = Declaration(
    name="linkload",
    operation=linkload,
    reference=linkload_reference,
    triton=linkload_triton,
    inputs=_inputs,
    # sums are in fp32 whatever the dtype of the sizes
    tolerance={
        torch.float32: 1e-5, torch.float16: 1e-5, torch.bfloat16: 1e-5,
    },
    examples=(
        _example("8 leaves, 8 spines", 5, 403, 8, 8),
        _example("6 spines, some empty", 3, 117, 8, 6, empty=0.3),
        _example("two tiles", 2, 65, 20, 16),
        _example("one leaf", 2, 9, 1, 3, degenerate=True),
        _example("one spine", 3, 33, 7, 1, degenerate=True),
        _example("one subflow", 1, 1, 3, 2, degenerate=True),
        _example("no subflow", 2, 0, 4, 4, degenerate=True),
        _example("no assignment", 0, 5, 4, 4, degenerate=True),
        _example("all empty", 2, 40, 4, 4, empty=1.0, degenerate=True),
        _example(
            "all on one path", 2, 70, 5, 3, only=(4, 1, 2), degenerate=True
        ),
        _example("large", 4096, 3584, 8, 8, large=True),
    ),
    cost=_cost,
    compiles=(
        *_compile(8, 8, torch.float32), *_compile(16, 16, torch.float32),
        *_compile(8, 8, torch.bfloat16),
    ),
)  # fmt: skip
