"""Kernels run on a GPU where there is one; the oracles stay on the CPU."""

import functools

from torch import Tensor

from lab.kernels import runtime


def on_device(kernel):
    """A launcher that takes its tensors from the CPU and returns them there.

    Between the two it runs on the GPU, or without one in the interpreter.
    """

    def there(value):
        return (
            value.to(runtime.device()) if isinstance(value, Tensor) else value
        )

    @functools.wraps(kernel)
    def run(*arguments, **options):
        options = {name: there(value) for name, value in options.items()}
        result = kernel(*map(there, arguments), **options)
        if isinstance(result, Tensor):
            return result.cpu()
        return type(result)(*(tensor.cpu() for tensor in result))

    return run
