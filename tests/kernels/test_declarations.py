"""Every kernel, from its declaration alone.

Without a GPU the Triton kernels run in the interpreter; on a GPU the same
tests run them compiled, and the large examples too.
"""

import inspect
from functools import partial

import pytest
import torch
from guarded import Guarded
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import lab.kernels
from lab.kernels import runtime
from lab.kernels.declaration import all_declarations, targets_by_tile

DEVICE = "cpu" if runtime.INTERPRETED else "cuda"


needs_gpu = pytest.mark.skipif(
    DEVICE == "cpu", reason="needs a GPU: for speed, or for its operators"
)


def parametrise(keep=lambda declaration, example: True, dtypes=False):
    """Run a test for each declaration and example, large ones on a GPU.

    With ``dtypes`` also for each dtype that the declaration has a tolerance
    for.
    """
    cases = []
    for declaration in all_declarations():
        for example in declaration.examples:
            for dtype in declaration.tolerance if dtypes else [None]:
                name = f"{declaration.name}-{example.name}"
                case = (declaration, example)
                if dtypes:
                    name += f"-{str(dtype).removeprefix('torch.')}"
                    case += (dtype,)
                if keep(declaration, example):
                    marks = [needs_gpu] if example.large else []
                    cases.append(pytest.param(*case, id=name, marks=marks))
    names = "declaration, example" + (", dtype" if dtypes else "")
    return pytest.mark.parametrize(names, cases)


def small(declaration, example):
    return not example.large


def differentiable(declaration, example):
    return bool(declaration.differentiable) and not example.large


def smooth(declaration, example):
    return differentiable(declaration, example) and example.smooth


def cast(inputs, dtype):
    return {
        name: value.to(dtype)
        if isinstance(value, Tensor) and value.is_floating_point()
        else value
        for name, value in inputs.items()
    }


def by_name(declaration, result, inputs):
    """The specified part of a result as a dictionary of tensors."""
    result = declaration.specified(result, **inputs)
    if isinstance(result, Tensor):
        return {"result": result}
    return result._asdict()


def assert_agree(declaration, found, expected, tolerance):
    assert found.keys() == expected.keys()
    for name, right in expected.items():
        left = found[name]
        assert left.shape == right.shape, name
        if name in declaration.exact:
            assert torch.equal(left, right), f"{name} must be equal"
        elif right.numel():
            scale = right.double().abs().max().clamp_min(1e-30)
            error = (left.double() - right.double()).abs().max() / scale
            # a NaN must fail too
            assert error <= tolerance, f"{name} is off by {error:.1e}"


def contiguous(tensor):
    return tensor


def transposed(tensor):
    if tensor.ndim < 2:
        return tensor
    return tensor.transpose(-1, -2).contiguous().transpose(-1, -2)


def strided(tensor):
    """Every second element of rows twice as long, full of NaN between."""
    if tensor.ndim < 1 or not tensor.is_floating_point():
        return tensor
    wide = tensor.new_full((*tensor.shape, 2), float("nan"))
    wide[..., 0] = tensor
    return wide[..., 0]


@parametrise(dtypes=True)
def test_kernel_equals_the_reference(declaration, example, dtype):
    inputs = declaration.inputs(1, DEVICE, dtype, **example.options)
    memory = Guarded()
    guarded = memory.inputs(inputs)
    with memory:
        found = declaration.triton(**guarded)
    memory.check()
    wide = cast(inputs, torch.float64)
    expected = declaration.reference(**wide)
    assert_agree(
        declaration,
        by_name(declaration, found, inputs),
        by_name(declaration, expected, wide),
        declaration.tolerance[dtype],
    )


@parametrise(small)
@pytest.mark.parametrize("layout", [transposed, strided])
def test_kernel_accepts_any_strides(declaration, example, layout):
    inputs = declaration.inputs(2, DEVICE, torch.float32, **example.options)
    laid_out = {
        name: layout(value) if isinstance(value, Tensor) else value
        for name, value in inputs.items()
    }
    wide = cast(inputs, torch.float64)
    assert_agree(
        declaration,
        by_name(declaration, declaration.triton(**laid_out), inputs),
        by_name(declaration, declaration.reference(**wide), wide),
        declaration.tolerance[torch.float32],
    )


@parametrise(small)
def test_kernel_repeats_bit_for_bit(declaration, example):
    inputs = declaration.inputs(3, DEVICE, torch.float32, **example.options)
    first = by_name(declaration, declaration.triton(**inputs), inputs)
    again = by_name(declaration, declaration.triton(**inputs), inputs)
    assert all(torch.equal(first[name], again[name]) for name in first)


