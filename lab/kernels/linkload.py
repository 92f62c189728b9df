"""Link load: how much every link of a leaf-spine fabric carries.

A batch of B assignments, each of G subflows. Subflow g of size z_g goes from
leaf i_g up to spine k_g and down to leaf j_g:

    up_ik   = sum of z_g over i_g = i, k_g = k, i_g != j_g
    down_jk = sum of z_g over j_g = j, k_g = k, i_g != j_g
    peak    = the largest of both

A subflow inside one leaf meets no spine, and one with spine -1 is padding.
Both load nothing.

One program owns one assignment and one tile of (leaf, spine) pairs. It reads
the subflows block by block, compares each with its tile and adds in
registers: no atomics, so the same sums in the same order on every run. With
L S pairs in one tile every subflow is read once.

Bytes: 16 G read and 8 L S + 4 written per assignment. FLOPs: 2 per subflow;
the comparisons, 2 G L S, are the kernel's own price for doing without
atomics.

Source: the loads of Addanki, Goyal, Marinos 2024, "Challenging the Need for
Packet Spraying", where the largest one is called the maximum congestion.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from lab.kernels.declaration import Compile, Cost, Declaration, Example
from lab.kernels.operator import operator


class LinkLoad(NamedTuple):
    """What the links between leaves and spines carry."""

    up: Tensor  # [B, L, S], leaf to spine
    down: Tensor  # [B, L, S], spine to leaf
    peak: Tensor  # [B], the largest of either


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
    Sums are fp32 (float64 for float64 sizes). Ids outside the fabric and
    sizes that are negative or not finite are refused on a CPU; on a GPU,
    where looking would stall it, such ids count as empty slots. O(G) per
    assignment on a CPU, O(G L S) comparisons on a GPU.
    """
    _check_shapes(source, target, spine, size)
    if leaves < 1 or spines < 1:
        raise ValueError(
            f"a fabric of {leaves} leaves and {spines} spines carries"
            " nothing; use at least one of each"
        )
    if size.device.type == "cpu" and size.numel():
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
            "sizes hold entries that are negative, infinite or NaN; a"
            " subflow's size is at least 0"
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
        link = (leaf * spines + spine).long()
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
    tiles,
    BLOCK_G: tl.constexpr,
    BINS: tl.constexpr,
):
    b = tl.program_id(0).to(tl.int64)
    tile = tl.program_id(1)
    links = tile * BINS + tl.arange(0, BINS)
    leaf, spine = links // S, links % S
    # one sum for every row of a block, added up once at the end: a sum over
    # threads in each step would cost more than all the comparisons
    up = tl.zeros([BLOCK_G, BINS], tl.float32)
    down = tl.zeros([BLOCK_G, BINS], tl.float32)
    for start in range(0, G, BLOCK_G):
        g = start + tl.arange(0, BLOCK_G)
        inside = g < G
        at = b * G + g
        i = tl.load(source_ptr + at, mask=inside, other=0)
        j = tl.load(target_ptr + at, mask=inside, other=0)
        k = tl.load(spine_ptr + at, mask=inside, other=-1)
        z = tl.load(size_ptr + at, mask=inside, other=0.0).to(tl.float32)
        exists = (tl.minimum(i, j) >= 0) & (tl.maximum(i, j) < L)
        z = tl.where(exists & (i != j), z, 0.0)
        # [BLOCK_G, BINS]: the subflow's spine is the link's
        passes = k[:, None] == spine[None, :]
        rises = passes & (i[:, None] == leaf[None, :])
        falls = passes & (j[:, None] == leaf[None, :])
        up += tl.where(rises, z[:, None], 0.0)
        down += tl.where(falls, z[:, None], 0.0)
    # links past the end belong to leaves that do not exist: load 0
    up_load, down_load = tl.sum(up, 0), tl.sum(down, 0)
    at = b * (L * S) + links
    tl.store(up_ptr + at, up_load, mask=links < L * S)
    tl.store(down_ptr + at, down_load, mask=links < L * S)
    peak = tl.max(tl.maximum(up_load, down_load), 0)
    tl.store(peak_ptr + b * tiles + tile, peak)


def blocks(links: int) -> tuple[int, int]:
    """Subflows and links of one step: 512 comparisons of one warp, as each
    warp of a program would load every subflow."""
    bins = min(256, max(16, triton.next_power_of_2(links)))
    return 512 // bins, bins


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
    block_g, bins = blocks(leaves * spines)
    tiles = triton.cdiv(leaves * spines, bins)
    up = size.new_empty((B, leaves, spines), dtype=torch.float32)
    down = torch.empty_like(up)
    peaks = size.new_empty((B, tiles), dtype=torch.float32)
    if B:
        linkload_kernel[(B, tiles)](
            source, target, spine, size, up, down, peaks,
            G, leaves, spines, tiles,
            BLOCK_G=block_g, BINS=bins, num_warps=1,
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
    """Random subflows; ``empty`` slots, or all on the ``only`` path."""
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


def _compile(L: int, S: int) -> Compile:
    block_g, bins = blocks(L * S)
    return Compile(
        f"L{L} S{S}",
        linkload_kernel,
        signature={
            "source_ptr": "*i32", "target_ptr": "*i32", "spine_ptr": "*i32",
            "size_ptr": "*fp32", "up_ptr": "*fp32", "down_ptr": "*fp32",
            "peak_ptr": "*fp32", "G": "i32", "L": "i32", "S": "i32",
            "tiles": "i32",
        },
        constants={"BLOCK_G": block_g, "BINS": bins},
        num_warps=1,
    )  # fmt: skip


DECLARATION = Declaration(
    name="linkload",
    operation=linkload,
    reference=linkload_reference,
    triton=linkload_triton,
    inputs=_inputs,
    # sums are in fp32 whatever the sizes are
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
    compiles=(_compile(8, 8), _compile(4, 4), _compile(16, 16)),
)  # fmt: skip
