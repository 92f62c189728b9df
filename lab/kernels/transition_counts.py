"""Transition counts: how many tokens went from which expert to which.

From the routes R [N, L] of N tokens through the E experts of L layers:

    W[l, i, j] = number of tokens n with R[n, l] = i and R[n, l + 1] = j

With one-hot tiles A (experts of layer l) and B (of layer l + 1), W[l] is the
matrix product A^T B. Zeros and ones are exact in half precision and their
sums in fp32 up to 2^24, so tensor cores count, and no atomics are needed:
every program sums its own tokens, and a second sum adds up the programs.

Bytes: N L read (int8), 4 (L - 1) E^2 written. A route outside 0 .. E - 1,
such as -1 for a dropped token, is in no pair.

Source: Yao et al. 2024, section on inter-layer expert affinity.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from lab.kernels.declaration import Compile, Cost, Declaration, Example
from lab.kernels.operator import operator

MOST_EXPERTS = 128  # what int8 holds
PROGRAMS = 256  # along the tokens


def transition_counts(routes: Tensor, experts: int) -> Tensor:
    """Count the pairs of neighbouring layers in routes [N, L] int8.

    Returns W [L - 1, E, E] int32. Needs two layers and no float. O(N L).
    """
    if routes.ndim != 2 or routes.shape[1] < 2:
        raise ValueError(
            f"routes of shape {tuple(routes.shape)} have no two layers to"
            " pair; give [tokens, layers] with 2 layers or more"
        )
    if routes.dtype != torch.int8:
        raise ValueError(
            f"routes of {routes.dtype} are not counted; use .to(torch.int8)"
        )
    if not 1 <= experts <= MOST_EXPERTS:
        raise ValueError(
            f"experts={experts} is not within 1 to {MOST_EXPERTS}"
        )
    return _transition_counts(routes, experts)


def transition_counts_reference(routes: Tensor, experts: int) -> Tensor:
    """The counts in plain PyTorch, one pair of layers after the other."""
    N, L = routes.shape
    counts = []
    for layer in range(L - 1):
        i, j = routes[:, layer].long(), routes[:, layer + 1].long()
        known = (i >= 0) & (i < experts) & (j >= 0) & (j < experts)
        pair = (i * experts + j)[known]
        counts.append(torch.bincount(pair, minlength=experts * experts))
    return torch.stack(counts).view(L - 1, experts, experts).int()


@triton.jit
def transition_counts_kernel(
    routes_ptr,
    parts_ptr,
    N,
    E,
    tiles,
    stride_n,
    stride_l,
    BLOCK_N: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    layer = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1).to(tl.int64)
    e = tl.arange(0, BLOCK_E)
    total = tl.zeros([BLOCK_E, BLOCK_E], tl.float32)
    for tile in range(0, tiles):
        n = (part * tiles + tile) * BLOCK_N
        n += tl.arange(0, BLOCK_N)
        at = routes_ptr + n * stride_n + layer * stride_l
        here = tl.load(at, mask=n < N, other=-1).to(tl.int32)
        there = tl.load(at + stride_l, mask=n < N, other=-1).to(tl.int32)
        # one-hot: [BLOCK_E, BLOCK_N] and [BLOCK_N, BLOCK_E]
        a = (e[:, None] == here[None, :]).to(tl.float16)
        b = (there[:, None] == e[None, :]).to(tl.float16)
        total += tl.dot(a, b, input_precision="ieee")
    row = layer * tl.num_programs(1) + part
    at = row * E * E + e[:, None] * E + e[None, :]
    inside = (e[:, None] < E) & (e[None, :] < E)
    tl.store(parts_ptr + at, total.to(tl.int32), mask=inside)


def blocks(E: int) -> tuple[int, int, int]:
    """Tokens and experts of a tile, and warps; a matrix unit wants 16."""
    block_e = max(16, triton.next_power_of_2(E))
    # 64 x 64 sums and more leave few registers for the one-hot tiles
    return (128, block_e, 4) if block_e < 64 else (32, block_e, 8)


def transition_counts_triton(routes: Tensor, experts: int) -> Tensor:
    """Launch the kernel and add up what its programs counted."""
    N, L = routes.shape
    block_n, block_e, warps = blocks(experts)
    tiles = max(1, triton.cdiv(triton.cdiv(N, block_n), PROGRAMS))
    programs = max(1, triton.cdiv(N, block_n * tiles))
    parts = torch.empty(
        (L - 1, programs, experts, experts),
        dtype=torch.int32,
        device=routes.device,
    )
    transition_counts_kernel[(L - 1, programs)](
        routes, parts, N, experts, tiles, routes.stride(0), routes.stride(1),
        BLOCK_N=block_n, BLOCK_E=block_e,
        num_warps=warps,
    )  # fmt: skip
    return parts.sum(dim=1, dtype=torch.int32)


def _shapes(routes, experts):
    shape = (routes.shape[1] - 1, experts, experts)
    return routes.new_empty(shape, dtype=torch.int32)


_transition_counts = operator(
    "transition_counts(Tensor routes, SymInt experts) -> Tensor",
    cpu=transition_counts_reference,
    cuda=transition_counts_triton,
    shapes=_shapes,
)


def _inputs(seed, device, dtype, N, L, E, lost=0.0, lone=False):
    generator = torch.Generator().manual_seed(seed)
    routes = torch.randint(1 if lone else E, (N, L), generator=generator)
    gone = torch.rand(N, L, generator=generator) < lost
    routes = routes.masked_fill(gone, -1).to(torch.int8)
    return {"routes": routes.to(device), "experts": E}


def _cost(routes, experts) -> Cost:
    N, L = routes.shape
    pairs = L - 1
    return Cost(N * L + 4 * pairs * experts**2, 2 * N * pairs * experts**2)


def _compile(E: int) -> Compile:
    block_n, block_e, warps = blocks(E)
    return Compile(
        f"E{E}",
        transition_counts_kernel,
        signature={
            "routes_ptr": "*i8", "parts_ptr": "*i32", "N": "i32",
            "E": "i32:16" if E % 16 == 0 else "i32", "tiles": "i32",
            "stride_n": "i32", "stride_l": "i32",
        },
        constants={"BLOCK_N": block_n, "BLOCK_E": block_e},
        num_warps=warps,
    )  # fmt: skip


DECLARATION = Declaration(
    name="transition_counts",
    operation=transition_counts,
    reference=transition_counts_reference,
    triton=transition_counts_triton,
    inputs=_inputs,
    exact=("result",),
    examples=(
        Example("8 experts", {"N": 1000, "L": 6, "E": 8}),
        Example("16 experts", {"N": 257, "L": 3, "E": 16}),
        Example("dropped", {"N": 300, "L": 4, "E": 12, "lost": 0.3}),
        Example("lone", {"N": 130, "L": 2, "E": 8, "lone": True},
                degenerate=True),
        Example("one expert", {"N": 63, "L": 2, "E": 1}, degenerate=True),
        Example("no token", {"N": 0, "L": 3, "E": 8}, degenerate=True),
        Example("large", {"N": 1 << 20, "L": 32, "E": 64}, large=True),
    ),
    cost=_cost,
    compiles=(*map(_compile, (8, 16, 64, 128)),),
)  # fmt: skip
