"""The layer as a composition: what a single operator cannot show."""

import contextlib

import pytest
import torch
from guarded import Guarded
from torch.utils._python_dispatch import TorchDispatchMode

from lab.kernels import (
    _expert_mlp_backward_triton,
    _expert_mlp_triton,
    expert_mlp,
    expert_mlp_backward,
    runtime,
)
from lab.kernels._expert_mlp_examples import backward_inputs
from lab.kernels._expert_mlp_triton import up
from lab.kernels._expert_tiles import Tiles
from lab.kernels.dispatch import dispatch_triton
from lab.kernels.expert_mlp_backward import (
    expert_mlp_backward_reference,
    expert_mlp_backward_triton,
)
from lab.kernels.moe_layer import (
    LAUNCHES,
    LAUNCHES_BACKWARD,
    LAUNCHES_FEW,
    moe_layer,
    moe_layer_backward_on_gpu,
    moe_layer_reference,
    moe_layer_triton,
)
from lab.kernels.topk_gate import Gate, topk_gate
from lab.kernels.topp_gate import topp_gate

interpreted = pytest.mark.skipif(
    not runtime.INTERPRETED, reason="needs Triton's interpreter, no GPU"
)
on_gpu = pytest.mark.skipif(
    runtime.INTERPRETED, reason="needs a GPU to capture a graph"
)


def case(gate="top 2", activation="swiglu", T=70, E=6, H=24, width=20):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(T, E, generator=generator)
    G = 2 * width if activation == "swiglu" else width
    chosen = {
        "top 2": lambda: topk_gate(logits, 2),
        "half null": lambda: topk_gate(logits.repeat(1, 2), 3, E),
        "top-p": lambda: topp_gate(logits, 0.6),
        "one for all": lambda: topk_gate(logits[:, :1] * 0 + ONE[:E], 1),
        "one token": lambda: topk_gate(logits[:1], 2),
    }[gate]()
    tokens = torch.randn(len(chosen.experts), H, generator=generator)
    w_up = torch.randn(E, H, G, generator=generator) / H**0.5
    w_down = torch.randn(E, width, H, generator=generator) / width**0.5
    return tokens, chosen, w_up, w_down, activation


ONE = torch.tensor([0.0, 0.0, 9.0, 0.0, 0.0, 0.0])
GATES = ("top 2", "half null", "top-p", "one for all", "one token")


@interpreted
@pytest.mark.parametrize("gate", GATES)
def test_layer_of_kernels_equals_the_layer_of_references(gate):
    inputs = case(gate)
    torch.testing.assert_close(
        moe_layer_triton(*inputs),
        moe_layer_reference(*inputs),
        rtol=0,
        atol=1e-5,
    )


def backward_by_kernels(tokens, gate, w_up, w_down, activation, grad):
    """What autograd calls on a GPU, kernel by kernel."""
    sent = dispatch_triton(gate.experts, len(w_up))
    pairs, rows, offsets = sent.pairs, sent.rows, sent.offsets
    h, hidden = up(tokens, pairs, rows, offsets, w_up, activation, True)
    expert_rows = _expert_mlp_triton.product(h, w_down, offsets)
    return moe_layer_backward_on_gpu(
        tokens, gate.weights, pairs, rows, offsets, w_up, w_down, expert_rows,
        hidden, grad, activation, (True, True, True, True),
    )._asdict()  # fmt: skip


