"""Expert network: every expert's two layers over its own rows.

Row r of the sorted order (see `dispatch`) belongs to the expert e whose
offsets bracket it, and to token t = pairs[r] // S:

    y_r = act(x_t W_up[e]) W_down[e]

    relu     act(z) = max(z, 0)
    gelu     act(z) = z Phi(z)            the exact one, not the tanh form
    swiglu   act([g, u]) = g sigmoid(g) u     W_up holds the gate half first

Products accumulate in fp32 whatever the dtype of the input. Products of fp32
numbers go through the matrix units where that is faster, and are no less
exact there, see `lab.kernels._three_parts`. Rows past offsets[E] are never
read and never defined. ``pairs`` leads from a row to its token and ``rows``
from a token to its rows; the backward pass needs both to sum without atomics.

FLOPs: 2 R H (F + G) with G = F, or 2 F for swiglu. Bytes: the kept tokens
and the weights of the used experts read once, R rows of H written.

Source: Shazeer et al. 2017; the gathered first product and the activation in
its epilogue follow ScatterMoE (Tan et al. 2024), without padding.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from lab.kernels import runtime
from lab.kernels._by_expert import products
from lab.kernels._expert_mlp_examples import EXAMPLES, forward_inputs
from lab.kernels._expert_mlp_triton import (
    expert_product_kernel,
    expert_product_tma_kernel,
    expert_up_kernel,
    product,
    up,
)
from lab.kernels._expert_tiles import EACH_TILE, compiles, compiles_tma
from lab.kernels._wanted import or_none, wanted
from lab.kernels.declaration import Cost, Declaration
from lab.kernels.expert_mlp_backward import expert_mlp_backward
from lab.kernels.operator import operator

ACTIVATIONS = ("relu", "gelu", "swiglu")


def expert_mlp(
    tokens: Tensor,
    pairs: Tensor,
    rows: Tensor,
    offsets: Tensor,
    w_up: Tensor,
    w_down: Tensor,
    activation: str = "swiglu",
) -> Tensor:
    """Expert outputs [R, H] of tokens [T, H], in the order of ``pairs`` [R].

    ``rows`` [T, S] and ``offsets`` [E+1] come from `dispatch`, as ``pairs``
    does; ``w_up`` is [E, H, F] (swiglu: [E, H, 2F]) and ``w_down`` [E, F, H].
    Rows past offsets[E] are unspecified. Differentiable in the tokens and
    both weights. O(R H F).
    """
    check_experts(tokens, w_up, w_down, activation)
    # only the backward pass needs the pre-activation; else save the memory
    keep = torch.is_grad_enabled() and any(
        x.requires_grad for x in (tokens, w_up, w_down)
    )
    return _expert_mlp(
        tokens, pairs, rows, offsets, w_up, w_down, activation, keep
    )[0]


def check_experts(
    tokens: Tensor, w_up: Tensor, w_down: Tensor, activation: str
) -> None:
    """Raise an error for weights that do not fit the tokens."""
    if activation not in ACTIVATIONS:
        raise ValueError(
            f"activation={activation!r} is not one of {', '.join(ACTIVATIONS)}"
        )
    halves = 2 if activation == "swiglu" else 1
    E, F, H = w_down.shape if w_down.ndim == 3 else (0, 0, 0)
    if tokens.ndim != 2 or w_up.shape != (E, H, halves * F) or not E * F * H:
        width = "2 F" if halves == 2 else "F"
        raise ValueError(
            f"w_up {tuple(w_up.shape)} and w_down {tuple(w_down.shape)} do not"
            f" fit {activation} experts, which need [E, H, {width}] and"
            " [E, F, H]"
        )
    if tokens.shape[1] != H:
        raise ValueError(
            f"tokens have width {tokens.shape[1]}, the experts {H};"
            " they must agree"
        )
    if not tokens.dtype == w_up.dtype == w_down.dtype:
        raise TypeError(
            f"tokens are {tokens.dtype}, w_up {w_up.dtype} and w_down"
            f" {w_down.dtype}; use one dtype"
        )


def expert_mlp_reference(
    tokens: Tensor,
    pairs: Tensor,
    rows: Tensor,
    offsets: Tensor,
    w_up: Tensor,
    w_down: Tensor,
    activation: str = "swiglu",
) -> Tensor:
    """The experts in plain PyTorch, each on its slice of the sorted rows."""
    return _two_layers(tokens, pairs, rows, offsets, w_up, w_down, activation)[
        0
    ]


def _two_layers(tokens, pairs, rows, offsets, w_up, w_down, activation):
    """The output and the pre-activation, both 0 past the last expert."""
    kept = int(offsets[-1])
    x = tokens.index_select(0, pairs[:kept] // rows.shape[1])
    z = products(x, offsets, w_up)
    if activation == "relu":
        h = F.relu(z)
    elif activation == "gelu":
        h = F.gelu(z)
    else:
        g, u = z.chunk(2, dim=1)
        h = F.silu(g) * u
    y = products(h, offsets, w_down)
    if kept < len(pairs):
        y, z = (F.pad(a, (0, 0, 0, len(pairs) - kept)) for a in (y, z))
    return y, z


def expert_mlp_triton(
    tokens: Tensor,
    pairs: Tensor,
    rows: Tensor,
    offsets: Tensor,
    w_up: Tensor,
    w_down: Tensor,
    activation: str = "swiglu",
) -> Tensor:
    """Launch both products; the first includes the gather and activation."""
    active, _ = up(tokens, pairs, rows, offsets, w_up, activation, False)
    return product(active, w_down, offsets)


def output_and_hidden_reference(
    tokens, pairs, rows, offsets, w_up, w_down, activation, keep
):
    """The output and the pre-activation, which is empty unless ``keep``."""
    y, z = _two_layers(tokens, pairs, rows, offsets, w_up, w_down, activation)
    return y, z if keep else z.new_empty(0, z.shape[1])


def output_and_hidden_on_gpu(
    tokens, pairs, rows, offsets, w_up, w_down, activation, keep
):
    """The same as `output_and_hidden_reference`, on a GPU."""
    if not runtime.triton_has_tensor_cores(tokens):
        # a T4: PyTorch's products reach the matrix units, at the cost of a
        # synchronisation; Triton's would not reach them
        return output_and_hidden_reference(
            tokens, pairs, rows, offsets, w_up, w_down, activation, keep
        )
    active, hidden = up(tokens, pairs, rows, offsets, w_up, activation, keep)
    return product(active, w_down, offsets), hidden


def _shapes(tokens, pairs, rows, offsets, w_up, w_down, activation, keep):
    R = pairs.shape[0]
    return (
        tokens.new_empty(R, tokens.shape[1]),
        tokens.new_empty(R if keep else 0, w_up.shape[2]),
    )


def _remember(ctx, inputs, output):
    *tensors, ctx.activation, ctx.kept = inputs
    hidden = output[1]
    ctx.mark_non_differentiable(hidden)
    ctx.save_for_backward(*tensors, hidden)


def _backward(ctx, grad, _):
    *tensors, hidden = ctx.saved_tensors
    if not ctx.kept:  # the forward pass kept none: compute it again
        hidden = _expert_mlp(*tensors, ctx.activation, True)[1]
    needed = wanted(ctx, 0, 4, 5)
    found = expert_mlp_backward(
        *tensors, hidden, grad.contiguous(), ctx.activation, needed
    )
    x, w_up, w_down = or_none(found, needed)
    return x, None, None, None, w_up, w_down, None, None


_expert_mlp = operator(
    "expert_mlp(Tensor tokens, Tensor pairs, Tensor rows, Tensor offsets, "
    "Tensor w_up, Tensor w_down, str activation, bool keep)"
    " -> (Tensor, Tensor)",
    cpu=output_and_hidden_reference,
    cuda=output_and_hidden_on_gpu,
    shapes=_shapes,
    backward=_backward,
    remember=_remember,
)


def _specified(result, pairs, **_):
    return result[pairs >= 0]


def _cost(
    tokens, pairs, rows, offsets, w_up, w_down, activation="swiglu"
) -> Cost:
    H, width = tokens.shape[1], tokens.element_size()
    kept = int(offsets[-1])
    used = int((offsets.diff() > 0).sum()) / len(w_up)
    present = int((rows >= 0).any(dim=1).sum())
    weights = used * (w_up.numel() + w_down.numel())
    moved = width * ((present + kept) * H + weights) + 4 * kept
    flops = 2 * kept * H * (w_up.shape[2] + w_down.shape[1])
    return Cost(int(moved), flops)


def _up(activation, even=True):
    return {
        "S": 8, "ACTIVATION": activation, "KEEP": True, "EVEN": even,
        "BINS": 128,
    }  # fmt: skip


DECLARATION = Declaration(
    name="expert_mlp",
    operation=expert_mlp,
    reference=expert_mlp_reference,
    triton=expert_mlp_triton,
    inputs=forward_inputs,
    differentiable=("tokens", "w_up", "w_down"),
    specified=_specified,
    # fp16 rounds the activation and the result, 2^-11 of each entry
    tolerance={torch.float32: 1e-5, torch.float16: 3e-3},
    examples=EXAMPLES,
    cost=_cost,
    compiles=(
        *compiles("relu", expert_up_kernel, _up("relu")),
        *compiles("gelu", expert_up_kernel, _up("gelu")),
        *compiles("swiglu", expert_up_kernel, _up("swiglu"), EACH_TILE),
        *compiles("swiglu uneven", expert_up_kernel, _up("swiglu", False)),
        *compiles(
            "W", expert_product_kernel,
            {"stride_wn": 1, "EVEN": True, "BINS": 128}, EACH_TILE,
        ),
        *compiles(
            "W uneven", expert_product_kernel,
            {"stride_wn": 1, "EVEN": False, "BINS": 128},
        ),
        compiles_tma("W", expert_product_tma_kernel, transposed=False),
    ),
)  # fmt: skip