@parametrise(small)
def test_operation_on_a_cpu_is_the_reference(declaration, example):
    inputs = declaration.inputs(4, "cpu", torch.float32, **example.options)
    found = by_name(declaration, declaration.operation(**inputs), inputs)
    expected = by_name(declaration, declaration.reference(**inputs), inputs)
    for name in expected:
        assert found[name].dtype == expected[name].dtype
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=0)


@needs_gpu
@parametrise()
def test_operation_on_a_gpu_equals_the_reference(declaration, example):
    inputs = declaration.inputs(5, "cuda", torch.float32, **example.options)
    wide = cast(inputs, torch.float64)
    assert_agree(
        declaration,
        by_name(declaration, declaration.operation(**inputs), inputs),
        by_name(declaration, declaration.reference(**wide), wide),
        declaration.tolerance[torch.float32],
    )


def gradients(function, declaration, inputs):
    """Gradients of a fixed random projection of every float output."""
    inputs = dict(inputs)
    for name in declaration.differentiable:
        inputs[name] = inputs[name].detach().requires_grad_()
    result = by_name(declaration, function(**inputs), inputs)
    generator = torch.Generator().manual_seed(6)
    total = 0.0
    for value in result.values():
        if value.is_floating_point():
            pull = torch.randn(value.shape, generator=generator)
            total = total + (value * pull.to(value)).sum()
    leaves = [inputs[name] for name in declaration.differentiable]
    grads = torch.autograd.grad(total, leaves)
    return dict(zip(declaration.differentiable, grads, strict=True))


@parametrise(differentiable)
def test_gradients_equal_autograd_of_the_reference(declaration, example):
    narrow = torch.float64 if DEVICE == "cpu" else torch.float32
    inputs = declaration.inputs(7, DEVICE, narrow, **example.options)
    found = gradients(declaration.operation, declaration, inputs)
    expected = gradients(
        declaration.reference, declaration, cast(inputs, torch.float64)
    )
    tolerance = (
        1e-12
        if narrow == torch.float64
        else 10 * declaration.tolerance[torch.float32]
    )
    for name, right in expected.items():
        # relative to the largest entry, or to one where all should vanish
        scale = max(1.0, right.abs().max().item() if right.numel() else 0.0)
        error = (found[name].double() - right).abs()
        assert not error.numel() or error.max() / scale <= tolerance, name


@parametrise(smooth)
def test_gradients_equal_finite_differences(declaration, example):
    inputs = declaration.inputs(8, "cpu", torch.float64, **example.options)
    names = declaration.differentiable

    def floats(*values):
        arguments = inputs | dict(zip(names, values, strict=True))
        result = by_name(
            declaration, declaration.operation(**arguments), arguments
        )
        return tuple(v for v in result.values() if v.is_floating_point())

    leaves = [inputs[name].detach().requires_grad_() for name in names]
    assert torch.autograd.gradcheck(floats, leaves, fast_mode=True)


class Calls(TorchDispatchMode):
    """Records the lab's operators and their arguments as they are called."""

    def __init__(self):
        super().__init__()
        self.made = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "lab":
            self.made.append((function, args, kwargs or {}))
        return function(*args, **(kwargs or {}))


def calls(declaration, example, dtype=torch.float32):
    inputs = declaration.inputs(9, DEVICE, dtype, **example.options)
    with Calls() as seen:
        declaration.operation(**inputs)
    assert seen.made, "the operation is not registered with PyTorch"
    wanted = [inputs[name].data_ptr() for name in declaration.differentiable]
    for function, args, kwargs in seen.made:
        yield (
            function,
            tuple(
                arg.detach().requires_grad_()
                if isinstance(arg, Tensor)
                # empty tensors all share the address 0
                and arg.is_floating_point()
                and arg.data_ptr() in wanted
                else arg
                for arg in args
            ),
            kwargs,
        )


@pytest.mark.parametrize(
    ("name", "longer"),
    [
        ("combine_backward", "grad"),
        ("combine_backward", "weights"),
        ("expert_mlp_backward", "hidden"),
        ("expert_mlp_backward", "grad"),
        ("gate_backward", "grad_weights"),
        ("gate_backward", "logits"),
        ("multi_lora_backward", "grad"),
        ("sym_kl_backward", "statistics"),
        ("two_table_loss_backward", "log_sum"),
    ],
)
def test_what_no_forward_pass_leaves_is_refused(name, longer):
    (declaration,) = (d for d in all_declarations() if d.name == name)
    options = declaration.examples[0].options
    inputs = declaration.inputs(8, "cpu", torch.float32, **options)
    inputs[longer] = torch.cat([inputs[longer], inputs[longer][:1]])
    with pytest.raises(ValueError, match=longer):
        declaration.operation(**inputs)


