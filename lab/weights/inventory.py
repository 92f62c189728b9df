"""An inventory of small adapters that many tasks share, and its training.

Every layer of the network of `digit_questions` has S LoRA adapters of rank r
in h blocks, and every task has logits that say how it mixes them (chapter 20).
An adapter by itself is an inventory of one: its only weight is always 1. One
adapter per task is an inventory whose weights are 0 or 1.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lab.kernels.mixed_factor_lora import mixed_factor_lora
from lab.kernels.runtime import device, may_look
from lab.weights.adapters import descend
from lab.weights.digit_questions import (
    KNOWN,
    LAYERS,
    WIDTHS,
    Adapter,
    Base,
    Tasks,
    draw_examples,
)

BATCH = 16  # examples of each task in one step
EPSILON = 1e-12  # of the authors, so that weights of 0 have a sum
LOGIT_RATE = 0.1  # of the authors; adapters learn at a much lower one


class Inventory(NamedTuple):
    """One tensor for each layer."""

    down: tuple[Tensor, ...]  # [h, S, n / h, r], the paper's A
    up: tuple[Tensor, ...]  # [h, S, r, m / h], the paper's B
    logits: tuple[Tensor, ...]  # [J, h, S], the paper's Z

    @property
    def adapters(self) -> int:
        """How many numbers the adapters have."""
        return sum(x.numel() for x in (*self.down, *self.up))


def route(logits: Tensor) -> Tensor:
    """Each task's weights of the adapters in each block, from logits
    [J, h, S]: sigmoids divided by their sum, not a softmax."""
    if may_look(logits) and not logits.isfinite().all():
        raise ValueError(
            "logits hold NaN or infinity; if every adapter of a block is at"
            " minus infinity, nothing is left to mix"
        )
    open_ = logits.sigmoid()
    return open_ / (open_.sum(dim=-1, keepdim=True) + EPSILON)


def uniform(logits: Tensor) -> Tensor:
    """The weights of mu, which average all adapters: 1 / S."""
    return torch.full_like(logits, 1 / logits.shape[-1])


def start(
    tasks: int, blocks: int, skills: int, rank: int, seed: int
) -> Inventory:
    """An inventory before training: B is 0, so that it changes nothing."""
    for name, value in (("skills", skills), ("rank", rank), ("tasks", tasks)):
        if value < 1:
            raise ValueError(f"{name}={value} is too few; use 1 or more")
    for width in WIDTHS:
        if blocks < 1 or width % blocks:
            raise ValueError(
                f"blocks={blocks} do not divide a layer's {width} numbers;"
                " use 1, 2, 4, 8 or 16"
            )
    generator = torch.Generator().manual_seed(seed)
    down, up = [], []
    for n, m in zip(WIDTHS, WIDTHS[1:], strict=False):
        a = torch.rand(blocks, skills, n // blocks, rank, generator=generator)
        down.append((2 * a - 1).mul(1 / (3 * n) ** 0.5).to(device()))
        up.append(torch.zeros(blocks, skills, rank, m // blocks).to(device()))
    logits = fresh(tasks, blocks, skills, generator)
    return Inventory(tuple(down), tuple(up), logits)


def fresh(
    tasks: int, blocks: int, skills: int, generator: torch.Generator
) -> tuple[Tensor, ...]:
    """Logits that nobody has trained, within 0.001 of 0."""
    shape = (tasks, blocks, skills)
    return tuple(
        ((2 * torch.rand(shape, generator=generator) - 1) / 1000).to(device())
        for _ in range(LAYERS)
    )


def adapter(
    inventory: Inventory, tokens: int, weigh: Callable[[Tensor], Tensor]
) -> Adapter:
    """The adapter of inputs [J * tokens, n], sorted by task; ``weigh`` turns
    logits into weights."""
    J = len(inventory.logits[0])
    offsets = torch.arange(J + 1, dtype=torch.int32, device=device()) * tokens

    def add(layer: int, x: Tensor) -> Tensor:
        weights = weigh(inventory.logits[layer])
        matrices = inventory.down[layer], inventory.up[layer]
        return mixed_factor_lora(x, offsets, weights, *matrices)

    return add


def apart(weigh: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Weights [J, h, J S] for J copies of the adapters side by side, so that
    each task mixes a copy of its own."""

    def own(logits: Tensor) -> Tensor:
        mine = torch.eye(len(logits), device=logits.device)
        weights = torch.einsum("jqs,jk->jqks", weigh(logits), mine)
        return weights.flatten(2)

    return own


def copies(inventory: Inventory, J: int) -> Inventory:
    """The inventory with J copies of its adapters side by side."""
    down, up = (
        tuple(x.repeat(1, J, 1, 1) for x in layers) for layers in inventory[:2]
    )
    return inventory._replace(down=down, up=up)


def loss(
    base: Base, tasks: Tasks, examples: Tensor, inventory: Inventory,
    weigh: Callable[[Tensor], Tensor],
) -> Tensor:  # fmt: skip
    """Mean nats of the right answers of each task's examples [J, B]."""
    x = tasks.inputs("train", examples).flatten(0, 1)
    add = adapter(inventory, examples.shape[1], weigh)
    right = tasks.answers("train", examples).flatten()
    return F.cross_entropy(base.answer(x, add), right)


def learn(
    base: Base, tasks: Tasks, inventory: Inventory, steps: int, rate: float,
    seed: int, weigh: Callable[[Tensor], Tensor] = route,
    logit_rate: float = LOGIT_RATE, known: int = KNOWN,
):  # fmt: skip
    """Train the inventory in place on all tasks; yield the steps done.

    Logits have a rate of their own. Weights that do not depend on the logits
    leave them as they are.
    """
    generator = torch.Generator().manual_seed(500 + seed)

    def cost() -> Tensor:
        examples = draw_examples(tasks.numbers, BATCH, generator, known)
        return loss(base, tasks, examples, inventory, weigh)

    leaves = [x for layers in inventory for x in layers]
    rates = [rate] * 2 * LAYERS + [logit_rate] * LAYERS
    yield from descend(leaves, cost, steps, rates)


def alignment(
    base: Base, tasks: Tasks, examples: Tensor, inventory: Inventory
) -> float:
    """Cosine of two tasks' gradients of all adapters, mean of all pairs."""
    J = len(tasks.numbers)
    each = copies(inventory, J)
    leaves = [x.detach().requires_grad_() for x in (*each.down, *each.up)]
    each = each._replace(down=leaves[:LAYERS], up=leaves[LAYERS:])
    cost = loss(base, tasks, examples, each, apart(route))
    found = torch.autograd.grad(cost, leaves)
    rows = [g.unflatten(1, (J, -1)).transpose(0, 1).flatten(1) for g in found]
    unit = F.normalize(torch.cat(rows, dim=1).double())
    cosines = unit @ unit.T
    return ((cosines.sum() - cosines.trace()) / (J * (J - 1))).item()
