"""Memory that shows when a kernel reads or writes where it should not.

Inputs lie between guard regions that would spoil the result if they were
read. Inside a `Guarded` block the outputs lie between guards too, and memory
from ``torch.empty`` is poisoned, so a forgotten store shows. In the
interpreter every read of a guard shows, even if the value is not used: on a
GPU that address may lie outside the memory.
"""

from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from triton.runtime.interpreter import InterpreterBuilder

GUARD = 64  # elements on either side

OPEN = (torch.empty, torch.empty_like, torch.Tensor.new_empty)
FILLED = (
    torch.zeros, torch.zeros_like, torch.Tensor.new_zeros,
    torch.full, torch.full_like, torch.Tensor.new_full,
)  # fmt: skip


def poison(dtype: torch.dtype) -> float | int:
    """A value that no kernel of the lab writes."""
    return float("nan") if dtype.is_floating_point else -7


def between_guards(tensor: Tensor, value) -> tuple[Tensor, Tensor]:
    """A copy of the tensor, strides included, and the buffer around it."""
    size = tensor.untyped_storage().nbytes() // tensor.element_size()
    buffer = torch.full(
        (size + 2 * GUARD,), value, dtype=tensor.dtype, device=tensor.device
    )
    copy = buffer.as_strided(tensor.shape, tensor.stride(), GUARD)
    return copy.copy_(tensor), buffer


def guards(buffer: Tensor) -> list:
    """The guard regions as bytes, comparable even where they are NaN."""
    ends = torch.cat((buffer[:GUARD], buffer[-GUARD:]))
    return ends.view(torch.uint8).tolist()


class Guarded(TorchFunctionMode):
    """Puts guards around what a launcher allocates and watches them."""

    def __init__(self):
        super().__init__()
        self.buffers, self.edges, self.strayed = [], [], False
        load = InterpreterBuilder.create_masked_load

        def watched(builder, pointers, mask, *others, **named):
            self.strayed |= self.in_a_guard(pointers.data[mask.data])
            return load(builder, pointers, mask, *others, **named)

        self.watch = patch.object(
            InterpreterBuilder, "create_masked_load", watched
        )

    def __enter__(self):
        self.watch.start()
        return super().__enter__()

    def __exit__(self, *problem):
        self.watch.stop()
        return super().__exit__(*problem)

    def in_a_guard(self, addresses) -> bool:
        # of the gaps between the edges, every second one is a guard
        gaps = np.searchsorted(self.edges, addresses, side="right")
        return bool((gaps % 2).any())

    def place(self, tensor: Tensor, value) -> Tensor:
        copy, buffer = between_guards(tensor, value)
        self.buffers.append((buffer, guards(buffer)))
        start, size = buffer.data_ptr(), buffer.element_size()
        ends = 0, GUARD, len(buffer) - GUARD, len(buffer)
        self.edges = np.sort([*self.edges, *(start + size * e for e in ends)])
        return copy

    def inputs(self, inputs: dict) -> dict:
        """The inputs between guards that look real: NaN, or the index 1."""
        return {
            name: self.place(
                value, poison(value.dtype) if value.is_floating_point() else 1
            )
            if isinstance(value, Tensor)
            else value
            for name, value in inputs.items()
        }

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function in OPEN and result.numel():
            value = poison(result.dtype)
            return self.place(result.fill_(value), value)
        if function in FILLED and result.numel():
            return self.place(result, poison(result.dtype))
        return result

    def check(self) -> None:
        assert all(guards(b) == before for b, before in self.buffers), (
            "a kernel wrote outside its tensor"
        )
        assert not self.strayed, "a kernel read outside its tensor"
