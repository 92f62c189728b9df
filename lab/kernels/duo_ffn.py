"""Big or small: a feed-forward layer of two networks, one for each token.

Both networks lie side by side in one pair of matrices, the F columns of the
big one first and the f of the small one behind (for Duo-LLM f = F / 16):

    y_t = act(x_t W_up[:, c]) W_down[c, :]
    c   = 0 .. F - 1 for a token marked big,  F .. F + f - 1 for the others

    relu   act(z) = max(z, 0)
    gelu   act(z) = z Phi(z)          the exact one, not the tanh form

The tokens are sorted stably into big and small (see `dispatch`). A program
takes a tile of one kind and goes through the columns of that kind, one block
in each step, so a tile of small tokens takes fewer steps. The hidden
activations stay in registers. Every token has only one row, so the sum goes
straight to its place: there is no second product to launch and nothing to
combine.

FLOPs: 4 D (F T_big + f T_small). Bytes: T D read and written, both matrices
once. Products accumulate in fp32; products of fp32 numbers go in three parts
where that is faster (`_three_parts`). The backward pass goes through PyTorch,
as does everything on a T4 or for D over 128. There both networks are computed
for every token and the wrong columns set to 0, so the host waits for no
number, at a cost of F + f columns a token.

Source: Alizadeh et al. 2024, section on training; the fused form is ours.
"""

import torch
import torch.nn.functional as F_
from torch import Tensor

from lab.kernels import runtime
from lab.kernels._duo_ffn_triton import compiled, duo_ffn_triton
from lab.kernels._wanted import wanted
from lab.kernels.declaration import Cost, Declaration, Example
from lab.kernels.operator import operator

ACTIVATIONS = {"relu": F_.relu, "gelu": F_.gelu}
WIDEST = 128  # a row of tokens that a program keeps in registers


def duo_ffn(
    tokens: Tensor,
    big: Tensor,
    w_up: Tensor,
    w_down: Tensor,
    small: int,
    activation: str = "gelu",
) -> Tensor:
    """Outputs [T, D] of tokens [T, D]: of the big network where ``big`` [T].

    ``w_up`` is [D, F + f] and ``w_down`` [F + f, D]; their last ``small`` = f
    hidden units are the small network. Differentiable in the tokens and both
    matrices. O(T D F).
    """
    D, G = w_up.shape if w_up.ndim == 2 else (0, 0)
    if tokens.ndim != 2 or tokens.shape[1] != D or w_down.shape != (G, D):
        raise ValueError(
            f"tokens {tuple(tokens.shape)}, w_up {tuple(w_up.shape)} and"
            f" w_down {tuple(w_down.shape)} do not fit; they need [T, D],"
            " [D, F + f] and [F + f, D]"
        )
    if big.dtype != torch.bool or big.shape != tokens.shape[:1]:
        raise ValueError(
            f"big is {big.dtype} of shape {tuple(big.shape)}; give a bool for"
            f" each of the {len(tokens)} tokens"
        )
    if not 1 <= small < G:
        raise ValueError(
            f"small={small} leaves one network empty; use 1 to {G - 1} of the"
            f" {G} hidden units"
        )
    if activation not in ACTIVATIONS:
        raise ValueError(
            f"activation={activation!r} is not one of {', '.join(ACTIVATIONS)}"
        )
    if not tokens.dtype == w_up.dtype == w_down.dtype:
        raise TypeError(
            f"tokens are {tokens.dtype}, w_up {w_up.dtype} and w_down"
            f" {w_down.dtype}; use one dtype"
        )
    return _duo_ffn(tokens, big, w_up, w_down, small, activation)


def duo_ffn_reference(
    tokens: Tensor,
    big: Tensor,
    w_up: Tensor,
    w_down: Tensor,
    small: int,
    activation: str = "gelu",
) -> Tensor:
    """The layer in plain PyTorch: each network over its own tokens."""
    F = w_up.shape[1] - small
    y = tokens.new_zeros(tokens.shape)
    for chosen, columns in ((big, slice(0, F)), (~big, slice(F, None))):
        x = tokens[chosen]
        h = ACTIVATIONS[activation](x @ w_up[:, columns])
        y[chosen] = h @ w_down[columns]
    return y


def own_columns(big: Tensor, w_up: Tensor, small: int) -> Tensor:
    """Which hidden units each token uses, [T, F + f]."""
    column = torch.arange(w_up.shape[1], device=big.device)
    return (column < w_up.shape[1] - small) == big[:, None]


