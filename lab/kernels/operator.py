"""An operation of the lab as an operator of PyTorch.

PyTorch then picks by itself: the reference on a CPU, the kernel on a GPU, the
shapes alone where it only traces (torch.compile), a formula for the gradient.

``torch.library.custom_op`` would do the same, but its first call imports
``torch._dynamo``, 1.2 seconds of somebody's first slider move, and every call
passes checks in Python that take as long as launching a kernel. Those checks
belong into tests, and ours make them (``torch.library.opcheck``).

Where PyTorch has nothing to pick, because nobody traces and the tensors are
plain, the functions are called directly: its way to them and back, twice
through Python, takes almost as long as a launch, too.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

# no subclass of a tensor, which may want to know of every operator
PLAIN = {Tensor, torch.nn.Parameter, bool, int, float, str, list, tuple}


def operator(
    schema: str,
    *,
    cpu: Callable,
    cuda: Callable,
    shapes: Callable,
    backward: Callable | None = None,
    remember: Callable | None = None,
) -> Callable:
    """Define ``lab::<schema>`` and return a function that calls it.

    ``schema`` names the operator, its inputs and outputs, in PyTorch's own
    language, a tensor first; it must not change an input, nor return one or a
    view of one. ``cpu`` and ``cuda`` (which serves AMD, too) take the inputs
    by position, and so does ``shapes``, which returns empty outputs.
    ``backward`` and ``remember`` are those of
    `torch.library.register_autograd`; without them a gradient through the
    operator is refused. ``backward`` gets None, no zeros as large as the
    output, for an output without a gradient, and is not called if none has
    one.

    Kernels compute in fp32: in float64 a GPU, too, runs ``cpu``. Autocast
    changes no dtype within the operator. Derivatives that go forward with
    the values are refused.
    """
    label, bracket, rest = schema.partition("(")
    name = f"lab::{label}"

    def refuse(ctx, *grads):
        raise RuntimeError(
            f"{name} has no gradient; detach its inputs, or ask for the"
            " gradients of what comes after it only"
        )

    def keep(ctx, inputs, output):
        ctx.set_materialize_grads(False)
        if remember:
            remember(ctx, inputs, output)

    def pull_back(ctx, *grads):
        given = [grad for grad in grads if grad is not None]
        if not given:
            return (None,) * len(ctx.needs_input_grad)
        return undisturbed(backward or refuse, given[0], (ctx, *grads))

    torch.library.define(
        name, bracket + rest, tags=torch.Tag.pt2_compliant_tag
    )
    narrow_or_wide = unless_wide(cuda, cpu)

    def on_cpu(*inputs):
        return undisturbed(cpu, inputs[0], inputs)

    def on_gpu(*inputs):
        return undisturbed(narrow_or_wide, inputs[0], inputs)

    def compute(*inputs):
        return (on_gpu if inputs[0].is_cuda else on_cpu)(*inputs)

    torch.library.impl(name, "cpu", on_cpu)
    torch.library.impl(name, "cuda", on_gpu)
    torch.library.register_fake(name, shapes)
    torch.library.register_autograd(name, pull_back, setup_context=keep)
    registered = getattr(torch.ops.lab, label).default

    def forward(ctx, *inputs):
        output = compute(*inputs)
        keep(ctx, inputs, output)
        return output

    methods = {
        "forward": staticmethod(forward),
        "backward": staticmethod(pull_back),
    }
    node = type(label, (torch.autograd.Function,), methods)

    def call(*inputs):
        if has_tangent(inputs):
            raise RuntimeError(
                f"{name} has no derivative that goes forward; use"
                " torch.autograd, which goes backward"
            )
        if by_the_rules(inputs):
            return registered(*inputs)
        if torch.is_grad_enabled() and any(
            isinstance(x, Tensor) and x.requires_grad for x in inputs
        ):
            return node.apply(*inputs)
        return compute(*inputs)

    return call


def unless_wide(kernel: Callable, reference: Callable) -> Callable:
    """``kernel``, but ``reference`` where an input is float64."""

    def run(*inputs):
        wide = any(
            isinstance(x, Tensor) and x.dtype == torch.float64 for x in inputs
        )
        return (reference if wide else kernel)(*inputs)

    return run


def undisturbed(function: Callable, tensor: Tensor, arguments: tuple):
    """``function`` of the arguments without autocast, on the tensor's GPU.

    Autocast would narrow some products of a reference and not others; and
    Triton launches on the current GPU, wherever the tensors are.
    """
    kind = "cuda" if tensor.is_cuda else "cpu"
    if torch.is_autocast_enabled(kind):
        with torch.autocast(kind, enabled=False):
            return undisturbed(function, tensor, arguments)
    if tensor.is_cuda and tensor.get_device() != torch.cuda.current_device():
        with torch.cuda.device(tensor.device):
            return function(*arguments)
    return function(*arguments)


def has_tangent(inputs: tuple) -> bool:
    """Whether an input carries a derivative forward, which the operator
    would drop: under `torch.autograd.forward_ad` or `torch.func.jvp`."""
    # no public function says whether anybody asks
    return forward_ad._current_level >= 0 and any(
        forward_ad.unpack_dual(x).tangent is not None
        for x in inputs
        if isinstance(x, Tensor)
    )


def by_the_rules(inputs: tuple) -> bool:
    """Whether somebody may want to see the operator itself: torch.compile,
    torch.jit.trace, a dispatch mode, torch.func.vmap, a tensor of another
    kind or device."""
    return (
        torch.compiler.is_compiling()
        # a launch leaves no trace, only the empty memory that it fills
        or torch.jit.is_tracing()
        or is_in_torch_dispatch_mode()
        # no public function says so
        or torch._C._are_functorch_transforms_active()
        or not PLAIN.issuperset(map(type, inputs))
        or not (inputs[0].is_cuda or inputs[0].is_cpu)
    )
