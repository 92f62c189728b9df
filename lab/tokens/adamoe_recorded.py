"""What the pictures of chapter 02 show: recorded models with null experts.

There is one model for each number of null experts, loss and schedule, seed 0,
and plain top-1 and top-2 models adapted in the same way.
"""

from collections.abc import Callable
from functools import cache

from lab.tokens import checkpoints
from lab.tokens.adamoe import untrained
from lab.tokens.adamoe_phases import ALPHA, adapt
from lab.tokens.char_lm import CharLM, Look, evaluate, look

TRAINED_K = {0: 2, 8: 3, 16: 4, 32: 6}  # null experts: k in training
LOSSES = ("null", "ordinary")
SCHEDULES = {"annealed": ALPHA, "weak": (1e-4, 1e-4)}


def picture(
    null_experts: int = 8,
    top_k: int = 3,
    loss: str = "null",
    schedule: str = "annealed",
    normalize: str = "true",
) -> Look:
    """Let a recorded model read with k choices per token.

    ``null_experts``, ``loss`` and ``schedule`` choose the model, which
    learned with `TRAINED_K` choices; ``top_k`` and ``normalize`` change its
    routers now, without training again.
    """
    model = recorded(null_experts, loss, schedule)
    for layer in model.layers:
        layer.router.k = top_k
        layer.router.normalize = normalize
    return look(model)


@cache
def baseline(k: int) -> tuple[list[float], list[float]]:
    """Load and bits of plain top-k, adapted in the same way, on the sample."""
    model = checkpoints.load(f"adapted-top-{k}", untrained(k, 0))
    sample = look(model).sample
    return [sample.mean_experts], [sample.bits_per_character]


@cache
def recorded(null_experts: int, loss: str, schedule: str) -> CharLM:
    """The model of `train_checkpoints` with these settings."""
    model = untrained(TRAINED_K[null_experts], null_experts, loss)
    return checkpoints.load(_checkpoint(null_experts, loss, schedule), model)


def train_anew(
    null_experts: int,
    top_k: int,
    loss: str,
    schedule: str,
    normalize: str,
    progress: Callable = iter,
) -> str:
    """Adapt the pretrained model, seed 0, and return the result in words.

    The first call also runs the pretraining (six seconds).
    """
    model = adapt(
        untrained(top_k, null_experts, loss, normalize),
        null_experts,
        seed=0,
        alpha=SCHEDULES[schedule],
        progress=progress,
    )
    seen = evaluate(model, "prose")
    return (
        f"trained with k = {top_k}, {null_experts} null experts:"
        f" {seen.mean_experts:.2f} true experts per token,"
        f" {seen.bits_per_character:.3f} bits per character"
    )


def train_checkpoints(progress: Callable = iter) -> None:
    """Train every recorded model again, seed 0: about a minute and a half."""
    wanted = [
        (null_experts, loss, schedule)
        for null_experts in TRAINED_K
        for loss in LOSSES
        for schedule in SCHEDULES
        if null_experts or loss == "null"  # without nulls both are the same
    ]
    for null_experts, loss, schedule in progress(wanted):
        k, alpha = TRAINED_K[null_experts], SCHEDULES[schedule]
        model = untrained(k, null_experts, loss)
        model = adapt(model, null_experts, seed=0, alpha=alpha)
        checkpoints.save(
            _checkpoint(null_experts, loss, schedule), model, seed=0
        )
    for k in (1, 2):
        model = adapt(untrained(k, 0), 0, seed=0)
        checkpoints.save(f"adapted-top-{k}", model, seed=0)


def _checkpoint(null_experts: int, loss: str, schedule: str) -> str:
    if not null_experts:
        loss = "null"
    return f"adamoe-{null_experts}-nulls-{loss}-loss-{schedule}"
