"""Fused Monarch: two matrix products with a twiddle and a transpose between.

A signal of N = n^2 complex numbers is a square tile X [n, n], row by row.

    Y = left X                      a product
    T = (Y * twiddle) transposed    number by number, then rows to columns
    Z = right T                     a product; its rows are the result

With left = right = F[k, j] = w^(k j), w = exp(-2 pi i / n), and twiddle
[k, j] = exp(-2 pi i k j / N), Z is the discrete Fourier transform of the
signal in its natural order (`fourier` makes the three matrices). So two
products of n x n tiles take the place of one with an N x N matrix.

Four operations of PyTorch write Y, Y * twiddle and T to memory and read them
again. The transpose is what keeps a compiler from fusing them: it needs a
number from every row. Here a program holds the whole tile of one signal, so
the transpose stays within the program and nothing is written but Z. The tile
must fit there, so n goes up to 64. In fp32 the kernel stops at 32, and larger
tiles take the four operations.

Bytes: 4 s N for every signal read and written, s bytes each half of a complex
number, and 6 s N once for the matrices, which stay in the cache. FLOPs:
16 n N + 6 N for every signal. In 16 bits that is about 2 n FLOPs per byte.

Real and imaginary parts are planes of their own, and a complex product is four
real ones; fp32 is multiplied without matrix units. Sums are in fp32; what goes
from the first product to the second is rounded to the dtype of the signals.
Nothing is scaled: fp16 ends at 65504, which the sum of 4096 equal numbers
passes when they are 16.

Source: Prabhakar et al. 2024, figure 3, a simplified form of the Monarch
decomposition of Fu et al. 2023 (FlashFFTConv); Bailey 1990 for the four steps.
"""

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from lab.kernels import runtime
from lab.kernels._expert_tiles import EACH_TARGET
from lab.kernels.declaration import (
    KINDS,
    Compile,
    Cost,
    Declaration,
    Example,
)
from lab.kernels.operator import operator

LARGEST = 64  # n, the side of a tile that one program holds
LARGEST_WIDE = 32  # the same in fp32: more does not fit the registers
FEWEST = 16  # rows and columns that a matrix product needs


class Matrices(NamedTuple):
    """What a signal is multiplied with; real parts first, then imaginary."""

    left: Tensor  # [2, n, n]
    twiddle: Tensor  # [2, n, n]
    right: Tensor  # [2, n, n]


def fused_monarch(
    signals: Tensor, left: Tensor, twiddle: Tensor, right: Tensor
) -> Tensor:
    """right ((left X) * twiddle)^T for signals [B, 2, n * n], in their shape.

    Plane 0 holds real parts, plane 1 imaginary ones; the matrices are
    [2, n, n] with n from 1 to 64, all of one dtype. On a CPU, numbers that
    are not finite are refused. On a GPU, where a check would stall it, such a
    signal spoils its own result alone. O(B n^3).
    """
    check_signals(signals, left, twiddle, right)
    return _fused_monarch(signals, left, twiddle, right)


def check_signals(signals, left, twiddle, right) -> None:
    """Raise an error for arguments that do not fit together."""
    n = left.shape[-1] if left.ndim else 0
    for name, matrix in (
        ("left", left),
        ("twiddle", twiddle),
        ("right", right),
    ):
        if matrix.shape != (2, n, n) or not 1 <= n <= LARGEST:
            raise ValueError(
                f"{name} has shape {tuple(matrix.shape)}; use [2, n, n] with"
                f" one n from 1 to {LARGEST} for all three matrices"
            )
        if matrix.dtype != signals.dtype:
            raise TypeError(
                f"{name} is {matrix.dtype} and signals are {signals.dtype};"
                " use one dtype"
            )
    if not signals.is_floating_point():
        raise TypeError(
            f"signals are {signals.dtype}; use torch.view_as_real for complex"
            " numbers, and its last axis as the second"
        )
    if signals.ndim != 3 or signals.shape[1:] != (2, n * n):
        raise ValueError(
            f"signals have shape {tuple(signals.shape)}; matrices of side {n}"
            f" need [signals, 2, {n * n}]"
        )
    if not runtime.may_look(signals):
        return
    for name, tensor in (
        ("signals", signals),
        ("left", left),
        ("twiddle", twiddle),
        ("right", right),
    ):
        if not tensor.isfinite().all():
            raise ValueError(
                f"{name} hold NaN or infinity; look for the step that"
                " produced it"
            )


