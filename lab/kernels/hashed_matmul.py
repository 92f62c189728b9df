"""Hashed matrix product: the weights are looked up, and nowhere stored.

A model of n weights, laid end to end, lives in a table of m numbers. Piece c
is the m weights from position c m on; it lies on the table turned by turns[c]
cells, and goes on at the start when it reaches the end. A hash of the position
gives the sign:

    cell(i) = (turns[c] + i - c m) mod m,        c = i div m
    W[r, k] = scale sign(i) table[cell(i)],      i = offset + r K + k
    y = x W^T

Eager PyTorch makes W [N, K] and multiplies. Here a program looks up a tile of
W where it multiplies, so W never reaches memory. Neighbours in a row of W are
neighbours in the table, except where a piece or the table ends, so they are
read together.

The backward pass takes the same kernel for x, with rows and columns of W
exchanged. The gradient of W is made whole by PyTorch and then folded: a cell
collects one weight of every piece, and a program owns its cells. So nothing is
added atomically, and the result is the same each time.

FLOPs: 2 M N K, as many as without a table; looking up costs about 15 whole-
number operations for each weight and tile of rows. Bytes: M K + M N, and the
table, which the cache holds: no N K.

Source: Desai & Shrivastava 2024, RandomFold (`ParetoCyclicMapper` of their
code, which makes all of W).
"""

from functools import lru_cache

import torch
from torch import Tensor

from lab.kernels import runtime
from lab.kernels._hashed_matmul_triton import compiles, fold, launch
from lab.kernels._hashed_matmul_triton import (
    hashed_matmul_kernel as hashed_matmul_kernel,
)
from lab.kernels.declaration import Cost, Declaration, Example
from lab.kernels.operator import operator

MOST = 2**31  # positions of a model, and keys
LARGEST = 2**30  # cells of a table


def hashed_matmul(
    x: Tensor, table: Tensor, turns: Tensor, rows: int, offset: int = 0,
    key: int = 0, scale: float = 1.0,
) -> Tensor:  # fmt: skip
    """x [M, K] times the transpose of W [rows, K], whose first weight stands
    at position ``offset`` of the model: [M, rows].

    ``table`` is [m], ``turns`` int32 from 0 to m - 1, one for each piece up to
    the last weight of W. ``key`` from 0 to 2^31 - 1 chooses the signs.
    Differentiable in x and table. Numbers that are not finite spread, as in
    any product. On a CPU, wrong turns are refused; on a GPU, where a check
    would stall it, a weight that falls outside the table is 0. O(M rows K).
    """
    check_lookup(x, table, turns, rows, offset, key)
    return _hashed_matmul(x, table, turns, rows, offset, key, float(scale))


def check_lookup(x, table, turns, rows, offset, key) -> None:
    """Raise an error for arguments that do not fit together."""
    if x.ndim != 2 or not x.shape[1] or table.ndim != 1 or not len(table):
        raise ValueError(
            f"x {tuple(x.shape)} and table {tuple(table.shape)} do not fit;"
            " use [M, K] and [m], with K and m from 1"
        )
    if len(table) > LARGEST:
        raise ValueError(f"m={len(table)} cells are too many; use 1 to 2^30")
    if x.dtype != table.dtype or not x.is_floating_point():
        raise TypeError(
            f"x is {x.dtype} and table {table.dtype}; use one floating dtype"
        )
    if rows < 1 or offset < 0 or offset + rows * x.shape[1] >= MOST:
        raise ValueError(
            f"rows={rows} of {x.shape[1]} from offset={offset} are no part of"
            " a model; use rows from 1, and fewer than 2^31 positions"
        )
    if not 0 <= key < MOST:
        raise ValueError(f"key={key} is not within 0 to 2^31 - 1")
    m, end = len(table), offset + rows * x.shape[1]
    pieces = runtime.cdiv(end, m)
    if turns.ndim != 1 or turns.dtype != torch.int32 or len(turns) < pieces:
        raise ValueError(
            f"turns are {turns.dtype} of shape {tuple(turns.shape)}; {end}"
            f" positions on {m} cells need int32 [{pieces}]"
        )
    if runtime.may_look(x) and not 0 <= turns.min() <= turns.max() < m:
        raise ValueError(
            f"turns run from {int(turns.min())} to {int(turns.max())}; use 0"
            f" to {m - 1} on a table of {m} cells"
        )


