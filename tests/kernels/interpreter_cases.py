"""Kernels that use the operations which the faster interpreter replaces.

``python tests/kernels/interpreter_cases.py`` prints, for each kernel, the CPU
milliseconds of Triton's own interpreter and of the faster one, and exits with
an error if a single bit of their results differs. (Triton 3.6's own
interpreter cannot run the top-p gate with NumPy 2.4; the faster one can.)
"""

import os
import time

os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported

import torch
import triton
import triton.language as tl

from lab.kernels import interpreter, topk_gate, topp_gate


@triton.jit
def sort_kernel(x_ptr, y_ptr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    at = tl.arange(0, ROWS)[:, None] * COLUMNS + tl.arange(0, COLUMNS)
    tl.store(y_ptr + at, tl.sort(tl.load(x_ptr + at)))


@triton.jit
def topk_kernel(
    x_ptr, y_ptr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, K: tl.constexpr
):
    at = tl.arange(0, ROWS)[:, None] * COLUMNS + tl.arange(0, COLUMNS)
    at_best = tl.arange(0, ROWS)[:, None] * K + tl.arange(0, K)
    tl.store(y_ptr + at_best, tl.topk(tl.load(x_ptr + at), K))


@triton.jit
def segmented_sum(key, value, next_key, next_value):
    joined = tl.where(key == next_key, value, 0) + next_value
    return next_key, joined


@triton.jit
def scan_kernel(
    key_ptr, value_ptr, y_ptr, SIZE: tl.constexpr, REVERSE: tl.constexpr
):
    at = tl.arange(0, SIZE)
    pairs = (tl.load(key_ptr + at), tl.load(value_ptr + at))
    _, sums = tl.associative_scan(pairs, 0, segmented_sum, REVERSE)
    tl.store(y_ptr + at, sums)


@triton.jit
def last_of_best(value, index, next_value, next_index):
    newer = next_value >= value
    return tl.where(newer, next_value, value), tl.where(
        newer, next_index, index
    )


@triton.jit
def reduce_kernel(
    x_ptr, y_ptr, AXIS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    rows, columns = tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    at = rows[:, None] * COLUMNS + columns[None, :]
    x = tl.load(x_ptr + at)
    _, last = tl.reduce((x, at), AXIS, last_of_best)
    tl.store(y_ptr + (columns if AXIS == 0 else rows), last)


def cases():
    """Each case's name and a function that returns its result."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 64, generator=generator)
    whole = (4 * x).round().to(torch.int32)
    keys = (torch.arange(256) // 19).to(torch.int32)

    def run(kernel, *inputs, shape, dtype, **constants):
        result = torch.zeros(shape, dtype=dtype)
        kernel[(1,)](*inputs, result, **constants)
        return result

    def sort():
        return run(
            sort_kernel, x, shape=(64, 64), dtype=x.dtype,
            ROWS=64, COLUMNS=64,
        )  # fmt: skip

    def topk():
        return run(
            topk_kernel, x, shape=(64, 8), dtype=x.dtype,
            ROWS=64, COLUMNS=64, K=8,
        )  # fmt: skip

    def scan(reverse=False):
        return run(
            scan_kernel, keys, whole.flatten()[:256].contiguous(),
            shape=256, dtype=torch.int32, SIZE=256, REVERSE=reverse,
        )  # fmt: skip

    def reduce(axis):
        return run(
            reduce_kernel, whole, shape=64, dtype=torch.int32,
            AXIS=axis, ROWS=64, COLUMNS=64,
        )  # fmt: skip

    return {
        "top-k gate, 256 x 64, k = 8": lambda: topk_gate.topk_gate_triton(
            x.repeat(4, 1), 8
        ),
        "top-p gate, 256 x 64": lambda: topp_gate.topp_gate_triton(
            x.repeat(4, 1), 0.4
        ),
        "tl.topk, 64 x 64, k = 8": topk,
        "tl.sort, 64 x 64": sort,
        "tl.associative_scan, 256": scan,
        "the same in reverse": lambda: scan(reverse=True),
        "tl.reduce, 64 x 64, rows": lambda: reduce(0),
        "tl.reduce, 64 x 64, columns": lambda: reduce(1),
    }


def bits(result):
    tensors = result if isinstance(result, tuple) else (result,)
    return [tensor.numpy().tobytes() for tensor in tensors]


def measure(run):
    """The result's bits and the CPU milliseconds it took."""
    start = time.process_time()
    result = run()
    return bits(result), 1e3 * (time.process_time() - start)


def main():
    failed = False
    for name, run in cases().items():
        assert interpreter.install(), "this Triton was not tried"
        run()  # rewrites the kernel, once
        fast, fast_ms = measure(run)
        interpreter.uninstall()
        stock, stock_ms = measure(run)
        same = stock == fast
        failed |= not same
        print(
            f"{name:30} {stock_ms:8.1f} {fast_ms:6.1f}"
            f" {stock_ms / fast_ms:6.1f}x{'' if same else ' BITS DIFFER'}"
        )
    return failed


if __name__ == "__main__":
    raise SystemExit(main())