@interpreted
@pytest.mark.parametrize("activation", ["relu", "gelu", "swiglu"])
@pytest.mark.parametrize("gate", GATES)
def test_backward_kernels_chain_to_the_gradient_of_the_layer(gate, activation):
    tokens, chosen, w_up, w_down, _ = case(gate, activation)
    grad = torch.randn(
        tokens.shape, generator=torch.Generator().manual_seed(1)
    )
    # the kernels leave rows without a slot unwritten: here they hold NaN
    with Guarded():
        found = backward_by_kernels(
            tokens, chosen, w_up, w_down, activation, grad
        )
    leaves = {
        "tokens": tokens, "weights": chosen.weights,
        "w_up": w_up, "w_down": w_down,
    }  # fmt: skip
    wide = {n: x.double().requires_grad_() for n, x in leaves.items()}
    y = moe_layer_reference(
        wide["tokens"], Gate(chosen.experts, wide["weights"]),
        wide["w_up"], wide["w_down"], activation,
    )  # fmt: skip
    expected = torch.autograd.grad(y, list(wide.values()), grad.double())
    for name, right in zip(wide, expected, strict=True):
        scale = right.abs().max().clamp_min(1e-30)
        error = (found[name].double() - right).abs().max() / scale
        assert error < 1e-5, name


def launcher():
    """The class whose calls are launches. It is imported here because the lab,
    which sets Triton's switches, must be imported before Triton."""
    from triton.runtime import interpreter

    return interpreter.GridExecutor


class Launches:
    """Counts what Triton is asked to run."""

    def __init__(self, monkeypatch):
        self.count = 0
        call = launcher().__call__

        def counted(executor, *args, **kwargs):
            self.count += 1
            return call(executor, *args, **kwargs)

        monkeypatch.setattr(launcher(), "__call__", counted)


@interpreted
@pytest.mark.parametrize(
    "tokens, forward", [(70, LAUNCHES_FEW), (71, LAUNCHES)]
)
@pytest.mark.parametrize("experts", [2, 6])
def test_launches_do_not_depend_on_the_number_of_experts(
    monkeypatch, experts, tokens, forward
):
    # two slots per token; interpreted, the true limit would take minutes
    monkeypatch.setattr("lab.kernels.dispatch.few", lambda experts: 140)
    inputs = case(T=tokens, E=experts)
    launches = Launches(monkeypatch)
    moe_layer_triton(*inputs)
    assert launches.count == forward
    backward_by_kernels(*inputs, torch.ones_like(inputs[0]))
    assert launches.count == 2 * forward - 1 + LAUNCHES_BACKWARD


