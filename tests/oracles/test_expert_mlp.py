"""The expert network against loops, and against PyTorch's own product.

The loops work in float64 on one number at a time. ``grouped_mm`` is the
product that PyTorch ships for mixtures of experts.
"""

import math

import pytest
import torch
from on_device import on_device
from torch.nn import functional as F

from lab.kernels.dispatch import dispatch
from lab.kernels.expert_mlp import (
    ACTIVATIONS,
    expert_mlp,
    expert_mlp_triton,
)

ACT = {
    "relu": lambda z: max(z, 0.0),
    "gelu": lambda z: z * 0.5 * (1 + math.erf(z / math.sqrt(2))),
    "swiglu": lambda g, u: g / (1 + math.exp(-g)) * u,
}


def by_loops(tokens, pairs, rows, offsets, w_up, w_down, activation):
    S, H = rows.shape[1], tokens.shape[1]
    width = w_down.shape[1]
    y = [[0.0] * H for _ in range(int(offsets[-1]))]
    for e in range(len(w_up)):
        for r in range(offsets[e], offsets[e + 1]):
            x = tokens[pairs[r] // S].tolist()
            z = [
                sum(x[i] * w for i, w in enumerate(column))
                for column in w_up[e].T.tolist()
            ]
            if activation == "swiglu":
                halves = zip(z[:width], z[width:], strict=True)
                h = [ACT["swiglu"](g, u) for g, u in halves]
            else:
                h = [ACT[activation](value) for value in z]
            for i, row in enumerate(w_down[e].tolist()):
                for j in range(H):
                    y[r][j] += h[i] * row[j]
    return torch.tensor(y, dtype=torch.float64)


def case(activation, T=13, E=5, S=2, H=6, width=4, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    experts = torch.rand(T, E, generator=generator).argsort(dim=1)[:, :S]
    experts[experts == 2] = -1  # an expert that nobody takes
    sent = dispatch(experts.int(), E)
    G = 2 * width if activation == "swiglu" else width
    floats = (
        torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
        for shape in ((T, H), (E, H, G), (E, width, H))
    )
    tokens, w_up, w_down = floats
    return tokens, sent.pairs, sent.rows, sent.offsets, w_up, w_down


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_expert_network_equals_loops(activation):
    inputs = case(activation)
    expected = by_loops(*inputs, activation)
    found = expert_mlp(*inputs, activation)[: len(expected)]
    torch.testing.assert_close(found, expected)
    narrow = (x.float() if x.is_floating_point() else x for x in inputs)
    kernel = on_device(expert_mlp_triton)
    found = kernel(*narrow, activation)[: len(expected)]
    scale = expected.abs().max().item()
    torch.testing.assert_close(
        found.double(), expected, rtol=0, atol=1e-6 * scale
    )


@pytest.mark.skipif(
    not hasattr(F, "grouped_mm"), reason="needs torch 2.10 for grouped_mm"
)
def test_products_equal_grouped_mm_with_gradients():
    inputs = case("relu", T=64, H=16, width=32, dtype=torch.float32)
    tokens, pairs, rows, offsets, w_up, w_down = inputs
    leaves = [x.requires_grad_() for x in (tokens, w_up, w_down)]
    kept = int(offsets[-1])
    x = tokens[pairs[:kept].long() // rows.shape[1]]
    h = F.grouped_mm(x, w_up, offs=offsets[1:]).relu()
    expected = F.grouped_mm(h, w_down, offs=offsets[1:])
    found = expert_mlp(*inputs, "relu")[:kept]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)

    pull = torch.randn(kept, 16, generator=torch.Generator().manual_seed(1))
    for left, right in zip(
        torch.autograd.grad(found, leaves, pull),
        torch.autograd.grad(expected, leaves, pull),
        strict=True,
    ):
        torch.testing.assert_close(left, right, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"activation": "silu"}, "'silu' is not one of relu, gelu, swiglu"),
        ({"activation": "swiglu"}, r"need \[E, H, 2 F\]"),
        ({"tokens": torch.zeros(13, 7).double()}, "width 7, the experts 6"),
        ({"tokens": torch.zeros(13, 6)}, "use one dtype"),
    ],
)
def test_wrong_experts_are_refused(change, sentence):
    names = "tokens", "pairs", "rows", "offsets", "w_up", "w_down"
    inputs = dict(zip(names, case("relu"), strict=True))
    with pytest.raises((ValueError, TypeError), match=sentence):
        expert_mlp(**({"activation": "relu"} | inputs | change))
