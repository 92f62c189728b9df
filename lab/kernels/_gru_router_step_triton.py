"""The Triton side of `gru_router_step`: one kernel, and what to compile."""

from collections.abc import Iterator
from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor

from lab.kernels import runtime
from lab.kernels._expert_tiles import EACH_TARGET, HOPPER
from lab.kernels._three_parts import add_product, splits, three_parts
from lab.kernels.declaration import KINDS, Compile, targets_by_tile
from lab.kernels.runtime import cdiv, next_power_of_2

NAMES = "x state w_input w_state input_bias state_bias w_gate".split()


@triton.jit
def exact_dot(a, w, total, SPLIT: tl.constexpr):
    """total + a w nearly as accurate as in fp32, on matrix units if possible.

    The units multiply two 16-bit factors of one dtype exactly. With bf16
    weights, fp32 is split into three bf16 parts; with other weights both
    factors are, if SPLIT. When the units add, they cut off bits: an error
    twice that of fp32 at a width of 128, which grows with the width. Summing
    each step from zero (`add_product`) would round instead, but needs
    registers that the four sums do not leave.
    """
    if a.dtype == w.dtype and a.dtype.primitive_bitwidth == 16:
        return tl.dot(a, w, total, input_precision="ieee")
    elif w.dtype == tl.bfloat16:
        high, middle, low = three_parts(a.to(tl.float32))
        total = tl.dot(low, w, total, input_precision="ieee")
        total = tl.dot(middle, w, total, input_precision="ieee")
        return tl.dot(high, w, total, input_precision="ieee")
    else:
        return add_product(a.to(tl.float32), w.to(tl.float32), total, SPLIT)


