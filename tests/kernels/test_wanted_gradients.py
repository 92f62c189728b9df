"""A gradient that nobody asked for is not computed, and changes no other."""

import importlib
from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lab.kernels import runtime
from lab.kernels.declaration import all_declarations
from lab.kernels.expert_mlp_backward import expert_mlp_backward_triton
from lab.kernels.multi_lora_backward import multi_lora_backward_triton

LEAVES = [
    pytest.param(declaration, name, id=f"{declaration.name}-{name}")
    for declaration in all_declarations()
    for name in declaration.differentiable
    if len(declaration.differentiable) > 1
]


class Calls(TorchDispatchMode):
    """Counts operators, and keeps the last argument of the lab's own.

    Operators called inside one of the lab's own are not seen.
    """

    def __init__(self):
        super().__init__()
        self.count, self.last = Counter(), {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count[function.name()] += 1
        if function.namespace == "lab":
            self.last[function.name()] = args[-1]
        return function(*args, **(kwargs or {}))


def inputs_of(declaration, learning):
    """Its first example in double precision; only those ``learning`` learn."""
    example = declaration.examples[0]
    inputs = declaration.inputs(0, "cpu", torch.float64, **example.options)
    for name in declaration.differentiable:
        inputs[name] = inputs[name].detach()
        inputs[name].requires_grad_(name in learning)
    return inputs


def gradients(declaration, learning, asked):
    """The gradients of ``asked``, and what was called to compute them."""
    inputs = inputs_of(declaration, learning)
    result = declaration.specified(declaration.operation(**inputs), **inputs)
    result = [result] if isinstance(result, torch.Tensor) else result
    total = sum(y.sin().sum() for y in result if y.requires_grad)
    with Calls() as calls:
        found = torch.autograd.grad(total, [inputs[name] for name in asked])
    return found, calls


@pytest.mark.parametrize("declaration, name", LEAVES)
@pytest.mark.parametrize("others", ["are frozen", "are not asked for"])
def test_one_gradient_is_that_of_all(declaration, name, others):
    everything = declaration.differentiable
    found, _ = gradients(
        declaration, [name] if others == "are frozen" else everything, [name]
    )
    expected, _ = gradients(declaration, everything, everything)
    assert torch.equal(found[0], expected[everything.index(name)])


@pytest.mark.parametrize("name", ["combine", "expert_mlp", "multi_lora"])
def test_the_backward_operator_is_told_what_is_wanted(name):
    declaration = importlib.import_module(f"lab.kernels.{name}").DECLARATION
    everything = declaration.differentiable
    for alone in everything:
        _, calls = gradients(declaration, [alone], [alone])
        expected = [name == alone for name in everything]
        assert calls.last[f"lab::{name}_backward"] == expected


def products(name, wanted):
    """Matrix products of the reference of a backward operator."""
    module = importlib.import_module(f"lab.kernels.{name}")
    options = module.DECLARATION.examples[0].options | {"wanted": wanted}
    inputs = module.DECLARATION.inputs(0, "cpu", torch.float64, **options)
    with Calls() as calls:
        module.DECLARATION.reference(**inputs)
    return calls.count["aten::mm"]


@pytest.mark.parametrize(
    "wanted, each",
    [
        ((True, True, True), 4),
        ((True, False, False), 2),
        ((False, True, True), 3),
        ((False, False, True), 1),
    ],
)
def test_experts_multiply_nothing_unwanted(wanted, each):
    assert products("expert_mlp_backward", wanted) == 4 * each  # experts


@pytest.mark.parametrize(
    "wanted, each",
    [
        ((True, True, True, True), 5),
        ((True, False, False, False), 2),
        ((False, True, False, False), 2),
        ((False, False, True, True), 4),
        ((False, False, False, True), 2),
    ],
)
def test_adapters_multiply_nothing_unwanted(wanted, each):
    assert products("multi_lora_backward", wanted) == 6 * each  # adapters


@pytest.mark.parametrize(
    "learning, expected",
    [
        (["tokens", "w_up", "w_down"], 5),
        (["tokens"], 3),
        (["w_up", "w_down"], 4),
        (["w_down"], 2),
    ],
)
def test_two_networks_multiply_nothing_unwanted(learning, expected):
    module = importlib.import_module("lab.kernels.duo_ffn")
    _, calls = gradients(module.DECLARATION, learning, learning)
    assert calls.count["aten::mm"] == expected


interpreted = pytest.mark.skipif(
    not runtime.INTERPRETED, reason="counts launches of Triton's interpreter"
)


def launches(monkeypatch, run, declaration, wanted):
    from triton.runtime.interpreter import GridExecutor

    count, call = Counter(), GridExecutor.__call__

    def counted(executor, *args, **kwargs):
        count["launches"] += 1
        return call(executor, *args, **kwargs)

    monkeypatch.setattr(GridExecutor, "__call__", counted)
    options = declaration.examples[0].options | {"wanted": wanted}
    inputs = declaration.inputs(0, "cpu", torch.float32, **options)
    for gradient, needed in zip(run(**inputs), wanted, strict=True):
        assert bool(gradient.numel()) == needed
    return count["launches"]


@interpreted
@pytest.mark.parametrize(
    "wanted, expected",
    [
        ((True, True, True), 5),
        # one launch for h and dz, then a product and its sum by token
        ((True, False, False), 3),
        ((False, True, True), 3),
        ((False, True, False), 2),
        ((False, False, True), 2),
    ],
)
def test_experts_launch_nothing_unwanted(monkeypatch, wanted, expected):
    module = importlib.import_module("lab.kernels.expert_mlp_backward")
    run = expert_mlp_backward_triton
    assert expected == launches(monkeypatch, run, module.DECLARATION, wanted)


@interpreted
@pytest.mark.parametrize(
    "wanted, expected",
    [
        ((True, True, True, True), 5),
        ((True, False, False, False), 2),
        # both kinds of hidden rows; PyTorch makes their product
        ((False, True, False, False), 2),
        ((False, False, True, False), 2),
        ((False, False, False, True), 2),
        ((False, False, True, True), 4),
    ],
)
def test_adapters_launch_nothing_unwanted(monkeypatch, wanted, expected):
    module = importlib.import_module("lab.kernels.multi_lora_backward")
    run = multi_lora_backward_triton
    assert expected == launches(monkeypatch, run, module.DECLARATION, wanted)