def fourier(n: int, dtype: torch.dtype, device: str = "cpu") -> Matrices:
    """The matrices that make a Fourier transform of n * n numbers.

    Angles are reduced as whole numbers and rounded once, from float64.
    """
    if not 1 <= n <= LARGEST:
        raise ValueError(f"n={n} does not fit a program; use 1 to {LARGEST}")
    i = torch.arange(n)
    steps = i[:, None] * i[None, :]  # k j

    def turned(period: int) -> Tensor:
        angle = -2 * math.pi * (steps % period).double() / period
        planes = torch.stack([angle.cos(), angle.sin()])
        return planes.to(device, dtype)

    return Matrices(turned(n), turned(n * n), turned(n))


def fused_monarch_reference(
    signals: Tensor, left: Tensor, twiddle: Tensor, right: Tensor
) -> Tensor:
    """The four operations in plain PyTorch, one after the other."""
    dtype, n = signals.dtype, left.shape[-1]
    wide = torch.promote_types(dtype, torch.float32)
    x = signals.unflatten(2, (n, n)).unbind(1)  # two of [B, n, n]
    y = _product(left.to(wide), [part.to(wide) for part in x])
    y = _times(y, twiddle.to(wide))
    t = [part.mT.to(dtype).to(wide) for part in y]
    z = torch.stack(_product(right.to(wide), t), dim=1)
    return z.flatten(2).to(dtype)


def _product(a, b):
    """Real and imaginary part of a matrix product."""
    return a[0] @ b[0] - a[1] @ b[1], a[0] @ b[1] + a[1] @ b[0]


def _times(a, b):
    """Real and imaginary part of a product number by number."""
    return a[0] * b[0] - a[1] * b[1], a[0] * b[1] + a[1] * b[0]