@triton.jit
def gru_router_step_kernel(
    x_ptr, state_ptr, w_input_ptr, w_state_ptr, input_bias_ptr,
    state_bias_ptr, w_gate_ptr, new_ptr, logits_ptr,
    T, P, E,
    SPLIT: tl.constexpr, EVEN: tl.constexpr, BLOCK_T: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """One router step for a block of tokens. EVEN: slices of both kinds cover
    P exactly."""
    t = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    # past the end, repeat the last row; its results are not stored
    row = tl.minimum(t, T - 1)[:, None]
    e = tl.arange(0, BLOCK_E)
    logits = tl.zeros([BLOCK_T, BLOCK_E], tl.float32)
    # a slice of the new state at a time: four sums of [BLOCK_T, BLOCK_P]
    for first in range(0, P, BLOCK_P):
        p = first + tl.arange(0, BLOCK_P)
        is_p = p[None, :] < (first + BLOCK_P if EVEN else P)
        r = tl.zeros([BLOCK_T, BLOCK_P], tl.float32)
        u = tl.zeros([BLOCK_T, BLOCK_P], tl.float32)
        n = tl.zeros([BLOCK_T, BLOCK_P], tl.float32)
        c = tl.zeros([BLOCK_T, BLOCK_P], tl.float32)
        for start in range(0, P, BLOCK_K):
            k = start + tl.arange(0, BLOCK_K)
            is_k = k < (start + BLOCK_K if EVEN else P)
            at = row * P + k[None, :]
            x = tl.load(x_ptr + at, mask=is_k[None, :], other=0.0)
            h = tl.load(state_ptr + at, mask=is_k[None, :], other=0.0)
            inside = is_k[:, None] & is_p
            at = k[:, None] * (3 * P) + p[None, :]
            w = tl.load(w_input_ptr + at, mask=inside, other=0.0)
            r = exact_dot(x, w, r, SPLIT)
            w = tl.load(w_input_ptr + at + P, mask=inside, other=0.0)
            u = exact_dot(x, w, u, SPLIT)
            w = tl.load(w_input_ptr + at + 2 * P, mask=inside, other=0.0)
            n = exact_dot(x, w, n, SPLIT)
            w = tl.load(w_state_ptr + at, mask=inside, other=0.0)
            r = exact_dot(h, w, r, SPLIT)
            w = tl.load(w_state_ptr + at + P, mask=inside, other=0.0)
            u = exact_dot(h, w, u, SPLIT)
            w = tl.load(w_state_ptr + at + 2 * P, mask=inside, other=0.0)
            c = exact_dot(h, w, c, SPLIT)

        here = p < P
        r += both_biases(input_bias_ptr + p, state_bias_ptr + p, here)
        u += both_biases(input_bias_ptr + P + p, state_bias_ptr + P + p, here)
        b = tl.load(input_bias_ptr + 2 * P + p, mask=here, other=0.0)
        n += b.to(tl.float32)[None, :]
        b = tl.load(state_bias_ptr + 2 * P + p, mask=here, other=0.0)
        c += b.to(tl.float32)[None, :]
        n = tanh(n + tl.sigmoid(r) * c)
        u = tl.sigmoid(u)  # how much of the old state stays
        at = row * P + p[None, :]
        old = tl.load(state_ptr + at, mask=is_p, other=0.0).to(tl.float32)
        # past P an infinite x would leave NaN, which times 0 stays NaN
        new = tl.where(is_p, n + u * (old - n), 0.0)
        tl.store(new_ptr + at, new, mask=is_p & (t[:, None] < T))
        gate = tl.load(
            w_gate_ptr + p[:, None] * E + e[None, :],
            mask=here[:, None] & (e[None, :] < E), other=0.0,
        )  # fmt: skip
        logits = exact_dot(new, gate, logits, SPLIT)
    at = t[:, None] * E + e[None, :]
    inside = (t[:, None] < T) & (e[None, :] < E)
    tl.store(logits_ptr + at, logits, mask=inside)


@triton.jit
def tanh(a):
    """tanh, by its series where a is small: there the difference below would
    have no digits left."""
    s = a * a
    series = a + a * s * (-1 / 3 + s * (2 / 15))
    return tl.where(s < 1e-3, series, 2.0 * tl.sigmoid(2.0 * a) - 1.0)


@triton.jit
def both_biases(input_ptr, state_ptr, here):
    a = tl.load(input_ptr, mask=here, other=0.0).to(tl.float32)
    b = tl.load(state_ptr, mask=here, other=0.0).to(tl.float32)
    return (a + b)[None, :]


def blocks(P: int, E: int, kind: str, state: str, target: str) -> dict:
    """A program's tile: tokens, slices of the state and the sum, experts.

    Four sums and the logits are in registers at the same time. Plain fp32
    products or a masked width need more registers, so then a tile has fewer
    tokens. Slices of 32 are twice as fast on an H200 (data/bench). With them,
    the parts of an fp32 state spill registers on other GPUs, and the parts of
    weights do so on all.
    """
    block_e = max(16, next_power_of_2(E))
    split = kind != "bf16" and splits(torch.float32, target)
    exact = split or kind == "bf16" or kind == state == "fp16"
    if exact and P % 16 == 0 and block_e <= 128:
        # a B200 computes the last product, in fp32, without matrix units
        whole = kind == "fp16" and not split and target in HOPPER
        block_t = 32 if whole and block_e > 64 else 64
    else:
        block_t = 32 if block_e <= 64 and (exact or kind == "fp32") else 16
    block_p = block_k = 16
    if P % 32 == 0 and (split or kind == "bf16"):
        narrow = kind == state != "fp32"  # only the new state is split
        few = block_e <= 64
        if narrow or few and target in HOPPER:
            block_k = 32
        room = target in HOPPER or state == "bf16"
        if few and room and (narrow or kind == "bf16"):
            block_p = 32
    return {
        "SPLIT": split, "EVEN": P % block_k == 0, "BLOCK_T": block_t,
        "BLOCK_P": block_p, "BLOCK_K": block_k, "BLOCK_E": block_e,
    }  # fmt: skip


def launch(x: Tensor, *weights: Tensor) -> tuple[Tensor, Tensor]:
    """New state and logits; one program holds a block of tokens."""
    (T, P), E = x.shape, weights[-1].shape[1]
    new = x.new_empty((T, P), dtype=torch.float32)
    logits = x.new_empty((T, E), dtype=torch.float32)
    # x is taken to have its weights' dtype: a wrong guess is only slower
    state, kind = (KINDS.get(w.dtype, "fp32") for w in weights[:2])
    tile = blocks(P, E, kind, state, runtime.target(x))
    if T:
        gru_router_step_kernel[(cdiv(T, tile["BLOCK_T"]),)](
            *(tensor.contiguous() for tensor in (x, *weights)), new, logits,
            T, P, E,
            **tile, num_warps=4, num_stages=2,
        )  # fmt: skip
    return new, logits


def compiled(
    P: int, E: int, kind: str, state: str = "fp32"
) -> Iterator[Compile]:
    """What is launched for these sizes and dtypes, one for each tile."""
    # on a T4 the step goes through PyTorch
    choose = partial(blocks, P, E, kind, state)
    for tile, targets in targets_by_tile(choose, EACH_TARGET):
        yield Compile(
            f"P{P} E{E} {kind} {state} {tile['BLOCK_T']}x{tile['BLOCK_P']}",
            gru_router_step_kernel,
            signature={f"{name}_ptr": f"*{kind}" for name in NAMES}
            | {"new_ptr": "*fp32", "logits_ptr": "*fp32"}
            | {
                "state_ptr": f"*{state}",
                "T": "i32",
                "P": "i32:16" if P % 16 == 0 else "i32",
                "E": "i32:16" if E % 16 == 0 else "i32",
            },
            constants=tile,
            targets=targets,
            matrix_units=kind == "bf16" or tile["SPLIT"],
        )
