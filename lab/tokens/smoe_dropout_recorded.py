"""What the pictures of chapter 04 show: recorded models for every k."""

from collections.abc import Callable
from functools import cache

from lab.tokens import checkpoints
from lab.tokens.char_lm import CharLM, Evaluation, evaluate, train
from lab.tokens.smoe_dropout import (
    EXPERTS,
    PAPER,
    STEPS,
    bits,
    dense_twin,
    switch_on,
    trained,
    untrained,
)

# the recorded models: whether the router is frozen, and how k grew
ARMS = {
    "random, 8 to 16": (True, PAPER),  # SMoE-Dropout
    "random, 16": (True, "constant 16"),
    "learned, 8 to 16": (False, PAPER),
    "learned, 2": (False, "constant 2"),
}


@cache
def picture(k: int, arm: str) -> Evaluation:
    """Let a recorded model read 2048 test characters with k experts."""
    return evaluate(switch_on(recorded(arm), k), "prose", 2048)


@cache
def recorded(arm: str) -> CharLM:
    """The model of `train_checkpoints` for one of `ARMS`."""
    frozen, _ = ARMS[arm]
    return checkpoints.load(_checkpoint(arm), untrained(0, frozen))


@cache
def curve(arm: str) -> list[float]:
    """Bits per character of a recorded model for k = 1 to 16.

    "dense" is the dense twin, a model without k: the same value 16 times.
    """
    if arm == "dense":
        return [checkpoints.about("dense-256")["sample_bits"]] * EXPERTS
    return checkpoints.about(_checkpoint(arm))["bits_by_k"]


def train_checkpoints(progress: Callable = iter) -> None:
    """Train every recorded model again, seed 0: about a minute."""
    for arm in progress(list(ARMS)):
        frozen, schedule = ARMS[arm]
        curve = [
            bits(0, frozen, schedule, k, STEPS, 2048)
            for k in range(1, EXPERTS + 1)
        ]
        model = trained(0, frozen, schedule, STEPS)
        checkpoints.save(_checkpoint(arm), model, seed=0, bits_by_k=curve)
    dense = train(dense_twin(0), "prose", STEPS, 0)
    sample = evaluate(dense, "prose", 2048).bits_per_character
    checkpoints.save("dense-256", dense, seed=0, sample_bits=sample)


def _checkpoint(arm: str) -> str:
    return "smoe-dropout-" + arm.replace(", ", "-").replace(" ", "-")
