"""Mask overlap: a token's top features as bits, and which experts share them.

From the features u [T, D] of T tokens and the masks M [N, D] of N experts,
packed 32 to a word:

    M_0(t)      = the d features of token t with the largest |u|, but none
                  that is 0
    counts[t,j] = |M_0(t) and M_j|             bits that both have set

The features are ranked: each token gets d bits, and ties go to the lowest
index. But a feature that is exactly 0 does nothing and is never set, as in
the authors' code. (That code compares with the d-th largest by a strict >,
which keeps d - 1 bits and drops all that tie.) In a ReLU network most
features are 0; if these were ranked, they would fill the mask by their index
and drown the overlap.

One program holds one token. Floats that are not negative have the order of
their bits read as integers, so the d-th largest is found bit by bit, from the
highest on. Of the features that agree with it so far, how many have a 1 in
this bit? If at least d, the d-th largest has a 1, too. If fewer, all of these
are larger, and d falls by their number. No sort is needed, whatever d is: 15
counts in bf16, 18 in fp16, 31 in fp32.

A count is cheap because of the layout of the bits. The 32 features of a word
are the rows of a matrix of 32 x 32 bits; each row of its transpose has one bit
of all 32. A popcount then counts 32 features, and the words left at the end
are the mask. A popcount of ``token & expert`` is the overlap.

A row of 11008 features in bf16 takes 2531 instructions of 4 warps on an H200
(Triton 3.6.0); a count takes a few of them, and barriers for its sum over
warps.

Bytes: T D features read once, which is nearly all; the masks of the experts
are D N / 8 bytes and stay in the cache; T (W + N) words of 4 bytes are
written, with W = ceil(D / 32).

Source: Cai et al. 2024 (Read-ME), eq. 3 and 4; VITA-Group/READ-ME,
`thresholding`.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from lab.kernels._bit_matrix import (
    BITS,
    LOAD,
    LOWEST,
    columns,
    largest,
    numbers,
    popcount,
    transpose,
    words,
)
from lab.kernels.declaration import Compile, Cost, Declaration, Example
from lab.kernels.operator import operator
from lab.kernels.runtime import may_look

MOST_FEATURES = 16384  # in a row, 128 registers a thread
BLOCK_N = 8  # experts that are counted together


class Overlap(NamedTuple):
    masks: Tensor  # [T, W] int32, the tokens' own masks, packed
    counts: Tensor  # [T, N] int32, bits shared with every expert


def mask_overlap(features: Tensor, experts: Tensor, d: int) -> Overlap:
    """Masks of the d largest |features| [T, D], and overlaps with experts.

    ``experts`` [N, W] int32 are packed masks as `pack` makes them; bits past
    D count for nothing. On a CPU, NaN or infinity is refused; on a GPU, where
    a check would stall it, NaN counts as 0, and infinity as the largest.
    O(T D). No gradient.
    """
    if features.ndim != 2 or features.shape[1] < 1:
        raise ValueError(
            f"features of shape {tuple(features.shape)} have nothing to rank;"
            " give [tokens, features] with one feature or more"
        )
    if not features.is_floating_point():
        raise TypeError(f"features are {features.dtype}; use a floating type")
    D = features.shape[1]
    if D > MOST_FEATURES:
        raise ValueError(
            f"D={D} features are too many; use at most {MOST_FEATURES}"
        )
    W = words(D)
    if (
        experts.ndim != 2
        or len(experts) < 1
        or experts.shape[1] != W
        or experts.dtype != torch.int32
    ):
        raise ValueError(
            f"experts {tuple(experts.shape)} {experts.dtype} do not fit; give"
            f" int32 words [experts, {W}] for D={D}, as pack(mask) makes them"
        )
    if not 1 <= d <= D:
        raise ValueError(
            f"d={d} is not within 1 to {D}, the number of features"
        )
    if may_look(features) and not features.isfinite().all():
        raise ValueError(
            f"features hold {int((~features.isfinite()).sum())} NaN or"
            " infinite entries; only finite ones have a rank"
        )
    return Overlap(*_mask_overlap(features.detach(), experts, d))


def pack(mask: Tensor) -> Tensor:
    """Booleans [..., D] as int32 words [..., W], feature i in bit i % 32."""
    D = mask.shape[-1]
    padded = F.pad(mask.bool().long(), (0, words(D) * BITS - D))
    shift = torch.arange(BITS, device=mask.device)
    whole = (padded.unflatten(-1, (-1, BITS)) << shift).sum(-1)
    # the highest bit is the sign
    return torch.where(whole >= 1 << 31, whole - (1 << 32), whole).int()


def unpack(packed: Tensor, D: int) -> Tensor:
    """The booleans [..., D] that were packed."""
    shift = torch.arange(BITS, device=packed.device, dtype=torch.int32)
    return ((packed[..., None] >> shift) & 1).flatten(-2)[..., :D].bool()


def mask_overlap_reference(
    features: Tensor, experts: Tensor, d: int
) -> Overlap:
    """The overlap in plain PyTorch: sort, cut, compare by feature."""
    _, D = features.shape
    wide = features if features.dtype == torch.float64 else features.float()
    # a stable sort, because torch.topk leaves the order of ties open
    order = wide.abs().argsort(dim=1, descending=True, stable=True)
    largest = torch.zeros_like(features, dtype=torch.bool)
    largest.scatter_(1, order[:, :d], True)
    largest &= wide != 0
    shared = [(largest & mask).sum(1) for mask in unpack(experts, D)]
    return Overlap(pack(largest), torch.stack(shared, dim=1).int())


@triton.jit
def mask_overlap_kernel(
    features_ptr,
    experts_ptr,
    masks_ptr,
    counts_ptr,
    D,
    N,
    W,
    d,
    stride_t,
    stride_d,
    LOWEST: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    w = tl.arange(0, BLOCK_W)
    # the features w * 32 + q, for q from 0 to 31: each [BLOCK_W]
    rows = ()
    for q in tl.static_range(0, 32, CHUNK):
        u = numbers(features_ptr + token * stride_t, w, q, D, stride_d, CHUNK)
        rows = rows + columns(u.to(tl.uint32, bitcast=True), BLOCK_W, CHUNK)
    # bit 31, the sign, is left out
    plane = transpose(rows)

    # NaN has every bit of the exponent and one of the fraction
    fraction = plane[LOWEST]
    for b in tl.static_range(LOWEST + 1, 23):
        fraction = fraction | plane[b]
    some, every = fraction | plane[23], plane[23]
    for b in tl.static_range(24, 31):
        some = some | plane[b]
        every = every & plane[b]

    # the largest of the numbers that are neither 0 nor NaN
    mine = largest(plane, some ^ (every & fraction), d, 30, LOWEST)
    tl.store(
        masks_ptr + token * W + w, mine.to(tl.int32, bitcast=True), mask=w < W
    )
    for start in range(0, N, BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        theirs = tl.load(
            experts_ptr + n[:, None] * W + w[None, :],
            mask=(n[:, None] < N) & (w[None, :] < W),
            other=0,
        )  # [BLOCK_N, BLOCK_W]
        shared = mine[None, :] & theirs.to(tl.uint32, bitcast=True)
        counts = tl.sum(popcount(shared), 1)
        tl.store(counts_ptr + token * N + n, counts, mask=n < N)


def mask_overlap_triton(features: Tensor, experts: Tensor, d: int) -> Overlap:
    """Launch the kernel, one program per token, on features of any strides."""
    T, D = features.shape
    N, W = experts.shape
    masks = experts.new_empty((T, W))
    counts = experts.new_empty((T, N))
    if T:
        mask_overlap_kernel[(T,)](
            features, experts.contiguous(), masks, counts, D, N, W, d,
            *features.stride(),
            LOWEST=LOWEST.get(features.dtype, 0),
            CHUNK=LOAD // features.element_size(),
            BLOCK_N=BLOCK_N, BLOCK_W=triton.next_power_of_2(W),
            num_warps=warps(W),
        )  # fmt: skip
    return Overlap(masks, counts)


def warps(W: int) -> int:
    """Warps of a program, a power of two: 128 words each, four per lane."""
    return max(1, triton.next_power_of_2(W) // 128)


def _shapes(features, experts, d):
    T, (N, W) = len(features), experts.shape
    return experts.new_empty((T, W)), experts.new_empty((T, N))


_mask_overlap = operator(
    "mask_overlap(Tensor features, Tensor experts, SymInt d)"
    " -> (Tensor, Tensor)",
    cpu=mask_overlap_reference,
    cuda=mask_overlap_triton,
    shapes=_shapes,
)


def _inputs(seed, device, dtype, T, D, N, d, relu=False, full=False):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(T, D, generator=generator, dtype=torch.float64)
    if relu:  # half of them tie at 0
        features = features.relu()
    mask = torch.rand(N, D, generator=generator) < (2.0 if full else 0.5)
    return {
        "features": features.to(device, dtype),
        "experts": pack(mask).to(device),
        "d": d,
    }


def _cost(features, experts, d) -> Cost:
    T, D = features.shape
    N, W = experts.shape
    moved = features.element_size() * T * D + 4 * N * W + 4 * T * (W + N)
    return Cost(moved, 0)


def _compile(D: int) -> Compile:
    W = words(D)
    bf16 = D > 1000
    constants = {
        "LOWEST": 16 if bf16 else 0,
        "CHUNK": 8 if bf16 else 4,
        "BLOCK_N": BLOCK_N,
        "BLOCK_W": triton.next_power_of_2(W),
    }
    if D > 192:  # the rows are contiguous, as nearly always
        constants["stride_d"] = 1
    return Compile(
        f"D{D}",
        mask_overlap_kernel,
        signature={
            "features_ptr": "*bf16" if bf16 else "*fp32",
            "experts_ptr": "*i32", "masks_ptr": "*i32", "counts_ptr": "*i32",
            "D": "i32:16" if D % 16 == 0 else "i32", "N": "i32",
            "W": "i32:16" if W % 16 == 0 else "i32", "d": "i32",
            "stride_t": "i32:16" if D % 16 == 0 else "i32",
            "stride_d": "i32",
        },
        constants=constants,
        num_warps=warps(W),
    )  # fmt: skip


DECLARATION = Declaration(
    name="mask_overlap",
    operation=mask_overlap,
    reference=mask_overlap_reference,
    triton=mask_overlap_triton,
    inputs=_inputs,
    exact=("masks", "counts"),
    tolerance={
        torch.float32: 0.0, torch.float16: 0.0, torch.bfloat16: 0.0,
    },
    examples=(
        Example("half of 192", {"T": 9, "D": 192, "N": 11, "d": 96}),
        Example("a third of 1000", {"T": 5, "D": 1000, "N": 3, "d": 333}),
        Example("ReLU", {"T": 9, "D": 100, "N": 7, "d": 70, "relu": True},
                smooth=False),
        Example("one feature", {"T": 3, "D": 1, "N": 2, "d": 1},
                degenerate=True),
        Example("all", {"T": 4, "D": 63, "N": 1, "d": 63, "full": True},
                degenerate=True),
        Example("the largest", {"T": 4, "D": 65, "N": 2, "d": 1},
                degenerate=True),
        Example("no token", {"T": 0, "D": 64, "N": 7, "d": 32},
                degenerate=True),
        Example("large", {"T": 8192, "D": 11008, "N": 7, "d": 5504},
                large=True),
    ),
    cost=_cost,
    compiles=(_compile(192), _compile(1000), _compile(11008)),
)  # fmt: skip
