"""The router arena: all routers of this part on one budget.

Closing notebook of part 1. Each entrant of `lab/tokens/entrants.py` is
trained at a few settings of its own knob, so that it draws a short curve of
loss against active compute, and is compared with plain top-k:

    work  = experts per token * 2 D F + what the router itself computes
    line  = bits of top-1, top-2, top-4 and top-8 over their work, connected
    gap   = bits of a point - the line at its work, same seed

Between two models, the line shows what mixing them blindly would give, so a
router is worth something where its gap is below 0. `lab train arena` records
every run in `data/arena/`; the claims are judged on those runs.
"""

from collections.abc import Callable
from functools import cache, partial

import torch
from torch import Tensor

from lab.claims import Claim
from lab.exercises import Exercise
from lab.tokens.arena_records import (
    POSITIONS,
    SEEDS,
    Point,
    Run,
    point,
    points,
    record,
    runs,
    train_and_measure,
)
from lab.tokens.char_lm import DIM
from lab.tokens.entrants import (
    ENTRANTS,
    EXPERTS,
    STEPS,
    Training,
    entrant,
    expert_work,
)
from lab.tokens.mixing import bits_above_mixing
from lab.tokens.rmoe import WIDTH

BASELINE = "top-k"  # its settings are the knots of the line
LABELS = tuple(p.label for p in points())
# routers that let a token choose how many experts work on it
ADAPTIVE = ("top-p", "AdaMoE", "Duo-LLM")
# routers that never learn
BLIND = ("THOR", "SMoE-Dropout")


def run(p: Point, seed: int, steps: int, positions: int) -> Run:
    """The recorded run, or a new one if none of this size is recorded."""
    if (steps, positions) == (STEPS, POSITIONS) and (p, seed) in runs():
        return runs()[p, seed]
    return _new_run(p, seed, steps, positions)


@cache
def _new_run(p: Point, seed: int, steps: int, positions: int) -> Run:
    training = Training(p.setting, seed, steps)
    return train_and_measure(entrant(p.router), training, positions)[0]


def above_line(
    work: float, bits: float, line_work: list[float], line_bits: list[float]
) -> float:
    """Bits lost against the line through the baseline's points, at equal work.

    ``line_work`` is in rising order; beyond its ends the outermost
    pieces of the line continue.
    """
    inside = range(1, len(line_work) - 1)
    i = next((i for i in inside if work < line_work[i]), len(line_work) - 1)
    share = (work - line_work[i - 1]) / (line_work[i] - line_work[i - 1])
    return bits_above_mixing(bits, 1 + share, *line_bits[i - 1 : i + 1])


def gap(
    p: Point, seed: int, steps: int = STEPS, positions: int = POSITIONS
) -> float:
    """Bits of ``p`` above the top-k line of the same seed, at equal work."""
    line = [run(k, seed, steps, positions) for k in points([BASELINE])]
    one = run(p, seed, steps, positions)
    return above_line(
        one.multiply_adds,
        one.bits,
        [knot.multiply_adds for knot in line],
        [knot.bits for knot in line],
    )


def train_checkpoints(progress: Callable = iter) -> None:
    """Train and record every point again: twenty minutes on one core."""
    record(progress)


def train_anew(label: str, seed: int, progress: Callable = iter) -> str:
    """Train the point ``label`` again and set the result beside the record."""
    p = point(label)
    training = Training(p.setting, seed, STEPS)
    new, _ = train_and_measure(entrant(p.router), training, progress=progress)
    said = f"{label}, seed {seed}: {new.bits:.3f} bits per character"
    old = runs().get((p, seed))
    return f"{said}, recorded {old.bits:.3f}" if old else said


def _mean_gap(names: tuple[str, ...], seed: int, **budget: int) -> float:
    """Mean gap of all settings of the entrants ``names``."""
    gaps = [gap(p, seed, **budget) for p in points(list(names))]
    return sum(gaps) / len(gaps)


def _champion(seed: int, **budget: int) -> float:
    """The gap of the point that is best on the other seeds.

    It is chosen on the others, so that luck on this seed is not rewarded.
    """
    others = [one for one in range(SEEDS) if one != seed]
    rivals = points([one.name for one in ENTRANTS if one.chapter])
    best = min(rivals, key=lambda p: sum(gap(p, s, **budget) for s in others))
    return gap(best, seed, **budget)


