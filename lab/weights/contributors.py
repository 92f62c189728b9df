"""What is trained before any routing (chapters 21 and 22).

A base model, one LoRA expert per language, one expert for all languages as a
rival, and last of all the gates. Each gate is trained by the contributor of
its expert alone.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lab.kernels.multi_lora import multi_lora
from lab.weights import names
from lab.weights.adapters import (
    BATCH,
    DIM,
    MODULES,
    RATE,
    CharModel,
    Experts,
    batches,
    descend,
    train_base,
    train_experts,
)

BASE_STEPS, EXPERT_STEPS, GATE_STEPS = 600, 300, 100


def train_gates(
    model: CharModel,
    experts: Experts,
    languages: tuple[str, ...],
    seed: int,
    steps: int = GATE_STEPS,
    every: int = 0,
    rate: float = RATE,
) -> Tensor:
    """Train gates [modules, N, n], each on its own task, all else frozen.

    With ``every``, return the gates after each ``every`` steps, in one more
    axis in front. All gates train in one batch, like the experts, but no gate
    sees another's task or vector.
    """
    gates = torch.zeros(len(MODULES), len(languages), DIM)
    task = torch.arange(len(languages)).repeat_interleave(BATCH)
    slots = task.int()[:, None]
    draw = batches(languages, seed + 500)

    def adapter(module: int, u: Tensor) -> Tensor:
        opened = (u * gates[module][task]).sum(dim=1, keepdim=True).sigmoid()
        down, up = experts.down[module], experts.up[module]
        return multi_lora(u, slots, opened, down, up)

    def loss() -> Tensor:
        context, target = draw()
        scores = model(context, adapter)
        return F.cross_entropy(scores, target, reduction="sum") / BATCH

    taken = []
    for step in descend([gates], loss, steps, rate):
        if every and step % every == 0:
            taken.append(gates.detach().clone())
    return torch.stack(taken) if every else gates


class Trained(NamedTuple):
    """All that one seed trains before any routing."""

    model: CharModel
    experts: Experts
    multitask: Experts | None  # one expert, trained on all tasks
    gates: Tensor  # [modules, N, n], or one axis more with snapshots


def train(
    seed: int,
    base_steps: int = BASE_STEPS,
    expert_steps: int = EXPERT_STEPS,
    gate_steps: int = GATE_STEPS,
    every: int = 0,
    rival: bool = True,
) -> Trained:
    """Train base, experts, the multitask expert if that ``rival`` is wanted,
    and last the gates."""
    model = train_base(seed, names.BASE, base_steps)
    experts = train_experts(model, names.EXPERTS, seed, expert_steps)
    multitask = None
    if rival:
        multitask = train_experts(
            model, names.EXPERTS, seed, expert_steps, shared=True
        )
    gates = train_gates(model, experts, names.EXPERTS, seed, gate_steps, every)
    return Trained(model, experts, multitask, gates)
