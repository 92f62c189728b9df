"""Cross-entropy of a prediction that is the sum of two rows, one per table.

A sample has a current node i, a target j and the node k that came next:

    u = softmax(by_current[i] + by_target[j])
    loss = -log u[k]

Each program takes a few samples, adds two rows of the tables, tile by tile,
and keeps the running maximum and the sum of exponentials. So the scores, which
would be as many as samples times nodes, are never stored. The backward pass
needs one number per sample, the log-sum-exp.

Bytes per sample: 8 V of the tables (fp32), most of them from the cache, 12 for
i, j and k, and 8 written. PyTorch stores two gathered rows, their sum and its
log-softmax, which moves 36 V per sample.

Source: the simplified transformer of Wang et al. 2024 (ALPINE), with attention
fixed on the target, one-hot embeddings and a linear feed-forward layer.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from lab.kernels.declaration import Compile, Cost, Declaration, Example
from lab.kernels.operator import operator
from lab.kernels.runtime import may_look
from lab.kernels.two_table_loss_backward import (
    in_tables,
    two_table_loss_backward,
)


class _Parts(NamedTuple):
    loss: Tensor  # [B]
    log_sum: Tensor  # [B]


def two_table_loss(
    by_current: Tensor,
    by_target: Tensor,
    current: Tensor,
    target: Tensor,
    following: Tensor,
) -> Tensor:
    """Loss [B] of the samples under by_current [M, V] and by_target [N, V].

    ``current``, ``target`` and ``following`` [B] int32 number a row of each
    table and a column of both. A sample with a number outside, such as -1, is
    padding: its loss is 0. The result is fp32 (float64 for float64 tables) and
    differentiable in both tables. On a CPU an entry that is not finite is
    refused; on a GPU, where a check would stall it, it spoils the samples that
    read it. O(B V).
    """
    tables = by_current, by_target
    if by_current.ndim != 2 or by_target.ndim != 2 or (
        by_current.shape[1:] != by_target.shape[1:]
        or by_current.dtype != by_target.dtype
    ):  # fmt: skip
        raise ValueError(
            f"tables {tuple(by_current.shape)} {by_current.dtype} and"
            f" {tuple(by_target.shape)} {by_target.dtype} cannot be added;"
            " give [M, V] and [N, V] of one dtype"
        )
    if not by_current.numel() or not by_target.numel():
        raise ValueError(
            f"tables {tuple(by_current.shape)} and {tuple(by_target.shape)}"
            " predict nothing; give both a row and a column at least"
        )
    samples = dict(current=current, target=target, following=following)
    for name, numbers in samples.items():
        if numbers.dtype != torch.int32 or numbers.shape != current.shape[:1]:
            raise ValueError(
                f"{name} {tuple(numbers.shape)} is {numbers.dtype}; give one"
                " int32 for each sample"
            )
    if may_look(by_current):
        bad = sum(int((~torch.isfinite(table)).sum()) for table in tables)
        if bad:
            raise ValueError(
                f"the tables have {bad} NaN or infinite entries; only finite"
                " ones can be added"
            )
    return _two_table_loss(*tables, *samples.values())[0]


def two_table_loss_reference(
    by_current: Tensor,
    by_target: Tensor,
    current: Tensor,
    target: Tensor,
    following: Tensor,
) -> Tensor:
    """The losses in plain PyTorch; every score is stored."""
    samples = current, target, following
    return loss_and_log_sum(by_current, by_target, *samples)[0]


def loss_and_log_sum(by_current, by_target, current, target, following):
    """The losses [B], and what the backward pass needs of them [B]."""
    samples = current, target, following
    known = in_tables(by_current, by_target, *samples)
    i, j, k = (x.where(known, 0).long() for x in samples)
    # sums are in fp32 at least
    wide = torch.promote_types(by_current.dtype, torch.float32)
    scores = by_current[i].to(wide) + by_target[j].to(wide)
    log_sum = scores.logsumexp(dim=1)
    loss = log_sum - scores.gather(1, k[:, None])[:, 0]
    return loss.where(known, 0.0), log_sum.where(known, 0.0)


@triton.jit
def two_table_loss_kernel(
    by_current_ptr, by_target_ptr, current_ptr, target_ptr, following_ptr,
    loss_ptr, log_sum_ptr,
    B, M, N, V,
    BLOCK_B: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0).to(tl.int64) * BLOCK_B + tl.arange(0, BLOCK_B)
    inside = b < B
    i = tl.load(current_ptr + b, mask=inside, other=-1)
    j = tl.load(target_ptr + b, mask=inside, other=-1)
    k = tl.load(following_ptr + b, mask=inside, other=-1)
    known = (i >= 0) & (i < M) & (j >= 0) & (j < N) & (k >= 0) & (k < V)
    row_ptr = by_current_ptr + i.to(tl.int64) * V
    column_ptr = by_target_ptr + j.to(tl.int64) * V
    top = tl.full([BLOCK_B], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_B], tl.float32)
    for start in range(0, V, BLOCK_V):
        v = start + tl.arange(0, BLOCK_V)
        is_node = v[None, :] < V
        some = known[:, None] & is_node
        # [BLOCK_B, BLOCK_V]
        one = tl.load(row_ptr[:, None] + v[None, :], mask=some, other=0.0)
        two = tl.load(column_ptr[:, None] + v[None, :], mask=some, other=0.0)
        scores = one.to(tl.float32) + two.to(tl.float32)
        scores = tl.where(is_node, scores, float("-inf"))
        higher = tl.maximum(top, tl.max(scores, 1))
        total = total * tl.exp(top - higher)
        total += tl.sum(tl.exp(scores - higher[:, None]), 1)
        top = higher

    log_sum = top + tl.log(total)
    one = tl.load(row_ptr + k, mask=known, other=0.0).to(tl.float32)
    two = tl.load(column_ptr + k, mask=known, other=0.0).to(tl.float32)
    loss = log_sum - (one + two)
    tl.store(loss_ptr + b, tl.where(known, loss, 0.0), mask=inside)
    tl.store(log_sum_ptr + b, tl.where(known, log_sum, 0.0), mask=inside)


def blocks(V: int) -> tuple[int, int]:
    """Samples and nodes of one program's tile: 1024 scores."""
    block_v = min(1024, triton.next_power_of_2(V))
    return min(64, 1024 // block_v), block_v


def two_table_loss_triton(
    by_current: Tensor,
    by_target: Tensor,
    current: Tensor,
    target: Tensor,
    following: Tensor,
) -> Tensor:
    """Launch the kernel; one program takes a few samples."""
    return _launch(by_current, by_target, current, target, following).loss


def _launch(by_current, by_target, current, target, following) -> _Parts:
    (B,), V = current.shape, by_current.shape[1]
    loss = by_current.new_empty(B, dtype=torch.float32)
    log_sum = torch.empty_like(loss)
    block_b, block_v = blocks(V)
    if B:
        two_table_loss_kernel[(triton.cdiv(B, block_b),)](
            by_current.contiguous(), by_target.contiguous(),
            current.contiguous(), target.contiguous(), following.contiguous(),
            loss, log_sum, B, len(by_current), len(by_target), V,
            BLOCK_B=block_b, BLOCK_V=block_v,
            num_warps=4,
        )  # fmt: skip
    return _Parts(loss, log_sum)


def _shapes(by_current, by_target, current, target, following):
    wide = by_current.dtype == torch.float64
    dtype = torch.float64 if wide else torch.float32
    size = current.shape[0]
    return tuple(by_current.new_empty(size, dtype=dtype) for _ in range(2))


def _remember(ctx, inputs, output):
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*inputs, output[1])


