"""An operation of the lab as an operator of PyTorch.

PyTorch then picks by itself: the reference on a CPU, the kernel on a GPU, the
shapes alone where it only traces (torch.compile), a formula for the gradient.

``torch.library.custom_op`` would do the same, but its first call imports
``torch._dynamo``, 1.2 seconds of somebody's first slider move, and every call
passes checks in Python that take as long as launching a kernel. Those checks
belong into tests, and ours make them (``torch.library.opcheck``).
"""

from collections.abc import Callable

import torch


def operator(
    schema: str,
    *,
    cpu: Callable,
    cuda: Callable,
    shapes: Callable,
    backward: Callable | None = None,
    remember: Callable | None = None,
) -> torch._ops.OpOverload:
    """Define ``lab::<schema>`` and return it.

    ``schema`` names the operator, its inputs and outputs, in PyTorch's own
    language; it must not change an input, nor return one or a view of one.
    ``cpu`` and ``cuda`` (which serves AMD, too) take the inputs by position,
    and so does ``shapes``, which returns empty outputs. ``backward`` and
    ``remember`` are those of `torch.library.register_autograd`; without them
    a gradient through the operator is refused.
    """
    label, bracket, rest = schema.partition("(")
    name = f"lab::{label}"

    def refuse(ctx, *grads):
        raise RuntimeError(
            f"{name} has no gradient; detach its inputs, or ask for the"
            " gradients of what comes after it only"
        )

    torch.library.define(
        name, bracket + rest, tags=torch.Tag.pt2_compliant_tag
    )
    torch.library.impl(name, "cpu", cpu)
    torch.library.impl(name, "cuda", cuda)
    torch.library.register_fake(name, shapes)
    torch.library.register_autograd(
        name, backward or refuse, setup_context=remember
    )
    return getattr(torch.ops.lab, label).default
