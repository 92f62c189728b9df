"""Draws ahead while the notebook is idle, so that no knob has to wait.

On a GPU a kernel is compiled when it first meets a new constant. Each number
of experts per token is another program, and the first move to it took a second
where the next takes a tenth. So once the notebook has been idle for a moment,
a view draws what each of its knobs could ask for, one picture after the
other, and throws the pictures away. The compiled kernels stay.

The pictures are drawn between the cells, in the thread that runs the cells,
and under the lock of the moves. So no such picture changes a model while a
cell or a move uses it.
"""

import asyncio
from collections import deque
from contextlib import suppress

import ipywidgets as widgets
from IPython import get_ipython

IDLE = 2.0  # seconds without a cell or a move
MOST = 16  # values of a knob; a knob with more changes no kernel's constant


class WarmUp:
    """Calls `draw` ahead, with one of the knobs in `controls` moved at a time.

    Make it only where `in_a_cell()` is true. `lock` is held during each draw.
    """

    def __init__(self, draw, controls, lock):
        self._draw, self._lock = draw, lock
        self._left = deque(ahead(controls))
        self._timer = None
        self._loop = asyncio.get_running_loop()
        events = get_ipython().events
        events.register("pre_run_cell", self._stop)
        events.register("post_run_cell", self._rest)

    def rest(self):
        """Begin again once nothing has happened for a moment.

        May be called from any thread, because a move may come from any.
        """
        self._loop.call_soon_threadsafe(self._rest)

    def _rest(self, _cell=None):
        self._after(IDLE)

    def _after(self, seconds):
        self._stop()
        if self._left:
            self._timer = self._loop.call_later(seconds, self._next)

    def _stop(self, _cell=None):
        if self._timer:
            self._timer.cancel()

    def _next(self):
        values = self._left.popleft()
        # an error is shown when the reader moves the knob there
        with self._lock, suppress(Exception):
            self._draw(**values)
        # messages that have arrived meanwhile go first
        self._after(0)


def in_a_cell():
    """Whether idle moments can be noticed: in a cell, with an event loop."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return get_ipython() is not None


def ahead(controls):
    """All values by name, for each picture to draw: one knob moved at a time.

    The first knob comes first, and for each knob the nearest values do.
    """
    now = {name: control.value for name, control in controls.items()}
    return [
        now | {name: value}
        for name, control in controls.items()
        for value in others(stops(control), now[name])
    ]


def others(values, now):
    """All values but the one that a knob stands on, the nearest first."""
    at = values.index(now) if now in values else 0
    nearest = sorted(range(len(values)), key=lambda i: abs(i - at))
    return [values[i] for i in nearest if values[i] != now]


def stops(control):
    """All values that a knob can take; none if there are more than `MOST`."""
    if isinstance(control, widgets.Checkbox):
        return [False, True]
    if hasattr(control, "_options_values"):
        found = list(control._options_values)
    elif isinstance(control, (widgets.IntSlider, widgets.FloatSlider)):
        # the small excess keeps the end of 0.1, 0.2 ... 1.0
        steps = int((control.max - control.min) / control.step + 1e-9)
        found = [control.min + i * control.step for i in range(steps + 1)]
    else:
        found = []
    return found if len(found) <= MOST else []
