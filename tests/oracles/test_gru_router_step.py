"""The router's recurrent step against `torch.nn.GRUCell`."""

import pytest
import torch
from on_device import on_device
from torch import nn

from lab.kernels.gru_router_step import (
    DECLARATION,
    gru_router_step,
    gru_router_step_triton,
)


def inputs(dtype, T=63, P=37, E=5):
    return DECLARATION.inputs(0, "cpu", dtype, T=T, P=P, E=E)


def torchs(x, state, w_input, w_state, input_bias, state_bias, w_gate):
    """PyTorch's own cell; it stores its matrices as [out, in]."""
    P = x.shape[1]
    cell = nn.GRUCell(P, P, dtype=x.dtype)
    with torch.no_grad():
        cell.weight_ih.copy_(w_input.T)
        cell.weight_hh.copy_(w_state.T)
        cell.bias_ih.copy_(input_bias)
        cell.bias_hh.copy_(state_bias)
    new = cell(x, state)
    return cell, new, new @ w_gate


# the kernel is fp32 inside; the oracle is always in double precision
@pytest.mark.parametrize(
    ("step", "dtype", "tolerance"),
    [
        (gru_router_step, torch.float64, 1e-12),
        (gru_router_step, torch.float32, 1e-5),
        (on_device(gru_router_step_triton), torch.float32, 1e-5),
    ],
    ids=["float64", "float32", "kernel"],
)
def test_a_step_is_a_gru_cell_and_a_linear_layer(step, dtype, tolerance):
    given = inputs(dtype)
    _, new, logits = torchs(**{n: v.double() for n, v in given.items()})
    found = step(**given)
    assert (found.state - new).abs().max() < tolerance
    assert (found.logits - logits).abs().max() < tolerance


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_state_in_fp32_stays_exact_beside_16_bit_weights(dtype):
    given = inputs(dtype, T=65, P=64)
    state = torch.randn(65, 64, generator=torch.Generator().manual_seed(1))
    given["state"] = state.tanh()
    _, new, logits = torchs(**{n: v.double() for n, v in given.items()})
    found = on_device(gru_router_step_triton)(**given)
    # as of fp32 products; two bf16 parts are off by 3e-6, one by 1e-3
    assert (found.state - new).abs().max() < 1e-6
    assert (found.logits - logits).abs().max() < 2e-6


@pytest.mark.parametrize(
    "total",
    [
        lambda state, logits: state.sin().sum() + logits.square().sum(),
        lambda state, logits: state.sin().sum(),
        lambda state, logits: logits.square().sum(),
    ],
    ids=["both", "state", "logits"],
)
def test_gradients_are_those_of_the_cell(total):
    given = {n: v.requires_grad_() for n, v in inputs(torch.float64).items()}
    cell, new, logits = torchs(**given)
    total(new, logits).backward()
    wanted = {n: given[n].grad for n in ("x", "state", "w_gate")}
    wanted |= {
        "w_input": cell.weight_ih.grad.T,
        "w_state": cell.weight_hh.grad.T,
        "input_bias": cell.bias_ih.grad,
        "state_bias": cell.bias_hh.grad,
    }
    again = {n: v.detach().requires_grad_() for n, v in given.items()}
    found = gru_router_step(**again)
    total(found.state, found.logits).backward()
    for name, right in wanted.items():
        if right is None:  # w_gate has no part in the state
            right = torch.zeros_like(given[name])
        error = (again[name].grad - right).abs().max()
        assert error < 1e-10, name


def test_three_steps_in_a_row_are_the_cell_in_a_loop():
    given = inputs(torch.float64)
    found = expected = given["state"]
    for _ in range(3):
        found = gru_router_step(**given | {"state": found}).state
        expected = torchs(**given | {"state": expected})[1]
    assert (found - expected).abs().max() < 1e-12


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"x": torch.ones(63, 0)}, "at least 1"),
        ({"x": torch.ones(63)}, r"shape \(63,\)"),
        ({"state": torch.ones(62, 37)}, "drop or reorder both together"),
        ({"w_input": torch.ones(37, 37)}, "w_input"),
        ({"state_bias": torch.ones(37)}, "state_bias"),
        ({"w_gate": torch.ones(37, 0)}, "at least one expert"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        gru_router_step(**inputs(torch.float32) | changes)
