"""What is measured: every declared kernel, then the layer beside its peers.

    lab bench                   all cases for this machine, as a table
    lab bench --quick           the small ones, under a minute
    lab bench --record          write data/bench/<machine>.csv as well
    lab bench --only moe_layer  one operation
    lab bench --limits          what no GPU can beat, without measuring
    lab bench --tiles           other tiles than the experts' kernels choose

On a GPU each kernel runs against its reference at its large examples, in
every dtype. On a CPU there is no kernel to run, the interpreter's time means
nothing: only the references are timed, at their small examples, in fp32.
Nothing is timed before its result agrees with the reference.
"""

import argparse
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from lab.bench import limits, peers, tiles
from lab.bench.agreement import TOLERANCE, relative_error
from lab.bench.sizes import ON_CPU, ON_GPU, layer_costs
from lab.bench.table import circumstances, row, version, write
from lab.bench.timing import in_turn, measure_roofs, name
from lab.kernels.declaration import all_declarations
from lab.kernels.moe_layer import moe_layer_reference
from lab.kernels.topk_gate import topk_gate


def run(
    quick: bool = False,
    only: str = "",
    progress: Callable[[str], None] = lambda text: None,
) -> list[dict]:
    """Measure on this machine; one dictionary per row of the table.

    ``quick`` keeps the first case of the layer and takes fewer samples,
    ``only`` names one operation. ``progress`` hears what comes next.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtypes = list(TOLERANCE) if device == "cuda" else [torch.float32]
    known = [d.name for d in all_declarations()] + ["moe_layer"]
    if only and only not in known:
        raise ValueError(f"there is no {only}; use one of {', '.join(known)}")
    shared = circumstances()
    progress("roofs: copy and matrix product")
    roofs = measure_roofs(device, dtypes)
    effort = {"samples": 5, "seconds": 0.2} if quick else {}
    rows = []
    for work in (kernels, layers):
        for found in work(device, dtypes, roofs, effort, quick, only):
            rows.append(found | shared)
            progress("{operation} {case} {dtype} {provider}".format(**found))
    return rows


def kernels(device, dtypes, roofs, effort, quick, only) -> Iterator[dict]:
    """Each kernel and its reference, from the declarations."""
    for declaration in all_declarations():
        if only and only != declaration.name:
            continue
        examples = [
            e
            for e in declaration.examples
            if e.large == (device == "cuda") and not e.degenerate
        ]
        for example in examples[: 1 if quick else None]:
            for dtype in dtypes:
                # a kernel tested in one precision only knows no other
                if dtype.itemsize == 2 and len(declaration.tolerance) == 1:
                    continue
                inputs = declaration.inputs(
                    0, device, dtype, **example.options
                )
                calls = {"reference": declaration.reference}
                if device == "cuda":
                    calls = {"triton": declaration.triton} | calls
                key = {
                    "operation": declaration.name,
                    "case": example.name,
                    "dtype": name(dtype),
                    "mode": "forward",
                }
                yield from kernel_rows(
                    key, declaration, calls, inputs, dtype, roofs, effort
                )


def kernel_rows(key, declaration, calls, inputs, dtype, roofs, effort):
    """Check every provider against the reference, then time them in turn."""
    device = next(x.device.type for x in tensors(inputs.values()))
    cost = declaration.cost(**inputs)
    expected = declaration.specified(declaration.reference(**inputs), **inputs)
    errors, notes = {}, {}
    for provider, call in calls.items():
        found = declaration.specified(call(**inputs), **inputs)
        errors[provider] = relative_error(found, expected)
        limit = max(declaration.tolerance.get(dtype, 0.0), TOLERANCE[dtype])
        if not errors[provider] <= limit:
            notes[provider] = "wrong"
    timings = in_turn(
        {
            provider: lambda call=call: lambda: call(**inputs)
            for provider, call in calls.items()
            if provider not in notes
        },
        device,
        **effort,
    )
    for provider in calls:
        yield row(
            key | {"provider": provider, "version": version("routing-lab")},
            cost,
            roofs,
            timings.get(provider),
            error=errors[provider],
            note=notes.get(provider, ""),
        )


def layers(device, dtypes, roofs, effort, quick, only) -> Iterator[dict]:
    """The layer as each installed peer computes it, forward and backward."""
    if only and only != "moe_layer":
        return
    cases = ON_GPU if device == "cuda" else ON_CPU
    for case in cases[: 1 if quick else None]:
        for T in case.tokens:
            for dtype in dtypes:
                yield from layer_rows(case, T, dtype, device, roofs, effort)


def layer_rows(case, T, dtype, device, roofs, effort):
    """One size in one dtype: check, then time forward and backward."""
    inputs, pull = layer_inputs(case, T, dtype, device)
    wide = [x.float() if isinstance(x, Tensor) else x for x in inputs]
    with torch.no_grad():
        expected = moe_layer_reference(*wide)
    del wide
    found, modes = {}, {"forward": {}, "backward": {}}
    for peer in peers.installed(device):
        try:
            layer = peer.make(*inputs)
            y = layer.run(*layer.leaves)
            torch.autograd.grad(y, layer.leaves, pull)
            error = relative_error(y.detach(), expected)
            note = "" if error <= TOLERANCE[dtype] else "wrong"
        # whatever a peer dies of, the others go on and the row says so
        except Exception as problem:
            found[peer] = (None, f"{type(problem).__name__}: {problem}"[:120])
            continue
        found[peer] = error, note
        if not note:
            modes["forward"][peer.name] = forward(layer)
            modes["backward"][peer.name] = backward(layer, pull)
    for mode, cost in layer_costs(case, T, dtype, inputs[1]).items():
        timings = in_turn(modes[mode], device, **effort)
        for peer, (error, note) in found.items():
            key = {
                "operation": "moe_layer",
                "case": f"{case.name} T{T}",
                "dtype": name(dtype),
                "mode": mode,
                "provider": peer.name,
                "version": version(peer.package),
            }
            timing = timings.get(peer.name)
            yield row(key, cost, roofs, timing, error=error, note=note)


def forward(layer):
    """Prepare a forward pass without a gradient, as in use."""

    def call():
        with torch.no_grad():
            layer.run(*layer.leaves)

    return lambda: call


def backward(layer, pull):
    """Prepare a backward pass: the forward pass before it is not timed."""

    def prepare():
        y = layer.run(*layer.leaves)
        return lambda: torch.autograd.grad(y, layer.leaves, pull)

    return prepare


def layer_inputs(case, T, dtype, device):
    """Tokens, gate and weights of one layer, and a gradient for its result."""
    generator = torch.Generator(device).manual_seed(0)

    def normal(*shape, fan_in=1):
        drawn = torch.randn(shape, generator=generator, device=device)
        return (drawn / fan_in**0.5).to(dtype)

    E, H, F = case.E, case.H, case.F
    logits = torch.randn(T, E, generator=generator, device=device)
    inputs = (
        normal(T, H),
        topk_gate(logits, case.k),
        normal(E, H, 2 * F, fan_in=H),
        normal(E, F, H, fan_in=F),
    )
    return inputs, normal(T, H)


def other_tiles() -> Iterator[str]:
    """Lines of `lab bench --tiles`: the layer's sizes in bf16."""
    for case in ON_GPU:
        for T in case.tokens:
            yield f"{case.name} T{T}"
            inputs, pull = layer_inputs(case, T, torch.bfloat16, "cuda")
            for tried in tiles.sweep(*inputs, pull):
                yield tiles.line(tried)