@triton.jit
def fused_monarch_kernel(
    signals_ptr, left_ptr, twiddle_ptr, right_ptr, out_ptr, n,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """One signal: its tile comes in, four operations, its tile goes out."""
    signal = tl.program_id(0).to(tl.int64)
    N = n * n
    signals_ptr += signal * 2 * N
    out_ptr += signal * 2 * N
    i = tl.arange(0, BLOCK)
    at = i[:, None] * n + i[None, :]
    here = (i < n)[:, None] & (i < n)[None, :]
    dtype = signals_ptr.dtype.element_ty

    # Y = left X, real and imaginary part
    a = tl.load(left_ptr + at, mask=here, other=0.0)
    b = tl.load(left_ptr + N + at, mask=here, other=0.0)
    x = tl.load(signals_ptr + at, mask=here, other=0.0)
    y = tl.load(signals_ptr + N + at, mask=here, other=0.0)
    real = tl.dot(a, x, input_precision="ieee")
    real -= tl.dot(b, y, input_precision="ieee")
    imag = tl.dot(a, y, input_precision="ieee")
    imag = tl.dot(b, x, imag, input_precision="ieee")

    # T = (Y * twiddle) transposed: no number leaves the program
    u = tl.load(twiddle_ptr + at, mask=here, other=0.0).to(tl.float32)
    v = tl.load(twiddle_ptr + N + at, mask=here, other=0.0).to(tl.float32)
    s = tl.trans((real * u - imag * v).to(dtype))
    t = tl.trans((real * v + imag * u).to(dtype))

    # Z = right T
    c = tl.load(right_ptr + at, mask=here, other=0.0)
    d = tl.load(right_ptr + N + at, mask=here, other=0.0)
    real = tl.dot(c, s, input_precision="ieee")
    real -= tl.dot(d, t, input_precision="ieee")
    imag = tl.dot(c, t, input_precision="ieee")
    imag = tl.dot(d, s, imag, input_precision="ieee")
    tl.store(out_ptr + at, real.to(dtype), mask=here)
    tl.store(out_ptr + N + at, imag.to(dtype), mask=here)


def blocks(n: int) -> dict:
    """The side of a program's tile, and warps that share it."""
    side = max(FEWEST, runtime.next_power_of_2(n))
    return {"BLOCK": side, "num_warps": 8 if side == LARGEST else 4}


def fused_monarch_triton(
    signals: Tensor, left: Tensor, twiddle: Tensor, right: Tensor
) -> Tensor:
    """Launch the kernel, one program for each signal."""
    n = left.shape[-1]
    signals = signals.contiguous()
    out = torch.empty_like(signals)
    if len(signals):
        fused_monarch_kernel[(len(signals),)](
            signals, left.contiguous(), twiddle.contiguous(),
            right.contiguous(), out, n, **blocks(n),
        )  # fmt: skip
    return out


def _on_gpu(signals, left, twiddle, right):
    # on a T4 Triton's products miss the matrix units, PyTorch's do not
    run = fused_monarch_reference
    if fits(left) and runtime.triton_has_tensor_cores(signals):
        run = fused_monarch_triton
    return run(signals, left, twiddle, right)


def fits(matrix: Tensor) -> bool:
    """Whether a program's registers hold tiles of this side and dtype."""
    return matrix.itemsize == 2 or matrix.shape[-1] <= LARGEST_WIDE


def _shapes(signals, left, twiddle, right):
    return signals.new_empty(signals.shape)


_fused_monarch = operator(
    "fused_monarch(Tensor signals, Tensor left, Tensor twiddle, Tensor right)"
    " -> Tensor",
    cpu=fused_monarch_reference,
    cuda=_on_gpu,
    shapes=_shapes,
)


def _inputs(seed, device, dtype, B, n, flat=False):
    """Random signals with the matrices of a Fourier transform, or signals
    that are ``flat``, all ones."""
    generator = torch.Generator().manual_seed(seed)
    signals = torch.randn(B, 2, n * n, generator=generator).double()
    if flat:
        signals = torch.ones_like(signals)
    matrices = fourier(n, dtype, device)._asdict()
    return {"signals": signals.to(device, dtype)} | matrices


def _cost(signals, left, twiddle, right) -> Cost:
    (B, _, N), n = signals.shape, left.shape[-1]
    numbers = 2 * signals.numel() + 3 * left.numel()
    return Cost(numbers * signals.element_size(), B * (16 * n * N + 6 * N))


def _compile(n: int, dtype: torch.dtype) -> Compile:
    """Sizes that 16 divides compile to other code than the rest."""
    chosen, kind = blocks(n), KINDS[dtype]
    pointers = ("signals", "left", "twiddle", "right", "out")
    return Compile(
        f"n{n} {kind}",
        fused_monarch_kernel,
        signature={f"{name}_ptr": f"*{kind}" for name in pointers}
        | {"n": "i32" if n % 16 else "i32:16"},
        constants={"BLOCK": chosen["BLOCK"]},
        num_warps=chosen["num_warps"],
        targets=EACH_TARGET,
        matrix_units=dtype.itemsize == 2,
    )


DECLARATION = Declaration(
    name="fused_monarch",
    operation=fused_monarch,
    reference=fused_monarch_reference,
    triton=fused_monarch_triton,
    inputs=_inputs,
    # fp16 rounds T and the result, 2^-11 of each entry
    tolerance={torch.float32: 1e-5, torch.float16: 3e-3},
    examples=(
        Example("1024 numbers", {"B": 5, "n": 32}),
        Example("4096 numbers", {"B": 3, "n": 64}),
        Example("256 numbers", {"B": 7, "n": 16}),
        Example("side 21", {"B": 4, "n": 21}),
        Example("side 63", {"B": 2, "n": 63}),
        Example("four numbers", {"B": 3, "n": 2}, degenerate=True),
        Example("one number", {"B": 3, "n": 1}, degenerate=True),
        Example("flat", {"B": 2, "n": 32, "flat": True}, degenerate=True),
        Example("no signal", {"B": 0, "n": 8}, degenerate=True),
        Example("large", {"B": 65536, "n": 64}, large=True),
    ),
    cost=_cost,
    compiles=tuple(
        _compile(n, dtype)
        for n in (64, 32, 21, 9)
        for dtype in (torch.float16, torch.bfloat16, torch.float32)
        if dtype.itemsize == 2 or n <= LARGEST_WIDE
    ),
)
