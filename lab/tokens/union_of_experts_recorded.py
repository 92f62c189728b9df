"""What the pictures of chapter 06 show: recorded models that read digits.

There are six models, all of seed 0. Their MLPs are cut into 2, 4 or 8 slices,
under the released rule or the weighted one. Each patch asks for half of the
slices, and each slice takes half of the patches.
"""

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lab.half_precision import read_halves, write_halves
from lab.kernels.runtime import device
from lab.tokens.digit_model import (
    PATCHES,
    STEPS,
    DigitModel,
    digits,
    evaluate,
    train,
)
from lab.tokens.union_gate import demand, places, seated, select
from lab.tokens.union_layers import decompose, untrained

CUTS = (2, 4, 8)  # slices
SEATS = ("empty", "filled")
GATES = {"as drawn": "released", "trained": "weighted"}
SAMPLE = 128  # test digits that a picture looks at
FOLDER = "union_of_experts"


def train_checkpoints(progress: Callable = iter) -> None:
    """Train and record the six models, seed 0: about a minute."""
    wanted = [(slices, gate) for slices in CUTS for gate in GATES]
    for slices, gate in progress(wanted):
        model = untrained(GATES[gate], slices=slices, k=slices // 2)
        score = evaluate(train(model, STEPS, 0))
        about = score._asdict() | {"seed": 0, "steps": STEPS}
        write_halves(_file(slices, gate), model.state_dict(), **about)


def _file(slices: int, gate: str) -> str:
    return f"{FOLDER}/{slices}-slices-gate-{gate.replace(' ', '-')}.npz"


@cache
def recorded(slices: int, gate: str) -> DigitModel:
    """The model of `train_checkpoints` with these settings."""
    model = untrained(GATES[gate], slices=slices, k=slices // 2)
    model.load_state_dict(read_halves(_file(slices, gate)))
    return model.to(device()).eval()


class Picture(NamedTuple):
    """The first MLP of a recorded model at work, and what the model says."""

    errors: list[float]  # % of the dense output, 0 to n slices on
    errors_all: list[float]  # the same where a slice may take every patch
    error: float  # at the chosen k
    pixels: list  # [8, 8] of the digit
    counts: list  # [4, 4] slices that took each patch
    taken: list  # [n, 4, 4], 1 where a slice took the patch
    accuracy: float  # % of the 128 digits
    slices: int
    k: int  # slices on, at most all

    @property
    def title(self) -> str:
        return (
            f"{self.k} of {self.slices} slices: error {self.error:.1f} % of"
            f" the layer, {self.accuracy:.0f} % of {SAMPLE} digits read"
        )


@torch.no_grad()
def picture(
    top_k: int, share: float, slices: int, gate: str, seats: str, digit: int
) -> Picture:
    """Let a recorded model read 128 test digits with other k and c.

    ``share`` is c / S; ``seats`` that no patch asked for stay "empty" or are
    "filled", as in training. The errors are measured against the first MLP
    with all its slices on at weight 1. The picture shows the first ``digit``.
    """
    if seats not in SEATS:
        raise ValueError(f"seats={seats!r} is not one of {', '.join(SEATS)}")
    model = recorded(slices, gate)
    k = min(top_k, slices)
    for one in model.layers:
        one.mlp.gate.k, one.mlp.gate.share = k, share
        one.mlp.gate.fill = seats == "filled"
    images, labels = (part[:SAMPLE] for part in digits("test"))
    right = model(images.to(device())).argmax(1).cpu() == labels
    which = int((labels == digit).nonzero()[0])
    chosen = model.layers[0].mlp.choice.chosen[which].cpu()
    errors = error_curve(slices, gate, seats, share)
    return Picture(
        errors=errors,
        errors_all=error_curve(slices, gate, seats, 1.0),
        error=errors[k],
        pixels=images[which].tolist(),
        counts=chosen.sum(1).reshape(4, 4).tolist(),
        taken=chosen.T.int().reshape(slices, 4, 4).tolist(),
        accuracy=100 * right.double().mean().item(),
        slices=slices,
        k=k,
    )


# cached, so that the slider of k moves along a curve already computed
@cache
def error_curve(
    slices: int, gate: str, seats: str, share: float
) -> list[float]:
    """Norm of the error in % of the dense output's, for k = 0 to n."""
    parts, scores = _slice_outputs(slices, gate)
    dense = parts.sum(dim=2)
    weights = slices * scores if GATES[gate] == "weighted" else 1
    c = places(share, PATCHES)
    errors = [100.0]
    for k in range(1, slices + 1):
        on = seated(select(scores, k, c), PATCHES)
        if seats == "empty":
            on &= demand(scores, k) > 0
        union = torch.einsum("bsn,bsnd->bsd", (on * weights).double(), parts)
        errors.append(100 * ((union - dense).norm() / dense.norm()).item())
    return errors


@cache
@torch.no_grad()
def _slice_outputs(slices: int, gate: str) -> tuple[Tensor, Tensor]:
    """Outputs [B, S, n, d] of the first MLP's slices, in float64, and scores.

    The scores [B, S, n] are its gate's. Neither depends on k or c.
    """
    model = recorded(slices, gate)
    inputs = []
    mlp = model.layers[0].mlp
    hook = mlp.register_forward_pre_hook(lambda _, args: inputs.append(*args))
    model(digits("test").images[:SAMPLE].to(device()))
    hook.remove()
    s = decompose(mlp.up.weight, mlp.up.bias, mlp.down.weight, slices)
    hidden = torch.einsum("bsd,ndh->bsnh", inputs[0].double(), s.up.double())
    hidden = F.gelu(hidden + s.up_bias.double())
    parts = torch.einsum("bsnh,nhd->bsnd", hidden, s.down.double())
    return parts, mlp.choice.scores
