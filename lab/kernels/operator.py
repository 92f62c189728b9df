"""Register an operation of the lab as an operator of PyTorch.

PyTorch then picks what to run: the reference on a CPU, the kernel on a GPU,
the shapes alone where it only traces (torch.compile), a formula for the
gradient.

``torch.library.custom_op`` would do the same, but its first call imports
``torch._dynamo``, which adds 1.2 seconds to a reader's first slider move, and
every call passes checks in Python that take as long as launching a kernel.
Those checks belong in tests, and ours make them (``torch.library.opcheck``).

Where PyTorch has nothing to pick, because nothing is traced and the tensors
are plain, the functions are called directly: PyTorch's way to them and back
passes through Python twice and takes almost as long as a launch, too.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

# no subclass of a tensor: it may want to see every operator
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

    ``schema`` names the operator, its inputs and its outputs in PyTorch's
    schema language; the first input is a tensor. The operator must not change
    an input, nor return one or a view of one. ``cpu`` and ``cuda`` (used on
    AMD, too) take the inputs by position, and so does ``shapes``, which
    returns empty outputs. ``backward`` and ``remember`` are those of
    `torch.library.register_autograd`; without them a gradient through the
    operator is refused. For an output without a gradient ``backward`` gets
    None instead of zeros as large as the output; if no output has a gradient,
    it is not called.

    Kernels compute in fp32, so for float64 a GPU, too, runs ``cpu``. Autocast
    changes no dtype within the operator. Forward-mode derivatives are refused.
    """
    label, bracket, rest = schema.partition("(")
    name = f"lab::{label}"

    def refuse(ctx, *grads):
        raise RuntimeError(
            f"{name} has no gradient; detach its inputs, or ask only for the"
            " gradients of what comes after it"
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
                f"{name} has no forward-mode derivative; use reverse mode"
                " (torch.autograd)"
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
    """``kernel``, or ``reference`` where an input is float64."""

    def run(*inputs):
        wide = any(
            isinstance(x, Tensor) and x.dtype == torch.float64 for x in inputs
        )
        return (reference if wide else kernel)(*inputs)

    return run


def undisturbed(function: Callable, tensor: Tensor, arguments: tuple):
    """Call ``function`` without autocast and on the tensor's GPU.

    Autocast would narrow some products of a reference and not others, and
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
    """Whether an input carries a forward-mode derivative, as it does under
    `torch.autograd.forward_ad` or `torch.func.jvp`: the operator would drop
    it."""
    # no public function says whether forward mode is on
    return forward_ad._current_level >= 0 and any(
        forward_ad.unpack_dual(x).tangent is not None
        for x in inputs
        if isinstance(x, Tensor)
    )


def by_the_rules(inputs: tuple) -> bool:
    """Whether PyTorch may have to see the operator itself: for torch.compile,
    torch.jit.trace, a dispatch mode, torch.func.vmap, or a tensor of another
    kind or device."""
    return (
        torch.compiler.is_compiling()
        # a trace misses the launch and keeps only the empty memory it fills
        or torch.jit.is_tracing()
        or is_in_torch_dispatch_mode()
        # no public function says whether such a transform is active
        or torch._C._are_functorch_transforms_active()
        or not PLAIN.issuperset(map(type, inputs))
        or not (inputs[0].is_cuda or inputs[0].is_cpu)
    )
