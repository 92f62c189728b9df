"""Placement cost: the traffic of many expert placements at once.

A placement says on which GPU each expert of each layer sits. From the
placements P [K, L, E] and the transition counts W [L - 1, E, E]:

    cost[k] = sum over l, i, j of  W[l, i, j] [P[k, l, i] != P[k, l + 1, j]]

which is the number of tokens that change GPUs between neighbouring layers. A
program holds a block of placements and the GPU of each expert of the next
layer. Going through the experts of this layer, it adds a row of W where the
GPUs differ. W is the same for all placements and stays in the cache. The sum
is in fp32, so counts are exact up to 2^24 tokens times layers.

Bytes: K L E read (int8), 4 (L - 1) E^2 once, 4 K written. The work is
K (L - 1) E^2 comparisons, each with an addition, and these two instructions
are the limit. The other needs of a step, the row of W and the GPU of its
expert, are shared by up to 32 sums of a thread; one word holds the GPUs of
four experts.

Source: the objective of Yao et al. 2024, on counts instead of tokens.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from lab.kernels.declaration import Compile, Cost, Declaration, Example
from lab.kernels.operator import operator
from lab.kernels.runtime import may_look

MOST_EXPERTS = 128
CHUNK = 1 << 22  # comparisons that the reference holds at a time
MANY = 1 << 14  # placements that fill a GPU with large tiles


def placement_cost(placements: Tensor, counts: Tensor) -> Tensor:
    """Cost [K] of the placements [K, L, E] int8 under counts [L - 1, E, E].

    The result is fp32 (float64 for float64 counts). It depends only on which
    GPU numbers are equal. A count that is not finite is refused on a CPU; on a
    GPU, where a check would stall it, it spoils the sum. O(K L E^2).
    """
    if placements.ndim != 3 or placements.dtype != torch.int8:
        raise ValueError(
            f"placements are {placements.dtype} of shape"
            f" {tuple(placements.shape)}; give [K, layers, experts] in"
            " torch.int8"
        )
    K, L, E = placements.shape
    if not 1 <= E <= MOST_EXPERTS or L < 1:
        raise ValueError(
            f"E={E} experts in L={L} layers are not within 1 to"
            f" {MOST_EXPERTS} experts and 1 or more layers"
        )
    if counts.shape != (L - 1, E, E) or not counts.is_floating_point():
        raise ValueError(
            f"counts of shape {tuple(counts.shape)} and {counts.dtype} do not"
            f" fit; give {(L - 1, E, E)} in floating point"
        )
    if may_look(counts) and not torch.isfinite(counts).all():
        raise ValueError("counts hold NaN or infinity; count again")
    return _placement_cost(placements, counts)


def placement_cost_reference(placements: Tensor, counts: Tensor) -> Tensor:
    """The costs in plain PyTorch, layer by layer."""
    K, L, E = placements.shape
    wide = counts.dtype == torch.float64
    weights = counts if wide else counts.float()
    cost = weights.new_zeros(K)
    rows = max(1, CHUNK // (E * E))
    for first in range(0, K, rows):
        some = placements[first : first + rows]
        for layer in range(L - 1):
            apart = some[:, layer, :, None] != some[:, layer + 1, None, :]
            tokens = apart.flatten(1).to(weights.dtype)
            cost[first : first + rows] += tokens @ weights[layer].flatten()
    return cost


@triton.jit
def placement_cost_kernel(
    placements_ptr,
    words_ptr,
    counts_ptr,
    cost_ptr,
    K,
    L,
    E,
    BLOCK_K: tl.constexpr,
    BLOCK_E: tl.constexpr,
    WORD: tl.constexpr,
    EVEN: tl.constexpr,
):
    k = tl.program_id(0).to(tl.int64) * BLOCK_K + tl.arange(0, BLOCK_K)
    e = tl.arange(0, BLOCK_E)
    is_expert = (e < E) | EVEN
    # past the end, repeat the last placement; its results are not stored
    first = tl.minimum(k, K - 1) * L * E
    total = tl.zeros([BLOCK_K, BLOCK_E], tl.float32)
    for layer in range(0, L - 1):
        # [BLOCK_K, BLOCK_E], where the experts of the next layer sit
        next_ptr = placements_ptr + first[:, None] + (layer + 1) * E
        there = tl.load(
            next_ptr + e[None, :], mask=is_expert[None, :], other=0
        )
        there = there.to(tl.int32) & 255
        for start in range(0, E, WORD):
            word = tl.load(words_ptr + (first + layer * E + start) // WORD)
            for step in tl.static_range(WORD):
                here = (word.to(tl.int32) >> 8 * step) & 255
                row_ptr = counts_ptr + (layer * E + start + step) * E
                tokens = tl.load(row_ptr + e, mask=is_expert, other=0.0)
                # skip the addition, rather than choose a zero to add
                total = tl.where(
                    here[:, None] != there,
                    total + tokens.to(tl.float32)[None, :],
                    total,
                )
    tl.store(cost_ptr + k, tl.sum(total, 1), mask=k < K)


def blocks(E: int, K: int) -> tuple[int, int]:
    """Placements and experts of a tile: 1024 sums, or 4096 if K is large."""
    block_e = triton.next_power_of_2(max(2, E))
    sums = 4096 if K >= MANY else 1024
    return max(16, min(128, sums // block_e)), block_e


def placement_cost_triton(placements: Tensor, counts: Tensor) -> Tensor:
    """Launch the kernel; one program takes a block of placements."""
    K, L, E = placements.shape
    placements, counts = placements.contiguous(), counts.contiguous()
    cost = counts.new_empty(K, dtype=torch.float32)
    block_k, block_e = blocks(E, K)
    # experts of one load; no row may begin within a word
    word = 4 if E % 4 == 0 and placements.data_ptr() % 4 == 0 else 1
    if K:
        placement_cost_kernel[(triton.cdiv(K, block_k),)](
            placements,
            placements.view(torch.int32) if word == 4 else placements,
            counts, cost, K, L, E,
            BLOCK_K=block_k, BLOCK_E=block_e, WORD=word, EVEN=E == block_e,
            num_warps=4,
        )  # fmt: skip
    return cost


def _shapes(placements, counts):
    wide = counts.dtype == torch.float64
    return counts.new_empty(
        placements.shape[0], dtype=torch.float64 if wide else torch.float32
    )


_placement_cost = operator(
    "placement_cost(Tensor placements, Tensor counts) -> Tensor",
    cpu=placement_cost_reference,
    cuda=placement_cost_triton,
    shapes=_shapes,
)


def _inputs(seed, device, dtype, K, L, E, gpus, empty=False):
    generator = torch.Generator().manual_seed(seed)
    # drawing each of a million placements would take minutes
    keys = torch.rand(min(K, 4096), L, E, generator=generator)
    # balanced: each GPU has equally many experts of a layer, if possible
    placements = (keys.argsort(dim=2) * gpus // E).to(torch.int8)
    placements = placements.repeat(-(-K // 4096), 1, 1)[:K]
    # whole numbers, whose sums are exact in every order
    most = 1 if empty else 257
    counts = torch.randint(most, (L - 1, E, E), generator=generator)
    return {
        "placements": placements.to(device),
        "counts": counts.to(device, dtype),
    }


def _cost(placements, counts) -> Cost:
    K, L, E = placements.shape
    read = K * L * E + counts.numel() * counts.element_size()
    return Cost(read + 4 * K, 2 * K * (L - 1) * E * E)


def _compile(E: int, K: int) -> Compile:
    block_k, block_e = blocks(E, K)
    word = 4 if E % 4 == 0 else 1
    return Compile(
        f"E{E} {block_k}x{block_e}",
        placement_cost_kernel,
        signature={
            "placements_ptr": "*i8",
            "words_ptr": "*i32" if word == 4 else "*i8",
            "counts_ptr": "*fp32", "cost_ptr": "*fp32", "K": "i32", "L": "i32",
            "E": "i32:16" if E % 16 == 0 else "i32",
        },
        constants={
            "BLOCK_K": block_k, "BLOCK_E": block_e, "WORD": word,
            "EVEN": E == block_e,
        },
    )  # fmt: skip


DECLARATION = Declaration(
    name="placement_cost",
    operation=placement_cost,
    reference=placement_cost_reference,
    triton=placement_cost_triton,
    inputs=_inputs,
    exact=(),
    tolerance={torch.float32: 1e-6},
    examples=(
        Example("8 experts", {"K": 1000, "L": 6, "E": 8, "gpus": 4}),
        Example("16 experts", {"K": 257, "L": 3, "E": 16, "gpus": 8}),
        Example("12 experts", {"K": 63, "L": 4, "E": 12, "gpus": 3}),
        Example("10 experts", {"K": 70, "L": 3, "E": 10, "gpus": 3}),
        Example("128 experts", {"K": 19, "L": 2, "E": 128, "gpus": 4}),
        Example("one layer", {"K": 5, "L": 1, "E": 8, "gpus": 2},
                degenerate=True),
        Example("one expert", {"K": 7, "L": 3, "E": 1, "gpus": 1},
                degenerate=True),
        Example("one GPU", {"K": 33, "L": 3, "E": 8, "gpus": 1},
                degenerate=True),
        Example("no token", {"K": 9, "L": 2, "E": 8, "gpus": 4,
                             "empty": True}, degenerate=True),
        Example("no placement", {"K": 0, "L": 3, "E": 8, "gpus": 2},
                degenerate=True),
        Example("large", {"K": 1 << 20, "L": 32, "E": 64, "gpus": 8},
                large=True),
    ),
    cost=_cost,
    compiles=(
        *(_compile(E, 1000) for E in (8, 10, 16, 64, 128)),
        *(_compile(E, MANY) for E in (16, 64, 128)),
    ),
)  # fmt: skip