def tensors(values) -> Iterator[Tensor]:
    return (value for value in values if isinstance(value, Tensor))


def main(arguments: list[str] | None = None) -> int:
    """Measure, show the table, and record it if asked."""
    parser = argparse.ArgumentParser(
        prog="lab bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="small cases")
    parser.add_argument("--record", action="store_true", help="keep the table")
    parser.add_argument("--only", default="", help="one operation, by name")
    parser.add_argument(
        "--limits", action="store_true", help="by data sheet, needs no GPU"
    )
    parser.add_argument(
        "--tiles", action="store_true", help="other tiles, on a GPU"
    )
    options = parser.parse_args(arguments)
    if options.tiles:
        if not torch.cuda.is_available():
            parser.error(
                "--tiles needs a GPU: an interpreter's time says nothing;"
                " leave it out to measure the references"
            )
        for text in other_tiles():
            print(text, flush=True)
        return 0
    if options.limits:
        print(limits.shown())
        return 0
    if options.record and (options.quick or options.only):
        parser.error("record a whole run: no --quick, no --only")
    torch.set_num_threads(1)
    rows = run(options.quick, options.only, lambda text: print(f"... {text}"))
    print(shown(rows))
    if options.record:
        print(f"recorded in {write(rows)}")
    return 0


def shown(rows: list[dict]) -> str:
    """The rows as lines for a terminal."""
    if not rows:
        return "nothing was measured"
    first = rows[0]
    lines = [
        "{machine}, {date}, torch {torch}, {clock}".format(**first),
        f"copy {first['roof_bytes_per_s'] / 1e9:.3g} GB/s",
    ]
    for r in rows:
        label = "{operation} {case} {dtype} {mode}".format(**r)
        time = r["note"] or "-"
        if "ms" in r:
            time = (
                f"{r['ms']:9.3f} ms ({r['ms20']:.3f} to {r['ms80']:.3f}),"
                f" {r['floor_ms'] / r['ms']:5.1%} of the roof"
            )
        lines.append(f"{label:48} {r['provider']:24} {time}")
    return "\n".join(lines)
