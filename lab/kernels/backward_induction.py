"""Backward induction: the best plan of many finite-horizon worlds at once.

A world has S states and A actions, and ends after H steps. In step h action a
leads from state s to t with probability P[h, s, a, t] and pays r[h, s, a] on
average. What a state is worth, and what to do there, follow from the end:

    V[H, s] = 0
    Q[h, s, a] = r[h, s, a] + sum over t of P[h, s, a, t] V[h + 1, t]
    V[h, s] = max over a of Q[h, s, a];   choice[h, s] = the lowest such a

An action that pays minus infinity is not available. A state without an action
is an end: it is worth 0, and its choice is -1. Probabilities may add up to
less than 1, and then the world ends with the rest; so a discount is a factor
of P.

Each step needs all values of the step after it, so there is one launch per
step. A program takes a few states, of one world or of several, and goes
through their actions; a row of P is read once, in tiles, and nothing but the
best action so far is kept.

Bytes: 4 E H S A (S + 1) read, 4 E S (H + 1) + 4 E H S written; 2 E H S A S
floating-point operations, half a one for each byte, so any GPU waits for
memory.

Source: Bellman 1957; the planner of Yang et al. 2023, section on models of the
world.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from lab.kernels.declaration import Compile, Cost, Declaration, Example
from lab.kernels.operator import operator
from lab.kernels.runtime import cdiv, may_look, next_power_of_2

SLACK = 1e-4  # by which probabilities may add up to more than 1


class Plan(NamedTuple):
    """What every state is worth, and what to do there."""

    value: Tensor  # [E, H + 1, S]
    choice: Tensor  # [E, H, S] int32, -1 where there is no action


def backward_induction(chances: Tensor, rewards: Tensor) -> Plan:
    """Plan in E worlds: ``chances`` [E, H, S, A, S], ``rewards`` [E, H, S, A].

    Both are fp32 (or float64, which stays so). Ties go to the lowest action.
    On a CPU wrong numbers are refused; on a GPU, where a check would stall it,
    an action worth NaN is not available. No gradient. O(E H S A S).
    """
    fits = chances.ndim == 5 and chances.shape[:4] == rewards.shape
    if not fits or chances.shape[2] != chances.shape[4]:
        raise ValueError(
            f"chances {tuple(chances.shape)} and rewards"
            f" {tuple(rewards.shape)} do not fit; give [worlds, steps, states,"
            " actions, states] and the same without the last"
        )
    if not all(rewards.shape[1:]):
        raise ValueError(
            f"rewards {tuple(rewards.shape)} leave nothing to decide; give a"
            " step, a state and an action at least"
        )
    if chances.dtype != rewards.dtype or chances.dtype not in (
        torch.float32, torch.float64,
    ):  # fmt: skip
        raise ValueError(
            f"chances are {chances.dtype} and rewards {rewards.dtype}; give"
            " torch.float32 for both"
        )
    if may_look(chances) and len(chances):
        _look(chances, rewards)
    return Plan(*_backward_induction(chances, rewards))


def _look(chances: Tensor, rewards: Tensor) -> None:
    """Refuse numbers that are no probability and no reward."""
    total = chances.sum(-1).max()
    # written so that NaN is refused, too
    if not (chances.min() >= 0 and total <= 1 + SLACK):
        raise ValueError(
            f"chances from {chances.min():g}, {total:g} in sum, are no"
            " probabilities; use 0 or more, and a sum of 1 at most"
        )
    if not (rewards < float("inf")).all():
        raise ValueError(
            "rewards hold NaN or infinity; only minus infinity is allowed, for"
            " an action that is not available"
        )


def backward_induction_reference(chances: Tensor, rewards: Tensor) -> Plan:
    """The recursion in plain PyTorch, one step after the other."""
    E, H, S, _ = rewards.shape
    value = chances.new_zeros(E, H + 1, S)
    choice = torch.full((E, H, S), -1, device=chances.device).int()
    for h in reversed(range(H)):
        # Q = r + sum over t of P V[h + 1]
        ahead = torch.einsum("esat,et->esa", chances[:, h], value[:, h + 1])
        worth = rewards[:, h] + ahead
        worth = worth.masked_fill(worth.isnan(), float("-inf"))
        # max finds the first of several that are equal
        best, action = worth.max(dim=2)
        some = best > float("-inf")
        value[:, h] = best.where(some, 0.0)
        choice[:, h] = action.where(some, -1).int()
    return Plan(value, choice)


@triton.jit
def backward_induction_kernel(
    chances_ptr, rewards_ptr, value_ptr, choice_ptr,
    h, E, H, S, A,
    BLOCK_R: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    # a row is one state of one world
    row = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    inside = row < tl.cast(E, tl.int64) * S
    world, s = row // S, row % S
    pair = (world * H + h) * S + s
    next_ptr = value_ptr + (world * (H + 1) + h + 1) * S
    best = tl.full([BLOCK_R], float("-inf"), tl.float32)
    choice = tl.full([BLOCK_R], -1, tl.int32)
    for a in range(0, A):
        at = pair * A + a
        total = tl.zeros([BLOCK_R], tl.float32)
        for start in range(0, S, BLOCK_T):
            t = start + tl.arange(0, BLOCK_T)
            some = inside[:, None] & (t[None, :] < S)
            # [BLOCK_R, BLOCK_T]
            chance = tl.load(
                chances_ptr + at[:, None] * S + t[None, :],
                mask=some, other=0.0,
            ).to(tl.float32)  # fmt: skip
            ahead = tl.load(
                next_ptr[:, None] + t[None, :], mask=some, other=0.0
            ).to(tl.float32)
            total += tl.sum(chance * ahead, 1)
        pays = tl.load(rewards_ptr + at, mask=inside, other=float("-inf"))
        worth = pays.to(tl.float32) + total
        # never for NaN, and the first of equals stays
        better = worth > best
        best = tl.where(better, worth, best)
        choice = tl.where(better, a, choice)
    here = (world * (H + 1) + h) * S + s
    tl.store(value_ptr + here, tl.where(choice < 0, 0.0, best), mask=inside)
    tl.store(choice_ptr + pair, choice, mask=inside)


def blocks(S: int) -> tuple[int, int]:
    """States of one program, and states that it looks ahead to at once."""
    block_t = min(256, next_power_of_2(S))
    return min(128, 512 // block_t), block_t


def backward_induction_triton(chances: Tensor, rewards: Tensor) -> Plan:
    """One launch for each step, the last one first."""
    E, H, S, A = rewards.shape
    chances, rewards = chances.contiguous(), rewards.contiguous()
    value = rewards.new_zeros((E, H + 1, S))
    choice = rewards.new_empty((E, H, S), dtype=torch.int32)
    block_r, block_t = blocks(S)
    if E:
        for h in reversed(range(H)):
            backward_induction_kernel[(cdiv(E * S, block_r),)](
                chances, rewards, value, choice, h, E, H, S, A,
                BLOCK_R=block_r, BLOCK_T=block_t, num_warps=4,
            )  # fmt: skip
    return Plan(value, choice)


def _shapes(chances, rewards):
    E, H, S, _ = rewards.shape
    return (
        rewards.new_empty((E, H + 1, S)),
        rewards.new_empty((E, H, S), dtype=torch.int32),
    )


_backward_induction = operator(
    "backward_induction(Tensor chances, Tensor rewards) -> (Tensor, Tensor)",
    cpu=backward_induction_reference,
    cuda=backward_induction_triton,
    shapes=_shapes,
)


def _inputs(
    seed, device, dtype, E, H, S, A, known=1.0, parts=4, ends=0.0, pays=4
):
    """Worlds whose values are sums of few binary digits, so exact in fp32.

    Each action leads to ``parts`` states drawn alike, and so with multiples
    of 1 / ``parts``. It is available with chance ``known``.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(high, *shape):
        return torch.randint(high, shape, generator=generator)

    places = draw(S, E, H, S, A, parts)
    chances = torch.zeros(E, H, S, A, S, dtype=torch.float64)
    chances.scatter_add_(4, places, torch.ones_like(places).double() / parts)
    over = torch.rand(E, H, S, A, 1, generator=generator) < ends
    rewards = draw(2 * pays + 1, E, H, S, A).double() - pays
    absent = torch.rand(E, H, S, A, generator=generator) >= known
    return {
        "chances": chances.masked_fill(over, 0.0).to(device, dtype),
        "rewards": rewards.masked_fill(absent, float("-inf")).to(
            device, dtype
        ),
    }


