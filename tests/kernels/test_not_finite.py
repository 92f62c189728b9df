"""An infinite number or NaN spoils what it belongs to, and nothing else."""

import math

import pytest
import torch

from lab.kernels import runtime
from lab.kernels.combine import combine_reference, combine_triton
from lab.kernels.combine_backward import (
    combine_backward_reference,
    combine_backward_triton,
)
from lab.kernels.duo_ffn import duo_ffn, duo_ffn_reference, masked
from lab.kernels.expert_mlp import expert_mlp_triton
from lab.kernels.expert_mlp_backward import (
    expert_mlp_backward_reference,
    expert_mlp_backward_triton,
)
from lab.kernels.gru_router_step import (
    gru_router_step_reference,
    gru_router_step_triton,
)
from lab.kernels.linkload import linkload_reference, linkload_triton
from lab.kernels.sym_kl_backward import (
    sym_kl_backward_reference,
    sym_kl_backward_triton,
)
from lab.kernels.topk_gate import topk_gate, topk_gate_reference
from lab.kernels.topp_gate import (
    topp_gate,
    topp_gate_reference,
    topp_gate_triton,
)

DEVICE = "cpu" if runtime.INTERPRETED else "cuda"
INF, NAN = math.inf, math.nan


@pytest.mark.parametrize("p", [0.4, 1.0])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_topp_in_16_bits_chooses_as_in_fp32(dtype, p):
    # a logit of 16 bits shares an integer with its column
    logits = torch.tensor(
        [[INF, 0, 1, 2], [NAN] * 4, [-INF] * 4, [NAN, 1, INF, -INF]],
        device=DEVICE,
    )
    narrow = topp_gate_triton(logits.to(dtype), p)
    assert torch.equal(narrow.experts, topp_gate_triton(logits, p).experts)
    assert narrow.weights.isfinite().all()


GATES = {
    "top-p": (topp_gate, topp_gate_reference, (0.7,)),
    "renormalized": (topp_gate, topp_gate_reference, (0.7, True)),
    "null experts": (topk_gate, topk_gate_reference, (3, 2)),
    "raw null experts": (topk_gate, topk_gate_reference, (3, 2, False)),
}


@pytest.mark.parametrize("name", GATES)
def test_an_empty_slot_sends_no_gradient(name):
    operation, reference, options = GATES[name]
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(50, 4, generator=generator).to(DEVICE)
    gradients = []
    for gate in (operation, reference):
        z = logits.clone().requires_grad_()
        weights = gate(z, *options).weights
        assert (weights == 0).any()
        # the slope of the square root at 0 is infinite
        filled = weights.clamp_min(1e-20) if gate is reference else weights
        filled.sqrt().sum().backward()
        gradients.append(z.grad)
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)


def test_a_row_that_does_not_exist_is_an_empty_slot():
    generator = torch.Generator().manual_seed(2)
    expert_rows = torch.randn(5, 8, generator=generator).to(DEVICE)
    weights = torch.rand(4, 2, generator=generator).to(DEVICE)
    grad = torch.randn(4, 8, generator=generator).to(DEVICE)
    rows = torch.tensor([[0, 5], [7, 1], [-1, 2], [3, 4]]).int().to(DEVICE)
    inside = rows.masked_fill(rows >= 5, -1)
    expected = combine_reference(expert_rows, inside, weights)
    for combine in (combine_reference, combine_triton):
        found = combine(expert_rows, rows, weights)
        torch.testing.assert_close(found, expected)
    expected = combine_backward_reference(expert_rows, inside, weights, grad)
    for backward in (combine_backward_reference, combine_backward_triton):
        found = backward(expert_rows, rows, weights, grad)
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_the_other_network_may_overflow(activation):
    generator = torch.Generator().manual_seed(3)
    tokens = torch.rand(6, 4, generator=generator).half()
    w_up = torch.rand(4, 7, generator=generator).half()
    w_up[:, :5] = 60000  # the big network's hidden units are infinite
    w_down = torch.rand(7, 4, generator=generator).half()
    big = torch.zeros(6, dtype=torch.bool)
    leaves = [x.to(DEVICE).requires_grad_() for x in (tokens, w_up, w_down)]
    x, up, down = leaves
    big = big.to(DEVICE)
    y = duo_ffn(x, big, up, down, 2, activation)
    assert y.isfinite().all()
    assert masked(x, big, up, down, 2, activation).isfinite().all()
    found = torch.autograd.grad(y.sum(), leaves)
    own = duo_ffn_reference(x, big, up, down, 2, activation)
    expected = torch.autograd.grad(own.sum(), leaves)
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-2)


