"""Times the expert network's kernels with tiles that they do not choose.

`choose_tiles` follows tables that others measured on kernels like these, and
times of an H200. On a GPU this shows whether its choices hold there.
Each kernel of the layer, forward and backward, runs in turn with the chosen
tile and with every other tile of the list that suits the rows of an expert. A
tile is timed only if its result agrees with the chosen one's, and a tile that
the GPU has no room for is marked so.

    lab bench --tiles
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from torch import Tensor
from triton.runtime.errors import OutOfResources

from lab.bench.agreement import TOLERANCE, relative_error
from lab.bench.timing import Timing, in_turn
from lab.bench.work import reason, settle
from lab.kernels import runtime
from lab.kernels._expert_mlp_backward_triton import (
    hidden_backward,
    transposed,
    weight_backward,
)
from lab.kernels._expert_mlp_triton import product, up
from lab.kernels._expert_tiles import (
    Tiles,
    choose_hidden_tiles,
    choose_tiles,
    choose_weight_tiles,
)
from lab.kernels.dispatch import dispatch
from lab.kernels.topk_gate import Gate

OTHERS = (
    Tiles(128, 256, 64, 8, 4),
    Tiles(128, 256, 64, 8, 3),
    Tiles(128, 128, 64, 8, 4),
    Tiles(128, 128, 64, 8, 3),
    Tiles(64, 256, 64, 8, 4),
    Tiles(64, 256, 64, 4, 3),
    Tiles(128, 128, 64, 4, 3),
    Tiles(128, 128, 32, 4, 3),
    Tiles(64, 128, 64, 4, 3),
    Tiles(64, 128, 16, 4, 2),
    Tiles(32, 256, 128, 4, 2),
    Tiles(32, 128, 128, 4, 3),
    Tiles(16, 128, 128, 4, 3),
    Tiles(16, 128, 128, 4, 2),
    Tiles(16, 64, 128, 4, 3),
)


class Tried(NamedTuple):
    """One tile of one kernel; no timing where it was not run."""

    kernel: str
    tiles: Tiles
    chosen: bool
    timing: Timing | None
    note: str = ""


def sweep(
    tokens: Tensor,
    gate: Gate,
    w_up: Tensor,
    w_down: Tensor,
    pull: Tensor,
    **effort,
) -> Iterator[Tried]:
    """Every kernel of a SwiGLU layer with every tile that suits it.

    ``pull`` [T, H] is the gradient of the layer's result, and ``effort`` goes
    to `in_turn`.
    """
    device = tokens.device.type
    for kernel, choose, launch in _kernels(tokens, gate, w_up, w_down, pull):
        mean = gate.experts.numel() / len(w_up)
        chosen = choose(tokens.dtype, mean, runtime.target(tokens))
        expected = launch(chosen)
        calls, notes = {chosen: _prepare(launch, chosen)}, {}
        for tiles in OTHERS:
            # half to twice the chosen rows: others are not worth a try
            if tiles == chosen or not chosen.m <= 2 * tiles.m <= 4 * chosen.m:
                continue
            try:
                found = launch(tiles)
            except OutOfResources:
                notes[tiles] = "no room"
                continue
            # a tile that does not compile or run: the next one may
            except Exception as problem:
                notes[tiles] = reason(problem)
                settle(device, f"{kernel}, {tiles}")
                continue
            if relative_error(found, expected) <= TOLERANCE[tokens.dtype]:
                calls[tiles] = _prepare(launch, tiles)
            else:
                notes[tiles] = "wrong"
        timings = in_turn(calls, device, **effort)
        for tiles in (*calls, *notes):
            yield Tried(
                kernel,
                tiles,
                tiles == chosen,
                timings.get(tiles),
                notes.get(tiles, ""),
            )


def _prepare(launch, tiles):
    return lambda: lambda: launch(tiles)


def _kernels(
    tokens, gate, w_up, w_down, pull
) -> Iterator[tuple[str, Callable[..., Tiles], Callable[[Tiles], Tensor]]]:
    """Name, chooser of tiles and launch of each kernel, for one result."""
    S, E = gate.experts.shape[1], len(w_up)
    _, offsets, pairs, rows = dispatch(gate.experts, E)
    active, hidden = up(tokens, pairs, rows, offsets, w_up, "swiglu", True)
    grad = pull[(pairs // S).long()].contiguous()
    _, grad_hidden = hidden_backward(grad, w_down, hidden, offsets, "swiglu")

    def first(tiles):
        found = up(tokens, pairs, rows, offsets, w_up, "swiglu", True, tiles)
        return found[0]

    def second(tiles):
        return product(active, w_down, offsets, tiles)

    def hidden_gradient(tiles):
        found = hidden_backward(grad, w_down, hidden, offsets, "swiglu", tiles)
        return found[1]

    def up_gradient(tiles):
        return weight_backward(tokens, grad_hidden, pairs, offsets, S, tiles)

    def down_gradient(tiles):
        return weight_backward(active, grad, pairs, offsets, None, tiles)

    def row_gradient(tiles):
        return product(grad_hidden, transposed(w_up), offsets, tiles)

    yield "first product", choose_tiles, first
    yield "second product", choose_tiles, second
    yield "gradient of hidden", choose_hidden_tiles, hidden_gradient
    yield "gradient of W_up", choose_weight_tiles, up_gradient
    yield "gradient of W_down", choose_weight_tiles, down_gradient
    yield "gradient of rows", choose_tiles, row_gradient


def line(tried: Tried) -> str:
    """One tile as a line for a terminal; a star for the chosen one."""
    m, n, k, warps, stages = tried.tiles
    time = tried.note
    if tried.timing:
        ms, low, high = tried.timing[:3]
        time = f"{ms:9.3f} ms ({low:.3f} to {high:.3f})"
    star = "*" if tried.chosen else " "
    tile = f"{m} x {n} x {k}, {warps} warps, {stages} stages"
    return f"{tried.kernel:20} {star} {tile:36} {time}"
