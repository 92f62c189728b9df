"""The full run of a claim behind a button."""

from lab import claims
from lab.background import Background


class FullRun(Background):
    """A claim measured seed by seed; `verdict` is set when all are done.

    A run that was stopped or that failed leaves it at `None`.
    """

    def __init__(self, claim, seeds, parameters):
        super().__init__("Run in full", len(seeds), f"{len(seeds)} seeds")
        self.claim, self.seeds, self.parameters = claim, seeds, parameters
        self.verdict = None

    def work(self):
        """Measure and judge; return the verdict as text."""
        self.verdict = None
        effects = []
        for seed in self.seeds:
            effect = claims.measure(self.claim, seed, self.parameters)
            effects.append(effect)
            said = f"seed {seed}: {effect:.4g} {self.claim.unit}"
            self.step(len(effects), said)
        self.verdict = claims.judge(
            self.claim, self.seeds, effects, self.parameters
        )
        return str(self.verdict)

    def wait(self, timeout=None):
        """Wait until it is done or stopped; return the verdict, if any."""
        super().wait(timeout)
        return self.verdict
