"""Route by predicted loss: projection, penalty, minimum and margin in one.

A router's last hidden states h [N, D] are projected to one predicted loss for
each of K models; a penalty c [K] is added, and the lowest value wins:

    v[n, k]   = h[n] . W[k] + b[k] + c[k]
    choice[n] = argmin over k of v[n, k], ties to the lowest index
    margin[n] = the second lowest value minus the lowest

The margin says how much the loser would have to improve. The predictions
themselves never reach memory. Another wish of the user's is another c.

h is tall and W is small, so a program takes a tile of prompts through all
models at once: it goes along D, and the sums [prompts, K] stay in registers
until minimum, index and runner-up are read off them. There are no atomics, so
a result repeats bit for bit.

Bytes: b N D read (b bytes a number), b K D for W, 12 N written. FLOPs: 2 N K
D, that is 2 K / b for each byte of h, so with fewer than 200 models memory is
the limit in 16 bits. In fp32 the matrix units multiply three bf16 parts of
each number where they are fast enough for that (`_three_parts`).

Source: Hari and Thomson 2023, Tryage: predicted loss plus weighted
constraints.
"""

import math
from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from lab.kernels import runtime
from lab.kernels._expert_tiles import EACH_TARGET
from lab.kernels._three_parts import add_product, splits
from lab.kernels.declaration import (
    KINDS,
    Compile,
    Cost,
    Declaration,
    Example,
    targets_by_tile,
)
from lab.kernels.operator import operator
from lab.kernels.runtime import cdiv, may_look, next_power_of_2

MOST_MODELS = 128
HIGHEST = torch.finfo(torch.float32).max


class Selection(NamedTuple):
    """The model of each prompt, its value, and its lead."""

    choice: Tensor  # [N] int32
    value: Tensor  # [N], predicted loss plus penalty
    margin: Tensor  # [N], how much more the second best one has


def route_select(
    hidden: Tensor, head: Tensor, bias: Tensor, penalty: Tensor
) -> Selection:
    """Pick each prompt's model from the hidden states [N, D].

    ``head`` [K, D] and ``bias`` [K] predict the losses, ``penalty`` [K] is
    added. Values and margins are fp32 (float64 if an input is) and have no
    gradient. On a CPU, NaN or infinity is refused; on a GPU, where a check
    would stall it, a value that is not finite counts as the highest number.
    O(N K D).
    """
    if hidden.ndim != 2 or hidden.shape[1] < 1:
        raise ValueError(
            f"hidden states of shape {tuple(hidden.shape)} predict nothing;"
            " give [prompts, width] with a width of at least 1"
        )
    D = hidden.shape[1]
    if head.ndim != 2 or head.shape[1] != D:
        raise ValueError(
            f"a head of shape {tuple(head.shape)} does not fit hidden states"
            f" of width {D}; it needs [models, {D}]"
        )
    K = len(head)
    if not 2 <= K <= MOST_MODELS:
        raise ValueError(
            f"K={K} models leave no choice that this can make; use 2 to"
            f" {MOST_MODELS}"
        )
    for name, values in (("bias", bias), ("penalty", penalty)):
        if values.shape != (K,):
            raise ValueError(
                f"a {name} of shape {tuple(values.shape)} does not fit {K}"
                f" models; it needs ({K},)"
            )
    if hidden.dtype != head.dtype or not hidden.is_floating_point():
        raise TypeError(
            f"hidden states are {hidden.dtype} and the head {head.dtype}; use"
            " the same floating type for both"
        )
    inputs = dict(hidden=hidden, head=head, bias=bias, penalty=penalty)
    for name, values in inputs.items():
        if may_look(values) and not values.isfinite().all():
            raise ValueError(
                f"{name} has a NaN or infinite value; use finite numbers, and"
                " leave out a model that must not be chosen"
            )
    return Selection(*_route_select(*inputs.values()))


def route_select_reference(
    hidden: Tensor, head: Tensor, bias: Tensor, penalty: Tensor
) -> Selection:
    """The selection in plain PyTorch."""
    tensors = hidden, head, bias, penalty
    wide = any(x.dtype == torch.float64 for x in tensors)
    h, w, b, c = (x.double() if wide else x.float() for x in tensors)
    value = h @ w.T + (b + c)  # [N, K]
    best, choice = value.min(dim=1)  # of equals the first
    second = value.scatter(1, choice[:, None], math.inf).amin(dim=1)
    return Selection(choice.int(), best, second - best)