def cells(turns: Tensor, m: int, offset: int, count: int) -> Tensor:
    """The cells of ``count`` positions from ``offset`` on, int32: all cells
    of each piece, turned, and of these the ones asked for."""
    first, last = offset // m, (offset + count - 1) // m
    turned = turns[first : last + 1, None] + torch.arange(
        m, device=turns.device, dtype=torch.int32
    )
    turned = torch.where(turned < m, turned, turned - m)
    return turned.flatten()[offset - first * m :][:count]


def scrambled(x: Tensor) -> Tensor:
    """A hash of 32 bits for every number in x, int64 from 0 to 2^32 - 1."""
    # both factors are below 2^31, so that no product overflows
    for shift, factor in (16, 0x21F0AAAD), (15, 0x735A2D97):
        x = ((x ^ (x >> shift)) * factor) & 0xFFFFFFFF
    return x ^ (x >> 15)


@lru_cache(maxsize=32)
def signs(
    offset: int, count: int, key: int, device: torch.device | str = "cpu"
) -> Tensor:
    """The sign of each of ``count`` positions, 1 or -1 in int8: the highest
    bit of a hash. Kept, and not to be changed."""
    i = torch.arange(offset, offset + count, device=device)
    return (1 - 2 * (scrambled(i ^ key) >> 31)).to(torch.int8)


def look_up(x, table, turns, rows, offset, key, scale) -> Tensor:
    """The matrix W [rows, K] that x is multiplied with."""
    count = rows * x.shape[1]
    found = table[cells(turns, len(table), offset, count)]
    w = signs(offset, count, key, table.device) * found
    return (scale * w).view(rows, -1)


def hashed_matmul_reference(
    x: Tensor, table: Tensor, turns: Tensor, rows: int, offset: int = 0,
    key: int = 0, scale: float = 1.0,
) -> Tensor:  # fmt: skip
    """The product in plain PyTorch: make W, then multiply."""
    return x @ look_up(x, table, turns, rows, offset, key, scale).T


def hashed_matmul_triton(
    x: Tensor, table: Tensor, turns: Tensor, rows: int, offset: int = 0,
    key: int = 0, scale: float = 1.0,
) -> Tensor:  # fmt: skip
    """Launch the kernel; rows of W lie K positions apart."""
    strides = x.shape[1], 1
    return launch(x, table, turns, rows, offset, key, scale, strides)


def gradients(x, table, turns, rows, offset, key, scale, grad):
    """Gradients of x and table from grad [M, rows], in plain PyTorch."""
    w = look_up(x, table, turns, rows, offset, key, scale)
    count = w.numel()
    at = cells(turns, len(table), offset, count)
    of_w = signs(offset, count, key, table.device) * (grad.T @ x).flatten()
    wide = torch.promote_types(table.dtype, torch.float32)
    of_table = torch.zeros_like(table, dtype=wide)
    of_table.index_add_(0, at, scale * of_w.to(wide))
    return grad @ w, of_table.to(table.dtype)


def gradients_triton(x, table, turns, rows, offset, key, scale, grad):
    """The same by kernels: W from the other side, and the fold."""
    K, m = x.shape[1], len(table)
    of_x = launch(grad, table, turns, K, offset, key, scale, (1, K))
    of_table = fold(grad.T @ x, turns, m, offset, key, scale)
    return of_x, of_table


