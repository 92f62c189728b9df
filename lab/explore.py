"""Live figures: knobs, a pure `draw`, and one figure that follows them.

`explore(draw, chapter="02", top_k=IntSlider(...))` calls `draw(top_k=...)`
whenever a knob moves and updates its figure in place. `view.set(top_k=4)`
does whatever a knob does, so that a notebook cell, a test or papermill can
move the knob. Without a front end the same call leaves a static picture.
"""

import html
import shlex
import sys
import threading
import time

import ipywidgets as widgets
import plotly.graph_objects as go
from IPython import get_ipython
from IPython.display import display

from lab import catalogue, figures
from lab.clipboard import CopyCommand
from lab.figures.motion import Picture, beside, bring, ghosts_of, picture
from lab.front_end import has_front_end
from lab.parameters import choice, flag, span
from lab.ticks import Ticks
from lab.view_care import ViewCare
from lab.warm_up import WarmUp, in_a_cell

KNOBS = 6


def explore(draw, chapter, fixed=None, **controls):
    """Show `draw(**values)` with a knob for each value; return the `View`.

    `draw` takes the values of `controls` by name and returns a figure; it
    must not depend on anything else that changes. `fixed` are the parameters,
    by name, that it depends on but no knob moves. `chapter` is the number or
    slug of the chapter whose notebook takes the same names as parameters, or
    the path of a notebook that is not a chapter.
    """
    if not 0 < len(controls) <= KNOBS:
        raise ValueError(
            f"{len(controls)} knobs are not allowed; give 1 to {KNOBS}, "
            "beginning with the one that shows the idea"
        )
    notebook = str(chapter)
    if not notebook.endswith(".ipynb"):
        notebook = catalogue.chapter(chapter).notebook
    view = View(draw, notebook, controls, fixed or {})
    if get_ipython() is not None:
        display(view)
    return view


class LiveBox(widgets.VBox):
    """A box of widgets that need a kernel. A page that is shown without one,
    on GitHub or as HTML, has only the text below in their place.
    """

    def __repr__(self):
        return "Run this cell: its widgets need a running kernel."