@triton.jit
def route_select_kernel(
    hidden_ptr,
    head_ptr,
    bias_ptr,
    penalty_ptr,
    choice_ptr,
    value_ptr,
    margin_ptr,
    N,
    D,
    K,
    HIGHEST: tl.constexpr,
    SPLIT: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    n = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    # past the end, repeat the last row; its results are not stored
    row = tl.minimum(n, N - 1)[:, None]
    k = tl.arange(0, BLOCK_K)
    value = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    for first in range(0, D, BLOCK_D):
        d = first + tl.arange(0, BLOCK_D)
        h = tl.load(
            hidden_ptr + row * D + d[None, :], mask=d[None, :] < D, other=0.0
        )
        # the head's tile is read turned: [BLOCK_D, BLOCK_K]
        w = tl.load(
            head_ptr + k[None, :] * D + d[:, None],
            mask=(k[None, :] < K) & (d[:, None] < D),
            other=0.0,
        )
        value = add_product(h, w, value, SPLIT)

    bias = tl.load(bias_ptr + k, mask=k < K, other=0.0).to(tl.float32)
    penalty = tl.load(penalty_ptr + k, mask=k < K, other=0.0).to(tl.float32)
    value += (bias + penalty)[None, :]
    is_finite = tl.abs(value) <= HIGHEST
    value = tl.where(is_finite, value, HIGHEST)
    # a column that is no model loses even to the highest number
    value = tl.where(k[None, :] < K, value, float("inf"))
    best = tl.min(value, 1)
    at_best = value == best[:, None]
    choice = tl.min(tl.where(at_best, k[None, :], BLOCK_K), 1)
    others = tl.where(k[None, :] == choice[:, None], float("inf"), value)
    margin = tl.min(others, 1) - best

    here = n < N
    tl.store(choice_ptr + n, choice, mask=here)
    tl.store(value_ptr + n, best, mask=here)
    tl.store(margin_ptr + n, margin, mask=here)


def blocks(K: int, dtype: torch.dtype, target: str) -> dict:
    """Prompts, width and models of a program's tile.

    The sums of all models are in registers at once, so many models leave room
    for fewer prompts; a step of 32 numbers in fp32 is as long as one of 64 in
    16 bits.
    """
    block_k = max(16, next_power_of_2(K))
    return {
        "SPLIT": splits(dtype, target),
        "BLOCK_N": 64 if block_k <= 64 else 32,
        "BLOCK_D": 64 if dtype.itemsize == 2 else 32,
        "BLOCK_K": block_k,
    }


def route_select_triton(
    hidden: Tensor, head: Tensor, bias: Tensor, penalty: Tensor
) -> Selection:
    """Launch the kernel; one program takes a tile of prompts."""
    (N, D), K = hidden.shape, len(head)
    choice = hidden.new_empty(N, dtype=torch.int32)
    value, margin = (
        hidden.new_empty(N, dtype=torch.float32) for _ in range(2)
    )
    tile = blocks(K, hidden.dtype, runtime.target(hidden))
    if N:
        tensors = (x.contiguous() for x in (hidden, head, bias, penalty))
        route_select_kernel[(cdiv(N, tile["BLOCK_N"]),)](
            *tensors, choice, value, margin, N, D, K,
            HIGHEST=HIGHEST, **tile, num_warps=4, num_stages=2,
        )  # fmt: skip
    return Selection(choice, value, margin)


def _on_gpu(hidden, *others):
    # on a T4 a product in Triton would be slower than PyTorch's
    on_gpu = runtime.triton_has_tensor_cores(hidden)
    select = route_select_triton if on_gpu else route_select_reference
    return select(hidden, *others)


def _shapes(hidden, head, bias, penalty):
    N = len(hidden)
    wide = any(x.dtype == torch.float64 for x in (hidden, head, bias, penalty))
    kind = torch.float64 if wide else torch.float32
    return (
        hidden.new_empty(N, dtype=torch.int32),
        hidden.new_empty(N, dtype=kind),
        hidden.new_empty(N, dtype=kind),
    )


_route_select = operator(
    "route_select(Tensor hidden, Tensor head, Tensor bias, Tensor penalty)"
    " -> (Tensor, Tensor, Tensor)",
    cpu=route_select_reference,
    cuda=_on_gpu,
    shapes=_shapes,
)


def _inputs(seed, device, dtype, N, D, K, ties=False, equal=False):
    generator = torch.Generator().manual_seed(seed)

    def on_grid(*shape):
        # sums and products of such fractions are exact in fp32, so a tie is a
        # true tie, and the order of adding changes no choice
        steps = 1 if ties else 8
        whole = torch.randint(-steps, steps + 1, shape, generator=generator)
        return (whole / steps).to(device, dtype)

    inputs = {
        "hidden": on_grid(N, D), "head": on_grid(K, D), "bias": on_grid(K),
        "penalty": on_grid(K).abs(),
    }  # fmt: skip
    if equal:
        for name in ("head", "bias", "penalty"):
            inputs[name] = inputs[name][:1].expand_as(inputs[name]).clone()
    return inputs


def _cost(hidden, head, bias, penalty) -> Cost:
    (N, D), K = hidden.shape, len(head)
    size = hidden.element_size()
    small = (bias.element_size() + penalty.element_size()) * K
    return Cost(size * (N * D + K * D) + small + 12 * N, 2 * N * K * D)


def _compiled(D: int, K: int, dtype: torch.dtype) -> Iterator[Compile]:
    """What is launched for these sizes, one for each tile."""
    kind = KINDS[dtype]
    choose = partial(blocks, K, dtype)
    names = ("hidden", "head", "bias", "penalty")
    for tile, targets in targets_by_tile(choose, EACH_TARGET):
        yield Compile(
            f"D{D} K{K} {kind}" + (" split" if tile["SPLIT"] else ""),
            route_select_kernel,
            signature={f"{name}_ptr": f"*{kind}" for name in names}
            | {
                "choice_ptr": "*i32",
                "value_ptr": "*fp32",
                "margin_ptr": "*fp32",
                "N": "i32",
                "D": "i32:16" if D % 16 == 0 else "i32",
                "K": "i32:16" if K % 16 == 0 else "i32",
            },
            constants={"HIGHEST": HIGHEST} | tile,
            targets=targets,
            matrix_units=dtype.itemsize == 2 or tile["SPLIT"],
        )


DECLARATION = Declaration(
    name="route_select",
    operation=route_select,
    reference=route_select_reference,
    triton=route_select_triton,
    inputs=_inputs,
    exact=("choice",),
    tolerance={
        torch.float32: 1e-5, torch.float16: 1e-5, torch.bfloat16: 1e-5,
    },
    examples=(
        Example("11 models", {"N": 150, "D": 32, "K": 11}),
        Example("wide", {"N": 67, "D": 384, "K": 9}),
        Example("odd width", {"N": 65, "D": 37, "K": 5}),
        Example("100 models", {"N": 70, "D": 100, "K": 100}),
        Example("2 models", {"N": 63, "D": 64, "K": 2}),
        Example("ties", {"N": 130, "D": 4, "K": 12, "ties": True},
                degenerate=True),
        Example("all models equal", {"N": 33, "D": 16, "K": 7, "equal": True},
                degenerate=True),
        Example("one of each", {"N": 1, "D": 1, "K": 2}, degenerate=True),
        Example("no prompt", {"N": 0, "D": 32, "K": 11}, degenerate=True),
        Example("most models", {"N": 5, "D": 16, "K": MOST_MODELS},
                degenerate=True),
        Example("large", {"N": 65536, "D": 768, "K": 11}, large=True),
    ),
    cost=_cost,
    compiles=(
        *_compiled(32, 11, torch.float32), *_compiled(37, 5, torch.float32),
        *_compiled(768, 64, torch.float32),
        *_compiled(768, 128, torch.float32),
        *_compiled(768, 11, torch.bfloat16),
        *_compiled(37, 5, torch.bfloat16),
        *_compiled(768, 128, torch.bfloat16),
        *_compiled(768, 11, torch.float16),
    ),
)  # fmt: skip
