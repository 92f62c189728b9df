"""A view on a GPU draws ahead in idle moments, and at no other time."""

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import ipywidgets as widgets
import nbclient
import nbformat
import pytest
from IPython.core.events import EventManager, available_events

from lab import explore as explore_module
from lab import figures, warm_up
from lab.data import ROOT
from lab.explore import explore
from lab.ticks import Ticks
from lab.warm_up import IDLE, MOST, WarmUp, ahead, others, stops


class Loop:
    """An event loop whose time passes only when a test says so."""

    def __init__(self):
        self.timers = []
        self.asked = 0

    def call_later(self, seconds, call):
        timer = SimpleNamespace(seconds=seconds, call=call)

        def cancel():
            # asyncio, too, lets one cancel a timer that has fired
            if timer in self.timers:
                self.timers.remove(timer)

        timer.cancel = cancel
        self.timers.append(timer)
        return timer

    def call_soon_threadsafe(self, call):
        self.asked += 1
        call()

    def fire(self):
        (timer,) = self.timers
        timer.cancel()
        timer.call()
        return timer.seconds


@pytest.fixture
def shell(monkeypatch):
    shell = SimpleNamespace(loop=Loop(), drawn=[])
    shell.events = EventManager(shell, available_events)
    monkeypatch.setattr(warm_up, "get_ipython", lambda: shell)
    monkeypatch.setattr(asyncio, "get_running_loop", lambda: shell.loop)
    return shell


def warm(shell, draw=None):
    controls = {
        "k": widgets.IntSlider(value=2, min=1, max=4),
        "loss": widgets.Dropdown(options=["null", "ordinary"]),
    }
    lock = threading.RLock()

    def note(**values):
        assert lock._is_owned()
        shell.drawn.append(tuple(values.values()))
        if draw:
            draw(**values)

    return WarmUp(note, controls, lock)


ALL = [(1, "null"), (3, "null"), (4, "null"), (2, "ordinary")]


def test_what_each_knob_could_ask_for_is_drawn_once_the_cell_is_done(shell):
    warm(shell)
    assert shell.loop.timers == []
    shell.events.trigger("post_run_cell", None)
    assert shell.loop.fire() == IDLE
    while shell.loop.timers:
        assert shell.loop.fire() == 0
    assert shell.drawn == ALL
    shell.events.trigger("post_run_cell", None)
    assert shell.loop.timers == []


def test_nothing_is_drawn_while_cells_run(shell):
    warm(shell)
    shell.events.trigger("post_run_cell", None)
    shell.events.trigger("pre_run_cell", None)
    assert shell.loop.timers == []
    shell.events.trigger("post_run_cell", None)
    assert shell.loop.fire() == IDLE
    assert shell.drawn == ALL[:1]


def test_a_move_makes_it_wait_again(shell):
    warming = warm(shell)
    shell.events.trigger("post_run_cell", None)
    shell.loop.fire()
    # a timer is set only in the loop's own thread; a move may come from any
    warming.rest()
    assert shell.loop.asked == 1
    assert shell.loop.fire() == IDLE
    assert shell.drawn == ALL[:2]


def test_a_picture_that_fails_keeps_none_of_the_others(shell):
    def draw(k, loss):
        if k == 3:
            raise ValueError("three is broken")

    warm(shell, draw)
    shell.events.trigger("post_run_cell", None)
    while shell.loop.timers:
        shell.loop.fire()
    assert shell.drawn == ALL


def test_one_knob_is_moved_at_a_time_and_the_first_one_first():
    controls = {
        "share": widgets.FloatSlider(value=0.5, min=0.25, max=1.0, step=0.25),
        "broken": widgets.Checkbox(True),
    }
    assert ahead(controls) == [
        {"share": 0.25, "broken": True},
        {"share": 0.75, "broken": True},
        {"share": 1.0, "broken": True},
        {"share": 0.5, "broken": False},
    ]


def test_the_neighbours_of_a_value_come_first():
    assert others([1, 2, 3, 4, 5], 4) == [3, 5, 2, 1]
    assert others(["null", "ordinary"], "ordinary") == ["null"]
    # a slider may stand between the stops
    assert others([1, 3, 5], 2) == [1, 3, 5]


