"""What the pictures of chapter 05 show: a recorded model of each variant."""

from collections.abc import Callable
from functools import cache

from lab.tokens import checkpoints
from lab.tokens.char_lm import CharLM, Look, look
from lab.tokens.layer_information import by_distance, information_map
from lab.tokens.rmoe import STEPS, TOP_K, VARIANTS, trained, untrained


def picture(
    variant: str = "passed", keep: float = 1.0, top_k: int = TOP_K
) -> Look:
    """Let a recorded model read, its memory turned down to ``keep``.

    ``variant`` chooses the model. ``keep`` (0 to 1) scales the state that
    each router receives and ``top_k`` sets its number of experts, both
    without training again. A variant that passes nothing ignores ``keep``.
    """
    model = recorded(variant)
    for layer in model.layers:
        layer.router.k = top_k
        layer.router.keep = keep
    return look(model)


@cache
def reach(variant: str) -> list[float]:
    """Information by distance between layers, of the model as trained."""
    return by_distance(information_map(picture(variant).sample))


@cache
def recorded(variant: str) -> CharLM:
    """The model of `train_checkpoints`."""
    return checkpoints.load(_checkpoint(variant), untrained(variant))


def train_checkpoints(progress: Callable = iter) -> None:
    """Train every recorded model again, seed 0: about a minute."""
    for variant in progress(VARIANTS):
        model = trained(variant, 0)
        checkpoints.save(_checkpoint(variant), model, seed=0, steps=STEPS)


def _checkpoint(variant: str) -> str:
    return f"rmoe-{variant.replace(' ', '-')}"
