"""Backward of `two_table_loss`: the gradients of both tables.

With u = softmax(by_current[i] + by_target[j]) and g the gradient of a sample's
loss, a sample adds to one row of each table, at every column v:

    g (u[v] - [v = k])

Every row is a sum over some of the samples. The samples are sorted by row, and
a program adds up one tile of one row in this order. So no two programs write
to the same place, there are no atomics, and every run gives the same bits. One
kernel does both tables: the second time, the two change places. A row with
most of the samples takes most of the time, for its sum is not divided.

Bytes per sample: 8 V read from the tables, and for each tile of 128 columns
48 for its numbers and their order (the sort not counted). Bytes per row of a
pair of tables: 8 V read and 8 V written.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from lab.kernels.declaration import Compile, Cost, Declaration, Example
from lab.kernels.operator import operator


class TableGradients(NamedTuple):
    by_current: Tensor  # [M, V]
    by_target: Tensor  # [N, V]


def two_table_loss_backward(
    by_current: Tensor,
    by_target: Tensor,
    current: Tensor,
    target: Tensor,
    following: Tensor,
    log_sum: Tensor,
    grad_loss: Tensor,
) -> TableGradients:
    """Gradients of by_current [M, V] and by_target [N, V] from grad_loss [B].

    ``log_sum`` [B] is what the forward pass kept (`two_table_loss`). A sample
    with a number outside of the tables adds nothing. O(B V + B log B).
    """
    if log_sum.shape != current.shape or grad_loss.shape != current.shape:
        raise ValueError(
            f"log_sum {tuple(log_sum.shape)} and grad_loss"
            f" {tuple(grad_loss.shape)} do not fit {len(current)} samples; use"
            " those of the forward pass, [B] both"
        )
    return TableGradients(
        *_two_table_loss_backward(
            by_current, by_target, current, target, following, log_sum,
            grad_loss,
        )
    )  # fmt: skip


def in_tables(by_current, by_target, current, target, following) -> Tensor:
    """Which samples [B] have numbers inside the tables; others are padding."""
    known = (current >= 0) & (current < len(by_current))
    known &= (target >= 0) & (target < len(by_target))
    known &= (following >= 0) & (following < by_current.shape[1])
    return known


def two_table_loss_backward_reference(
    by_current: Tensor,
    by_target: Tensor,
    current: Tensor,
    target: Tensor,
    following: Tensor,
    log_sum: Tensor,
    grad_loss: Tensor,
) -> TableGradients:
    """The two sums in plain PyTorch; every sample's term is stored."""
    samples = current, target, following
    some = in_tables(by_current, by_target, *samples).nonzero()[:, 0]
    i, j, k = (x[some].long() for x in samples)
    wide = log_sum.dtype
    scores = by_current[i].to(wide) + by_target[j].to(wide)
    terms = (scores - log_sum[some, None]).exp()
    terms[torch.arange(len(some), device=terms.device), k] -= 1
    terms *= grad_loss[some, None].to(wide)
    gradients = [
        torch.zeros_like(table, dtype=wide).index_add_(0, rows, terms)
        for table, rows in ((by_current, i), (by_target, j))
    ]
    return TableGradients(*(g.to(by_current.dtype) for g in gradients))


