"""Times each declared kernel beside its reference.

On a GPU each kernel runs at its large examples, in every dtype. On a CPU
there is no kernel to time, because the interpreter's time means nothing. Only
the references are timed there, at their small examples and in fp32.
"""

import time
from collections.abc import Iterator

import torch
from torch import Tensor

from lab.bench import work
from lab.bench.agreement import TOLERANCE, are_equal, relative_error
from lab.bench.table import row, version
from lab.bench.timing import in_turn, name
from lab.kernels.declaration import all_declarations

# the slowest inputs to draw, and the layer's rows say most of it already
LAST = "expert_mlp", "expert_mlp_backward"
SLOW_TO_DRAW = 1.0  # seconds


def pieces(
    device, dtypes, roofs, effort, quick, only=""
) -> Iterator[work.Piece]:
    """One piece for each example of each kernel, in all its dtypes."""
    declarations = all_declarations()
    for declaration in sorted(declarations, key=lambda d: d.name in LAST):
        if only not in ("", declaration.name):
            continue
        examples = [
            e
            for e in declaration.examples
            if e.large == (device == "cuda") and not e.degenerate
        ]
        for example in examples[: 1 if quick else None]:
            yield piece(declaration, example, device, dtypes, roofs, effort)


def piece(declaration, example, device, dtypes, roofs, effort) -> work.Piece:
    providers = ["triton"] * (device == "cuda") + ["reference"]
    # a kernel that is tested in only one precision has no other
    if len(declaration.tolerance) == 1:
        dtypes = [torch.float32]
    keys = {
        dtype: {
            "operation": declaration.name,
            "case": example.name,
            "dtype": name(dtype),
            "mode": "forward",
            "version": version("routing-lab"),
        }
        for dtype in dtypes
    }

    def measure():
        calls = {who: getattr(declaration, who) for who in providers}
        for dtype, inputs in drawn(declaration, example, device, dtypes):
            yield from kernel_rows(
                keys[dtype], declaration, calls, inputs, dtype, roofs, effort
            )

    return work.Piece(
        [
            key | {"provider": who}
            for key in keys.values()
            for who in providers
        ],
        measure,
    )


def drawn(declaration, example, device, dtypes) -> Iterator[tuple]:
    """Each dtype together with its inputs.

    A CPU takes long to draw hundreds of millions of random numbers. Once a
    draw was slow, its inputs are used again for the dtypes that follow, and
    those that have the dtype they were drawn in are cast.
    """
    first, slow = None, False
    for dtype in dtypes:
        if not slow:
            start, drawn_in = time.monotonic(), dtype
            first = declaration.inputs(0, device, dtype, **example.options)
            slow = time.monotonic() - start > SLOW_TO_DRAW
        inputs = {
            key: x.to(dtype) if getattr(x, "dtype", 0) == drawn_in else x
            for key, x in first.items()
        }
        yield dtype, inputs


def kernel_rows(key, declaration, calls, inputs, dtype, roofs, effort):
    """Check every provider against the reference, then time them in turn."""
    device = next(x.device.type for x in tensors(inputs.values()))
    cost = declaration.cost(**inputs)
    expected = declaration.specified(declaration.reference(**inputs), **inputs)
    columns = {
        provider: checked(declaration, call, inputs, dtype, expected)
        for provider, call in calls.items()
    }
    for provider in calls:
        if "error" not in columns[provider]:
            work.settle(device, f"{key['operation']}, {provider}")

    def failed(provider, problem):
        columns[provider]["note"] = work.reason(problem)
        work.settle(device, f"{key['operation']}, {provider}")

    timings = in_turn(
        {
            provider: lambda call=call: lambda: call(**inputs)
            for provider, call in calls.items()
            if not columns[provider]["note"]
        },
        device,
        **effort,
        ahead=True,
        failed=failed,
    )
    for provider in calls:
        yield row(
            key | {"provider": provider},
            cost,
            roofs,
            timings.get(provider),
            **columns[provider],
        )


def checked(declaration, call, inputs, dtype, expected) -> dict:
    """The error of one provider, or a note that says why it failed."""
    try:
        found = declaration.specified(call(**inputs), **inputs)
        error = relative_error(found, expected)
        equal = are_equal(found, expected, declaration.exact)
    # the other providers continue, and the row says what failed
    except Exception as problem:
        return {"note": work.reason(problem)}
    limit = max(declaration.tolerance.get(dtype, 0.0), TOLERANCE[dtype])
    right = equal and error <= limit
    return {"error": error, "note": "" if right else "wrong"}


def tensors(values) -> Iterator[Tensor]:
    return (value for value in values if isinstance(value, Tensor))
