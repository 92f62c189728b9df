"""Eight tasks made of handwritten digits, and one model fine-tuned on each.

    8 x 8 pixels → w hidden units, ReLU → w hidden units, ReLU → ten digits

A task shows the digits in one way: turned, mirrored, as a negative, and so
on. The answers stay the same ten digits, so all tasks share one last layer,
the head, which is never fine-tuned (as the text heads of CLIP are not). The
base model has seen 60 digits in all eight ways, so that it half knows every
task. Each task then fine-tunes a copy of it on 1000 digits. The eight copies
train in one batch, but no number of one reaches another.
"""

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lab.descent import one_cycle_adam
from lab.tokens.digit_model import digits

WIDTH = 128  # w, hidden units of a layer
FEW = 60  # digits that the base sees, each in all eight ways
BASE_STEPS, STEPS = 200, 150
BASE_RATE, RATE = 2e-3, 5e-4  # peak learning rates
BATCH = 128  # digits of each task in one step
PARTS = {
    "train": slice(1000),
    "validation": slice(1000, 1300),
    "test": slice(1300, None),
}


def _chequered(x: Tensor) -> Tensor:
    odd = (torch.arange(8)[:, None] + torch.arange(8)) % 2 == 1
    return torch.where(odd, 1 - x, x)


# each shows images [..., 8, 8], 0 to 1, in its own way
TASKS: dict[str, Callable[[Tensor], Tensor]] = {
    "turned left": lambda x: x.rot90(1, (-2, -1)),
    "mirrored": lambda x: x.flip(-1),
    "negative": lambda x: 1 - x,
    "upside down": lambda x: x.rot90(2, (-2, -1)),
    "shifted": lambda x: x.roll((2, 2), (-2, -1)),
    "transposed": lambda x: x.transpose(-2, -1),
    "chequered": _chequered,
    "turned right": lambda x: x.rot90(3, (-2, -1)),
}


class Weights(NamedTuple):
    """Both hidden layers of a model, or of T models in one more axis."""

    w1: Tensor  # [w, 64]
    b1: Tensor  # [w]
    w2: Tensor  # [w, w]
    b2: Tensor  # [w]


class Shown(NamedTuple):
    images: Tensor  # [T, N, 64], the digits as each task shows them
    labels: Tensor  # [N]


class FineTuned(NamedTuple):
    """What one seed has trained."""

    base: Weights
    head: Tensor  # [10, w + 1], the last column is the bias
    tasks: Weights  # [8, ...], fine-tuned


@cache
def shown(part: str, seed: int = 0) -> Shown:
    """The digits of one part in all eight ways; the seed deals them out.

    The parts are "train" (1000), "validation" (300) and "test" (497).
    """
    if part not in PARTS:
        raise ValueError(f"part={part!r} is not one of {', '.join(PARTS)}")
    both = digits("train"), digits("test")
    images, labels = (torch.cat(pair) for pair in zip(*both, strict=True))
    generator = torch.Generator().manual_seed(seed)
    at = torch.randperm(len(labels), generator=generator)[PARTS[part]]
    ways = [way(images[at]).flatten(1) for way in TASKS.values()]
    return Shown(torch.stack(ways), labels[at])


def scores(weights: Weights, head: Tensor, images: Tensor) -> Tensor:
    """Scores [T, N, 10] of T models for images [T, N, 64], each its own."""
    w1, b1, w2, b2 = weights
    x = torch.baddbmm(b1[:, None], images, w1.mT).relu()
    x = torch.baddbmm(b2[:, None], x, w2.mT).relu()
    return F.linear(x, head[:, :-1], head[:, -1])


def accuracy(
    weights: Weights, head: Tensor, images: Tensor, labels: Tensor
) -> Tensor:
    """Share of right answers [T] of T models, each on its own images."""
    with torch.no_grad():
        found = scores(weights, head, images).argmax(dim=2)
    return (found == labels).float().mean(dim=1)


def fine_tune(
    seed: int, width: int = WIDTH, base_steps: int = BASE_STEPS,
    steps: int = STEPS,
) -> FineTuned:  # fmt: skip
    """Train the base on a few digits of all tasks, then a copy on each."""
    generator = torch.Generator().manual_seed(seed)
    images, labels = shown("train", seed)

    def drawn(outputs: int, inputs: int) -> Tensor:
        # the deviation of nn.Linear, with a bias of 0 in the last column
        w = torch.randn(outputs, inputs, generator=generator)
        w *= (3 * inputs) ** -0.5
        return F.pad(w, (0, 1)).requires_grad_()

    drawn_ = [drawn(width, 64), drawn(width, width), drawn(10, width)]
    few = torch.randperm(len(labels), generator=generator)[:FEW]

    def weights_of(l1: Tensor, l2: Tensor) -> Weights:
        return Weights(l1[..., :-1], l1[..., -1], l2[..., :-1], l2[..., -1])

    def loss(_: int) -> Tensor:
        *hidden, head = drawn_
        alone = Weights(*(w[None] for w in weights_of(*hidden)))
        found = scores(alone, head, images[:, few].flatten(0, 1)[None])[0]
        return F.cross_entropy(found, labels[few].repeat(len(TASKS)))

    one_cycle_adam(drawn_, loss, base_steps, BASE_RATE)
    *hidden, head = (w.detach() for w in drawn_)
    copies = [
        w.expand(len(TASKS), *w.shape).clone().requires_grad_() for w in hidden
    ]

    def loss_of_each(_: int) -> Tensor:
        at = torch.randint(len(labels), (BATCH,), generator=generator)
        found = scores(weights_of(*copies), head, images[:, at])
        # a sum over tasks: no task's gradient depends on another's
        each = F.cross_entropy(
            found.flatten(0, 1), labels[at].repeat(len(TASKS)),
            reduction="sum",
        )  # fmt: skip
        return each / BATCH

    one_cycle_adam(copies, loss_of_each, steps, RATE)
    tasks = weights_of(*(w.detach() for w in copies))
    return FineTuned(weights_of(*hidden), head, tasks)