class View:
    """A figure and its knobs; made by `explore`."""

    def __init__(self, draw, notebook, controls, fixed):
        self._draw = draw
        self._notebook = notebook
        self._fixed = fixed
        self._controls = controls
        self._ghosts = Picture([], {})
        # callbacks may run in another thread than the cells
        self._lock = threading.RLock()
        self._held = False
        self.error = ""
        start = time.perf_counter()
        first = draw(**self.values)
        self._milliseconds = 1e3 * (time.perf_counter() - start)
        self._drawn = self.values
        self._picture = picture(first)
        # traces, ghosts and layout; None if a change was broken off
        self._shown = self._picture
        self._live = has_front_end()
        self.figure = (go.FigureWidget if self._live else go.Figure)(first)
        if self._live:
            # as wide as the page, whatever that is
            self.figure._config = dict(responsive=True, displaylogo=False)
        for control in controls.values():
            control.observe(self._moved, "value")
        self._box = self._dressed() if self._live else None
        self._warm_up = None
        if self._live and compiles() and in_a_cell():
            self._warm_up = WarmUp(draw, controls, self._lock)

    @property
    def values(self):
        """The present values of the knobs, by name."""
        return {name: c.value for name, c in self._controls.items()}

    @property
    def title(self):
        """The title of the figure, on one line."""
        text = self.figure.layout.title.text or ""
        return text.partition("<br><span")[0].replace("<br>", " ")

    @property
    def command(self):
        """The papermill command that runs the notebook at these values."""
        words = ["papermill", shlex.quote(self._notebook), "out.ipynb"]
        for name, value in (self._fixed | self.values).items():
            # -r passes a string unchanged, -p would read "1" as a number
            words += ["-r" if isinstance(value, str) else "-p", name]
            words.append(shlex.quote(_written(value)))
        return " ".join(words)

    def set(self, **values):
        """Move knobs to `values` and redraw, with or without a front end.

        Refuses an unknown name and a value that the knob cannot take. If
        `draw` fails, the knobs go back and the error is raised.
        """
        for name, value in values.items():
            self._check(name, value)
        with self._lock:
            before = self.values
            try:
                self._assign(values)
                self._redraw()
            except BaseException:
                # BaseException: also when the reader interrupts the kernel
                self._assign(before)
                raise
            self._tell()

    def pin(self):
        """Keep the present curves as pale ghosts; a second call clears them.

        Only bars, lines and points can be compared in this way; a heatmap
        has no ghost. Returns the number of ghosts.
        """
        with self._lock:
            now = self._picture
            pale = [] if self._ghosts.traces else ghosts_of(now.traces)
            self._show(now, Picture(pale, now.layout))
        return len(pale)

    def _ipython_display_(self):
        display(self._box if self._live else self.figure)

    def _moved(self, _change):
        if self._held:
            return
        if self._warm_up:
            self._warm_up.rest()
        with self._lock:
            try:
                self._redraw()
            except Exception as error:
                self.error = sentence(error)
            self._tell()

    def _assign(self, values):
        self._held = True
        try:
            for name, value in values.items():
                self._controls[name].value = value
        finally:
            self._held = False

    def _redraw(self):
        """Draw the present values, unless they are shown already.

        While a slider is dragged, the front end sends one value and holds
        the newest back until the redraw is done. So redraws cannot pile up,
        and the last value wins.
        """
        values = self.values
        if values == self._drawn and self._shown and not self.error:
            return
        start = time.perf_counter()
        self._show(picture(self._draw(**values)), self._ghosts)
        self._milliseconds = 1e3 * (time.perf_counter() - start)
        self._drawn, self.error = values, ""

    def _show(self, new, ghosts):
        """Change the figure; if that fails half-way, change it back."""
        before, self._shown = self._shown, None
        after = beside(new, ghosts)
        try:
            bring(self.figure, before or picture(self.figure), after)
        except BaseException:
            if before:
                bring(self.figure, picture(self.figure), before)
                self._shown = before
            raise
        self._picture, self._ghosts, self._shown = new, ghosts, after

    def _check(self, name, value):
        if name not in self._controls:
            raise ValueError(
                f"{name} is not a knob of this view; "
                f"use one of {', '.join(self._controls)}"
            )
        rule = _rule(self._controls[name])
        if rule and not rule.accepts(value):
            raise ValueError(
                f"{name}={value!r} is not allowed; use {rule.allowed}"
            )

    def _dressed(self):
        """The knobs, the figure, and the line of buttons below it."""
        for name, control in self._controls.items():
            control.description = control.description or name.replace("_", " ")
            # ticks have a layout of their own
            if not isinstance(control, Ticks):
                control.style.description_width = "120px"
                control.layout.width = "360px"
        self._badge = widgets.HTML(layout=widgets.Layout(flex="1 1 auto"))
        self._pin = widgets.Button(
            description="Pin",
            tooltip="keep this curve for comparison",
            layout=widgets.Layout(width="90px"),
        )
        self._pin.on_click(self._pinned)
        self._copy = CopyCommand()
        self._tell()
        knobs = widgets.Box(
            list(self._controls.values()),
            layout=widgets.Layout(display="flex", flex_flow="row wrap"),
        )
        line = widgets.HBox(
            [self._pin, self._badge],
            layout=widgets.Layout(align_items="center"),
        )
        parts = [knobs, self.figure, line, self._copy, ViewCare()]
        return LiveBox(parts)

    def _pinned(self, _button):
        count = self.pin()
        self._pin.description = "Unpin" if count else "Pin"
        self._tell()

    def _tell(self):
        """Say under the figure what it shows, what it ran on and how long."""
        if not self._live:
            return
        shown = ", ".join(f"{n} = {_short(v)}" for n, v in self._drawn.items())
        words = [shown, implementation(), f"{self._milliseconds:.0f} ms"]
        text = " · ".join(word for word in words if word)
        # the front end's own grey, if it has one, also suits a dark theme
        colour = f"var(--jp-ui-font-color2, {figures.COLOURS['quiet']})"
        if self.error:
            text = f"{self.error} The picture still shows {shown}."
            colour = figures.COLOURS["cut"]
        # of a slider of words, a screen reader can only say the position
        self._badge.value = (
            '<div role="status" aria-live="polite" class="routing-lab-badge" '
            f'style="color:{colour};line-height:1.4">{html.escape(text)}</div>'
        )
        self._copy.command = self.command


def implementation():
    """What the kernels ran on; empty for a chapter without kernels."""
    runtime = sys.modules.get("lab.kernels.runtime")
    return runtime.implementation() if runtime else ""


def compiles():
    """Whether a draw may have to wait until a kernel is compiled."""
    runtime = sys.modules.get("lab.kernels.runtime")
    return runtime is not None and runtime.device() == "cuda"


def sentence(error):
    """`error` as one sentence: its type and the first line of its message."""
    first = (str(error).strip().splitlines() or ["no message"])[0]
    return f"{type(error).__name__}: {first.rstrip('.')}."


def _rule(control):
    """The rule for the values of `control`, or `None` if any value goes."""
    if isinstance(control, Ticks):
        return control.rule
    if hasattr(control, "_options_values"):
        return choice(*control._options_values)
    if isinstance(control.value, bool):
        return flag()
    low, high = getattr(control, "min", None), getattr(control, "max", None)
    if low is None or high is None or isinstance(control.value, tuple):
        return None
    if hasattr(control, "base"):
        low, high = control.base**low, control.base**high
    if isinstance(control.value, float):
        low, high = float(low), float(high)
    return span(low, high)


def _short(value):
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _written(value):
    """`value` as one types it: a slider's 0.3999999999999999 means 0.4."""
    return f"{value:.10g}" if isinstance(value, float) else str(value)
