"""What the pictures of chapter 01 show: recorded models of every router.

They are top-1, top-2 and top-p models with 4, 8 and 16 experts, the top-p ones
with four weights of the entropy loss. All were trained on prose, seed 0.
"""

import itertools
from collections.abc import Callable
from functools import cache

from lab.tokens import checkpoints
from lab.tokens.char_lm import CharLM, Look, evaluate, look, train
from lab.tokens.top_p_routing import STEPS, top_k_model, top_p_model

ENTROPY_WEIGHTS = (0.0, 1e-4, 1e-2, 1e-1)  # of the recorded models
EXPERTS = (4, 8, 16)


def picture(
    p: float = 0.4,
    temperature: float = 1.0,
    entropy_weight: float = 1e-4,
    experts: int = 8,
) -> Look:
    """Let a recorded model read with any p and temperature.

    ``entropy_weight`` and ``experts`` choose the model; ``p`` and
    ``temperature`` change its routers now, without training again.
    """
    model = recorded("top-p", experts, entropy_weight)
    for layer in model.layers:
        layer.router.p = p
        layer.router.temperature = temperature
    return look(model)


@cache
def baseline(k: int, experts: int) -> tuple[list[float], list[float]]:
    """Experts per token and bits of the recorded top-k model on the sample."""
    sample = look(recorded(f"top-{k}", experts)).sample
    return [sample.mean_experts], [sample.bits_per_character]


@cache
def recorded(
    router: str, experts: int, entropy_weight: float | None = None
) -> CharLM:
    """A model of `train_checkpoints`: router "top-1", "top-2" or "top-p"."""
    model = _untrained(router, experts, entropy_weight)
    return checkpoints.load(
        _checkpoint(router, experts, entropy_weight), model
    )


def train_anew(
    p: float, entropy_weight: float, experts: int, progress: Callable = iter
) -> str:
    """Train a top-p model on prose, seed 0, and return the result in words."""
    model = top_p_model(0, p, entropy_weight, experts)
    train(model, "prose", STEPS, seed=0, progress=progress)
    seen = evaluate(model, "prose")
    return (
        f"trained at p = {p:.4g}: {seen.mean_experts:.2f} experts per token,"
        f" {seen.bits_per_character:.3f} bits per character"
    )


def train_checkpoints(progress: Callable = iter) -> None:
    """Train every recorded model again on prose, seed 0: two minutes."""
    wanted = [
        *itertools.product(("top-1", "top-2"), EXPERTS, (None,)),
        *itertools.product(("top-p",), EXPERTS, ENTROPY_WEIGHTS),
    ]
    for settings in progress(wanted):
        model = train(_untrained(*settings), "prose", STEPS, seed=0)
        checkpoints.save(_checkpoint(*settings), model, steps=STEPS, seed=0)


def _untrained(
    router: str, experts: int, entropy_weight: float | None
) -> CharLM:
    if router == "top-p":
        return top_p_model(0, 0.4, entropy_weight, experts)
    return top_k_model(0, int(router.removeprefix("top-")), experts)


def _checkpoint(
    router: str, experts: int, entropy_weight: float | None
) -> str:
    name = f"{router}-of-{experts}"
    return name if router != "top-p" else f"{name}-entropy-{entropy_weight:g}"
