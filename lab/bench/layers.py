"""Times the layer of each installed peer, forward and backward."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch

from lab.bench import peers, work
from lab.bench.agreement import TOLERANCE, relative_error
from lab.bench.passes import EAGER
from lab.bench.sizes import drawn_gate, layer_costs
from lab.bench.table import row, version
from lab.bench.timing import in_turn, name
from lab.kernels.moe_layer import moe_layer_reference

MODES = tuple(EAGER)  # forward, backward


def piece(case, T, dtype, device, roofs, effort) -> work.Piece:
    """One size in one dtype, with all peers in turn."""

    def measure():
        return layer_rows(case, T, dtype, device, roofs, effort)

    return work.Piece(keys(case, T, dtype, device), measure)


def keys(case, T, dtype, device) -> list[dict]:
    return [
        {
            "operation": "moe_layer",
            "case": f"{case.name} T{T}",
            "dtype": name(dtype),
            "mode": mode,
            "provider": peer.name,
            "version": version(peer.package),
        }
        for mode in MODES
        for peer in peers.installed(device)
    ]


def layer_rows(case, T, dtype, device, roofs, effort) -> Iterator[dict]:
    """Check every pass of every peer, then time them in turn."""
    inputs, pull = layer_inputs(case, T, dtype, device)
    expected = reference(inputs, pull)
    calls, found = {mode: {} for mode in MODES}, {}
    for peer in peers.installed(device):
        for mode, prepare, columns in checked(peer, inputs, pull, expected):
            found[mode, peer.name] = columns
            if not columns["note"]:
                calls[mode][peer.name] = prepare
    del expected
    costs = layer_costs(case, T, dtype, inputs[1])
    timings = {}
    for mode in MODES:

        def failed(provider, problem, mode=mode):
            found[mode, provider]["note"] = work.reason(problem)
            work.settle(device, f"{provider}, {mode}")

        timings[mode] = in_turn(calls[mode], device, **effort, failed=failed)
    for key in keys(case, T, dtype, device):
        mode, provider = key["mode"], key["provider"]
        timing = timings[mode].get(provider)
        yield row(key, costs[mode], roofs, timing, **found[mode, provider])


class Checked(NamedTuple):
    """One pass of one peer."""

    mode: str
    prepare: Callable | None  # what `in_turn` times, if it got that far
    columns: dict  # its error, memory and note


def checked(peer, inputs, pull, expected) -> Iterator[Checked]:
    """Both passes of a peer, compared with what is ``expected`` of them."""
    device, layer = pull.device.type, None
    for mode in MODES:
        prepare, columns = None, {"note": ""}
        try:
            layer = layer or peer.make(*inputs)
            prepare = peer.passes[mode](layer, pull)
            # a peer that tries tiles does so now, with memory of its own
            prepare()()
            before = start_of_peak(device)
            result = prepare()()
            columns["peak_mib"] = peak_since(before, device)
            if mode == "backward":
                result = of_filled_slots(result, inputs[1])
            columns["error"] = relative_error(result, expected[mode])
            if not columns["error"] <= TOLERANCE[pull.dtype]:
                columns["note"] = "wrong"
        # whatever a peer fails with, the others continue and its row says so
        except Exception as problem:
            columns["note"] = work.reason(problem)
        if "error" not in columns:
            work.settle(device, f"{peer.name}, {mode}")
        yield Checked(mode, prepare, columns)


def of_filled_slots(gradients, gate) -> tuple:
    """The gradients, with 0 for weights in empty slots: a peer that computes
    some expert there has a gradient, but nothing depends on it."""
    tokens, weights, *experts = gradients
    return tokens, weights.masked_fill(gate.experts < 0, 0.0), *experts


def start_of_peak(device: str) -> int:
    """Forget earlier peaks, and return the bytes in use now."""
    if device == "cpu":
        return 0
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


def peak_since(before: int, device: str) -> float | None:
    """The most MiB in use since then, beyond ``before``; None on a CPU."""
    if device == "cpu":
        return None
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def reference(inputs, pull) -> dict[str, object]:
    """What each mode must return, from the reference in fp32."""
    tokens, gate, *experts = inputs
    leaves = [
        x.detach().float().requires_grad_()
        for x in (tokens, gate.weights, *experts)
    ]
    x, weights, *wide = leaves
    y = moe_layer_reference(x, gate._replace(weights=weights), *wide)
    gradients = torch.autograd.grad(y, leaves, pull.float())
    return {"forward": y.detach(), "backward": gradients}


def layer_inputs(case, T, dtype, device):
    """Tokens, gate and weights of one layer, and a gradient for its result."""
    generator = torch.Generator(device).manual_seed(0)

    def normal(*shape, fan_in=1):
        drawn = torch.randn(shape, generator=generator, device=device)
        return (drawn / fan_in**0.5).to(dtype)

    E, H, F = case.E, case.H, case.F
    gate = drawn_gate(case, T, device)
    inputs = (
        normal(T, H),
        gate,
        normal(E, H, 2 * F, fan_in=H),
        normal(E, F, H, fan_in=F),
    )
    return inputs, normal(T, H)