class NoWaiting(TorchDispatchMode):
    """Refuses operators that would make the host wait for a GPU."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.name()
        waits = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonz")
        assert not any(wait in name for wait in waits), f"{name} waits"
        return function(*args, **(kwargs or {}))


@interpreted
@pytest.mark.parametrize(
    "gate, bound", [("top 2", None), ("half null", None), ("top-p", 200)]
)
def test_a_layer_with_bounded_rows_never_waits(monkeypatch, gate, bound):
    inputs = case(gate)
    # only the host's side runs, because Triton's interpreter would read
    # numbers itself
    monkeypatch.setattr(launcher(), "__call__", lambda *args, **kwargs: None)
    with NoWaiting():
        moe_layer_triton(*inputs, bound)
        if bound:
            with pytest.raises(AssertionError, match="waits"):
                moe_layer_triton(*inputs)


@on_gpu
@pytest.mark.parametrize("gate", ["top 2", "half null"])
def test_top_k_layer_can_be_captured_in_a_graph(gate):
    tokens, chosen, w_up, w_down, activation = case(gate)
    tokens, w_up, w_down = (x.cuda() for x in (tokens, w_up, w_down))
    chosen = Gate(*(x.cuda() for x in chosen))
    arguments = tokens, chosen, w_up, w_down, activation
    expected = moe_layer(*arguments)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = moe_layer(*arguments)
    graph.replay()
    assert torch.equal(found, expected)


@interpreted
@pytest.mark.parametrize(
    "tiles", [Tiles(16, 32, 32, 4, 2), Tiles(128, 128, 64, 8, 3)], ids=str
)
@pytest.mark.parametrize("activation", ["relu", "gelu", "swiglu"])
def test_any_tile_gives_the_same_result(monkeypatch, tiles, activation):
    inputs = backward_inputs(
        0, "cpu", torch.float32, T=30, E=2, S=2, H=40, F=34,
        activation=activation, empty=0.2,
    )  # fmt: skip
    for module, choice in (
        (_expert_mlp_triton, "choose_tiles"),
        (_expert_mlp_backward_triton, "choose_hidden_tiles"),
        (_expert_mlp_backward_triton, "choose_weight_tiles"),
    ):
        monkeypatch.setattr(module, choice, lambda *args: tiles)
    kept = inputs["offsets"][-1]
    forward = {n: x for n, x in inputs.items() if n not in ("hidden", "grad")}
    found = expert_mlp.expert_mlp_triton(**forward)[:kept]
    expected = expert_mlp.expert_mlp_reference(**forward)[:kept]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    for left, right in zip(
        expert_mlp_backward_triton(**inputs),
        expert_mlp_backward_reference(**inputs),
        strict=True,
    ):
        torch.testing.assert_close(left, right, rtol=0, atol=1e-4)


def test_without_matrix_units_the_products_go_through_torch(monkeypatch):
    monkeypatch.setattr(
        runtime, "triton_has_tensor_cores", lambda tensor: False
    )
    inputs = backward_inputs(
        0, "cpu", torch.float64, T=9, E=3, S=2, H=5, F=4, activation="gelu"
    )
    forward = [x for n, x in inputs.items() if n not in ("hidden", "grad")]
    y, _ = expert_mlp.output_and_hidden_on_gpu(*forward, False)
    assert torch.equal(y, expert_mlp.expert_mlp_reference(*forward))
    inputs = list(
        inputs[name]
        for name in (
            "tokens", "pairs", "rows", "offsets", "w_up", "w_down", "hidden",
            "grad", "activation",
        )
    )  # fmt: skip
    for left, right in zip(
        expert_mlp_backward.expert_mlp_backward_on_gpu(*inputs),
        expert_mlp_backward_reference(*inputs),
        strict=True,
    ):
        assert torch.equal(left, right)


@pytest.mark.parametrize("layer", [moe_layer_reference, moe_layer])
def test_a_bound_on_the_rows_changes_nothing(layer):
    tokens, gate, w_up, w_down, activation = case("top-p")
    filled = int((gate.experts >= 0).sum())
    free = layer(tokens, gate, w_up, w_down, activation)
    for bound in (filled, filled + 9, gate.experts.numel()):
        bounded = layer(tokens, gate, w_up, w_down, activation, bound)
        assert torch.equal(bounded, free)
    with pytest.raises(ValueError, match=f"less than the {filled} filled"):
        layer(tokens, gate, w_up, w_down, activation, filled - 1)


@interpreted
def test_rows_beyond_a_broken_bound_count_as_empty():
    """A GPU cannot check the bound: it drops the last rows, reads no more."""
    tokens, gate, w_up, w_down, activation = case()
    rows = dispatch_triton(gate.experts, len(w_up)).rows
    bound = int(rows.max()) - 4
    found = moe_layer_triton(
        tokens, gate, w_up, w_down, activation, max_rows=bound
    )
    dropped = gate.experts.masked_fill(rows >= bound, -1)
    expected = moe_layer(
        tokens, Gate(dropped, gate.weights), w_up, w_down, activation
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


LEAVES = "tokens", "weights", "w_up", "w_down"


class Calls(TorchDispatchMode):
    """Keeps the lab's operators and their arguments."""

    def __init__(self):
        super().__init__()
        self.made = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "lab":
            self.made.append((function, args))
        return function(*args, **(kwargs or {}))

    def arguments(self, name):
        """The arguments of all calls of one operator."""
        return [a for f, a in self.made if f.name() == f"lab::{name}"]


def gradients(learning, watch=contextlib.nullcontext, gate="half null"):
    """Gradients of the leaves that learn, in double precision."""
    tokens, chosen, w_up, w_down, activation = case(gate)
    wide = [x.double() for x in (tokens, chosen.weights, w_up, w_down)]
    leaves = dict(zip(LEAVES, wide, strict=True))
    asked = [leaves[name].requires_grad_() for name in learning]
    with watch() as watched:
        y = moe_layer(
            leaves["tokens"], Gate(chosen.experts, leaves["weights"]),
            leaves["w_up"], leaves["w_down"], activation,
        )  # fmt: skip
        found = torch.autograd.grad(y.sin().sum(), asked)
    return dict(zip(learning, found, strict=True)), watched


