"""What registering an operation as an operator of PyTorch must not cost."""

import subprocess
import sys

import pytest
import torch

import lab.kernels.ap_counts  # noqa: F401
from lab.kernels.combine import combine
from lab.kernels.topk_gate import topk_gate


def test_a_first_call_does_not_import_the_compiler_of_pytorch():
    """torch._dynamo takes 1.2 s to import, and a first figure waits for it."""
    calls = """
import sys, torch
from lab.kernels.topk_gate import topk_gate
from lab.kernels.moe_layer import moe_layer
x = torch.randn(6, 4, requires_grad=True)
gate = topk_gate(x, 2)
moe_layer(x, gate, torch.ones(4, 4, 6), torch.ones(4, 3, 4)).sum().backward()
assert x.grad.isfinite().all()
print("torch._dynamo" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", calls], capture_output=True, text=True
    )
    assert done.stdout == "False\n", done.stderr


def test_a_gradient_that_does_not_exist_is_refused():
    scores = torch.rand(4, 3, requires_grad=True)
    labels = torch.tensor([1, 0, 1, 0], dtype=torch.int32)
    precision = torch.ops.lab.ap_counts(scores, labels, 1)
    with pytest.raises(RuntimeError, match="lab::ap_counts has no gradient"):
        precision.sum().backward()


@pytest.mark.parametrize("operation", ["topk_gate", "combine"])
def test_a_second_derivative_is_refused(operation):
    """The kernels of a backward pass have none of their own."""
    x = torch.randn(3, 4, requires_grad=True)
    if operation == "topk_gate":
        y = topk_gate(x, 2).weights
    else:
        rows = torch.tensor([[0, 1], [2, -1]], dtype=torch.int32)
        y = combine(x, rows, torch.rand(2, 2))
    (first,) = torch.autograd.grad(y.sin().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="_backward has no gradient"):
        first.sum().backward()
