"""The layer against the dense one: every expert sees every token.

The dense layer multiplies what was not chosen by zero. It costs E / k times
as much and has nothing to sort, so nothing to get wrong; autograd gives its
gradients in float64.
"""

import pytest
import torch
from torch.nn import functional as F

from lab.kernels.moe_layer import moe_layer
from lab.kernels.topk_gate import topk_gate
from lab.kernels.topp_gate import topp_gate

ACT = {
    "relu": F.relu,
    "gelu": F.gelu,
    "swiglu": lambda z: F.silu(z.chunk(2, -1)[0]) * z.chunk(2, -1)[1],
}
GATES = {
    "top 2": lambda z: topk_gate(z, 2),
    "top 1": lambda z: topk_gate(z, 1, renormalize=False),
    "k = E": lambda z: topk_gate(z, z.shape[1]),
    "null experts": lambda z: topk_gate(z, 3, null_experts=2),
    "top-p": lambda z: topp_gate(z, 0.5),
}


def dense(tokens, gate, w_up, w_down, activation):
    y = torch.zeros_like(tokens)
    for e in range(len(w_up)):
        weight = gate.weights * (gate.experts == e)  # [T, S]
        out = ACT[activation](tokens @ w_up[e]) @ w_down[e]
        y = y + weight.sum(dim=1, keepdim=True) * out
    return y


@pytest.mark.parametrize("activation", ACT)
@pytest.mark.parametrize("gate", GATES)
def test_layer_and_gradients_equal_the_dense_layer(gate, activation):
    generator = torch.Generator().manual_seed(0)
    T, H, columns, width = 37, 7, 6, 5
    true = columns - 2 if gate == "null experts" else columns
    G = 2 * width if activation == "swiglu" else width
    tokens, logits, w_up, w_down = (
        torch.randn(
            shape, generator=generator, dtype=torch.float64
        ).requires_grad_()
        for shape in (
            (T, H), (T, columns), (true, H, G), (true, width, H),
        )
    )  # fmt: skip
    leaves = tokens, logits, w_up, w_down
    pull = torch.randn(T, H, generator=generator, dtype=torch.float64)
    results = []
    for layer in (moe_layer, dense):
        y = layer(tokens, GATES[gate](logits), w_up, w_down, activation)
        results.append((y, *torch.autograd.grad(y, leaves, pull)))
    names = "y", "tokens", "logits", "w_up", "w_down"
    for name, left, right in zip(names, *results, strict=True):
        torch.testing.assert_close(
            left, right, rtol=0, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}"
        )
