"""What the pictures of chapter 03 show: recorded models read a passage.

There is one model of each setting, seed 0. The models read the passage live,
once for each throw of the dice.
"""

from collections.abc import Callable
from functools import cache, lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lab.kernels.runtime import device
from lab.tokens import checkpoints
from lab.tokens.char_lm import PASSAGE, CharLM, windows
from lab.tokens.text import decode, split
from lab.tokens.thor import CHARACTERS, EXPERTS, trained, untrained

RECORDED_STEPS = 120  # of the models in the pictures
RECORDED_ALPHA = (0, 5)
LONG = "Switch, ten times the training"
NAMES = {
    "switch": "Switch",
    "dice": "Switch that learned by dice",
    "random": "THOR",
}


class Picture(NamedTuple):
    """What the recorded models do with a passage, for a picture."""

    text: str  # the 248 characters of the passage
    lost: list[float]  # bits that the longest trained model loses on each
    bits: dict[str, float]  # per character, on the passage and 1024 others
    differ: float  # % of the characters on which two throws of THOR disagree
    distance: list[list[float]]  # of THOR's experts in the first layer, in %


def picture(
    chooser: str = "gate",
    draws: int = 1,
    alpha: int = 5,
    per: str = "token",
) -> Picture:
    """Let recorded models read; each Switch chooses by "gate" or "dice".

    The first model is the top-1 model of chapter 01, which read ten times as
    many characters, both passes counted; the other three have one budget.
    THOR has no gate and throws its dice in both cases. ``draws`` throws per
    "token" or "batch" are made, and their predictions are averaged.
    """
    text, context, target = _passage()
    here = slice(0, len(text))
    read = {}
    for kind, name in {"long": LONG, **NAMES}.items():
        alpha_of = alpha if kind == "random" else 0
        by_dice = chooser == "dice" or kind == "random"
        count = draws if by_dice else 1
        throws = [throw(kind, alpha_of, by_dice, per, d) for d in range(count)]
        read[name] = token_loss(throws, target)
    two = [throw("random", alpha, True, per, draw) for draw in (0, 1)]
    return Picture(
        text=text,
        lost=read[LONG][here].tolist(),
        bits={name: loss.mean().item() for name, loss in read.items()},
        differ=100 * disagreement(*two),
        distance=_distance(alpha),
    )


@lru_cache(maxsize=128)
@torch.no_grad()
def throw(kind: str, alpha: int, by_dice: bool, per: str, draw: int) -> Tensor:
    """What a recorded model predicts after one throw, [T, symbols].

    It is cached, because a knob that asks for one more throw asks for all
    earlier throws again.
    """
    _, context, _ = _passage()
    model = recorded(kind, alpha)
    for layer in model.layers:
        layer.router.per = per
        layer.router.by_dice = by_dice
        layer.router.dice.draw = draw
    return model.eval()(context).logits.softmax(dim=1)


def token_loss(throws: list[Tensor], target: Tensor) -> Tensor:
    """Bits lost on each target [T] by the mean of predictions [T, symbols]."""
    if not throws:
        raise ValueError("draws=0 predicts nothing; use 1 or more")
    mean = sum(scores / len(throws) for scores in throws)
    return -mean.gather(1, target[:, None]).squeeze(1).log2()


def disagreement(one: Tensor, other: Tensor) -> float:
    """Share of the tokens whose best symbol differs in two [T, symbols]."""
    differ = one.argmax(dim=1) != other.argmax(dim=1)
    return differ.double().mean().item()


@cache
def _distance(alpha: int) -> list[list[float]]:
    """`expert_distance` of the recorded THOR, in per cent."""
    _, context, _ = _passage()
    return (100 * expert_distance(recorded("random", alpha), context)).tolist()


@torch.no_grad()
def expert_distance(model: CharLM, context: Tensor) -> Tensor:
    """How far apart the experts' outputs are in the first layer, [E, E].

    The mean length of the difference, divided by the mean length of an
    output: 0 for twins, about 1.4 for unrelated outputs of the same length.
    """
    layer = model.layers[0]
    tokens = layer.norm(model.enter(model.embedding(context).flatten(1)))
    out = F.relu(tokens @ layer.w_up) @ layer.w_down  # [E, T, D]
    far = torch.stack([(out - one).norm(dim=2).mean(dim=1) for one in out])
    return far / out.norm(dim=2).mean()


@cache
def _passage() -> tuple[str, Tensor, Tensor]:
    """The passage, then 1024 characters from all over the test text."""
    ids = split("prose").test.to(device())
    here = torch.arange(PASSAGE.start, PASSAGE.stop)
    others = torch.linspace(20, len(ids) - 1, 1024).long()
    context, target = windows(ids, torch.cat([here, others]).to(ids.device))
    return decode(target[: len(here)]), context, target


@cache
def recorded(kind: str, alpha: int) -> CharLM:
    """A model of `train_checkpoints`; alpha is 0 except for "random".

    The model "long" is chapter 01's.
    """
    if kind == "long":
        return checkpoints.load(f"top-1-of-{EXPERTS}", untrained("switch"))
    return checkpoints.load(_checkpoint(kind, alpha), untrained(kind))


def train_checkpoints(progress: Callable = iter) -> None:
    """Train every recorded model again, seed 0: about ten seconds.

    They learn from plenty of text, with dropout 0.1 and two passes, like the
    arms of the experiment.
    """
    wanted = [(kind, 0) for kind in NAMES] + [("random", RECORDED_ALPHA[1])]
    for kind, alpha in progress(wanted):
        model = trained(
            0, kind, 0.1, alpha, CHARACTERS["plenty"], RECORDED_STEPS
        )
        about = {"steps": RECORDED_STEPS, "seed": 0}
        checkpoints.save(_checkpoint(kind, alpha), model, **about)


def _checkpoint(kind: str, alpha: int) -> str:
    name = {"switch": "switch", "dice": "switch-by-dice", "random": "thor"}
    tail = f"-alpha-{alpha}" if kind == "random" else ""
    return f"{name[kind]}-of-{EXPERTS}{tail}"
