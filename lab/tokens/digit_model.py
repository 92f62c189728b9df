"""A small transformer that reads handwritten digits, patch by patch.

    8 x 8 pixels → 16 patches of 2 x 2 → linear to d = 32, plus a place
    → 2 × [x + attention(norm x), x + MLP(norm x)]
    → norm → mean over the patches → scores of the ten digits

Attention and MLP are passed in, so that every kind of layer can be compared
like with like. The digits are real: 1000 for training and 797 for testing,
nearly all of these by other writers (`data/digits/README.md`).
"""

from collections.abc import Callable, Iterable
from functools import cache
from typing import NamedTuple
from zlib import crc32

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lab.data import read_arrays
from lab.descent import one_cycle_adam

PATCHES = 16  # S, on a grid of 4 x 4
DIM = 32  # d
HEADS = 4
HIDDEN = 64  # D, hidden units of the MLP
LAYERS = 2
TRAIN = 1000  # the first 1000 digits; the others are the test
BATCH = 64
STEPS = 400
PEAK_RATE = 2e-3


class Digits(NamedTuple):
    images: Tensor  # [N, 8, 8], 0 to 1
    labels: Tensor  # [N] int64


@cache
def digits(part: str) -> Digits:
    """The digits for training ("train") or the others ("test")."""
    rows = {"train": slice(0, TRAIN), "test": slice(TRAIN, None)}
    if part not in rows:
        raise ValueError(f'part={part!r} is not "train" or "test"')
    arrays = read_arrays("digits/digits.npz")
    images = torch.from_numpy(arrays["images"]).float() / 16
    labels = torch.from_numpy(arrays["labels"]).long()
    return Digits(images[rows[part]], labels[rows[part]])


def patches(images: Tensor) -> Tensor:
    """The patches [N, 16, 4] of images [N, 8, 8], row by row."""
    N = len(images)
    grid = images.reshape(N, 4, 2, 4, 2).transpose(2, 3)
    return grid.reshape(N, PATCHES, 4)


class Layer(nn.Module):
    def __init__(self, attention: nn.Module, mlp: nn.Module) -> None:
        super().__init__()
        self.norm_attention = nn.LayerNorm(DIM)
        self.attention = attention
        self.norm_mlp = nn.LayerNorm(DIM)
        self.mlp = mlp

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm_attention(x))
        return x + self.mlp(self.norm_mlp(x))


class DigitModel(nn.Module):
    """The model with layers of ``make_attention()`` and ``make_mlp()``.

    Each matrix is drawn from a stream of its own, fixed by the seed and its
    name: normal, with the variance 1 / (3 fan-in) of ``nn.Linear``. Biases
    are 0. So two models of one seed start equal in all that they share.
    """

    def __init__(
        self,
        make_attention: Callable[[], nn.Module],
        make_mlp: Callable[[], nn.Module],
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.enter = nn.Linear(4, DIM)
        self.place = nn.Parameter(torch.empty(PATCHES, DIM))
        self.layers = nn.ModuleList(
            Layer(make_attention(), make_mlp()) for _ in range(LAYERS)
        )
        self.norm = nn.LayerNorm(DIM)
        self.leave = nn.Linear(DIM, 10)
        for name, weight in self.named_parameters():
            # a stream of its own, so that an extra gate shifts no other draws
            stream = 1009 * seed + crc32(name.encode())
            generator = torch.Generator().manual_seed(stream)
            if name.endswith("bias"):
                nn.init.zeros_(weight)
            elif weight.ndim == 2:
                std = (3 * weight.shape[1]) ** -0.5
                nn.init.normal_(weight, std=std, generator=generator)

    def forward(self, images: Tensor) -> Tensor:
        """Scores [N, 10] of images [N, 8, 8]."""
        x = self.enter(patches(images)) + self.place
        for layer in self.layers:
            x = layer(x)
        return self.leave(self.norm(x).mean(dim=1))

    def loss(self) -> Tensor | float:
        """Sum of the layers' auxiliary losses, after a forward pass."""
        parts = [part for layer in self.layers for part in layer.children()]
        return sum(getattr(part, "loss", 0.0) for part in parts)


def train(
    model: DigitModel,
    steps: int,
    seed: int,
    progress: Callable[[Iterable], Iterable] = iter,
) -> DigitModel:
    """Train in place by Adam, one-cycle rate; the seed fixes the batches."""
    if steps < 1:
        raise ValueError(f"steps={steps} trains nothing; use 1 or more")
    images, labels = digits("train")
    device = model.leave.weight.device
    generator = torch.Generator().manual_seed(seed)

    def loss(_: int) -> Tensor:
        at = torch.randint(0, TRAIN, (BATCH,), generator=generator)
        scores = model(images[at].to(device))
        return F.cross_entropy(scores, labels[at].to(device)) + model.loss()

    model.train()
    learning = [w for w in model.parameters() if w.requires_grad]
    one_cycle_adam(learning, loss, steps, PEAK_RATE, progress)
    return model


class Score(NamedTuple):
    accuracy: float  # % of the test digits
    cross_entropy: float  # nats


@torch.no_grad()
def evaluate(model: DigitModel) -> Score:
    """Measure on all 797 test digits, in one batch."""
    images, labels = digits("test")
    device = model.leave.weight.device
    model.eval()
    scores, labels = model(images.to(device)), labels.to(device)
    right = (scores.argmax(dim=1) == labels).double().mean().item()
    return Score(100 * right, F.cross_entropy(scores, labels).item())