@parametrise(small)
def test_operator_is_registered_properly(declaration, example):
    for function, args, kwargs in calls(declaration, example):
        checks = ["test_schema", "test_autograd_registration"]
        checks += ["test_faketensor"]
        # opcheck's fourth check adds up all outputs and fails if integers
        # come first; the test below does its work instead
        torch.library.opcheck(function, args, kwargs, test_utils=checks)


def floats_and_gradients(function, args, kwargs):
    result = function(*args, **kwargs)
    result = (result,) if isinstance(result, Tensor) else result
    floats = [value for value in result if value.is_floating_point()]
    leaves = [
        arg for arg in args if isinstance(arg, Tensor) and arg.requires_grad
    ]
    if not leaves:
        return list(result)
    total = sum(value.square().sum() for value in floats)
    return [*result, *torch.autograd.grad(total, leaves)]


@pytest.fixture
def filled_memory():
    """Fresh memory holds NaN, and so does what a kernel leaves unwritten.

    PyTorch fills it as part of its deterministic algorithms.
    """
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@parametrise(small)
@pytest.mark.usefixtures("filled_memory")
def test_operator_compiles_with_its_gradient(declaration, example):
    for function, args, kwargs in calls(declaration, example):
        torch._dynamo.reset()
        traced = torch.compile(
            lambda *a, function=function, **k: function(*a, **k),
            backend="aot_eager",
            fullgraph=True,
        )
        expected = floats_and_gradients(function, args, kwargs)
        found = floats_and_gradients(traced, args, kwargs)
        for left, right in zip(found, expected, strict=True):
            torch.testing.assert_close(
                left, right, rtol=0, atol=0, equal_nan=True
            )


def layouts(result):
    result = (result,) if isinstance(result, Tensor) else result
    return [(x.shape, x.dtype, x.stride()) for x in result]


# selects what an operator runs on a GPU, here for tensors of a CPU
ON_GPU = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)


@parametrise(small)
def test_shapes_are_known_without_running(declaration, example):
    for function, args, kwargs in calls(declaration, example):
        with FakeTensorMode() as mode:
            fake = function(
                *(
                    mode.from_tensor(arg) if isinstance(arg, Tensor) else arg
                    for arg in args
                ),
                **kwargs,
            )
        assert layouts(function(*args, **kwargs)) == layouts(fake)
        with torch.no_grad():
            by_kernels = function.redispatch(ON_GPU, *args, **kwargs)
        assert layouts(by_kernels) == layouts(fake)
        # no result shares its memory with another one
        alone = isinstance(by_kernels, Tensor)
        results = [by_kernels] if alone else by_kernels
        memory = {x.untyped_storage()._cdata for x in results}
        assert len(memory) == len(results)


@pytest.mark.skipif(DEVICE == "cuda", reason="there both are the same")
@pytest.mark.parametrize(
    "declaration", all_declarations(), ids=lambda declaration: declaration.name
)
def test_a_gpu_answers_float64_in_float64(declaration):
    example = next(filter(partial(small, declaration), declaration.examples))
    for function, args, kwargs in calls(declaration, example, torch.float64):
        with torch.no_grad():
            on_gpu = function.redispatch(ON_GPU, *args, **kwargs)
            on_cpu = function(*args, **kwargs)
        torch.testing.assert_close(on_gpu, on_cpu, rtol=0, atol=0)


@pytest.mark.parametrize(
    "declaration", all_declarations(), ids=lambda declaration: declaration.name
)
def test_declaration_is_complete(declaration):
    named = list(inspect.signature(declaration.operation).parameters)
    kinds = {"degenerate": 0, "large": 0, "normal": 0}
    for example in declaration.examples:
        kind = "large" if example.large else "normal"
        kinds["degenerate" if example.degenerate else kind] += 1
        if not example.large:
            inputs = declaration.inputs(
                10, "cpu", torch.float32, **example.options
            )
            assert set(inputs) <= set(named)
            cost = declaration.cost(**inputs)
            assert cost.bytes >= 0 and cost.flops >= 0
    assert all(kinds.values()), f"an example of each kind, not {kinds}"
    for function in (declaration.reference, declaration.triton):
        assert list(inspect.signature(function).parameters) == named
    assert set(declaration.differentiable) <= set(named)
    assert declaration.compiles, "name what to compile ahead of time"


def test_the_index_of_the_kernels_names_each_one():
    for declaration in all_declarations():
        assert f"\n``{declaration.name}`` " in lab.kernels.__doc__


def test_targets_with_the_same_tile_are_compiled_together():
    tiles = {"sm_80": {"M": 32}, "sm_90": {"M": 64}, "sm_100": {"M": 32}}
    assert targets_by_tile(tiles.get, tuple(tiles)) == [
        ({"M": 32}, ("sm_80", "sm_100")),
        ({"M": 64}, ("sm_90",)),
    ]