FULL = {"steps": STEPS, "positions": POSITIONS}
SHORT = {"steps": 8, "positions": 2048}

_claim = partial(
    Claim,
    chapter="arena",
    unit="bits",
    parameters=FULL,
    reduced=SHORT,
    seeds=SEEDS,
    limits=(
        "A character model of three layers, trained for 600 steps with one "
        "learning rate, tuned for no router. A router's own settings are "
        "those of its chapter, except that AdaMoE's alpha is not lowered, "
        "THOR has no dropout and SMoE-Dropout makes its first step with all "
        "experts. With longer training, larger models or tuning, the order "
        "may differ."
    ),
)

CLAIMS = (
    _claim(
        slug="a-router-beats-top-k",
        sentence="Some router of this part beats plain top-k at equal active"
        " compute (each paper says so of its own).",
        source="chapters 01 to 09, taken together",
        effect="gap to the top-k line of the point that is best on the other"
        " seeds",
        experiment=_champion,
        threshold=-0.01,
        side="below",
    ),
    _claim(
        slug="a-number-of-its-own",
        sentence="Letting every token choose how many experts work beats a"
        " fixed number at equal active compute.",
        source="chapters 01, 02 and 07",
        effect="mean gap to the top-k line of top-p, AdaMoE and Duo-LLM, all"
        " settings",
        experiment=partial(_mean_gap, ADAPTIVE),
        threshold=0.0,
        side="below",
    ),
    _claim(
        slug="learning-to-choose-pays",
        sentence="A router that never learns costs more than 0.01 bits at"
        " equal active compute (against chapters 03 and 04, which say that"
        " it costs nothing).",
        source="chapters 03 and 04",
        effect="mean gap to the top-k line of THOR and SMoE-Dropout, all"
        " settings",
        experiment=partial(_mean_gap, BLIND),
        threshold=0.01,
        side="above",
    ),
    _claim(
        slug="memory-pays-for-itself",
        sentence="A router with a memory over depth is worth the compute that"
        " it takes.",
        source="chapter 05",
        effect="mean gap to the top-k line of RMoE, all settings",
        experiment=partial(_mean_gap, ("RMoE",)),
        threshold=0.0,
        side="below",
    ),
)


def _best_and_close(scores: Tensor) -> Tensor:
    """The best expert, and the second if it has at least half that score."""
    order = scores.argsort(dim=1, descending=True, stable=True)
    best = scores.gather(1, order)
    kept = torch.zeros_like(scores, dtype=torch.bool)
    kept.scatter_(1, order[:, :1], True)
    close = best[:, 1:2] >= best[:, :1] / 2
    return kept.scatter(1, order[:, 1:2], close)


_SCORES = torch.tensor(
    [
        [0.5, 0.3, 0.15, 0.05],
        [0.1, 0.7, 0.2, 0.0],
        [0.1, 0.2, 0.3, 0.4],
        [0.5, 0.25, 0.125, 0.125],  # the second has exactly half
    ]
)

EXERCISES = {
    # one expert, and what RMoE's memory costs beyond a linear router
    "exercise-1": Exercise(
        slug="exercise-1",
        answer=1
        + (DIM * WIDTH + 6 * WIDTH**2 + WIDTH * EXPERTS - DIM * EXPERTS)
        / expert_work(),
        tolerance=0.01,
    ),
    "exercise-2": Exercise(
        slug="exercise-2",
        answer=above_line,
        cases=[
            (4000.0, 2.5, [3000.0, 6000.0, 12000.0], [2.6, 2.5, 2.4]),
            (9000.0, 2.4, [3000.0, 6000.0, 12000.0], [2.6, 2.5, 2.4]),
            (6000.0, 2.5, [3000.0, 6000.0, 12000.0], [2.6, 2.5, 2.4]),
            (2000.0, 2.6, [3000.0, 6000.0, 12000.0], [2.6, 2.5, 2.4]),
            (15000.0, 2.4, [3000.0, 6000.0, 12000.0], [2.6, 2.5, 2.4]),
        ],
    ),
    "exercise-3": Exercise(
        slug="exercise-3",
        answer=_best_and_close,
        cases=[(_SCORES,), (_SCORES.flip(1),)],
    ),
}  # fmt: skip