def masked(tokens, big, w_up, w_down, small, activation) -> Tensor:
    """The layer as two dense products, the other network's units set to 0."""
    h = ACTIVATIONS[activation](tokens @ w_up)
    # not times 0: the other network's unit may be infinite
    return h.masked_fill(~own_columns(big, w_up, small), 0.0) @ w_down


def _on_gpu(tokens, big, w_up, w_down, small, activation):
    wide = tokens.shape[1] > WIDEST or tokens.dtype == torch.float64
    if wide or not runtime.triton_has_tensor_cores(tokens):
        return masked(tokens, big, w_up, w_down, small, activation)
    return duo_ffn_triton(tokens, big, w_up, w_down, small, activation)


def _shapes(tokens, big, w_up, w_down, small, activation):
    return tokens.new_empty(tokens.shape)


def _remember(ctx, inputs, output):
    *tensors, ctx.small, ctx.activation = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx, grad):
    tokens, big, w_up, w_down = ctx.saved_tensors
    of_tokens, of_up, of_down = wanted(ctx, 0, 2, 3)
    grad_tokens = grad_up = grad_down = None
    other = ~own_columns(big, w_up, ctx.small)
    # act(0) = 0, so the other network's units are 0 throughout
    z = (tokens @ w_up).masked_fill(other, 0.0)
    if of_down:
        grad_down = ACTIVATIONS[ctx.activation](z).T @ grad
    if of_tokens or of_up:
        grad_h = (grad @ w_down.T).masked_fill(other, 0.0)
        if ctx.activation == "relu":
            grad_z = grad_h.masked_fill(z <= 0, 0.0)
        else:
            grad_z = torch.ops.aten.gelu_backward(grad_h, z)
    if of_tokens:
        grad_tokens = grad_z @ w_up.T
    if of_up:
        grad_up = tokens.T @ grad_z
    return grad_tokens, None, grad_up, grad_down, None, None


_duo_ffn = operator(
    "duo_ffn(Tensor tokens, Tensor big, Tensor w_up, Tensor w_down, "
    "SymInt small, str activation) -> Tensor",
    cpu=duo_ffn_reference,
    cuda=_on_gpu,
    shapes=_shapes,
    backward=_backward,
    remember=_remember,
)


def _inputs(seed, device, dtype, T, D, F, small, share=0.5, activation="gelu"):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        drawn = torch.randn(*shape, generator=generator, dtype=torch.float64)
        return (drawn / shape[0] ** 0.5).to(device, dtype)

    big = torch.rand(T, generator=generator) < share
    return {
        "tokens": normal(T, D) * max(1, T) ** 0.5,
        "big": big.to(device),
        "w_up": normal(D, F + small),
        "w_down": normal(F + small, D),
        "small": small,
        "activation": activation,
    }


def _cost(tokens, big, w_up, w_down, small, activation="gelu") -> Cost:
    T, D = tokens.shape
    marked = int(big.sum())
    units = (w_up.shape[1] - small) * marked + small * (T - marked)
    moved = 2 * tokens.numel() + w_up.numel() + w_down.numel()
    return Cost(tokens.element_size() * moved + T, 4 * D * units)


def _example(name, T, D, F, small, share=0.5, activation="gelu", **kind):
    options = {
        "T": T, "D": D, "F": F, "small": small, "share": share,
        "activation": activation,
    }  # fmt: skip
    return Example(name, options, **kind)


DECLARATION = Declaration(
    name="duo_ffn",
    operation=duo_ffn,
    reference=duo_ffn_reference,
    triton=duo_ffn_triton,
    inputs=_inputs,
    differentiable=("tokens", "w_up", "w_down"),
    # fp16 rounds the activation and the result, 2^-11 of each entry
    tolerance={torch.float32: 1e-5, torch.float16: 3e-3},
    examples=(
        _example("character model", 257, 48, 192, 12),
        _example("relu", 130, 32, 64, 4, activation="relu"),
        _example("odd sizes", 63, 17, 37, 5),
        _example("wide", 150, 100, 72, 9),
        _example("all big", 40, 16, 32, 2, share=1.0, degenerate=True),
        _example("all small", 65, 16, 32, 2, share=0.0, degenerate=True),
        _example("one of each", 1, 1, 1, 1, degenerate=True),
        _example("no token", 0, 16, 32, 2, degenerate=True),
        _example("large", 65536, 128, 512, 32, large=True),
    ),
    cost=_cost,
    compiles=(
        *compiled(torch.float32, 48, "gelu"),
        *compiled(torch.float32, 128, "gelu"),
        *compiled(torch.bfloat16, 64, "relu"),
        *compiled(torch.bfloat16, 128, "gelu"),
    ),
)
