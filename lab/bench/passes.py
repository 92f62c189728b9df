"""One pass of a layer as a call to time: eager, or replayed from a graph.

Each function here returns what `timing.in_turn` takes: a function that
prepares, untimed, and returns the call to time. The call returns its result,
so that what is timed can be checked.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Layer(NamedTuple):
    """Tokens, weights of the gate, first and second weights of the experts,
    and the layer as a function of them."""

    leaves: tuple[Tensor, ...]  # all carry a gradient
    run: Callable[..., Tensor]  # from the leaves to [T, H]
    transposed: bool = False  # the experts' weights, compared with the lab's


def forward(layer: Layer, pull: Tensor) -> Callable:
    """A forward pass without a gradient, as in inference: output [T, H]."""

    def call():
        with torch.no_grad():
            return layer.run(*layer.leaves)

    return lambda: call


def backward(layer: Layer, pull: Tensor) -> Callable:
    """A backward pass from the output's gradient ``pull`` [T, H] to gradients
    in the lab's layout; the forward pass before it is not timed."""

    def prepare():
        y = layer.run(*layer.leaves)

        def call():
            found = torch.autograd.grad(y, layer.leaves, pull)
            if layer.transposed:  # a view, no copy
                found = (*found[:2], *(x.mT for x in found[2:]))
            return found

        return call

    return prepare


def replayed_forward(layer: Layer, pull: Tensor) -> Callable:
    """The forward pass captured once in a CUDA graph, then replayed."""
    eager = forward(layer, pull)()
    # a first run compiles and allocates, which a capture does not allow
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        eager()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = eager()

    def call():
        graph.replay()
        return y

    return lambda: call


def replayed_backward(layer: Layer, pull: Tensor) -> Callable:
    """The backward pass replayed, as is the forward pass before it."""
    run = torch.cuda.make_graphed_callables(layer.run, layer.leaves)
    return backward(layer._replace(run=run), pull)


EAGER = {"forward": forward, "backward": backward}
REPLAYED = {"forward": replayed_forward, "backward": replayed_backward}
