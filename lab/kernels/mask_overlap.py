"""Mask overlap: a token's largest features as bits, and who shares them.

From the features u [T, D] of T tokens and the masks M [N, D] of N experts,
packed 32 to a word:

    M_0(t)      = the d features of token t with the largest |u|, none of 0
    counts[t,j] = |M_0(t) and M_j|             bits that both have set

A rank rule: d bits are set in a row, ties go to the lowest index, but a
feature that is exactly 0 does nothing and is never set, as in the authors'
code: that compares with the d-th largest by a strict >, which keeps d - 1
bits and drops all that tie. In a ReLU network most features are 0; ranked,
they would fill the mask by their index and drown the overlap.

One program holds one token. Read as integers, floats that are not negative
have the order of their bits, so 31 counts of "how many are at least this?"
fix the d-th largest, whatever d. The bits of a word are then one sum, and a
popcount of ``token & expert`` counts the overlap, 32 features at a time.

Bytes: T D features read once, which is nearly all; the masks of the experts
are D N / 8 bytes and stay in the cache, T (W + N) words of 4 bytes are
written, W = ceil(D / 32).

Source: Cai et al. 2024 (Read-ME), section 3.2; VITA-Group/READ-ME,
`thresholding`.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from lab.kernels.declaration import Compile, Cost, Declaration, Example
from lab.kernels.operator import operator

BITS = 32  # of a word
MOST_FEATURES = 16384  # of one row, 32 registers a thread


class Overlap(NamedTuple):
    masks: Tensor  # [T, W] int32, the tokens' own masks, packed
    counts: Tensor  # [T, N] int32, bits shared with every expert


def mask_overlap(features: Tensor, experts: Tensor, d: int) -> Overlap:
    """Masks of the d largest |features| [T, D], and overlaps with experts.

    ``experts`` [N, W] int32 are packed masks as `pack` makes them; bits past
    D count for nothing. On a CPU, NaN or infinity is refused; on a GPU, where
    looking would stall it, NaN counts as 0, and infinity as the largest.
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
        raise ValueError(f"D={D} features are more than {MOST_FEATURES}")
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
        raise ValueError(f"d={d} is not within 1 to {D}, the features")
    if features.device.type == "cpu" and not features.isfinite().all():
        raise ValueError(
            f"features hold {int((~features.isfinite()).sum())} NaN or"
            " infinite entries; only finite ones have a rank"
        )
    return Overlap(*_mask_overlap(features.detach(), experts, d))


def words(D: int) -> int:
    """Words that D bits need."""
    return -(-D // BITS)


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
    """The same in plain PyTorch: sort, cut, compare feature by feature."""
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
def popcount(x):
    """How many bits of int32 words are set."""
    x = (x & 0x55555555) + ((x >> 1) & 0x55555555)
    x = (x & 0x33333333) + ((x >> 2) & 0x33333333)
    x = (x + (x >> 4)) & 0x0F0F0F0F
    x = x + (x >> 8)
    return (x + (x >> 16)) & 63


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
    BLOCK_W: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    w = tl.arange(0, BLOCK_W)
    lane = tl.arange(0, 32)
    feature = w[:, None] * 32 + lane[None, :]  # [BLOCK_W, 32]
    u = tl.load(
        features_ptr + token * stride_t + feature.to(tl.int64) * stride_d,
        mask=feature < D,
        other=0.0,
    ).to(tl.float32)
    size = tl.where(u == u, tl.abs(u), 0.0)
    # the bits of a float that is not negative are in its order; what is 0
    # stays below every threshold
    key = tl.where(size > 0.0, size.to(tl.int32, bitcast=True), -1)

    # the largest t that at least d keys reach
    t = 0
    bit = 1 << 30
    for _ in range(31):
        reached = tl.sum(tl.sum((key >= t + bit).to(tl.int32), 1), 0)
        t = tl.where(reached >= d, t + bit, t)
        bit = bit >> 1

    above = (key > t).to(tl.int32)
    tied = (key == t).to(tl.int32)
    left = d - tl.sum(tl.sum(above, 1), 0)  # seats for those equal to t
    in_word = tl.sum(tied, 1)
    before = tl.cumsum(in_word, 0) - in_word  # in the words before
    place = before[:, None] + tl.cumsum(tied, 1)
    taken = (above > 0) | ((tied > 0) & (place <= left))
    mine = tl.sum(taken.to(tl.int32) << lane[None, :], 1)  # [BLOCK_W]
    tl.store(masks_ptr + token * W + w, mine, mask=w < W)
    for n in range(0, N):
        theirs = tl.load(experts_ptr + n * W + w, mask=w < W, other=0)
        shared = tl.sum(popcount(mine & theirs.to(tl.int32)), 0)
        tl.store(counts_ptr + token * N + n, shared)


def mask_overlap_triton(features: Tensor, experts: Tensor, d: int) -> Overlap:
    """Launch the kernel, one program a token, on features of any strides."""
    T, D = features.shape
    N, W = experts.shape
    masks = experts.new_empty((T, W))
    counts = experts.new_empty((T, N))
    if T:
        mask_overlap_kernel[(T,)](
            features, experts.contiguous(), masks, counts, D, N, W, d,
            *features.stride(),
            BLOCK_W=triton.next_power_of_2(W), num_warps=warps(W),
        )  # fmt: skip
    return Overlap(masks, counts)


def warps(W: int) -> int:
    """Warps of a program: 16 words each, a power of two to 16."""
    return max(1, min(16, triton.next_power_of_2(W) // 16))


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
    return Compile(
        f"D{D}",
        mask_overlap_kernel,
        signature={
            "features_ptr": "*bf16" if D > 1000 else "*fp32",
            "experts_ptr": "*i32", "masks_ptr": "*i32", "counts_ptr": "*i32",
            "D": "i32:16" if D % 16 == 0 else "i32", "N": "i32",
            "W": "i32:16" if W % 16 == 0 else "i32", "d": "i32",
            "stride_t": "i32:16" if D % 16 == 0 else "i32",
            "stride_d": "i32",
        },
        constants={"BLOCK_W": triton.next_power_of_2(W)},
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
        Example("half of 192", {"T": 33, "D": 192, "N": 7, "d": 96}),
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
