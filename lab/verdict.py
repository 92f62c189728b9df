"""A verdict on a claim, the rule behind it, and where it was reached."""

import importlib.metadata
import math
import os
import platform
import sys
from dataclasses import dataclass, field
from pathlib import Path

from lab.rounding import rounded

CONFIDENCE = 0.95
PACKAGES = ("routing-lab", "torch", "triton", "numpy")


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What came out, and all that is needed to reproduce it."""

    claim: str
    chapter: str
    word: str  # confirmed, refuted, undecided, or out of reach
    sentence: str
    effect: str
    unit: str
    threshold: float
    side: str
    effects: tuple = ()  # one per seed
    mean: float | None = None
    low: float | None = None
    high: float | None = None
    seeds: tuple = ()
    parameters: dict = field(default_factory=dict)
    machine: str = ""
    versions: dict = field(default_factory=dict)
    date: str = ""
    command: str = ""
    reason: str = ""  # why it is out of reach
    limits: str = ""  # what this scale cannot show

    def __str__(self):
        return f"{self.word}: {self.measured}"

    def _repr_markdown_(self):
        rule = f"claimed: {self.side} {self.threshold:g} {self.unit}"
        return f"**{self.word}**: {self.measured} ({rule})"

    @property
    def measured(self):
        """The effect with its interval, rounded to be the same everywhere."""
        if self.mean is None:
            return self.reason
        mean, low, high = rounded(self.mean, self.low, self.high)
        return (
            f"{self.effect} = {mean} {self.unit} [{low}, {high}], "
            f"{len(self.seeds)} seeds"
        )

    def figure(self):
        """The effects, their interval and the claimed side."""
        from lab.figures import effect

        if self.mean is None:
            raise ValueError(f"{self.claim} was not measured: {self.reason}")
        return effect(
            list(self.effects),
            self.low,
            self.high,
            self.threshold,
            self.side,
            self.word,
            self.effect,
            self.unit,
        )


def word(low, high, threshold, side):
    """The rule: on which side of the threshold the whole interval lies."""
    if low > threshold:
        return "confirmed" if side == "above" else "refuted"
    if high < threshold:
        return "confirmed" if side == "below" else "refuted"
    return "undecided"


def interval(effects):
    """Mean and 95 % t-interval of the effects, one per seed."""
    # takes 0.4 s to import, for which a reader of the ledger need not wait
    from scipy import stats

    n = len(effects)
    mean = sum(effects) / n
    variance = sum((e - mean) ** 2 for e in effects) / (n - 1)
    reach = stats.t.ppf((1 + CONFIDENCE) / 2, n - 1) * math.sqrt(variance / n)
    return mean, mean - float(reach), mean + float(reach)


def machine():
    """This machine in words: processor, cores, and the GPU if there is one."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [s for s in info.read_text().splitlines() if "model name" in s]
        name = names[0].partition(":")[2].strip() if names else name
    torch = sys.modules.get("torch")
    gpu = torch is not None and torch.cuda.is_available()
    gpus = f", {torch.cuda.get_device_name()}" if gpu else ""
    return f"{os.cpu_count()} cores of {name}{gpus}"


def versions():
    """The versions that the numbers depend on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
