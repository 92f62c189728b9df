"""A small character model, LoRA experts for it, and how both are trained.

    12 characters → embedding (12 each) → linear to 64
    → 3 × [x + wo gelu(wi norm(x))]  → norm → scores of the alphabet

Every wi and every wo is an adapted module, six in all. An adapter is a
function: ``adapter(module, u)`` returns what to add to the module's output.
That is all the model knows about experts and routers.

Each expert is trained alone on its own task, as by contributors who do not
know of each other. Here the experts run in one batch, with every token going
through its own task's adapter. No number of one expert reaches another, so
the result is that of separate runs, six times faster.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lab.descent import one_cycle_adam
from lab.kernels.multi_lora import multi_lora
from lab.tokens.char_lm import CONTEXT, windows
from lab.weights.names import alphabet, split

EMBEDDING = 12  # numbers per character
DIM = 64  # n = m, inputs and outputs of every module
LAYERS = 3
MODULES = ("wi 1", "wo 1", "wi 2", "wo 2", "wi 3", "wo 3")
RANK = 8
BATCH = 128  # characters of each task in one step
RATE = 5e-3  # peak learning rate of experts and gates

Adapter = Callable[[int, Tensor], Tensor]


class CharModel(nn.Module):
    """The model; its matrices are drawn from the seed with the deviation of
    `nn.Linear`, but normally distributed, and its biases are 0."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.embedding = nn.Embedding(len(alphabet()), EMBEDDING)
        self.enter = nn.Linear(CONTEXT * EMBEDDING, DIM)
        self.norms = nn.ModuleList(nn.LayerNorm(DIM) for _ in range(LAYERS))
        self.linears = nn.ModuleList(nn.Linear(DIM, DIM) for _ in MODULES)
        self.norm = nn.LayerNorm(DIM)
        self.leave = nn.Linear(DIM, len(alphabet()))
        generator = torch.Generator().manual_seed(seed)
        for name, weight in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(weight)
            elif weight.ndim == 2:
                scale = 1 if "embed" in name else (3 * weight.shape[1]) ** -0.5
                nn.init.normal_(weight, std=scale, generator=generator)

    def forward(self, context: Tensor, adapter: Adapter | None = None):
        """Scores [T, symbols] of the character after each context [T, 12]."""

        def linear(module: int, u: Tensor) -> Tensor:
            y = self.linears[module](u)
            return y if adapter is None else y + adapter(module, u)

        x = self.enter(self.embedding(context).flatten(1))
        for layer, norm in enumerate(self.norms):
            hidden = F.gelu(linear(2 * layer, norm(x)))
            x = x + linear(2 * layer + 1, hidden)
        return self.leave(self.norm(x))


class Experts(NamedTuple):
    """LoRA experts for every module: y += up down u."""

    down: Tensor  # [modules, N, r, n], the paper's A
    up: Tensor  # [modules, N, m, r], the paper's B


def bits(
    model: CharModel, ids: Tensor, adapter: Adapter | None = None
) -> float:
    """Bits per character over ids; the first 12 are only read."""
    at = torch.arange(CONTEXT, len(ids))
    context, target = windows(ids, at)
    with torch.no_grad():
        nats = F.cross_entropy(model(context, adapter), target)
    return nats.item() / math.log(2)


def own(experts: Experts, slots: Tensor, weights: Tensor) -> Adapter:
    """The adapter that sends each token to its experts in slots [T, S]."""

    def adapter(module: int, u: Tensor) -> Tensor:
        return multi_lora(
            u, slots, weights, experts.down[module], experts.up[module]
        )

    return adapter


def everywhere(experts: Experts, expert: int) -> Adapter:
    """The adapter that sends every token to one and the same expert."""

    def adapter(module: int, u: Tensor) -> Tensor:
        slots = torch.full((len(u), 1), expert, dtype=torch.int32)
        return own(experts, slots, torch.ones(len(u), 1))(module, u)

    return adapter


def train_base(seed: int, languages: Sequence[str], steps: int) -> CharModel:
    """Train the model that all contributors start from, and freeze it."""
    if steps < 1:
        raise ValueError(f"steps={steps} trains nothing; use 1 or more")
    model = CharModel(seed)
    draw = batches(languages, seed, BATCH // 2)

    def loss(_: int) -> Tensor:
        context, target = draw()
        return F.cross_entropy(model(context), target)

    one_cycle_adam(model.parameters(), loss, steps, 1e-2)
    return model.requires_grad_(False)


def train_experts(
    model: CharModel,
    languages: Sequence[str],
    seed: int,
    steps: int,
    shared: bool = False,
) -> Experts:
    """Train one expert per language, or with ``shared`` one for all of them.

    A starts normal with deviation 0.01 and B at 0, so that nothing changes
    before the first step. AdamW without weight decay, 6 % warm-up.
    """
    N, M = (1 if shared else len(languages)), len(MODULES)
    generator = torch.Generator().manual_seed(seed)
    down = 0.01 * torch.randn(M, N, RANK, DIM, generator=generator)
    experts = Experts(down, torch.zeros(M, N, DIM, RANK))
    task = torch.arange(len(languages)).repeat_interleave(BATCH)
    slots = (task * (not shared)).int()[:, None]
    ones = torch.ones(len(task), 1)
    adapter = own(experts, slots, ones)
    draw = batches(languages, seed)

    def loss() -> Tensor:
        context, target = draw()
        nats = F.cross_entropy(
            model(context, adapter), target, reduction="sum"
        )
        return nats / BATCH

    for _ in descend(experts, loss, steps):
        pass
    return experts


def batches(languages: Sequence[str], seed: int, batch: int = BATCH):
    """A function that draws ``batch`` positions of every language.

    Each language has its own generator, so that its draws do not depend on
    the other languages.
    """
    texts = [split(language).train for language in languages]
    generators = [
        torch.Generator().manual_seed(1000 * seed + sum(map(ord, language)))
        for language in languages
    ]

    def draw() -> tuple[Tensor, Tensor]:
        parts = [
            windows(
                ids,
                torch.randint(CONTEXT, len(ids), (batch,), generator=g),
            )
            for ids, g in zip(texts, generators, strict=True)
        ]
        contexts, targets = zip(*parts, strict=True)
        return torch.cat(contexts), torch.cat(targets)

    return draw


def descend(
    leaves: Sequence[Tensor], loss: Callable[[], Tensor], steps: int,
    rate: float | Sequence[float] = RATE,
):  # fmt: skip
    """Run AdamW on ``leaves`` in place; yield the number of steps done.

    ``rate`` is that of all leaves, or one for each.
    """
    if steps < 1:
        raise ValueError(f"steps={steps} trains nothing; use 1 or more")
    for leaf in leaves:
        leaf.requires_grad_()
    rates = [rate] * len(leaves) if isinstance(rate, float) else rate
    groups = {}
    for leaf, peak in zip(leaves, rates, strict=True):
        groups.setdefault(peak, []).append(leaf)
    optimizer = torch.optim.AdamW(
        [{"params": group, "peak": peak} for peak, group in groups.items()],
        weight_decay=0.0,
    )
    warm = max(1, round(0.06 * steps))
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * min(1, (step + 1) / warm)
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
        yield step + 1
    for leaf in leaves:
        leaf.requires_grad_(False)
