"""Long work behind a button, with progress; the notebook stays usable."""

import html
import threading

import ipywidgets as widgets
from IPython.display import Markdown, display

from lab.explore import LiveBox, sentence
from lab.front_end import has_front_end


class Stopped(Exception):
    """Raised inside the work when the reader has pressed Stop."""


class Background:
    """Work in a thread of its own that can be stopped.

    A subclass implements `work`, which calls `step` along the way and returns
    the sentence to show. `step` raises `Stopped` once the reader has pressed
    Stop. If the work fails, `error` says why in one sentence.
    """

    def __init__(self, label, total, hint=""):
        self.label, self.total, self.hint = label, total, hint
        self.error = ""
        self._stop = threading.Event()
        self._thread = None

    def work(self):
        """Do all the work and return the sentence to show."""
        raise NotImplementedError

    def show(self, otherwise):
        """Show button and progress; without a front end, show `otherwise`."""
        if not has_front_end():
            display(Markdown(otherwise))
            return self
        self._button = widgets.Button(description=self.label)
        self._progress = widgets.IntProgress(max=self.total)
        self._said = widgets.HTML(self.hint)
        self._button.on_click(self._clicked)
        line = widgets.HBox(
            [self._button, self._progress, self._said],
            layout=widgets.Layout(align_items="center"),
        )
        display(LiveBox([line]))
        return self

    def _ipython_display_(self):
        """Display nothing: `show` has already put everything on the page."""

    def start(self):
        """Start, unless it is already running."""
        if self._thread is None or not self._thread.is_alive():
            self._stop.clear()
            self.error = ""
            self._thread = threading.Thread(target=self._run, daemon=True)
            self._thread.start()

    def stop(self):
        """Stop at the next step."""
        self._stop.set()

    def wait(self, timeout=None):
        """Wait until it is done or stopped."""
        if self._thread:
            self._thread.join(timeout)

    def step(self, done, text=""):
        """Report that `done` of the total are done; raise if asked to stop."""
        if self._stop.is_set():
            raise Stopped
        self._tell(text, done)

    def _clicked(self, _button):
        if self._thread is not None and self._thread.is_alive():
            self.stop()
            self._tell("stopping at the next step")
        else:
            self.start()

    def _run(self):
        self._tell("running", 0, "Stop")
        try:
            said = self.work()
        except Stopped:
            said = "stopped, nothing was kept"
        except Exception as error:
            said = self.error = sentence(error)
        self._tell(said, button=self.label)

    def _tell(self, text, done=None, button=""):
        """Show progress, if the widgets for it exist."""
        if not hasattr(self, "_said"):
            return
        if text:
            self._said.value = html.escape(text)
        if done is not None:
            self._progress.value = done
        if button:
            self._button.description = button
