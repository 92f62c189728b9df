"""A small network that reads digits, with weights of its own or shared ones.

    8 x 8 pixels → 128 units, ReLU → 128 units, ReLU → ten digits

25 856 weights and 266 biases; the biases are never shared. Both networks
start with weights as wide as ``nn.Linear`` draws them, and learn by the same
steps: SGD with momentum 0.9, or Adam, from a rate that falls as a cosine.
"""

from collections.abc import Callable, Iterable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lab.kernels.hashed_matmul import hashed_matmul
from lab.kernels.runtime import device
from lab.tokens.digit_model import TRAIN, digits
from lab.weights.shared_array import Sharing, divisors, size

Shapes = tuple[tuple[int, int], ...]
WIDTH = 128
STEPS, BATCH = 300, 64
OPTIMISERS = {
    "SGD": partial(torch.optim.SGD, momentum=0.9),
    "Adam": torch.optim.Adam,
}


def shapes_of(first: int, second: int = 0) -> Shapes:
    """The layers' [rows, columns], with as many units in the second hidden
    layer as in the first if nothing else is said."""
    second = second or first
    return (first, 64), (second, first), (10, second)


def spreads(shapes: Shapes) -> list[float]:
    """How far from 0 each layer's weights lie at most, to begin with."""
    return [columns**-0.5 for _, columns in shapes]


class Network(nn.Module):
    """What both have: biases, and the way from pixels to scores."""

    def __init__(self, shapes: Shapes) -> None:
        super().__init__()
        self.shapes = shapes
        self.biases = nn.ParameterList(
            [torch.zeros(rows) for rows, _ in shapes]
        )

    def forward(self, x: Tensor) -> Tensor:
        """Scores [N, 10] of images [N, 64]."""
        products = self.products()
        for layer, bias in enumerate(self.biases):
            x = products(x, layer) + bias
            if layer < len(self.biases) - 1:
                x = x.relu()
        return x


class Dense(Network):
    """Weights of its own; ``masks`` set some of them to 0."""

    def __init__(self, width: int, seed: int, second: int = 0) -> None:
        super().__init__(shapes_of(width, second))
        generator = torch.Generator().manual_seed(seed)
        self.weights = nn.ParameterList()
        for shape, a in zip(self.shapes, spreads(self.shapes), strict=True):
            drawn = torch.rand(shape, generator=generator)
            self.weights.append(a * (2 * drawn - 1))
        self.masks: list[Tensor] | None = None
        self.to(device())

    def products(self) -> Callable[[Tensor, int], Tensor]:
        """How x is multiplied with each layer."""
        found = [*self.weights]
        if self.masks:
            found = [w * m for w, m in zip(found, self.masks, strict=True)]
        return lambda x, layer: F.linear(x, found[layer])


class Shared(Network):
    """Every weight looked up in one array, which is drawn from -s0 to s0."""

    def __init__(
        self, sharing: Sharing, width: int, start: float, scaler: str,
        seed: int,
    ) -> None:  # fmt: skip
        super().__init__(shapes_of(width))
        if not 0 < start < float("inf"):
            raise ValueError(
                f"start={start} is no scale; use a number above 0"
            )
        generator = torch.Generator().manual_seed(seed)
        drawn = 2 * torch.rand(sharing.m, generator=generator) - 1
        self.table = nn.Parameter(start * drawn)
        # so that weights start as wide as those of `Dense`
        self.scales = [a / start for a in spreads(self.shapes)]
        scales = torch.cat(
            [
                torch.full((rows * columns,), scale)
                for (rows, columns), scale in zip(
                    self.shapes, self.scales, strict=True
                )
            ]
        )
        self.sharing = sharing
        self.register_buffer("cells", sharing.cells)
        self.register_buffer("factors", sharing.signs * scales)
        self.register_buffer("by", divisors(sharing, scales, scaler))
        if sharing.turns is not None:
            self.register_buffer("turns", sharing.turns)
        self.to(device())
        self.table.register_hook(lambda grad: grad / self.by)

    def recovered(self) -> list[Tensor]:
        """The weights of every layer, [rows, columns]."""
        found = self.table.index_select(0, self.cells) * self.factors
        parts = found.split([size([shape]) for shape in self.shapes])
        pairs = zip(parts, self.shapes, strict=True)
        return [part.view(shape) for part, shape in pairs]

    def products(self) -> Callable[[Tensor, int], Tensor]:
        """How x is multiplied with each layer: where there is a GPU, without
        recovering its weights, if they are folded."""
        if self.table.is_cuda and self.sharing.turns is not None:
            return self.looked_up
        found = self.recovered()
        return lambda x, layer: F.linear(x, found[layer])

    def looked_up(self, x: Tensor, layer: int) -> Tensor:
        """The product with a layer by the kernel."""
        offset = size(self.shapes[:layer])
        return hashed_matmul(
            x, self.table, self.turns, self.shapes[layer][0], offset,
            self.sharing.key, self.scales[layer],
        )  # fmt: skip


def learn(
    network: Network, rate: float, seed: int, steps: int = STEPS,
    optimiser: str = "SGD", known: int = TRAIN,
) -> Iterable[float]:  # fmt: skip
    """Train on the first ``known`` digits; yield the loss of every step,
    measured before it."""
    images, labels = shown("train", slice(known))
    generator = torch.Generator().manual_seed(seed)
    leaves = [w for w in network.parameters() if w.requires_grad]
    steepest = OPTIMISERS[optimiser](leaves, lr=rate)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(steepest, steps)
    for _ in range(steps):
        at = torch.randint(known, (BATCH,), generator=generator)
        loss = F.cross_entropy(network(images[at]), labels[at])
        steepest.zero_grad()
        loss.backward()
        steepest.step()
        falling.step()
        yield loss.item()


def train(network: Network, *arguments, **options) -> Network:
    """`learn` to the end."""
    for _ in learn(network, *arguments, **options):
        pass
    return network


@torch.no_grad()
def accuracy(
    network: Network, part: str = "test", rows: slice = slice(None)
) -> float:
    """Percent of right answers, on the test digits if nothing is said."""
    images, labels = shown(part, rows)
    right = network(images).argmax(dim=1) == labels
    return 100 * right.double().mean().item()


def shown(part: str, rows: slice) -> tuple[Tensor, Tensor]:
    """Images [N, 64] and labels [N] of some digits."""
    images, labels = digits(part)
    return (
        images[rows].flatten(1).to(device()),
        labels[rows].to(device()),
    )
