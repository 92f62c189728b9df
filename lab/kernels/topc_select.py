"""Top-c selection: every expert takes the c tokens that it scores highest.

A gate selects along the experts of a token; this selects along the tokens of
an expert, its column of the scores [B, n, S]:

    t       = the c-th largest score of the column
    taken   = all scores above t, and of those equal to t the first ones
    indices = the places of the taken scores, ascending

So the order of time is kept, and a causal mask of c x c stays right after the
gather. Ties go to the lowest index.

One program holds one column. It finds t bit by bit: floats of one sign have
the order of their bits read as integers, so 32 counts fix all 32 bits of t,
whatever c is (16 counts for scores in bf16, 19 in fp16). The 32 scores of a
word are the rows of a matrix of 32 x 32 bits, and each word of its transpose
has one bit of all 32, so a popcount counts 32 scores (see `largest`). The
words left at the end mark the tokens that are taken. A prefix sum packs these
in ascending order without a sort.

Bytes: 4 B n S read and 4 B n c written. The counts read only registers; but
each ends in a sum over the whole program, and the barriers of these sums
limit a short column.

Source: YujiaoYang-work/UoE, model/mlp/UoME_DS.py (topk, then sort).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from lab.kernels._bit_matrix import (
    LOAD,
    LOWEST,
    columns,
    largest,
    numbers,
    popcount,
    transpose,
    words,
)
from lab.kernels.declaration import (
    KINDS,
    Compile,
    Cost,
    Declaration,
    Example,
)
from lab.kernels.gate_backward import finite
from lab.kernels.operator import operator
from lab.kernels.runtime import may_look, next_power_of_2
from lab.kernels.topk_gate import ordered

MOST_TOKENS = 8192  # in a column, on 8 warps; twice as many would spill


def topc_select(scores: Tensor, c: int) -> Tensor:
    """The c best tokens of each column of scores [B, n, S], ascending.

    Returns int32 [B, n, c]. The selection has no gradient. On a CPU, NaN or
    infinity is refused; on a GPU, where a check would stall it, NaN and -inf
    count as the lowest number, inf as the highest. O(B n S).
    """
    if scores.ndim != 3 or scores.shape[2] < 1:
        raise ValueError(
            f"scores have shape {tuple(scores.shape)}; a selection needs"
            " [batch, experts, tokens] with at least one token"
        )
    if not scores.is_floating_point():
        raise TypeError(f"scores are {scores.dtype}; use a floating type")
    S = scores.shape[2]
    if S > MOST_TOKENS:
        raise ValueError(
            f"S={S} tokens are too many; use at most {MOST_TOKENS} in one call"
        )
    if not 1 <= c <= S:
        raise ValueError(f"c={c} is not within 1 to {S}, the number of tokens")
    if may_look(scores) and not scores.isfinite().all():
        raise ValueError(
            f"scores hold {int((~scores.isfinite()).sum())} NaN or infinite"
            " entries; to rule out a token, use a large negative number such"
            " as -1e4"
        )
    return _topc_select(scores.detach(), c)


def topc_select_reference(scores: Tensor, c: int) -> Tensor:
    """The selection in plain PyTorch: sort, cut, and sort the places."""
    wide = scores if scores.dtype == torch.float64 else scores.float()
    # a stable sort, because torch.topk leaves the order of ties open
    order = wide.argsort(dim=2, descending=True, stable=True)
    best = order[:, :, :c].clone(memory_format=torch.contiguous_format)
    return best.sort(dim=2).values.to(torch.int32)


@triton.jit
def topc_select_kernel(
    scores_ptr,
    indices_ptr,
    n,
    S,
    c,
    stride_b,
    stride_e,
    stride_s,
    LOWEST: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    column = tl.program_id(0).to(tl.int64)
    scores_ptr += column // n * stride_b + column % n * stride_e
    w = tl.arange(0, BLOCK_W)
    # the tokens w * 32 + q, for q from 0 to 31: each [BLOCK_W]
    rows = ()
    for q in tl.static_range(0, 32, CHUNK):
        z = finite(numbers(scores_ptr, w, q, S, stride_s, CHUNK))
        z = tl.where(z == 0.0, 0.0, z)  # -0 and 0 tie, but differ in a bit
        # unsigned, so that counting can begin with the highest bit
        key = ordered(z).to(tl.uint32, bitcast=True) ^ 0x80000000
        rows = rows + columns(key, BLOCK_W, CHUNK)
    here = tl.minimum(S - w * 32, 32)  # tokens of a word
    every = tl.full([BLOCK_W], 0xFFFFFFFF, tl.uint32)
    exist = tl.where(here > 0, every >> (32 - tl.maximum(here, 1)), 0)
    taken = largest(transpose(rows), exist, c, 31, LOWEST)

    count = popcount(taken)
    place = tl.cumsum(count, 0) - count
    for q in range(32):
        is_taken = (taken >> q) & 1
        at = indices_ptr + column * c + place
        tl.store(at, w * 32 + q, mask=is_taken > 0)
        place += is_taken.to(tl.int32)


def topc_select_triton(scores: Tensor, c: int) -> Tensor:
    """Launch the kernel, one program per column, on scores of any strides."""
    B, n, S = scores.shape
    indices = scores.new_empty((B, n, c), dtype=torch.int32)
    if B * n:
        topc_select_kernel[(B * n,)](
            scores, indices, n, S, c, *scores.stride(),
            **blocks(S, scores.dtype),
        )  # fmt: skip
    return indices


def blocks(S: int, dtype: torch.dtype) -> dict:
    """Lowest bit that counts, scores that a lane loads at once, words, warps.

    A lane has one word, because the 32 rows of two would fill the registers.
    """
    block_w = next_power_of_2(words(S))
    return {
        "LOWEST": LOWEST.get(dtype, 0),
        "CHUNK": LOAD // dtype.itemsize,
        "BLOCK_W": block_w,
        "num_warps": max(1, block_w // 32),
    }


def _shapes(scores, c):
    B, n, _ = scores.shape
    return scores.new_empty((B, n, c), dtype=torch.int32)


_topc_select = operator(
    "topc_select(Tensor scores, SymInt c) -> Tensor",
    cpu=topc_select_reference,
    cuda=topc_select_triton,
    shapes=_shapes,
)


def _inputs(seed, device, dtype, B, n, S, c, ties=False):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(B, n, S, generator=generator, dtype=torch.float64)
    if ties:
        scores = scores.round()
    return {"scores": scores.to(device, dtype), "c": c}


def _cost(scores, c) -> Cost:
    B, n, S = scores.shape
    return Cost(B * n * (S * scores.element_size() + 4 * c), 0)


def _compile(S: int, dtype: torch.dtype = torch.float32) -> Compile:
    size = "i32:16" if S % 16 == 0 else "i32"
    kind = KINDS[dtype]
    constants = blocks(S, dtype)
    return Compile(
        f"S{S} {kind}",
        topc_select_kernel,
        num_warps=constants.pop("num_warps"),
        signature={
            "scores_ptr": f"*{kind}", "indices_ptr": "*i32", "n": "i32",
            "S": size, "c": "i32", "stride_b": size, "stride_e": size,
            "stride_s": "i32",
        },
        constants=constants,
    )  # fmt: skip


DECLARATION = Declaration(
    name="topc_select",
    operation=topc_select,
    reference=topc_select_reference,
    triton=topc_select_triton,
    inputs=_inputs,
    exact=("result",),
    tolerance={
        torch.float32: 0.0, torch.float16: 0.0, torch.bfloat16: 0.0,
    },
    examples=(
        Example("half of 16", {"B": 5, "n": 4, "S": 16, "c": 8}),
        Example("third of 1000", {"B": 1, "n": 5, "S": 1000, "c": 333}),
        Example("batch of 512", {"B": 1, "n": 8, "S": 512, "c": 128}),
        Example("one token", {"B": 2, "n": 3, "S": 1, "c": 1},
                degenerate=True),
        Example("all", {"B": 2, "n": 3, "S": 63, "c": 63}, degenerate=True),
        Example("the best", {"B": 2, "n": 3, "S": 65, "c": 1},
                degenerate=True),
        Example("no sample", {"B": 0, "n": 4, "S": 16, "c": 8},
                degenerate=True),
        Example("ties", {"B": 2, "n": 3, "S": 200, "c": 77, "ties": True},
                degenerate=True, smooth=False),
        Example("large", {"B": 32, "n": 16, "S": 8192, "c": 4096},
                large=True),
    ),
    cost=_cost,
    compiles=(
        _compile(16), _compile(1000), _compile(4096), _compile(8192),
        _compile(8192, torch.bfloat16),
    ),
)  # fmt: skip