@triton.jit
def two_table_rows_kernel(
    own_ptr, other_ptr, order_ptr, first_ptr,
    other_row_ptr, following_ptr, log_sum_ptr, grad_loss_ptr,
    grad_own_ptr,
    others, V,
    BLOCK_B: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    v = tl.program_id(1) * BLOCK_V + tl.arange(0, BLOCK_V)
    is_node = v < V
    own = tl.load(own_ptr + row * V + v, mask=is_node, other=0.0)
    own = own.to(tl.float32)
    total = tl.zeros([BLOCK_V], tl.float32)
    last = tl.load(first_ptr + row + 1)
    for start in range(tl.load(first_ptr + row), last, BLOCK_B):
        place = start + tl.arange(0, BLOCK_B)
        inside = place < last
        b = tl.load(order_ptr + place, mask=inside, other=0)
        j = tl.load(other_row_ptr + b, mask=inside, other=-1)
        k = tl.load(following_ptr + b, mask=inside, other=-1)
        known = (j >= 0) & (j < others) & (k >= 0) & (k < V)
        pull = tl.load(grad_loss_ptr + b, mask=known, other=0.0)
        log_sum = tl.load(log_sum_ptr + b, mask=known, other=0.0)
        some = known[:, None] & is_node[None, :]
        at = j.to(tl.int64)[:, None] * V + v[None, :]
        # [BLOCK_B, BLOCK_V]
        other = tl.load(other_ptr + at, mask=some, other=0.0).to(tl.float32)
        scores = own[None, :] + other - log_sum.to(tl.float32)[:, None]
        # what is masked must not overflow either
        u = tl.exp(tl.where(some, scores, 0.0))
        came = (v[None, :] == k[:, None]).to(tl.float32)
        terms = pull.to(tl.float32)[:, None] * (u - came)
        total += tl.sum(tl.where(some, terms, 0.0), 0)
    tl.store(
        grad_own_ptr + row * V + v,
        total.to(grad_own_ptr.dtype.element_ty),
        mask=is_node,
    )


def blocks(V: int) -> tuple[int, int]:
    """Samples and nodes of one step of a program: 1024 terms."""
    block_v = min(128, triton.next_power_of_2(V))
    return min(64, 1024 // block_v), block_v


def two_table_loss_backward_triton(
    by_current: Tensor,
    by_target: Tensor,
    current: Tensor,
    target: Tensor,
    following: Tensor,
    log_sum: Tensor,
    grad_loss: Tensor,
) -> TableGradients:
    """Launch the kernel for each table; one program sums a tile of a row."""
    samples = (following, log_sum, grad_loss)
    samples = [x.contiguous() for x in samples]
    by_current, by_target = by_current.contiguous(), by_target.contiguous()
    current, target = current.contiguous(), target.contiguous()
    return TableGradients(
        _rows(by_current, by_target, current, target, samples),
        _rows(by_target, by_current, target, current, samples),
    )


def _rows(own, other, own_row, other_row, samples):
    """The gradient of the table ``own``, row by row."""
    rows, V = own.shape
    ordered, order = own_row.sort(stable=True)
    # padding sorts to before the first row or behind the last one
    edges = torch.arange(rows + 1, device=own.device, dtype=own_row.dtype)
    first = torch.searchsorted(ordered, edges)
    grad_own = torch.empty_like(own)
    block_b, block_v = blocks(V)
    two_table_rows_kernel[(rows, triton.cdiv(V, block_v))](
        own, other, order, first, other_row, *samples, grad_own,
        len(other), V,
        BLOCK_B=block_b, BLOCK_V=block_v,
        num_warps=4,
    )  # fmt: skip
    return grad_own


def _shapes(by_current, by_target, *_):
    return by_current.new_empty(by_current.shape), by_target.new_empty(
        by_target.shape
    )


_two_table_loss_backward = operator(
    "two_table_loss_backward(Tensor by_current, Tensor by_target, "
    "Tensor current, Tensor target, Tensor following, Tensor log_sum, "
    "Tensor grad_loss) -> (Tensor, Tensor)",
    cpu=two_table_loss_backward_reference,
    cuda=two_table_loss_backward_triton,
    shapes=_shapes,
)


def _inputs(seed, device, dtype, **sizes):
    from lab.kernels.two_table_loss import _inputs as forward_inputs
    from lab.kernels.two_table_loss import loss_and_log_sum

    found = forward_inputs(seed, device, dtype, **sizes)
    generator = torch.Generator().manual_seed(seed + 1000)
    pull = torch.randn(sizes["B"], generator=generator, dtype=torch.float64)
    log_sum = loss_and_log_sum(*found.values())[1]
    return found | {"log_sum": log_sum, "grad_loss": pull.to(log_sum)}


def _cost(
    by_current, by_target, current, target, following, log_sum, grad_loss
) -> Cost:
    B, V = len(current), by_current.shape[1]
    tables = by_current.numel() + by_target.numel()
    moved = 2 * tables * by_current.element_size() + 20 * B
    # two additions, an exponential, a product and a sum, for each table
    return Cost(moved, 10 * B * V)


def _compile(V: int, dtype: str) -> Compile:
    block_b, block_v = blocks(V)
    return Compile(
        f"V{V} {dtype}",
        two_table_rows_kernel,
        signature={
            "own_ptr": f"*{dtype}", "other_ptr": f"*{dtype}",
            "order_ptr": "*i64", "first_ptr": "*i64",
            "other_row_ptr": "*i32", "following_ptr": "*i32",
            "log_sum_ptr": "*fp32", "grad_loss_ptr": "*fp32",
            "grad_own_ptr": f"*{dtype}", "others": "i32",
            "V": "i32:16" if V % 16 == 0 else "i32",
        },
        constants={"BLOCK_B": block_b, "BLOCK_V": block_v},
    )  # fmt: skip


DECLARATION = Declaration(
    name="two_table_loss_backward",
    operation=two_table_loss_backward,
    reference=two_table_loss_backward_reference,
    triton=two_table_loss_backward_triton,
    inputs=_inputs,
    # a sum is rounded once to the dtype of the tables
    tolerance={torch.float32: 1e-5, torch.float16: 6e-4},
    examples=(
        Example("60 nodes", {"B": 257, "V": 60}),
        Example("two tiles", {"B": 40, "V": 1025, "M": 5, "N": 3}),
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
        _compile(60, "fp32"), _compile(512, "fp32"), _compile(512, "fp16"),
    ),
)  # fmt: skip
