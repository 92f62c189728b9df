"""Transition counts: how many tokens went from which expert to which.

From the routes R [N, L] of N tokens through the E experts of L layers:

    W[l, i, j] = number of tokens n with R[n, l] = i and R[n, l + 1] = j

A program takes some tokens and up to 32 neighbouring layers, and adds 1 to
the count of each pair that it sees. Programs share the counts, so the
additions are atomic. They add whole numbers, so the result is the same in
every order.

Bytes: N L read (int8), 4 (L - 1) E^2 written. The limit is how many of the
N (L - 1) additions the cache takes at a time. A route outside 0 .. E - 1, such
as -1 for a dropped token, is in no pair.

Source: Yao et al. 2024, section on inter-layer expert affinity.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from lab.kernels.declaration import Compile, Cost, Declaration, Example
from lab.kernels.operator import operator

MOST_EXPERTS = 128  # what int8 holds


def transition_counts(routes: Tensor, experts: int) -> Tensor:
    """Count the pairs of neighbouring layers in routes [N, L] int8.

    Returns W [L - 1, E, E] int32. Needs two layers or more. O(N L).
    """
    if routes.ndim != 2 or routes.shape[1] < 2:
        raise ValueError(
            f"routes of shape {tuple(routes.shape)} have no two layers to"
            " pair; give [tokens, layers] with 2 layers or more"
        )
    if routes.dtype != torch.int8:
        raise ValueError(f"routes are {routes.dtype}; use .to(torch.int8)")
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
    counts_ptr,
    N,
    pairs,
    E,
    stride_n,
    stride_l,
    BLOCK_N: tl.constexpr,
    BLOCK_L: tl.constexpr,
):
    n = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    layer = tl.program_id(1).to(tl.int64) * BLOCK_L + tl.arange(0, BLOCK_L)
    inside = (n[:, None] < N) & (layer[None, :] < pairs)
    # [BLOCK_N, BLOCK_L]
    at = routes_ptr + n[:, None] * stride_n + layer[None, :] * stride_l
    here = tl.load(at, mask=inside, other=-1).to(tl.int32)
    there = tl.load(at + stride_l, mask=inside, other=-1).to(tl.int32)
    known = (here >= 0) & (here < E) & (there >= 0) & (there < E)
    pair = (layer[None, :] * E + here) * E + there
    tl.atomic_add(counts_ptr + pair, 1, mask=known, sem="relaxed")


def blocks(pairs: int) -> tuple[int, int]:
    """Tokens and layers of one program's tile: 1024 pairs of experts."""
    block_l = min(32, triton.next_power_of_2(pairs))
    return 1024 // block_l, block_l


def transition_counts_triton(routes: Tensor, experts: int) -> Tensor:
    """Launch the kernel; one program counts the pairs of its tokens."""
    N, L = routes.shape
    block_n, block_l = blocks(L - 1)
    counts = routes.new_zeros((L - 1, experts, experts), dtype=torch.int32)
    if N:
        grid = triton.cdiv(N, block_n), triton.cdiv(L - 1, block_l)
        transition_counts_kernel[grid](
            routes, counts, N, L - 1, experts,
            routes.stride(0), routes.stride(1),
            BLOCK_N=block_n, BLOCK_L=block_l,
            num_warps=4,
        )  # fmt: skip
    return counts


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
    # adding 1 to a count is no work for a floating-point unit
    N, L = routes.shape
    return Cost(N * L + 4 * (L - 1) * experts**2, 0)


def _compile(L: int, E: int) -> Compile:
    block_n, block_l = blocks(L - 1)
    return Compile(
        f"L{L} E{E}",
        transition_counts_kernel,
        signature={
            "routes_ptr": "*i8", "counts_ptr": "*i32", "N": "i32",
            "pairs": "i32", "E": "i32:16" if E % 16 == 0 else "i32",
            "stride_n": "i32:16" if L % 16 == 0 else "i32",
        },
        constants={"BLOCK_N": block_n, "BLOCK_L": block_l, "stride_l": 1},
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
        Example("40 layers", {"N": 70, "L": 40, "E": 5, "lost": 0.1}),
        Example("dropped", {"N": 300, "L": 4, "E": 12, "lost": 0.3}),
        Example("lone", {"N": 130, "L": 2, "E": 8, "lone": True},
                degenerate=True),
        Example("one expert", {"N": 63, "L": 2, "E": 1}, degenerate=True),
        Example("no token", {"N": 0, "L": 3, "E": 8}, degenerate=True),
        Example("large", {"N": 1 << 20, "L": 32, "E": 64}, large=True),
    ),
    cost=_cost,
    compiles=(_compile(6, 8), _compile(32, 64), _compile(61, 128)),
)  # fmt: skip
