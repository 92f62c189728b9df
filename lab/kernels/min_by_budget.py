"""Best route by budget: the least loss of each token on each menu of routes.

Given the losses l [R, T] of R routes on T tokens and the budget b_r of every
route (for Duo-LLM, how many of its layers are big):

    best[b, t]  = min of l[r, t] over the routes r with b_r = b
    route[b, t] = the lowest r that reaches it, -1 if there is none

The routes of one budget are a menu. The minima are a segmented reduction whose
segments, the menus, are scattered: route 0b0111 has budget 3, its neighbours
have 2 and 1. `dispatch` lists the routes of each menu together, as it does the
tokens of an expert. Then a program takes one menu and a block of tokens, and
reads rows of the losses in that order. Each loss is read once, each row is
contiguous in memory, and nothing is copied into another order.

Bytes: 4 R T read and 8 B T written; R T comparisons, no floating-point
operation. On any GPU the kernel waits for memory.

Source: Alizadeh et al. 2024, section on the oracle; the reduction is ours.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from lab.kernels.declaration import Compile, Cost, Declaration, Example
from lab.kernels.dispatch import MOST_EXPERTS, dispatch_triton
from lab.kernels.operator import operator
from lab.kernels.runtime import may_look

BLOCK_R, BLOCK_T = 16, 64  # routes and tokens of one step


class Best(NamedTuple):
    """The best route of each token on each menu."""

    loss: Tensor  # [B, T], infinite where a menu offers nothing
    route: Tensor  # [B, T] int32, -1 where a menu offers nothing


def min_by_budget(losses: Tensor, budgets: Tensor, num_budgets: int) -> Best:
    """Reduce losses [R, T] over the routes of each budget [R] int32.

    Menus run from 0 to ``num_budgets`` - 1; a route of any other budget is on
    no menu, and a route of infinite loss is never taken. Losses are returned
    in fp32 (float64 for float64). NaN is refused on a CPU; on a GPU, where a
    check would stall it, it counts as infinite. No gradient. O(R T).
    """
    if losses.ndim != 2 or not losses.is_floating_point():
        raise ValueError(
            f"losses are {losses.dtype} of shape {tuple(losses.shape)};"
            " give floats [routes, tokens]"
        )
    if budgets.dtype != torch.int32 or budgets.shape != losses.shape[:1]:
        raise ValueError(
            f"budgets are {budgets.dtype} of shape {tuple(budgets.shape)};"
            f" give int32, one for each of the {len(losses)} routes"
        )
    if not 1 <= num_budgets <= MOST_EXPERTS:
        raise ValueError(
            f"num_budgets={num_budgets} is not within 1 to {MOST_EXPERTS}"
        )
    if may_look(losses) and losses.isnan().any():
        raise ValueError(
            f"losses hold {int(losses.isnan().sum())} NaN entries, which"
            " cannot be compared; use infinity to rule out a route"
        )
    return Best(*_min_by_budget(losses, budgets, num_budgets))


def min_by_budget_reference(
    losses: Tensor, budgets: Tensor, num_budgets: int
) -> Best:
    """The reduction in plain PyTorch, one menu after the other."""
    _, T = losses.shape
    wide = losses if losses.dtype == torch.float64 else losses.float()
    best = wide.new_full((num_budgets, T), float("inf"))
    route = losses.new_full((num_budgets, T), -1, dtype=torch.int32)
    for budget in range(num_budgets):
        menu = (budgets == budget).nonzero().flatten()
        if len(menu):
            best[budget] = wide[menu].amin(dim=0)
            # argmax finds the first of several that are equal
            first = (wide[menu] == best[budget]).int().argmax(dim=0)
            route[budget] = menu[first].int()
    return Best(best, route.masked_fill(best == float("inf"), -1))


@triton.jit
def min_by_budget_kernel(
    losses_ptr,
    order_ptr,
    offsets_ptr,
    best_ptr,
    route_ptr,
    T,
    stride_r,
    stride_t,
    BLOCK_R: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    budget = tl.program_id(1).to(tl.int64)
    t = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    begin = tl.load(offsets_ptr + budget)
    end = tl.load(offsets_ptr + budget + 1)
    # each row of a step keeps the best it has seen until the end
    best = tl.full([BLOCK_R, BLOCK_T], float("inf"), tl.float32)
    nowhere = 2147483647  # after every place
    place = tl.full([BLOCK_R, BLOCK_T], nowhere, tl.int32)
    at = begin + tl.arange(0, BLOCK_R)
    route = tl.load(order_ptr + at, mask=at < end, other=0).to(tl.int64)
    for _ in range(begin, end, BLOCK_R):
        loss = tl.load(
            losses_ptr + route[:, None] * stride_r + t[None, :] * stride_t,
            mask=(at[:, None] < end) & (t[None, :] < T),
            other=float("inf"),
        ).to(tl.float32)
        better = loss < best  # never for NaN
        place = tl.where(better, at[:, None], place)
        best = tl.where(better, loss, best)
        # loaded a step ahead, so that the losses wait for memory only once
        at += BLOCK_R
        route = tl.load(order_ptr + at, mask=at < end, other=0).to(tl.int64)
    least = tl.min(best, 0)
    # routes of a menu are ascending: an earlier place is a lower route
    first = tl.min(tl.where(best == least[None, :], place, nowhere), 0)
    found = (first < nowhere) & (t < T)
    chosen = tl.load(order_ptr + first, mask=found, other=-1)
    tl.store(best_ptr + budget * T + t, least, mask=t < T)
    tl.store(route_ptr + budget * T + t, chosen, mask=t < T)


def min_by_budget_triton(
    losses: Tensor, budgets: Tensor, num_budgets: int
) -> Best:
    """Sort the routes, then launch; no number travels to the host."""
    T = losses.shape[1]
    _, offsets, order, _ = dispatch_triton(budgets[:, None], num_budgets)
    best = losses.new_empty((num_budgets, T), dtype=torch.float32)
    route = losses.new_empty((num_budgets, T), dtype=torch.int32)
    if T:
        min_by_budget_kernel[(triton.cdiv(T, BLOCK_T), num_budgets)](
            losses, order, offsets, best, route,
            T, *losses.stride(),
            # four warps would meet in shared memory, 16 lanes at one bank
            BLOCK_R=BLOCK_R, BLOCK_T=BLOCK_T, num_warps=1,
        )  # fmt: skip
    return Best(best, route)


def _shapes(losses, budgets, num_budgets):
    shape = (num_budgets, losses.shape[1])
    wide = losses.dtype == torch.float64
    return (
        losses.new_empty(
            shape, dtype=torch.float64 if wide else torch.float32
        ),
        losses.new_empty(shape, dtype=torch.int32),
    )


_min_by_budget = operator(
    "min_by_budget(Tensor losses, Tensor budgets, SymInt num_budgets)"
    " -> (Tensor, Tensor)",
    cpu=min_by_budget_reference,
    cuda=min_by_budget_triton,
    shapes=_shapes,
)


def _inputs(seed, device, dtype, L, T, ties=False, scattered=False, ban=0.0):
    """All routes of L layers; ``scattered`` budgets leave menus empty."""
    generator = torch.Generator().manual_seed(seed)
    route = torch.arange(2**L)
    budgets = sum(((route >> layer) & 1) for layer in range(L))
    budgets = torch.as_tensor(budgets).expand(2**L)
    if scattered:
        drawn = torch.randint(-1, 3, (2**L,), generator=generator)
        budgets = 2 * drawn
    losses = torch.rand(2**L, T, generator=generator, dtype=torch.float64)
    if ties:
        losses = (3 * losses).round()
    banned = torch.rand(2**L, T, generator=generator) < ban
    losses = losses.masked_fill(banned, float("inf"))
    return {
        "losses": losses.to(device, dtype),
        "budgets": budgets.to(device, torch.int32).contiguous(),
        "num_budgets": L + 1,
    }


def _specified(result, **_):
    # the difference of two infinities is not a small number
    return result._replace(loss=result.loss.where(result.route >= 0, 0.0))


def _cost(losses, budgets, num_budgets) -> Cost:
    R, T = losses.shape
    read = losses.element_size() * R * T + 4 * R
    return Cost(read + 8 * num_budgets * T, 0)


def _compile(kind: str) -> Compile:
    return Compile(
        f"{kind} {BLOCK_R}x{BLOCK_T}",
        min_by_budget_kernel,
        signature={
            "losses_ptr": f"*{kind}", "order_ptr": "*i32",
            "offsets_ptr": "*i32", "best_ptr": "*fp32", "route_ptr": "*i32",
            "T": "i32:16", "stride_r": "i32:16",
        },
        constants={
            "stride_t": 1, "BLOCK_R": BLOCK_R, "BLOCK_T": BLOCK_T,
        },
        num_warps=1,
    )  # fmt: skip


DECLARATION = Declaration(
    name="min_by_budget",
    operation=min_by_budget,
    reference=min_by_budget_reference,
    triton=min_by_budget_triton,
    inputs=_inputs,
    exact=("route",),
    specified=_specified,
    # losses are passed on, not computed with; the reference gets the rounded
    # losses, too
    tolerance={
        torch.float32: 0.0, torch.float16: 0.0, torch.bfloat16: 0.0,
    },
    examples=(
        Example("6 layers", {"L": 6, "T": 1000}),
        Example("8 layers", {"L": 8, "T": 129}),
        Example("ties", {"L": 5, "T": 63, "ties": True}, degenerate=True),
        Example("empty menus", {"L": 5, "T": 130, "scattered": True},
                degenerate=True),
        Example("ruled out", {"L": 3, "T": 65, "ban": 0.7}, degenerate=True),
        Example("one route", {"L": 0, "T": 5}, degenerate=True),
        Example("no token", {"L": 3, "T": 0}, degenerate=True),
        Example("large", {"L": 12, "T": 32768}, large=True),
    ),
    cost=_cost,
    compiles=(_compile("fp32"), _compile("fp16")),
)  # fmt: skip
