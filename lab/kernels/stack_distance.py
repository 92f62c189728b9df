"""Stack distance: what LRU caches of every size would have hit, in one pass.

In step s a layer needs a set of its E experts, needs[g, s, l]. A cache of c
slots that keeps the experts used last holds the first c of the stack, all
experts by their last use. So an expert that stands at place d of the stack
when a step begins is a hit for every c > d and a miss for all others:

    d(e)         = number of experts used more recently than e
    hist[d]      = number of needs that stood at place d;  hist[E]: never used
    hit ratio(c) = (hist[0] + ... + hist[c - 1]) / sum of hist

What a step needs is needed at once: all its places are those at its beginning,
and of experts used in the same step the lower index counts as more recent.
With one need a step this is the classical stack distance.

One program holds some experts of one layer of one group g and walks through
its steps. The state is the time of each expert's last use, in registers; a
step compares its experts with all of the layer. Each program has its own
histogram and a second sum adds them up, so no addition is atomic.

Bytes: G S L E read, one for each entry, and 4 G L (E + 1) written. The limit
is the chain of S steps, not their bytes: each one waits for the one before.

Source: Mattson, Gecsei, Slutz, Traiger 1970, for any cache that keeps what a
larger one would keep, too; He et al. 2024 compare with LRU.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from lab.kernels.declaration import Compile, Cost, Declaration, Example
from lab.kernels.operator import operator
from lab.kernels.runtime import cdiv, next_power_of_2

MOST_EXPERTS = 128  # of a layer
MOST_USES = 1 << 31  # times of last use, in an int32


def stack_distance(needs: Tensor) -> Tensor:
    """How deep in the stack the needs [G, S, L, E] bool stood when they came.

    Returns counts [G, L, E + 1] int32: those of a layer by distance, the last
    one of experts that were never used before. O(G S L E^2).
    """
    if needs.ndim != 4 or not 1 <= needs.shape[3] <= MOST_EXPERTS:
        raise ValueError(
            f"needs of shape {tuple(needs.shape)} do not fit; give [groups,"
            f" steps, layers, experts] with 1 to {MOST_EXPERTS} experts"
        )
    if needs.dtype != torch.bool:
        raise ValueError(f"needs are {needs.dtype}; use .bool()")
    S, E = needs.shape[1], needs.shape[3]
    if S * next_power_of_2(E) >= MOST_USES:
        raise ValueError(
            f"S={S} steps of {E} experts are too many; use less than"
            f" {MOST_USES // next_power_of_2(E)}"
        )
    return _stack_distance(needs)


def stack_distance_reference(needs: Tensor) -> Tensor:
    """The distances in plain PyTorch, one step after the other."""
    G, S, L, E = needs.shape
    hist = needs.new_zeros((G, L, E + 1), dtype=torch.int32)
    last = torch.full((G, L, E), -1, device=needs.device)
    # the lower index is the more recent one
    within = torch.arange(E - 1, -1, -1, device=needs.device)
    for s in range(S):
        need = needs[:, s]
        # d(e) = number of experts used more recently than e
        newer = last[..., None, :] > last[..., :, None]
        distance = newer.sum(-1).where(last >= 0, E)
        hist.scatter_add_(2, distance, need.int())
        last = torch.where(need, s * E + within, last)
    return hist


@triton.jit
def stack_distance_kernel(
    needs_ptr,
    parts_ptr,
    S,
    L,
    E,
    stride_g,
    stride_s,
    stride_l,
    BLOCK_R: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    layer = tl.program_id(0).to(tl.int64)
    needs_ptr += layer // L * stride_g + layer % L * stride_l
    # some experts of the layer, and all those that may stand before them
    e = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)
    x = tl.arange(0, BLOCK_E)
    last_e = tl.full([BLOCK_R], -1, tl.int32)
    last_x = tl.full([BLOCK_E], -1, tl.int32)
    never = tl.zeros([BLOCK_R], tl.int32)
    # [expert, distance]; summed over the experts at the end only
    seen = tl.zeros([BLOCK_R, BLOCK_E], tl.int32)
    for s in range(0, S):
        row_ptr = needs_ptr + tl.cast(s, tl.int64) * stride_s
        need_e = tl.load(row_ptr + e, mask=e < E, other=0) != 0
        need_x = tl.load(row_ptr + x, mask=x < E, other=0) != 0
        newer = last_x[None, :] > last_e[:, None]
        distance = tl.sum(newer.to(tl.int32), 1)
        never += (need_e & (last_e < 0)).to(tl.int32)
        # no column is -1
        place = tl.where(need_e & (last_e >= 0), distance, -1)
        seen = tl.where(place[:, None] == x[None, :], seen + 1, seen)
        # the lower index is the more recent one
        now = s * BLOCK_E + BLOCK_E - 1
        last_e = tl.where(need_e, now - e, last_e)
        last_x = tl.where(need_x, now - x, last_x)

    part = layer * tl.num_programs(1) + tl.program_id(1)
    row_ptr = parts_ptr + part * (E + 1)
    tl.store(row_ptr + x, tl.sum(seen, 0), mask=x < E)
    tl.store(row_ptr + E, tl.sum(never, 0))


def blocks(E: int) -> tuple[int, int, int]:
    """Experts of a program, those of a layer, and warps: 8 pairs a lane."""
    block_e = next_power_of_2(E)
    block_r = min(block_e, 1024 // block_e)
    return block_r, block_e, max(1, block_r * block_e // 256)


def stack_distance_triton(needs: Tensor) -> Tensor:
    """Launch the kernel and add up what its programs found."""
    G, S, L, E = needs.shape
    needs = needs.contiguous()
    block_r, block_e, warps = blocks(E)
    parts = cdiv(E, block_r)
    found = needs.new_empty((G, L, parts, E + 1), dtype=torch.int32)
    if G * L:
        stack_distance_kernel[(G * L, parts)](
            needs.view(torch.uint8), found, S, L, E, *needs.stride()[:3],
            BLOCK_R=block_r, BLOCK_E=block_e, num_warps=warps,
        )  # fmt: skip
    return found.sum(dim=2, dtype=torch.int32)


def _shapes(needs):
    G, _, L, E = needs.shape
    return needs.new_empty((G, L, E + 1), dtype=torch.int32)


_stack_distance = operator(
    "stack_distance(Tensor needs) -> Tensor",
    cpu=stack_distance_reference,
    cuda=stack_distance_triton,
    shapes=_shapes,
)


def _inputs(seed, device, dtype, G, S, L, E, share=0.3, same=False):
    generator = torch.Generator().manual_seed(seed)
    needs = torch.rand(G, S, L, E, generator=generator) < share
    if same:
        needs[:, 1:] = needs[:, :1]
    return {"needs": needs.to(device)}


def _cost(needs) -> Cost:
    # comparing and counting whole numbers is no work for a floating-point unit
    G, _, L, E = needs.shape
    return Cost(needs.numel() + 4 * G * L * (E + 1), 0)


def _compile(E: int) -> Compile:
    block_r, block_e, warps = blocks(E)
    size = "i32:16" if E % 16 == 0 else "i32"
    return Compile(
        f"E{E} {block_r}x{block_e}",
        stack_distance_kernel,
        signature={
            "needs_ptr": "*u8", "parts_ptr": "*i32", "S": "i32", "L": "i32",
            "E": size, "stride_g": size, "stride_s": size, "stride_l": size,
        },
        constants={"BLOCK_R": block_r, "BLOCK_E": block_e},
        num_warps=warps,
    )  # fmt: skip


DECLARATION = Declaration(
    name="stack_distance",
    operation=stack_distance,
    reference=stack_distance_reference,
    triton=stack_distance_triton,
    inputs=_inputs,
    exact=("result",),
    examples=(
        Example("16 experts", {"G": 2, "S": 63, "L": 6, "E": 16}),
        Example("5 experts", {"G": 3, "S": 40, "L": 1, "E": 5}),
        Example("60 experts", {"G": 1, "S": 30, "L": 2, "E": 60,
                               "share": 0.07}),
        Example("128 experts", {"G": 1, "S": 12, "L": 2, "E": 128,
                                "share": 0.2}),
        Example("same needs", {"G": 2, "S": 9, "L": 2, "E": 8, "same": True},
                degenerate=True),
        Example("all needed", {"G": 1, "S": 9, "L": 3, "E": 8, "share": 2.0},
                degenerate=True),
        Example("none needed", {"G": 1, "S": 9, "L": 3, "E": 8,
                                "share": 0.0}, degenerate=True),
        Example("one expert", {"G": 2, "S": 11, "L": 3, "E": 1},
                degenerate=True),
        Example("one step", {"G": 2, "S": 1, "L": 3, "E": 8},
                degenerate=True),
        Example("no step", {"G": 2, "S": 0, "L": 3, "E": 8},
                degenerate=True),
        Example("no group", {"G": 0, "S": 5, "L": 3, "E": 8},
                degenerate=True),
        Example("large", {"G": 64, "S": 2048, "L": 32, "E": 64,
                          "share": 0.1}, large=True),
    ),
    cost=_cost,
    compiles=tuple(_compile(E) for E in (8, 16, 60, 64, 128)),
)  # fmt: skip