def _on_gpu(x, *others):
    # on a T4 Triton's products miss the matrix units, PyTorch's do not
    if runtime.triton_has_tensor_cores(x):
        return hashed_matmul_triton(x, *others)
    return hashed_matmul_reference(x, *others)


def _gradients_on_gpu(x, *others):
    if runtime.triton_has_tensor_cores(x):
        return gradients_triton(x, *others)
    return gradients(x, *others)


def _shapes(x, table, turns, rows, offset, key, scale):
    return x.new_empty(x.shape[0], rows)


def _shapes_of_gradients(x, table, turns, rows, offset, key, scale, grad):
    return x.new_empty(x.shape), table.new_empty(table.shape)


def _remember(ctx, inputs, output):
    x, table, turns, *ctx.others = inputs
    ctx.save_for_backward(x, table, turns)


def _backward(ctx, grad):
    found = _gradients(*ctx.saved_tensors, *ctx.others, grad.contiguous())
    return *found, None, None, None, None, None


_LOOKUP = (
    "Tensor x, Tensor table, Tensor turns, SymInt rows, SymInt offset, "
    "SymInt key, float scale"
)
_gradients = operator(
    f"hashed_matmul_gradients({_LOOKUP}, Tensor grad) -> (Tensor, Tensor)",
    cpu=gradients,
    cuda=_gradients_on_gpu,
    shapes=_shapes_of_gradients,
)
_hashed_matmul = operator(
    f"hashed_matmul({_LOOKUP}) -> Tensor",
    cpu=hashed_matmul_reference,
    cuda=_on_gpu,
    shapes=_shapes,
    backward=_backward,
    remember=_remember,
)


def _inputs(seed, device, dtype, M, N, K, m, offset=0, still=False):
    """A layer of a random model; ``still`` turns no piece."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    pieces = runtime.cdiv(offset + N * K, m)
    turns = torch.randint(m, (pieces,), generator=generator)
    return {
        "x": normal(M, K).to(device, dtype),
        "table": normal(m).to(device, dtype),
        "turns": (0 * turns if still else turns).to(device, torch.int32),
        "rows": N,
        "offset": offset,
        "key": int(torch.randint(MOST, (), generator=generator)),
        "scale": K**-0.5,
    }


def _cost(x, table, turns, rows, offset, key, scale) -> Cost:
    M, K = x.shape
    numbers = M * (K + rows) + min(len(table), rows * K)
    return Cost(
        numbers * x.element_size() + 4 * turns.numel(), 2 * M * rows * K
    )


def _example(name, M, N, K, m, offset=0, still=False, **kind):
    sizes = {"M": M, "N": N, "K": K, "m": m, "offset": offset}
    return Example(name, sizes | {"still": still}, **kind)


DECLARATION = Declaration(
    name="hashed_matmul",
    operation=hashed_matmul,
    reference=hashed_matmul_reference,
    triton=hashed_matmul_triton,
    inputs=_inputs,
    differentiable=("x", "table"),
    # fp16 rounds the looked-up weights and the result
    tolerance={torch.float32: 1e-5, torch.float16: 2e-3},
    examples=(
        _example("a layer in 64 pieces", 65, 64, 64, 64),
        _example("odd sizes", 33, 21, 37, 100, offset=1001),
        _example("pieces longer than rows", 20, 40, 16, 330, offset=70),
        _example("no sharing", 17, 12, 16, 192),
        _example("a larger table", 9, 7, 11, 500, offset=200),
        _example("several steps", 70, 66, 130, 333, offset=5),
        _example("one cell", 5, 8, 9, 1, degenerate=True),
        _example("not turned", 16, 16, 16, 16, still=True, degenerate=True),
        _example("one of each", 1, 1, 1, 3, degenerate=True),
        _example("no row of x", 0, 8, 8, 16, degenerate=True),
        _example("large", 8192, 4096, 4096, 1 << 18, offset=1 << 24,
                 large=True),
    ),
    cost=_cost,
    compiles=compiles(),
)  # fmt: skip