def _backward(ctx, grad_loss, _):
    found = two_table_loss_backward(*ctx.saved_tensors, grad_loss)
    return *found, None, None, None


_two_table_loss = operator(
    "two_table_loss(Tensor by_current, Tensor by_target, Tensor current, "
    "Tensor target, Tensor following) -> (Tensor, Tensor)",
    cpu=loss_and_log_sum,
    cuda=_launch,
    shapes=_shapes,
    backward=_backward,
    remember=_remember,
)


def _inputs(
    seed, device, dtype, B, V, M=None, N=None, spread=1.0, lost=0.0, lone=False
):
    generator = torch.Generator().manual_seed(seed)
    M, N = M or V, N or V

    def table(rows):
        z = torch.randn(rows, V, generator=generator, dtype=torch.float64)
        # in steps of 1/64, so that a lone score has no rounding error
        return ((64 * spread * z).round() / 64).to(device, dtype)

    def numbers(high):
        drawn = torch.randint(high, (B,), generator=generator)
        gone = torch.rand(B, generator=generator) < lost
        return drawn.masked_fill(gone, -1).int().to(device)

    return {
        "by_current": table(M), "by_target": table(N),
        # all samples in one row: the longest sum there is
        "current": numbers(1 if lone else M),
        "target": numbers(N), "following": numbers(V),
    }  # fmt: skip


def _cost(by_current, by_target, current, target, following) -> Cost:
    B, V = len(current), by_current.shape[1]
    tables = by_current.numel() + by_target.numel()
    # an addition, a maximum, a difference, an exponential and a sum
    return Cost(tables * by_current.element_size() + 16 * B, 5 * B * V)


def _compile(V: int, dtype: str) -> Compile:
    block_b, block_v = blocks(V)
    return Compile(
        f"V{V} {dtype}",
        two_table_loss_kernel,
        signature={
            "by_current_ptr": f"*{dtype}", "by_target_ptr": f"*{dtype}",
            "current_ptr": "*i32", "target_ptr": "*i32",
            "following_ptr": "*i32", "loss_ptr": "*fp32",
            "log_sum_ptr": "*fp32", "B": "i32", "M": "i32", "N": "i32",
            "V": "i32:16" if V % 16 == 0 else "i32",
        },
        constants={"BLOCK_B": block_b, "BLOCK_V": block_v},
    )  # fmt: skip


DECLARATION = Declaration(
    name="two_table_loss",
    operation=two_table_loss,
    reference=two_table_loss_reference,
    triton=two_table_loss_triton,
    inputs=_inputs,
    differentiable=("by_current", "by_target"),
    # all sums are in fp32 whatever the dtype of the tables
    tolerance={torch.float32: 1e-5, torch.float16: 1e-5},
    examples=(
        Example("60 nodes", {"B": 257, "V": 60}),
        Example("two tiles", {"B": 9, "V": 1025, "M": 5, "N": 3}),
        Example("sharp", {"B": 33, "V": 64, "spread": 8.0}),
        Example("padded", {"B": 70, "V": 13, "lost": 0.3}),
        Example("lone", {"B": 130, "V": 8, "lone": True}, degenerate=True),
        Example("one node", {"B": 3, "V": 1}, degenerate=True),
        Example("no sample", {"B": 0, "V": 8}, degenerate=True),
        Example("all padding", {"B": 9, "V": 7, "lost": 1.0}, degenerate=True),
        Example("large", {"B": 1 << 20, "V": 512}, large=True),
    ),
    cost=_cost,
    compiles=(
        _compile(60, "fp32"), _compile(512, "fp32"), _compile(1025, "fp32"),
        _compile(512, "fp16"),
    ),
)  # fmt: skip