def _cost(chances, rewards) -> Cost:
    E, H, S, _ = rewards.shape
    read = chances.numel() + rewards.numel()
    return Cost(4 * (read + E * S * (2 * H + 1)), 2 * chances.numel())


def _compile(S: int) -> Compile:
    block_r, block_t = blocks(S)
    return Compile(
        f"S{S} {block_r}x{block_t}",
        backward_induction_kernel,
        signature={
            "chances_ptr": "*fp32", "rewards_ptr": "*fp32",
            "value_ptr": "*fp32", "choice_ptr": "*i32", "h": "i32",
            "E": "i32", "H": "i32", "A": "i32",
            "S": "i32:16" if S % 16 == 0 else "i32",
        },
        constants={"BLOCK_R": block_r, "BLOCK_T": block_t},
    )  # fmt: skip


DECLARATION = Declaration(
    name="backward_induction",
    operation=backward_induction,
    reference=backward_induction_reference,
    triton=backward_induction_triton,
    inputs=_inputs,
    # sums of a few binary digits have no rounding error
    exact=("value", "choice"),
    examples=(
        Example("4 states", {"E": 9, "H": 6, "S": 4, "A": 3}),
        Example("37 states", {"E": 2, "H": 5, "S": 37, "A": 5}),
        Example("two tiles", {"E": 1, "H": 1, "S": 270, "A": 2}),
        Example("some actions", {"E": 5, "H": 4, "S": 7, "A": 3,
                                 "known": 0.4}),
        Example("may end", {"E": 3, "H": 5, "S": 9, "A": 2, "ends": 0.3}),
        Example("one road each", {"E": 3, "H": 7, "S": 9, "A": 4,
                                  "parts": 1}),
        Example("ties", {"E": 4, "H": 4, "S": 6, "A": 4, "pays": 0},
                degenerate=True),
        Example("no action", {"E": 2, "H": 3, "S": 5, "A": 2, "known": 0.0},
                degenerate=True),
        Example("one state", {"E": 3, "H": 4, "S": 1, "A": 2},
                degenerate=True),
        Example("one of all", {"E": 1, "H": 1, "S": 1, "A": 1},
                degenerate=True),
        Example("no world", {"E": 0, "H": 3, "S": 5, "A": 2},
                degenerate=True),
        Example("large", {"E": 512, "H": 8, "S": 128, "A": 8}, large=True),
    ),
    cost=_cost,
    compiles=tuple(_compile(S) for S in (4, 37, 128, 300)),
)  # fmt: skip