@pytest.mark.parametrize(
    "control, values",
    [
        (widgets.IntSlider(min=1, max=MOST), list(range(1, MOST + 1))),
        (widgets.IntSlider(min=0, max=MOST), []),
        (widgets.IntSlider(min=25, max=100, step=25), [25, 50, 75, 100]),
        (widgets.IntSlider(min=0, max=10, step=4), [0, 4, 8]),
        (widgets.FloatSlider(min=0.0, max=0.3, step=0.1), [0, 0.1, 0.2, 0.3]),
        (widgets.FloatLogSlider(min=-1, max=1), []),
        (widgets.SelectionSlider(options=[1, 8]), [1, 8]),
        (widgets.Dropdown(options={"one": 1, "two": 2}), [1, 2]),
        (widgets.Dropdown(options=range(MOST + 1)), []),
        (widgets.Checkbox(), [False, True]),
        (Ticks(["top-k", "THOR"], "THOR"), []),
    ],
)
def test_a_knob_of_few_values_has_these_stops(control, values):
    assert stops(control) == pytest.approx(values)


@pytest.mark.parametrize(
    "live, gpu, cell, warms",
    [(1, 1, 1, True), (1, 0, 1, False), (0, 1, 1, False), (1, 1, 0, False)],
)
def test_only_a_live_view_on_a_gpu_warms_up(
    shell, monkeypatch, live, gpu, cell, warms
):
    monkeypatch.setattr(explore_module, "has_front_end", lambda: bool(live))
    monkeypatch.setattr(explore_module, "compiles", lambda: bool(gpu))
    monkeypatch.setattr(explore_module, "in_a_cell", lambda: bool(cell))
    monkeypatch.setattr(explore_module, "get_ipython", lambda: shell)
    monkeypatch.setattr(explore_module, "display", lambda view: None)

    def draw(k):
        shell.drawn.append((k, shell.drawn and view._lock._is_owned()))
        return figures.histogram([0] * k)

    view = explore(
        draw, chapter="02", k=widgets.IntSlider(value=2, min=1, max=4)
    )
    shell.events.trigger("post_run_cell", None)
    assert bool(shell.loop.timers) == warms
    if warms:
        shell.loop.fire()
        assert shell.drawn[1:] == [(1, True)]
        # and the first move makes the drawing wait
        assert shell.loop.timers[0].seconds == 0
        view._controls["k"].value = 4
        assert shell.loop.timers[0].seconds == IDLE


def test_idle_moments_are_noticed_in_a_cell_beside_an_event_loop(monkeypatch):
    async def cell():
        return warm_up.in_a_cell()

    def in_a_loop():
        return asyncio.run(cell())

    # the browser tests leave an event loop in the thread that ran them
    with ThreadPoolExecutor(1) as fresh:
        monkeypatch.setattr(warm_up, "get_ipython", lambda: object())
        assert fresh.submit(in_a_loop).result()
        assert not fresh.submit(warm_up.in_a_cell).result()
        monkeypatch.setattr(warm_up, "get_ipython", lambda: None)
        assert not fresh.submit(in_a_loop).result()


def test_kernels_are_compiled_where_there_is_a_gpu(monkeypatch):
    from lab.kernels import runtime

    monkeypatch.setattr(runtime, "device", lambda: "cuda")
    assert explore_module.compiles()
    monkeypatch.setattr(runtime, "device", lambda: "cpu")
    assert not explore_module.compiles()
    monkeypatch.delitem(explore_module.sys.modules, "lab.kernels.runtime")
    assert not explore_module.compiles()


CELLS = [
    """\
import asyncio
from ipywidgets import IntSlider
from lab import explore, figures, warm_up

explore.compiles = lambda: True
warm_up.IDLE = 0.2
drawn = []

def draw(k):
    drawn.append(k)
    return figures.histogram([0] * k)

view = explore.explore(
    draw, chapter="02", k=IntSlider(value=2, min=1, max=5)
)""",
    "before = len(drawn)\nawait asyncio.sleep(1)\nprint(len(drawn) - before)",
    "print(drawn)",
]


def test_a_real_kernel_draws_ahead_between_the_cells_only(monkeypatch):
    monkeypatch.setenv("JPY_SESSION_NAME", "chapter.ipynb")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    cells = [nbformat.v4.new_code_cell(source) for source in CELLS]
    notebook = nbformat.v4.new_notebook(cells=cells)
    client = nbclient.NotebookClient(notebook, timeout=60)
    with client.setup_kernel():
        client.execute_cell(cells[0], 0)
        client.execute_cell(cells[1], 1)
        assert cells[1].outputs[0].text == "0\n"
        for _ in range(60):
            time.sleep(0.5)
            client.execute_cell(cells[2], 2)
            if cells[2].outputs[0].text == "[2, 1, 3, 4, 5]\n":
                return
    pytest.fail(f"after half a minute only {cells[2].outputs[0].text}")
