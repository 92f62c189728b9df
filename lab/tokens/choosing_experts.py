"""What each way of choosing an expert costs (chapter 08, Read-ME).

A dense model is carved into experts, and a router is distilled for them. The
choices of the router, of the true domain, of the overlap and of chance are
compared in bits.
"""

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from lab.tokens import dense_lm, pre_gating
from lab.tokens.dense_lm import DenseLM
from lab.tokens.domain_experts import bits, carve, code_overlap, overlaps, read
from lab.tokens.domains import DOMAINS

LEARN = 4096  # training characters of each domain that masks are taken from
TEST = 2048  # test characters of each domain


class Result(NamedTuple):
    """One seed: bits per character, each a mean over the seven domains."""

    dense: float
    router: float  # the expert that the pre-gating router chooses
    label: float  # the expert of the domain that the text is from
    overlap: float  # the expert with the largest overlap, one for all layers
    layerwise: float  # the same, but chosen for each layer separately
    random: float  # an expert drawn at random for each token
    matrix: list[list[float]]  # [domain][expert], bits per character
    half: list[float]  # [domain], a random half of the units, mean of three
    dense_by_domain: list[float]
    agreement: tuple[float, float]  # of the router with label and overlap
    resident: float  # share of the kept units
    trace: list[list[int]]  # [domain][character], the router's experts


@cache
def experiment(
    seed: int,
    steps: int = dense_lm.STEPS,
    router_steps: int = pre_gating.STEPS,
    characters: int = LEARN,
    test: int = TEST,
    loss: str = "paper",
) -> Result:
    """Train a dense model, carve it, distil a router, and compare choices."""
    model = dense_lm.trained(seed, steps)
    return measure(model, seed, router_steps, characters, test, loss)


def measure(
    model: DenseLM,
    seed: int,
    router_steps: int = pre_gating.STEPS,
    characters: int = LEARN,
    test: int = TEST,
    loss: str = "paper",
    progress: Callable = iter,
) -> Result:
    """Do what `experiment` does, with a dense model already trained."""
    N = len(DOMAINS)
    learnt, _, _ = read(model, "train", characters)
    experts = carve(learnt)
    wanted = overlaps if loss == "paper" else code_overlap
    target = wanted(learnt, experts).view(-1, N, characters, N)
    router = pre_gating.train(
        pre_gating.PreGate(N, seed),
        target,
        seed,
        router_steps,
        loss,
        progress,
    )
    hidden, context, answer = read(model, "test", test)
    kept = experts.masks.float()
    counts = overlaps(hidden, experts)
    choices = {
        "router": pre_gating.route(router, test).flatten(),
        "label": torch.arange(N).repeat_interleave(test),
        "overlap": counts.sum(0).argmax(1),
        "layerwise": counts.argmax(2),
    }
    generator = torch.Generator().manual_seed(seed)
    choices["random"] = torch.randint(N, (N * test,), generator=generator)

    def by_domain(masks: Tensor | None = None, choice=None) -> Tensor:
        return (
            bits(model, context, answer, masks, choice).view(N, test).mean(1)
        )

    halves = []
    for _ in range(3):
        dice = torch.rand(kept[:, 0].shape, generator=generator)
        half = dice.argsort(1).argsort(1) < kept.shape[2] // 2
        halves.append(by_domain(half.float()))
    dense = by_domain()
    matrix = [by_domain(kept[:, expert]) for expert in range(N)]
    arms = {
        name: by_domain(kept, choice).mean().item()
        for name, choice in choices.items()
    }
    agree = [
        (choices["router"] == choices[name]).double().mean().item()
        for name in ("label", "overlap")
    ]
    return Result(
        dense=dense.mean().item(),
        **arms,
        matrix=torch.stack(matrix, dim=1).tolist(),
        half=torch.stack(halves).mean(0).tolist(),
        dense_by_domain=dense.tolist(),
        agreement=tuple(agree),
        resident=experts.resident_share,
        trace=choices["router"].view(N, test).tolist(),
    )
