"""Expert network backward: gradients of all inputs from that of its rows.

With z = x_t W_up the pre-activation of a row (kept by the forward pass),
h = act(z), y = h W_down, and dy given for each row r of expert e:

    dW_down = sum over the rows of e of h^T dy
    dh      = dy W_down^T                        h is recomputed from z
    dz      = dh act'(z)
    dW_up   = sum over the rows of e of x_t^T dz
    dx_t    = sum over the rows of token t of dz W_up^T

    relu     act'(z) = 1 if z > 0, else 0
    gelu     act'(z) = Phi(z) + z phi(z)         the exact one, not tanh
    swiglu   z = [g, u], h = g s u with s = sigmoid(g):
             dg = dh u (s + g s (1 - s)),  du = dh g s

Every sum runs in a fixed order, so the gradients are the same bit for bit on
every run. FLOPs: 4 R H (F + G) with G = F, or 2 F for swiglu, twice the
forward pass. Bytes: x, z, dy, the weights and their gradients once. Where
only the weights learn, a quarter of the work (swiglu: a third) is saved.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from lab.kernels import runtime
from lab.kernels._by_expert import products, sums_of_products
from lab.kernels._expert_mlp_backward_triton import (
    expert_hidden_backward_kernel,
    expert_weight_backward_kernel,
    hidden_backward,
    transposed,
    weight_backward,
)
from lab.kernels._expert_mlp_examples import (
    EXAMPLES,
    PRUNED,
    backward_inputs,
)
from lab.kernels._expert_mlp_triton import (
    expert_product_kernel,
    expert_product_tma_kernel,
    product,
)
from lab.kernels._expert_tiles import (
    BF16,
    IN_16,
    MANY_ROWS,
    SPLIT_32,
    WHOLE_32,
    Load,
    choose_hidden_tiles,
    choose_weight_tiles,
    compiles,
    compiles_tma,
)
from lab.kernels._wanted import like
from lab.kernels.combine import combine_reference, sum_rows
from lab.kernels.declaration import Cost, Declaration
from lab.kernels.operator import operator

ALL = True, True, True  # gradients wanted
# dh where z > 0, else 0: PyTorch's own gradient of relu
threshold_backward = torch.ops.aten.threshold_backward


class MLPGradients(NamedTuple):
    tokens: Tensor  # [T, H]
    w_up: Tensor  # [E, H, G]
    w_down: Tensor  # [E, F, H]


def expert_mlp_backward(
    tokens: Tensor,
    pairs: Tensor,
    rows: Tensor,
    offsets: Tensor,
    w_up: Tensor,
    w_down: Tensor,
    hidden: Tensor,
    grad: Tensor,
    activation: str,
    wanted: Sequence[bool] = ALL,
) -> MLPGradients:
    """Gradients of tokens [T, H], w_up [E, H, G] and w_down [E, F, H].

    ``hidden`` [R, G] is the pre-activation and ``grad`` [R, H] the gradient
    of the rows; neither is read past offsets[E]. A gradient that is not
    ``wanted`` (in the order of the result) is empty. The rest is as in
    `lab.kernels.expert_mlp`. O(R H G).
    """
    if hidden.shape != (len(pairs), w_up.shape[2]):
        raise ValueError(
            f"hidden has shape {tuple(hidden.shape)}; the pre-activation of"
            f" these rows has {(len(pairs), w_up.shape[2])}"
        )
    if grad.shape != (len(pairs), tokens.shape[1]):
        raise ValueError(
            f"grad has shape {tuple(grad.shape)}; the output of these rows has"
            f" {(len(pairs), tokens.shape[1])}"
        )
    return MLPGradients(
        *_expert_mlp_backward(
            tokens, pairs, rows, offsets, w_up, w_down, hidden, grad,
            activation, wanted,
        )
    )  # fmt: skip


def expert_mlp_backward_reference(
    tokens: Tensor,
    pairs: Tensor,
    rows: Tensor,
    offsets: Tensor,
    w_up: Tensor,
    w_down: Tensor,
    hidden: Tensor,
    grad: Tensor,
    activation: str,
    wanted: Sequence[bool] = ALL,
) -> MLPGradients:
    """The formulas in plain PyTorch, each expert on its slice of the rows."""
    kept = int(offsets[-1])
    x = tokens.index_select(0, pairs[:kept] // rows.shape[1])
    dy = grad[:kept]
    h, slope = activate(hidden[:kept], activation)
    found = MLPGradients(*(tokens.new_empty(0) for _ in wanted))
    of_tokens, of_up, of_down = wanted

    if of_down:
        found = found._replace(w_down=sums_of_products(h, dy, offsets))
    if not (of_tokens or of_up):
        return found
    dz = slope(products(dy, offsets, w_down.mT))
    if of_up:
        found = found._replace(w_up=sums_of_products(x, dz, offsets))
    if of_tokens:
        grad_rows = products(dz, offsets, w_up.mT)
        # by token, not by row: index_add_ on a GPU would need atomics
        ones = (rows >= 0).to(grad_rows.dtype)
        found = found._replace(tokens=combine_reference(grad_rows, rows, ones))
    return found


def activate(
    z: Tensor, activation: str
) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """The activation of z [R, G], and the function from dh to dz."""
    if activation == "relu":
        # `where` takes ten times as long on a CPU, which guesses its branches
        # wrong; NaN counts as not above 0, as in the kernel
        known = z.nan_to_num(nan=0.0)
        return z.relu(), lambda dh: threshold_backward(dh, known, 0)
    if activation == "gelu":
        density = torch.exp(-z * z / 2) / math.sqrt(2 * math.pi)
        below = torch.special.ndtr(z)
        return F.gelu(z), lambda dh: dh * (below + z * density)
    g, u = z.chunk(2, dim=1)
    s = g.sigmoid()
    a = g * s

    def slope(dh):
        # both halves in place: a tenth of the backward pass went into
        # temporary tensors
        dz = torch.empty_like(z)
        dg, du = dz.chunk(2, dim=1)
        torch.mul(dh, u, out=dg).mul_((1 - s).mul_(a).add_(s))
        torch.mul(dh, a, out=du)
        return dz

    return a * u, slope


def expert_mlp_backward_triton(
    tokens: Tensor,
    pairs: Tensor,
    rows: Tensor,
    offsets: Tensor,
    w_up: Tensor,
    w_down: Tensor,
    hidden: Tensor,
    grad: Tensor,
    activation: str,
    wanted: Sequence[bool] = ALL,
) -> MLPGradients:
    """Launch up to five kernels; the sum by token is that of `combine`."""
    of_tokens, of_up, of_down = wanted
    h, dz = hidden_backward(grad, w_down, hidden, offsets, activation)
    # no two results may be the same tensor, not even empty ones
    dx, dw_up, dw_down = (None if w else tokens.new_empty(0) for w in wanted)
    if of_down:
        dw_down = weight_backward(h, grad, pairs, offsets, None)
    if of_up:
        dw_up = weight_backward(tokens, dz, pairs, offsets, rows.shape[1])
    if of_tokens:
        dx = sum_rows(product(dz, transposed(w_up), offsets), rows)
    return MLPGradients(dx, dw_up, dw_down)


def expert_mlp_backward_on_gpu(tokens, *others) -> MLPGradients:
    """Use kernels where they reach the matrix units, and PyTorch on a T4."""
    run = expert_mlp_backward_reference
    if runtime.triton_has_tensor_cores(tokens):
        run = expert_mlp_backward_triton
    return run(tokens, *others)


def _shapes(tokens, pairs, rows, offsets, w_up, w_down, *others):
    *_, wanted = others
    return like((tokens, w_up, w_down), wanted)


_expert_mlp_backward = operator(
    "expert_mlp_backward(Tensor tokens, Tensor pairs, Tensor rows, "
    "Tensor offsets, Tensor w_up, Tensor w_down, Tensor hidden, Tensor grad, "
    "str activation, bool[] wanted) -> (Tensor, Tensor, Tensor)",
    cpu=expert_mlp_backward_reference,
    cuda=expert_mlp_backward_on_gpu,
    shapes=_shapes,
)


def _cost(tokens, rows, offsets, w_up, w_down, wanted=ALL, **_) -> Cost:
    of_tokens, of_up, of_down = wanted
    of_hidden = of_tokens or of_up
    (_, H, G), F = w_up.shape, w_down.shape[1]
    width = tokens.element_size()
    kept = int(offsets[-1])
    present = int((rows >= 0).any(dim=1).sum())
    rows_of_x = present * of_up + len(tokens) * of_tokens
    # weights are read for experts in use; gradients are written for idle
    # experts, too
    used = int((offsets.diff() > 0).sum())
    weights = H * G * (used * of_tokens + len(w_up) * of_up)
    weights += F * H * (used * of_hidden + len(w_up) * of_down)
    moved = (rows_of_x + kept) * H + kept * G + weights
    columns = G * (of_tokens + of_up) + F * (of_hidden + of_down)
    return Cost(moved * width + 4 * kept, 2 * kept * H * columns)


def _act(activation, even=True, contiguous="stride_wk"):
    constants = {"ACTIVATION": activation, "EVEN": even, "BINS": 128}
    return constants | {contiguous: 1}


BOTH = *MANY_ROWS, SPLIT_32[0], WHOLE_32[0]


def _rows(mean):
    return (Load(BF16, mean),)


DECLARATION = Declaration(
    name="expert_mlp_backward",
    operation=expert_mlp_backward,
    reference=expert_mlp_backward_reference,
    triton=expert_mlp_backward_triton,
    inputs=backward_inputs,
    # fp16 rounds h, dz and the rows' gradients, 2^-11 of each entry
    tolerance={torch.float32: 1e-5, torch.float16: 3e-3},
    examples=(*EXAMPLES, *PRUNED),
    cost=_cost,
    compiles=(
        *(
            entry
            for name, constants, loads in (
                ("relu", _act("relu"), MANY_ROWS),
                ("gelu", _act("gelu"), MANY_ROWS),
                ("swiglu", _act("swiglu"), IN_16),
                ("swiglu", _act("swiglu"), SPLIT_32),
                ("swiglu", _act("swiglu", contiguous="stride_wn"), WHOLE_32),
                ("swiglu, 100 rows", _act("swiglu"), _rows(100)),
                ("swiglu uneven", _act("swiglu", False), MANY_ROWS),
            )
            for entry in compiles(
                name, expert_hidden_backward_kernel, constants, loads,
                choose_hidden_tiles,
            )
        ),
        *compiles(
            "W^T", expert_product_kernel,
            {"stride_wk": 1, "EVEN": True, "BINS": 128},
            (*MANY_ROWS, *SPLIT_32),
        ),
        compiles_tma("W^T", expert_product_tma_kernel, transposed=True),
        *(
            entry
            for name, gather, even, loads in (
                ("up", True, True, BOTH),
                ("up, 400 rows", True, True, _rows(400)),
                ("up, 100 rows", True, True, _rows(100)),
                ("up, 4 rows", True, True, (*_rows(4), SPLIT_32[1])),
                ("up uneven", True, False, BOTH),
                ("down", False, True, BOTH),
                ("down, 400 rows", False, True, _rows(400)),
                ("down, 100 rows", False, True, _rows(100)),
                ("down, 4 rows", False, True, (*_rows(4), SPLIT_32[1])),
            )
            for entry in compiles(
                name, expert_weight_backward_kernel,
                {"S": 8, "GATHER": gather, "EVEN": even}, loads,
                choose_weight_tiles,
            )
        ),
    ),
)  # fmt: skip
