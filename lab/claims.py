"""From a paper's sentence to a verdict, by a rule fixed beforehand.

A `Claim` says what is measured, how, and on which side of which threshold the
paper puts it. `run` measures it once per seed. Each measurement compares the
method with its baseline within that seed, so the effects are paired. The
verdict follows from their 95 % interval alone.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date

from lab.front_end import has_front_end

# a notebook shows the `recorded` verdict, or measures again with `run`
from lab.ledger import recorded as recorded
from lab.verdict import Verdict, interval, machine, versions, word

FEWEST = 3  # seeds; with fewer an interval says next to nothing
SAID = (
    "chapter",
    "sentence",
    "effect",
    "unit",
    "threshold",
    "side",
    "limits",
)


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A sentence of a paper as a statement about one number, the effect.

    `experiment(seed, **parameters)` measures it for one seed, the method
    against its baseline. `parameters` are those of the full run, `reduced`
    those of a run short enough for a notebook. A claim that needs more than
    a single machine has says so in `out_of_reach` and is never run.
    """

    slug: str
    chapter: str
    sentence: str  # the paper's words and figure
    source: str  # where it says so
    effect: str  # what is measured, in words
    unit: str
    experiment: Callable | None
    threshold: float
    side: str  # of the threshold: "above" or "below"
    parameters: dict = field(default_factory=dict)
    reduced: dict = field(default_factory=dict)
    seeds: int | range = 5  # of the full run; a number n is range(n)
    limits: str = ""  # what this scale cannot show
    out_of_reach: str = ""  # the reason

    def __post_init__(self):
        if self.side not in ("above", "below"):
            raise ValueError(
                f"side={self.side!r} of claim {self.slug} is not allowed; "
                "use 'above' or 'below'"
            )
        if self.experiment is None and not self.out_of_reach:
            raise ValueError(
                f"claim {self.slug} has no experiment; "
                "give one, or the reason in out_of_reach"
            )


def second_look(first, limits, seeds=range(5, 25), looked=None):
    """The `seeds` and `limits` of a claim that a first look left undecided.

    `first` is what that look measured, the mean and its interval, by the seeds
    `looked`: all below the new ones, if left out. Sentence, measure and
    threshold stay, and the new seeds are judged without the old ones: adding
    seeds until a verdict falls would confirm too much.
    """
    looked = looked or range(seeds[0])
    return {
        "seeds": seeds,
        "limits": f"{limits} A second look, by seeds {seeds[0]} to"
        f" {seeds[-1]} alone: seeds {looked[0]} to {looked[-1]} had left it"
        f" undecided, {first}.",
    }


def run(claim, seeds=None, progress=True, **parameters):
    """Measure `claim` once per seed and return the `Verdict`.

    `seeds` is a list or a number of seeds, by default the number of the full
    run. `parameters` replace those of the full run (`**claim.reduced` for the
    short one). A claim out of reach gets its verdict without a run. Nothing
    is written.
    """
    seeds, parameters = _plan(claim, seeds, parameters)
    if claim.out_of_reach:
        return judge(claim, (), (), parameters)
    bar = _bar(seeds, claim.slug) if progress else seeds
    effects = [measure(claim, seed, parameters) for seed in bar]
    return judge(claim, seeds, effects, parameters)


def measure(claim, seed, parameters):
    """The effect of one seed as a number; NaN and infinity are refused."""
    effect = float(claim.experiment(seed, **parameters))
    if not math.isfinite(effect):
        raise ValueError(
            f"seed {seed} of claim {claim.slug} measured {effect}; "
            "no verdict can rest on it, so look at that run"
        )
    return effect


def judge(claim, seeds, effects, parameters):
    """The verdict on `effects`, one per seed, by the rule alone.

    Confirmed if the whole interval lies on the claimed side of the threshold,
    refuted if it lies wholly on the other side, otherwise undecided.
    """
    said = {name: getattr(claim, name) for name in SAID}
    said |= dict(claim=claim.slug, date=date.today().isoformat())
    if claim.out_of_reach:
        return Verdict(word="out of reach", reason=claim.out_of_reach, **said)
    mean, low, high = interval(effects)
    return Verdict(
        word=word(low, high, claim.threshold, claim.side),
        effects=tuple(effects),
        mean=mean,
        low=low,
        high=high,
        seeds=tuple(seeds),
        parameters=parameters,
        machine=machine(),
        versions=versions(),
        command=f"lab claims {claim.chapter} --run",
        **said,
    )


def full_run_button(claim, seeds=None, **parameters):
    """A button that runs the full experiment while the notebook stays usable.

    Returns the `FullRun`, whose `verdict` is set when it is done. Without a
    front end it shows the command that does the same.
    """
    from IPython.display import Markdown, display

    from lab.full_run import FullRun

    full = FullRun(claim, *_plan(claim, seeds, parameters))
    if claim.out_of_reach:
        display(Markdown(f"Out of reach: {claim.out_of_reach}"))
        return full
    return full.show(f"Full run: `lab claims {claim.chapter} --run`")


def _plan(claim, seeds, parameters):
    """The list of seeds and all parameters; refuses wrong ones of either."""
    if claim.out_of_reach:
        return [], {}
    seeds = claim.seeds if seeds is None else seeds
    seeds = list(range(seeds)) if isinstance(seeds, int) else list(seeds)
    if len(seeds) < FEWEST or len(set(seeds)) < len(seeds):
        raise ValueError(
            f"seeds={seeds} cannot give a verdict; "
            f"use at least {FEWEST} different ones"
        )
    for name in parameters:
        if name not in claim.parameters:
            raise ValueError(
                f"{name} is not a parameter of claim {claim.slug}; "
                f"use one of {', '.join(claim.parameters) or 'none'}"
            )
    return seeds, {**claim.parameters, **parameters}


def _bar(seeds, name):
    """A progress bar over `seeds`, silent where nobody sees it."""
    if has_front_end():
        from tqdm.notebook import tqdm

        return tqdm(seeds, desc=name, unit="seed", leave=False)
    from tqdm import tqdm

    return tqdm(seeds, desc=name, unit="seed", leave=False, disable=None)