@pytest.mark.parametrize("learning", [LEAVES, *zip(LEAVES)], ids="-".join)
def test_only_the_gradients_that_are_wanted_are_computed(learning):
    alone, _ = gradients(learning)
    watched, calls = gradients(learning, Calls)
    expected, _ = gradients(LEAVES)
    for name in learning:
        assert torch.equal(alone[name], expected[name]), name
        assert torch.equal(watched[name], expected[name]), name
    # one call forward: the experts are not computed again
    ((*_, keep),) = calls.arguments("moe_layer")
    assert keep == (learning != ("weights",))
    ((*_, wanted),) = calls.arguments("moe_layer_backward")
    assert wanted == [name in learning for name in LEAVES]


@pytest.mark.parametrize("gate", GATES)
def test_the_gradients_are_those_of_the_reference(gate):
    tokens, chosen, w_up, w_down, activation = case(gate)
    found, _ = gradients(LEAVES, gate=gate)
    leaves = [
        x.double().requires_grad_()
        for x in (tokens, chosen.weights, w_up, w_down)
    ]
    x, weights, *experts = leaves
    y = moe_layer_reference(
        x, Gate(chosen.experts, weights), *experts, activation
    )
    expected = torch.autograd.grad(y.sin().sum(), leaves)
    for name, right in zip(LEAVES, expected, strict=True):
        torch.testing.assert_close(found[name], right, rtol=0, atol=1e-12)


def operators(dtype):
    """Both operators with their arguments; those of the forward one learn."""
    _, calls = gradients(LEAVES, Calls)
    for function, args in calls.made:
        if "moe_layer" in function.name():
            learns = function.name() == "lab::moe_layer"
            yield (
                function,
                [
                    x.detach().to(dtype).requires_grad_(learns)
                    if torch.is_tensor(x) and x.is_floating_point()
                    else x
                    for x in args
                ],
            )


def test_both_operators_are_registered_properly():
    for function, args in operators(torch.float64):
        torch.library.opcheck(function, args)
        if function.name() == "lab::moe_layer":
            # without keep, the backward pass computes again what it needs
            torch.library.opcheck(function, [*args[:-1], False])
            # the other results are only for the backward pass
            learns = [x.requires_grad for x in function(*args)]
            assert learns == [True, False, False]


@interpreted
def test_both_operators_announce_what_the_kernels_return():
    every = list(operators(torch.float32))
    backward, args = every[-1]
    every.append((backward, [*args[:-1], [False, True, False, False]]))
    for function, args in every:
        with torch.no_grad():
            announced = function.redispatch(META, *on_meta(args))
            found = function.redispatch(CUDA, *args)
        assert layouts(found) == layouts(announced)
        assert len({x.untyped_storage()._cdata for x in found}) == len(found)


META, CUDA = (
    torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))
    for key in ("Meta", "CUDA")
)


def on_meta(args):
    return [x.to("meta") if torch.is_tensor(x) else x for x in args]


def layouts(result):
    return [(x.shape, x.dtype, x.stride()) for x in result]


def test_a_gate_for_other_tokens_is_refused():
    tokens, gate, w_up, w_down, activation = case()
    with pytest.raises(ValueError, match="decided for 70 tokens, but there a"):
        moe_layer(tokens[:9], gate, w_up, w_down, activation)


def test_a_gate_without_a_weight_for_each_slot_is_refused():
    tokens, gate, w_up, w_down, activation = case()
    gate = gate._replace(weights=gate.weights[:, :1])
    with pytest.raises(ValueError, match=r"\(70, 2\) and weights \(70, 1\)"):
        moe_layer(tokens, gate, w_up, w_down, activation)
