"""48 tasks on handwritten digits, and a small network that knows only digits.

A task is a way to lie, one of the 8 symmetries of a square, and a yes-or-no
question, one of 6. So a task that nobody trained on is made of parts that
others have. Every input carries its task as a prompt:

    64 pixels, 8 + 6 numbers that name the task, 2 zeros
    → linear to 64 → ReLU → linear to 64 → ReLU → linear to 16 scores

Scores 0 to 9 are the digits, 10 is no and 11 is yes; the last four have no
meaning. A question is answered by the larger of the scores no and yes, as T0
is tested on the answers that a task allows. The network learns upright digits
with prompts at random and is then frozen: it has never seen a turned digit,
nor answered a question.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lab.descent import one_cycle_adam
from lab.kernels.runtime import device
from lab.tokens.digit_model import digits

SYMMETRIES = (
    "upright", "left", "down", "right",
    "mirror", "mirror left", "mirror down", "mirror right",
)  # fmt: skip
QUESTIONS = {
    "odd": (1, 3, 5, 7, 9),
    "big": (5, 6, 7, 8, 9),
    "by 3": (0, 3, 6, 9),
    "prime": (2, 3, 5, 7),
    "loop": (0, 6, 8, 9),
    "stroke": (1, 4, 7),
}
TASKS = len(SYMMETRIES) * len(QUESTIONS)  # question by question
HELD_OUT = 12  # tasks that are only adapted to
WIDTHS = (80, 64, 64, 16)  # inputs and outputs of the three layers
LAYERS = len(WIDTHS) - 1
DIGITS = 10  # scores of the digits come first, then no and yes
KNOWN = 1000  # training digits
BATCH = 64
BASE_STEPS, PEAK_RATE = 300, 1e-2

# what a layer's input adds to its output: adapter(layer, x)
Adapter = Callable[[int, Tensor], Tensor]


class Tasks(NamedTuple):
    """Some tasks; tensors are on the device that the lab computes on."""

    numbers: tuple[int, ...]  # 0 to 47

    @property
    def titles(self) -> list[str]:
        questions = [*QUESTIONS]
        return [
            f"{SYMMETRIES[number % 8]}, {questions[number // 8]}"
            for number in self.numbers
        ]

    def inputs(self, part: str, examples: Tensor) -> Tensor:
        """Inputs [J, B, 80] of each task's own examples [J, B]."""
        which = torch.tensor(self.numbers, device=device())
        pixels = _pixels(part)[(which % 8)[:, None], examples]
        prompt = _prompts()[which][:, None].expand(-1, pixels.shape[1], -1)
        return torch.cat([pixels, prompt], dim=2)

    def answers(self, part: str, examples: Tensor) -> Tensor:
        """The right answers [J, B], 0 for no and 1 for yes."""
        which = torch.tensor(self.numbers, device=device())
        return _answers(part)[(which // 8)[:, None], examples]


def split_tasks(seed: int) -> tuple[Tasks, Tasks]:
    """36 tasks to train on, and 12 that are never trained on."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(TASKS, generator=generator).tolist()
    learned, held_out = order[HELD_OUT:], order[:HELD_OUT]
    return Tasks(tuple(sorted(learned))), Tasks(tuple(sorted(held_out)))


@cache
def _pixels(part: str) -> Tensor:
    """All digits in all symmetries, [8, N, 64]."""
    images = digits(part).images
    lying = [
        torch.rot90(image, quarter, (1, 2))
        for image in (images, images.flip(2))
        for quarter in range(4)
    ]
    return torch.stack(lying).flatten(2).to(device())


@cache
def _prompts() -> Tensor:
    """The prompt of every task, [48, 16]."""
    number = torch.arange(TASKS)
    lying = F.one_hot(number % 8, 8)
    asked = F.one_hot(number // 8, 6)
    prompts = torch.cat([lying, asked, torch.zeros(TASKS, 2)], dim=1)
    return prompts.float().to(device())


@cache
def _answers(part: str) -> Tensor:
    """The answer to every question for every digit, [6, N]."""
    labels = digits(part).labels
    yes = [torch.isin(labels, torch.tensor(q)) for q in QUESTIONS.values()]
    return torch.stack(yes).long().to(device())


class Base(nn.Module):
    """The network; its matrices are drawn from the seed."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        sizes = zip(WIDTHS, WIDTHS[1:], strict=False)
        self.linears = nn.ModuleList(nn.Linear(n, m) for n, m in sizes)
        for linear in self.linears:
            std = (2 / linear.in_features) ** 0.5
            nn.init.normal_(linear.weight, std=std, generator=generator)
            nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor, adapter: Adapter | None = None) -> Tensor:
        """Scores [T, 16] of inputs [T, 80]."""
        for layer, linear in enumerate(self.linears):
            y = linear(x)
            if adapter is not None:
                y = y + adapter(layer, x)
            x = y.relu() if layer < LAYERS - 1 else y
        return x

    def answer(self, x: Tensor, adapter: Adapter | None = None) -> Tensor:
        """Scores of no and yes [T, 2] for inputs [T, 80]."""
        return self(x, adapter)[:, DIGITS : DIGITS + 2]


@cache
def train_base(seed: int, steps: int = BASE_STEPS, known: int = KNOWN) -> Base:
    """The network after learning ``known`` upright digits, frozen."""
    if steps < 1:
        raise ValueError(f"steps={steps} trains nothing; use 1 or more")
    model = Base(seed).to(device())
    generator = torch.Generator().manual_seed(seed)
    labels = digits("train").labels.to(device())
    pixels = _pixels("train")[0]

    def loss(_: int) -> Tensor:
        at = torch.randint(known, (BATCH,), generator=generator)
        asked = torch.randint(TASKS, (BATCH,), generator=generator)
        at, asked = at.to(device()), asked.to(device())
        x = torch.cat([pixels[at], _prompts()[asked]], dim=1)
        return F.cross_entropy(model(x)[:, :DIGITS], labels[at])

    one_cycle_adam(model.parameters(), loss, steps, PEAK_RATE)
    return model.requires_grad_(False)


@torch.no_grad()
def accuracy(base: Base, tasks: Tasks, adapter: Adapter | None) -> Tensor:
    """Percent of right answers on all 797 test digits, for each task."""
    everyone = torch.arange(len(digits("test").labels), device=device())
    examples = everyone.expand(len(tasks.numbers), -1)
    x = tasks.inputs("test", examples)
    scores = base.answer(x.flatten(0, 1), adapter).view(*x.shape[:2], -1)
    right = scores.argmax(dim=2) == tasks.answers("test", examples)
    return 100 * right.double().mean(dim=1).cpu()


def draw_examples(
    tasks: Sequence[int], batch: int, generator: torch.Generator,
    known: int = KNOWN,
) -> Tensor:  # fmt: skip
    """Training examples at random among the first ``known``, [J, batch], each
    task its own."""
    found = torch.randint(known, (len(tasks), batch), generator=generator)
    return found.to(device())


def draw_shots(
    tasks: Tasks, shots: int, seed: int, known: int = KNOWN
) -> Tensor:
    """``shots`` training examples of each answer for each task, [J, 2 shots],
    among the first ``known``. Fewer shots are the first ones of more."""
    # the rarest answer has 295 training examples
    if not 1 <= shots <= 256:
        raise ValueError(f"shots={shots} is not within 1 to 256")
    generator = torch.Generator().manual_seed(1000 + seed)
    found = []
    for number in tasks.numbers:
        answers = _answers("train")[number // 8, :known].cpu()
        order = torch.randperm(len(answers), generator=generator)
        for answer in (0, 1):
            found.append(order[answers[order] == answer][:shots])
    return torch.cat(found).view(len(tasks.numbers), -1).to(device())
