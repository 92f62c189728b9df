"""The two phases of chapter 02: a trained model is given null experts.

Phase 1 trains a plain top-2 model on code. Phase 2 widens its routers, and
trains every arm on prose from the same weights.
"""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from lab.tokens.char_lm import DIM, CharLM, train
from lab.tokens.routers import TopKRouter

EXPERTS = 8  # n, as in Mixtral
PRETRAINED_K = 2
PHASE_1_STEPS = 600  # top-2 on code
PHASE_2_STEPS = 300  # then every arm on prose
PHASE_2_RATE = 3e-3
ALPHA = (2e-2, 1e-4)  # early and late in phase 2, see `adapt`


def add_null_experts(
    weight: Tensor, null_experts: int, start: str = "copy", seed: int = 0
) -> Tensor:
    """Widen a trained router's weight [D, n] to [D, n + m].

    "copy" repeats the true columns, as the authors' loader does. Every null is
    then an exact twin of a true expert, so the tie rule decides at first.
    "nudge" adds noise of a hundredth of the weights' spread to the twins.
    "random" draws new columns with the spread of the old ones.
    """
    D, n = weight.shape
    if null_experts % n and start != "random":
        raise ValueError(
            f"null_experts={null_experts} is not a multiple of the {n} true"
            ' experts that are copied; use a multiple, or start="random"'
        )
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(D, null_experts, generator=generator) * weight.std()
    copies = weight.repeat(1, null_experts // n)
    if start == "copy":
        nulls = copies
    elif start == "nudge":
        nulls = copies + 0.01 * noise
    elif start == "random":
        nulls = noise
    else:
        raise ValueError(f'start={start!r} is not "copy", "nudge" or "random"')
    return torch.cat([weight, nulls], dim=1)


@cache
def pretrained(seed: int, steps: int = PHASE_1_STEPS) -> CharLM:
    """Phase 1: a top-2 model trained on code. Copy it before changing it."""
    model = CharLM(
        lambda _: TopKRouter(DIM, EXPERTS, PRETRAINED_K), EXPERTS, seed
    )
    return train(model, "code", steps, seed)


def adapt(
    model: CharLM,
    null_experts: int,
    seed: int,
    start: str = "copy",
    alpha: tuple[float, float] = ALPHA,
    steps: int = PHASE_2_STEPS,
    pretraining_steps: int = PHASE_1_STEPS,
    progress: Callable = iter,
) -> CharLM:
    """Phase 2: give ``model`` the pretrained weights and train it on prose.

    The weight of the balance loss is ``alpha[0]`` up to step ``steps`` / 2,
    rounded up, and ``alpha[1]`` after it. It is set for the next step
    once a step's loss is known, so step 0 uses the router's own weight: 0.02
    for AdaMoE, 0.01 for plain top-k.
    """
    weights = pretrained(seed, pretraining_steps).state_dict()
    for name in weights:
        if name.endswith("router.weight"):
            weights[name] = add_null_experts(
                weights[name], null_experts, start, seed
            )
    model.load_state_dict(weights)

    def anneal(step: int, _) -> None:
        for layer in model.layers:
            layer.router.balance = alpha[0 if 2 * step < steps else 1]

    return train(
        model,
        "prose",
        steps,
        seed,
        peak_rate=PHASE_2_RATE,
        progress=progress,
        on_step=anneal,
    )
