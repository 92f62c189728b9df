"""The full run of a claim behind a button, while the notebook stays usable."""

import threading

import ipywidgets as widgets
from IPython.display import Markdown, display

from lab import claims
from lab.explore import sentence
from lab.front_end import has_front_end


class FullRun:
    """A run in a thread of its own, seed by seed, that can be stopped.

    `verdict` is `None` until every seed is done; a run that was stopped or
    that failed leaves none.
    """

    def __init__(self, claim, seeds, parameters):
        self.claim, self.seeds, self.parameters = claim, seeds, parameters
        self.verdict = None
        self.error = ""
        self._stop = threading.Event()
        self._thread = None

    def show(self):
        """Show button and progress, or the command where nobody looks."""
        if not has_front_end() or self.claim.out_of_reach:
            known = self.claim.out_of_reach
            command = f"`lab claims {self.claim.chapter} --run`"
            text = (
                f"Out of reach: {known}" if known else f"Full run: {command}"
            )
            display(Markdown(text))
            return self
        self._button = widgets.Button(description="Run in full")
        self._progress = widgets.IntProgress(max=len(self.seeds))
        self._said = widgets.HTML(f"{len(self.seeds)} seeds")
        self._button.on_click(self._clicked)
        display(
            widgets.HBox(
                [self._button, self._progress, self._said],
                layout=widgets.Layout(align_items="center"),
            )
        )
        return self

    def start(self):
        """Start, unless it runs already."""
        if self._thread is None or not self._thread.is_alive():
            self._stop.clear()
            self.error, self.verdict = "", None
            self._thread = threading.Thread(target=self._work, daemon=True)
            self._thread.start()

    def stop(self):
        """Stop after the seed that runs now."""
        self._stop.set()

    def wait(self, timeout=None):
        """Wait until it is done or stopped; return the verdict, if any."""
        if self._thread:
            self._thread.join(timeout)
        return self.verdict

    def _clicked(self, _button):
        if self._thread is not None and self._thread.is_alive():
            self.stop()
            self._tell("stops after this seed")
        else:
            self.start()

    def _work(self):
        self._tell("running", 0, "Stop")
        try:
            said = self._measured()
        except Exception as error:
            said = self.error = sentence(error)
        self._tell(said, button="Run in full")

    def _measured(self):
        """Measure seed by seed and judge; return what there is to say."""
        effects = []
        for seed in self.seeds:
            effect = claims.measure(self.claim, seed, self.parameters)
            if self._stop.is_set():
                return "stopped, nothing kept"
            effects.append(effect)
            unit = self.claim.unit
            self._tell(f"seed {seed}: {effect:.4g} {unit}", len(effects))
        self.verdict = claims.judge(
            self.claim, self.seeds, effects, self.parameters
        )
        return str(self.verdict)

    def _tell(self, text, done=None, button=""):
        """Show progress, where there is something to show it on."""
        if not hasattr(self, "_said"):
            return
        self._said.value = text
        if done is not None:
            self._progress.value = done
        if button:
            self._button.description = button
