"""The Triton side of `gru_router_step`: one kernel, and what to compile."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from lab.kernels.declaration import Compile

NAMES = "x state w_input w_state input_bias state_bias w_gate".split()


@triton.jit
def gru_router_step_kernel(
    x_ptr, state_ptr, w_input_ptr, w_state_ptr, input_bias_ptr,
    state_bias_ptr, w_gate_ptr, new_ptr, logits_ptr,
    T, P, E,
    BLOCK_T: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    t = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    e = tl.arange(0, BLOCK_E)
    rows = t[:, None] < T
    logits = tl.zeros([BLOCK_T, BLOCK_E], tl.float32)
    # a slice of the new state at a time: four sums of [BLOCK_T, BLOCK_P]
    for first in range(0, P, BLOCK_P):
        p = first + tl.arange(0, BLOCK_P)
        r = tl.zeros([BLOCK_T, BLOCK_P], tl.float32)
        u = tl.zeros([BLOCK_T, BLOCK_P], tl.float32)
        n = tl.zeros([BLOCK_T, BLOCK_P], tl.float32)
        c = tl.zeros([BLOCK_T, BLOCK_P], tl.float32)
        for start in range(0, P, BLOCK_P):
            k = start + tl.arange(0, BLOCK_P)
            inside = rows & (k[None, :] < P)
            at = t[:, None] * P + k[None, :]
            x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
            h = tl.load(state_ptr + at, mask=inside, other=0.0)
            h = h.to(tl.float32)
            inside = (k[:, None] < P) & (p[None, :] < P)
            at = k[:, None] * (3 * P) + p[None, :]
            w = tl.load(w_input_ptr + at, mask=inside, other=0.0)
            r = tl.dot(x, w.to(tl.float32), r, input_precision="ieee")
            w = tl.load(w_input_ptr + at + P, mask=inside, other=0.0)
            u = tl.dot(x, w.to(tl.float32), u, input_precision="ieee")
            w = tl.load(w_input_ptr + at + 2 * P, mask=inside, other=0.0)
            n = tl.dot(x, w.to(tl.float32), n, input_precision="ieee")
            w = tl.load(w_state_ptr + at, mask=inside, other=0.0)
            r = tl.dot(h, w.to(tl.float32), r, input_precision="ieee")
            w = tl.load(w_state_ptr + at + P, mask=inside, other=0.0)
            u = tl.dot(h, w.to(tl.float32), u, input_precision="ieee")
            w = tl.load(w_state_ptr + at + 2 * P, mask=inside, other=0.0)
            c = tl.dot(h, w.to(tl.float32), c, input_precision="ieee")

        here = p < P
        r += both_biases(input_bias_ptr + p, state_bias_ptr + p, here)
        u += both_biases(input_bias_ptr + P + p, state_bias_ptr + P + p, here)
        b = tl.load(input_bias_ptr + 2 * P + p, mask=here, other=0.0)
        n += b.to(tl.float32)[None, :]
        b = tl.load(state_bias_ptr + 2 * P + p, mask=here, other=0.0)
        c += b.to(tl.float32)[None, :]
        # tanh a = 2 sigmoid(2 a) - 1; u keeps the old state
        n = 2.0 * tl.sigmoid(2.0 * (n + tl.sigmoid(r) * c)) - 1.0
        u = tl.sigmoid(u)
        inside = rows & (p[None, :] < P)
        gate = tl.load(
            w_gate_ptr + p[:, None] * E + e[None, :],
            mask=(p[:, None] < P) & (e[None, :] < E), other=0.0,
        )  # fmt: skip
        at = t[:, None] * P + p[None, :]
        h = tl.load(state_ptr + at, mask=inside, other=0.0).to(tl.float32)
        new = n + u * (h - n)
        tl.store(new_ptr + at, new, mask=inside)
        logits = tl.dot(
            new, gate.to(tl.float32), logits, input_precision="ieee"
        )
    at = t[:, None] * E + e[None, :]
    tl.store(logits_ptr + at, logits, mask=rows & (e[None, :] < E))


@triton.jit
def both_biases(input_ptr, state_ptr, here):
    a = tl.load(input_ptr, mask=here, other=0.0).to(tl.float32)
    b = tl.load(state_ptr, mask=here, other=0.0).to(tl.float32)
    return (a + b)[None, :]


def blocks(E: int) -> tuple[int, int, int]:
    """Tokens, state slice and experts of one program's tile."""
    # fp32 products run on plain multiply-adds, which hold whole slices in
    # registers: slices of 32 spill
    block_e = max(16, triton.next_power_of_2(E))
    return (32 if block_e <= 64 else 16), 16, block_e


def launch(x: Tensor, *weights: Tensor) -> tuple[Tensor, Tensor]:
    """New state and logits; one program holds a block of tokens."""
    (T, P), E = x.shape, weights[-1].shape[1]
    new = x.new_empty((T, P), dtype=torch.float32)
    logits = x.new_empty((T, E), dtype=torch.float32)
    block_t, block_p, block_e = blocks(E)
    if T:
        gru_router_step_kernel[(triton.cdiv(T, block_t),)](
            *(tensor.contiguous() for tensor in (x, *weights)), new, logits,
            T, P, E,
            BLOCK_T=block_t, BLOCK_P=block_p, BLOCK_E=block_e, num_warps=4,
        )  # fmt: skip
    return new, logits


def compiled(P: int, E: int, kind: str) -> Compile:
    block_t, block_p, block_e = blocks(E)
    return Compile(
        f"P{P} E{E} {kind}",
        gru_router_step_kernel,
        signature={f"{name}_ptr": f"*{kind}" for name in NAMES}
        | {"state_ptr": "*fp32", "new_ptr": "*fp32", "logits_ptr": "*fp32"}
        | {
            "T": "i32",
            "P": "i32:16" if P % 16 == 0 else "i32",
            "E": "i32:16" if E % 16 == 0 else "i32",
        },
        constants={
            "BLOCK_T": block_t, "BLOCK_P": block_p, "BLOCK_E": block_e,
        },
        # on a T4 the step goes through PyTorch
        targets=("sm_80", "sm_90", "sm_100", "gfx942"),
    )  # fmt: skip
