"""Triton's interpreter, made fast enough for tests and for a laptop.

Without a GPU Triton runs a kernel in NumPy, one operation at a time. Two of
its habits cost more than the arithmetic, and `install` replaces them:

- every call of a device function (``tl.sum``, ``tl.max``, our own) patches
  the whole ``triton.language`` module again. Here it happens once a launch;
- a reduction or scan with a function of its own (``tl.sort``, ``tl.topk``,
  ``tl.associative_scan``) runs it in Python once per element. Here it runs
  on whole slices: halves for a reduction, shifted copies for a scan.

Triton also multiplies tiles of bf16 as if their bits were whole numbers,
without a warning; here the numbers that the bits stand for are multiplied. (A
number is still cut to bf16 instead of rounded.)

Other results keep their bits, except floating-point sums in a reduction or
scan with a function of its own, which are added in another order. Such a
function must not use ``if`` on values, which compiled Triton forbids, too.

Measured on one core of a 2-core cloud machine with Triton 3.7.1, in CPU
milliseconds of a second launch (the ratios of 3.9.0 are within a sixth; run
``python tests/kernels/interpreter_cases.py`` for your own):

==========================  ======  ====  =====
top-k gate 256 x 64, k = 8      58    36   1.6x
top-p gate 256 x 64            836   641   1.3x
``tl.topk`` 64 x 64, k = 8     946    17    55x
``tl.sort`` 64 x 64           2318    22   105x
``tl.associative_scan`` 256     49   4.7    10x
``tl.reduce`` 64 x 64          327   2.9   112x
==========================  ======  ====  =====

This relies on Triton's internals, so it applies only to the versions that it
was tried with; others keep the interpreter that they came with.
"""

import inspect

import numpy as np
import triton
from triton import language as tl
from triton.runtime import interpreter

TRIED = ((3, 6), (3, 10))  # the first included, the second not

_patch_lang = interpreter._patch_lang
_generic_reduce = interpreter.ReduceOps.generic_reduce
_generic_scan = interpreter.ScanOps.generic_scan
_create_dot = interpreter.InterpreterBuilder.create_dot

# what the current launch has patched: {visible modules: Triton's scope}
_patched = {}


class _Launch:
    """The scope of a launch; `restore` undoes what it patched."""

    def restore(self) -> None:
        while _patched:
            # the last patch is undone first
            _patched.popitem()[1].restore()


class _Call:
    """The scope of a call inside a launch; the launch restores at its end."""

    def restore(self) -> None:
        pass


def _patch_once(fn):
    modules = [m for m in fn.__globals__.values() if inspect.ismodule(m)]
    visible = (tl in modules, tl.core in modules)
    if visible in _patched:
        return _Call()
    scope = _Launch() if not _patched else _Call()
    _patched[visible] = _patch_lang(fn)
    # before 3.7, int() of a one-element array fails with NumPy 2.4
    _patched[visible].set_attr(
        tl.tensor, "__index__", lambda self: int(self.handle.data.squeeze())
    )
    return scope


def _combine(self, left, right, dtypes):
    """Apply the function of a reduction or scan to whole arrays."""
    tensors = [
        self.to_tensor(np.ascontiguousarray(array).reshape(-1), dtype)
        for side in (left, right)
        for array, dtype in zip(side, dtypes, strict=True)
    ]
    result = self.combine_fn.fn(*tensors)
    result = result if isinstance(result, tuple) else (result,)
    return [
        value.handle.data.astype(array.dtype).reshape(array.shape)
        for value, array in zip(result, left, strict=True)
    ]


def _fast_reduce(self, input):
    original_axis = self.axis
    input, axis = self.unravel(input, self.axis)
    dtypes = [tensor.dtype for tensor in input]
    rows = [np.moveaxis(tensor.handle.data, axis, 0) for tensor in input]
    dimensions = rows[0].ndim
    while len(rows[0]) > 1:
        # neighbours, so that the order from left to right is kept
        left = [row[0::2] for row in rows]
        rows = _combine(self, left, [row[1::2] for row in rows], dtypes)
    results = [row[0] for row in rows]
    if self.keep_dims:
        axes = axis if original_axis is not None else tuple(range(dimensions))
        results = [np.expand_dims(result, axes) for result in results]
    elif original_axis is None:
        results = [result.item() for result in results]
    return [
        self.to_tensor(*pair) for pair in zip(results, dtypes, strict=True)
    ]


def _fast_scan(self, input):
    dtypes = [tensor.dtype for tensor in input]
    rows = [np.moveaxis(t.handle.data, self.axis, 0).copy() for t in input]
    distance = 1
    while distance < len(rows[0]):
        # a roll keeps the power-of-two shape that Triton's blocks must have
        earlier = [np.roll(row, distance, axis=0) for row in rows]
        merged = _combine(self, earlier, rows, dtypes)
        for row, new in zip(rows, merged, strict=True):
            row[distance:] = new[distance:]
        distance *= 2
    results = [np.moveaxis(row, 0, self.axis) for row in rows]
    return [
        self.to_tensor(*pair) for pair in zip(results, dtypes, strict=True)
    ]


def _true_dot(self, a, b, *others):
    return _create_dot(self, _in_fp32(a), _in_fp32(b), *others)


def _in_fp32(handle):
    """A tile of bf16, kept as 16 bits, as fp32; other tiles as they are."""
    if handle.dtype.scalar != tl.bfloat16:
        return handle
    bits = handle.data.astype(np.uint32) << 16
    return interpreter.TensorHandle(bits.view(np.float32), tl.float32)


def install() -> bool:
    """Mend and speed up the interpreter, if this Triton version was tried."""
    version = tuple(int(part) for part in triton.__version__.split(".")[:2])
    if not TRIED[0] <= version < TRIED[1]:
        return False
    interpreter._patch_lang = _patch_once
    interpreter.ReduceOps.generic_reduce = _fast_reduce
    interpreter.ScanOps.generic_scan = _fast_scan
    interpreter.InterpreterBuilder.create_dot = _true_dot
    return True


def uninstall() -> None:
    """Go back to Triton's own interpreter."""
    interpreter._patch_lang = _patch_lang
    interpreter.ReduceOps.generic_reduce = _generic_reduce
    interpreter.ScanOps.generic_scan = _generic_scan
    interpreter.InterpreterBuilder.create_dot = _create_dot
