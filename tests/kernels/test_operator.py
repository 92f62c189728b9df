"""What registering an operation with PyTorch must not cost."""

import contextlib
import subprocess
import sys

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import lab.kernels.ap_counts  # noqa: F401
from lab.kernels.combine import combine
from lab.kernels.moe_layer import moe_layer
from lab.kernels.operator import by_the_rules, undisturbed
from lab.kernels.topk_gate import topk_gate
from lab.kernels.topp_gate import topp_gate


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


def inputs():
    generator = torch.Generator().manual_seed(0)
    expert_rows = torch.randn(4, 5, generator=generator)
    rows = torch.tensor([[0, 1], [2, -1], [-1, 3]], dtype=torch.int32)
    return expert_rows, rows, torch.rand(3, 2, generator=generator)


class Seen(TorchDispatchMode):
    """Records the names of all operators."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(function.name())
        return function(*args, **(kwargs or {}))


class Watched(Tensor):
    """A tensor around another one that records every operator it meets."""

    names = []

    @staticmethod
    def __new__(cls, inner):
        self = Tensor._make_wrapper_subclass(
            cls, inner.shape, dtype=inner.dtype
        )
        self.inner = inner
        return self

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        cls.names.append(function.name())
        args = (x.inner if type(x) is cls else x for x in args)
        return function(*args, **(kwargs or {}))


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_who_watches_sees_the_operator_and_not_what_it_does():
    expert_rows, rows, weights = inputs()
    with Seen() as seen:
        combine(expert_rows, rows, weights)
    assert seen.names == ["lab::combine"]

    Watched.names.clear()
    combine(expert_rows, rows, Watched(weights))
    assert Watched.names == ["lab::combine"]

    traced = torch.fx.experimental.proxy_tensor.make_fx(combine)(*inputs())
    called = [n.target for n in traced.graph.nodes if n.op != "placeholder"]
    assert called[0] == torch.ops.lab.combine.default

    compiled = []

    def backend(module, _):
        compiled.extend(n.target for n in module.graph.nodes)
        return module

    torch.compile(combine, backend=backend, fullgraph=True)(*inputs())
    assert torch.ops.lab.combine.default in compiled

    traced = torch.jit.trace(lambda *x: combine(*x), inputs())
    assert [n.kind() for n in traced.graph.nodes()] == ["lab::combine"]

    shape = combine(*(x.to("meta") for x in inputs())).shape
    assert shape == (3, 5)


@pytest.mark.parametrize(
    "operation, backward",
    [("topk_gate", "gate_backward"), ("combine", "combine_backward")],
)
def test_watching_changes_neither_a_result_nor_a_gradient(operation, backward):
    def run():
        if operation == "topk_gate":
            leaves = (inputs()[0].requires_grad_(),)
            y = topk_gate(*leaves, 2).weights
        else:
            expert_rows, rows, weights = inputs()
            leaves = expert_rows.requires_grad_(), weights.requires_grad_()
            y = combine(leaves[0], rows, leaves[1])
        return y, *torch.autograd.grad(y.sin().sum(), leaves)

    alone = run()
    with Seen() as seen:
        watched = run()
    names = [name for name in seen.names if name.startswith("lab::")]
    assert names == [f"lab::{operation}", f"lab::{backward}"]
    for left, right in zip(alone, watched, strict=True):
        assert torch.equal(left, right)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_an_operator_is_mapped_over_a_batch():
    expert_rows, rows, weights = inputs()
    checks = []
    found = torch.func.vmap(lambda w: combine(expert_rows, rows, w))(
        torch.stack([weights, 2 * weights])
    )
    expected = combine(expert_rows, rows, weights)
    assert torch.equal(found, torch.stack([expected, 2 * expected]))
    torch.func.vmap(lambda w: checks.append(by_the_rules((w,))) or w)(weights)
    assert checks == [True]


@pytest.mark.parametrize(
    "gate", [lambda z: topk_gate(z, 2), lambda z: topp_gate(z, 0.9)]
)
def test_nothing_is_filled_for_outputs_that_have_no_gradient(gate):
    logits = torch.randn(3, 4, requires_grad=True)
    weights = gate(logits).weights
    with Seen() as seen:
        weights.backward(torch.ones_like(weights))
    assert not [name for name in seen.names if "zero" in name]


class Stop(torch.autograd.Function):
    """Passes on what it gets, and no gradient."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return None


@pytest.mark.parametrize("watch", [False, True])
def test_where_no_gradient_comes_in_none_goes_on(watch):
    logits = torch.randn(3, 4, requires_grad=True)
    with Seen() if watch else contextlib.nullcontext():
        Stop.apply(topk_gate(logits, 2).weights).sum().backward()
    assert logits.grad is None


def test_a_derivative_forward_is_refused_where_it_would_be_lost():
    z = torch.randn(3, 4)

    def weights(z):
        return topk_gate(z, 2).weights

    with pytest.raises(RuntimeError, match="topk_gate has no forward-mode"):
        torch.func.jvp(weights, (z,), (z,))
    with torch.autograd.forward_ad.dual_level():
        assert torch.equal(weights(z), weights(z.clone()))
        with pytest.raises(RuntimeError, match="use reverse mode"):
            weights(torch.autograd.forward_ad.make_dual(z, z))


@pytest.mark.parametrize("H, F", [(16, 8), (5, 7)])
def test_autocast_changes_no_dtype_at_any_size(H, F):
    generator = torch.Generator().manual_seed(0)
    shapes = (9, H), (3, H, 2 * F), (3, F, H)
    leaves = [torch.randn(s, generator=generator) for s in shapes]
    gate = topk_gate(torch.randn(9, 3, generator=generator), 2)

    def run(cast):
        for leaf in leaves:
            leaf.requires_grad_()
        tokens, w_up, w_down = leaves
        with torch.autocast("cpu", enabled=cast):
            y = moe_layer(tokens, gate, w_up, w_down)
            inside = torch.autograd.grad(y.sum(), leaves, retain_graph=True)
        return y, *inside, *torch.autograd.grad(y.sum(), leaves)

    for left, right in zip(run(True), run(False), strict=True):
        assert left.dtype == torch.float32 and torch.equal(left, right)


class OnGPU:
    """The part of a tensor that says where it is."""

    is_cuda = True

    def __init__(self, index):
        self.device = torch.device("cuda", index)

    def get_device(self):
        return self.device.index


def test_a_kernel_runs_on_the_gpu_of_its_tensors(monkeypatch):
    entered = []

    @contextlib.contextmanager
    def device(which):
        entered.append(which.index)
        yield

    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "device", device)
    for index in (0, 1):
        assert undisturbed(max, OnGPU(index), (2, 3)) == 3
    assert entered == [1]