def test_relu_keeps_nan():
    tokens = torch.rand(3, 8, device=DEVICE)
    tokens[1, 2] = NAN
    pairs = torch.arange(3, dtype=torch.int32, device=DEVICE)
    offsets = torch.tensor([0, 3], dtype=torch.int32, device=DEVICE)
    w_up, w_down = (torch.rand(1, 8, 8, device=DEVICE) for _ in range(2))
    rows = expert_mlp_triton(
        tokens, pairs, pairs[:, None], offsets, w_up, w_down, "relu"
    )
    assert rows.isnan().any(dim=1).tolist() == [False, True, False]


def test_relu_passes_no_gradient_on_where_it_met_nan():
    tokens, grad, hidden = (torch.rand(3, 8, device=DEVICE) for _ in range(3))
    hidden[1, 2] = NAN
    pairs = torch.arange(3, dtype=torch.int32, device=DEVICE)
    offsets = torch.tensor([0, 3], dtype=torch.int32, device=DEVICE)
    w_up, w_down = (torch.rand(1, 8, 8, device=DEVICE) for _ in range(2))
    by_torch, by_kernel = (
        backward(
            tokens, pairs, pairs[:, None], offsets, w_up, w_down, hidden,
            grad, "relu",
        )
        for backward in (
            expert_mlp_backward_reference, expert_mlp_backward_triton
        )
    )  # fmt: skip
    assert by_torch.tokens.isfinite().all()
    # h itself is NaN, and with it the gradient of W_down
    torch.testing.assert_close(by_kernel, by_torch, equal_nan=True)


def step(P, scale=1.0):
    generator = torch.Generator().manual_seed(4)

    def normal(*shape):
        return torch.randn(*shape, generator=generator).to(DEVICE)

    return {
        "x": scale * normal(9, P),
        "state": torch.zeros(9, P, device=DEVICE),
        "w_input": normal(P, 3 * P) / P**0.5,
        "w_state": normal(P, 3 * P) / P**0.5,
        "input_bias": torch.zeros(3 * P, device=DEVICE),
        "state_bias": torch.zeros(3 * P, device=DEVICE),
        "w_gate": normal(P, 5) / P**0.5,
    }


@pytest.mark.parametrize("P", [48, 37])
def test_an_infinite_number_reaches_the_logits_as_in_the_reference(P):
    inputs = {name: x.half() for name, x in step(P).items()}
    inputs["x"][3, 1] = INF
    found = gru_router_step_triton(**inputs)
    expected = gru_router_step_reference(**inputs)
    for left, right in zip(found, expected, strict=True):
        assert torch.equal(left.isfinite(), right.isfinite())


@pytest.mark.parametrize("scale", [1e-6, 1e-3, 1e-1, 1.0])
def test_a_small_candidate_keeps_its_digits(scale):
    inputs = step(32, scale)
    found = gru_router_step_triton(**inputs)
    wide = {name: x.double() for name, x in inputs.items()}
    expected = gru_router_step_reference(**wide)
    for left, right in zip(found, expected, strict=True):
        error = (left.double() - right).abs().max() / right.abs().max()
        assert error <= 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bad", [INF, NAN])
def test_a_size_that_is_no_number_shows_in_the_peak(bad, dtype):
    ids = [torch.tensor([row]).int().to(DEVICE) for row in ([0, 1], [1, 2])]
    spine = torch.tensor([[0, 1]]).int().to(DEVICE)
    size = torch.tensor([[bad, 1.0]], device=DEVICE).to(dtype)
    found = linkload_triton(*ids, spine, size, 3, 2)
    assert found.peak.isnan().all()
    assert not found.up[:, :, 0].isfinite().any()
    assert not linkload_reference(*ids, spine, size, 3, 2).peak.isfinite()


def test_a_row_that_does_not_count_has_no_gradient():
    generator = torch.Generator().manual_seed(5)
    a, b = (torch.randn(3, 6, generator=generator) for _ in range(2))
    a[1], b[1] = 3e38, -3e38
    statistics = torch.randn(3, 4, generator=generator)
    mask, pull = torch.tensor([True, False, True]), torch.ones(3)
    inputs = [x.to(DEVICE) for x in (a, b, mask, statistics, pull)]
    for backward in (sym_kl_backward_reference, sym_kl_backward_triton):
        for gradient in backward(*inputs):
            assert (gradient[1] == 0).all()
            assert gradient[::2].isfinite().all() and gradient[0].any()


def test_what_is_looked_at_before_an_operation():
    def anywhere(dtype):
        return torch.empty(3, dtype=dtype, device="meta")

    assert runtime.may_look(torch.empty(3))
    assert not runtime.may_look(anywhere(torch.float32))
    # in float64 the references compute, and they rely on checked numbers
    assert runtime.may_look(anywhere(torch.float64))
