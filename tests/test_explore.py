"""A view moves from code as from a slider, with and without a front end."""

import threading

import ipywidgets as widgets
import nbclient
import nbformat
import numpy as np
import plotly.graph_objects as go
import pytest

from lab import explore as module
from lab import figures
from lab.data import ROOT
from lab.explore import explore
from lab.figures.motion import Picture, beside, bring, picture


def draw(top_k, share=0.5):
    if top_k == 7:
        raise RuntimeError("seven is broken.\nand a second line")
    return figures.histogram([0] * top_k + [share * 10], expected=top_k)


def knobs():
    return dict(
        top_k=widgets.IntSlider(value=2, min=1, max=8),
        share=widgets.FloatSlider(value=0.5, min=0.1, max=1.0),
    )


@pytest.fixture(params=["live", "headless"])
def view(request, monkeypatch):
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    if request.param == "live":
        monkeypatch.setenv("JPY_SESSION_NAME", "chapter.ipynb")
    return explore(draw, chapter="02", **knobs())


def test_a_front_end_gets_a_widget_and_papermill_a_figure(view):
    kind = go.FigureWidget if module.has_front_end() else go.Figure
    assert isinstance(view.figure, kind)


def test_set_moves_the_knob_and_the_figure(view):
    view.set(top_k=4)
    assert view.values == {"top_k": 4, "share": 0.5}
    assert view.title == "4.00 experts per token on average, 4.00 expected"
    assert list(view.figure.data[0].x) == [0, 1, 2, 3, 4]


def test_set_takes_several_values_and_draws_once(view, monkeypatch):
    calls = []
    monkeypatch.setattr(
        view, "_draw", lambda **v: calls.append(v) or draw(**v)
    )
    view.set(top_k=3, share=0.7)
    assert calls == [{"top_k": 3, "share": 0.7}]


def test_moving_a_knob_moves_the_figure(view):
    view._controls["top_k"].value = 5
    assert view.title.startswith("5.00 experts")


def test_a_value_that_is_shown_already_is_not_drawn_again(view, monkeypatch):
    monkeypatch.setattr(view, "_draw", lambda **_: pytest.fail("drawn"))
    view._moved(None)


@pytest.mark.parametrize(
    "values, words",
    [
        (dict(top_k=9), "top_k=9 is not allowed; use a whole number from 1"),
        (dict(top_k=2.5), "top_k=2.5 is not allowed"),
        (dict(top_k=True), "top_k=True is not allowed"),
        (dict(share=0.05), "use a number from 0.1 to 1.0"),
        (dict(k=2), "k is not a knob of this view; use one of top_k, share"),
    ],
)
def test_set_refuses_what_the_knob_cannot_take(view, values, words):
    with pytest.raises(ValueError, match=words):
        view.set(**values)
    assert view.values == {"top_k": 2, "share": 0.5}


def test_a_failing_draw_keeps_the_last_good_picture(view):
    view._controls["top_k"].value = 7
    assert view.error == "RuntimeError: seven is broken."
    assert view.title.startswith("2.00 experts")
    view._controls["top_k"].value = 3
    assert view.error == ""
    assert view.title.startswith("3.00 experts")


def test_going_back_after_a_failure_clears_it(view):
    view._controls["top_k"].value = 7
    view._controls["top_k"].value = 2
    assert view.error == ""


def test_set_raises_what_draw_raised_and_puts_the_knobs_back(view):
    with pytest.raises(RuntimeError, match="seven is broken"):
        view.set(top_k=7)
    assert view.values["top_k"] == 2
    assert view.title.startswith("2.00 experts")


def lines(height):
    """Two lines and a title; the second is no valid trace at height 5."""
    traces = [
        dict(type="scatter", x=[0, 1], y=[y, y], mode="lines")
        for y in (height, -height)
    ]
    if height == 5:
        traces[1]["mode"] = "line"
    return figures.drawn(traces, f"at {height}")


def seen(view):
    return view.title, [list(trace.y) for trace in view.figure.data]


@pytest.fixture(params=["live", "headless"])
def two_lines(request, monkeypatch):
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    if request.param == "live":
        monkeypatch.setenv("JPY_SESSION_NAME", "chapter.ipynb")
    return explore(
        lines,
        chapter="02",
        height=widgets.IntSlider(value=1, min=1, max=9),
    )


def test_a_figure_that_was_half_changed_goes_back(two_lines):
    view = two_lines
    names = [trace.uid for trace in view.figure.data]
    view._controls["height"].value = 5
    assert "'mode' property" in view.error
    assert seen(view) == ("at 1", [[1, 1], [-1, -1]])
    assert [trace.uid for trace in view.figure.data] == names
    with pytest.raises(ValueError, match="'mode' property"):
        view.set(height=5)
    view.set(height=2)
    assert seen(view) == ("at 2", [[2, 2], [-2, -2]])


@pytest.mark.parametrize("presses", [1, 2])
def test_stop_leaves_neither_half_a_figure_nor_a_moved_knob(
    two_lines, monkeypatch, presses
):
    view, update, calls = two_lines, go.Scatter.update, []

    def stopped(trace, *words, **names):
        # in the second trace, then in the first that is put back
        calls.append(trace)
        if 1 < len(calls) < 2 + presses:
            raise KeyboardInterrupt
        return update(trace, *words, **names)

    monkeypatch.setattr(go.Scatter, "update", stopped)
    with pytest.raises(KeyboardInterrupt):
        view.set(height=4)
    assert view.values == {"height": 1}
    view.set(height=1)
    assert seen(view) == ("at 1", [[1, 1], [-1, -1]])
    view.set(height=3)
    assert seen(view) == ("at 3", [[3, 3], [-3, -3]])


def test_a_knob_that_refuses_its_value_takes_the_others_back():
    view = explore(
        lambda height, share: lines(height),
        chapter="my notes/a b.ipynb",
        height=widgets.IntSlider(value=1, min=1, max=9),
        # this knob has no bounds, so only the knob itself can refuse
        share=widgets.FloatText(value=1.0),
    )
    with pytest.raises(Exception, match="expected a float"):
        view.set(height=3, share="much")
    assert view.values == {"height": 1, "share": 1.0}
    assert view.command.startswith("papermill 'my notes/a b.ipynb' out.ipynb")


def test_a_pinned_curve_stays_while_the_other_moves(view):
    before = list(view.figure.data[0].x)
    assert view.pin() == 3
    view.set(top_k=5)
    assert len(view.figure.data) == 6
    assert list(view.figure.data[3].x) == before
    assert view.figure.data[3].showlegend is False
    assert list(view.figure.data[0].x) == [0, 1, 2, 3, 4, 5]
    assert view.pin() == 0
    assert len(view.figure.data) == 3


def test_a_pinned_curve_stays_in_sight(view):
    view.set(top_k=8)
    view.pin()
    wide, high = (view.figure.layout[a].range for a in ("xaxis", "yaxis"))
    view.set(top_k=1)
    assert view.figure.layout.xaxis.range == wide
    assert view.figure.layout.yaxis.range == high
    view.pin()
    assert view.figure.layout.xaxis.range == (-0.6, 1.6)


def test_ranges_grow_where_a_ghost_lies_and_keep_their_direction():
    def one(rows, other):
        line = dict(type="scatter", x=[1], y=[1])
        layout = dict(
            yaxis=dict(range=[rows - 0.5, -0.5]),
            yaxis2=dict(range=[0, other]),
            xaxis=dict(),
        )
        return Picture([line], layout)

    both = beside(one(2, 3), one(5, 9))
    assert len(both.traces) == 2
    assert both.layout["yaxis"]["range"] == [4.5, -0.5]
    # no ghost lies on these axes
    assert both.layout["yaxis2"]["range"] == [0, 3]


def test_the_command_reproduces_the_view(view):
    view.set(top_k=4)
    assert view.command == (
        "papermill notebooks/1-tokens/02-adamoe.ipynb out.ipynb "
        "-p top_k 4 -p share 0.5"
    )


def test_a_slider_that_adds_up_its_steps_is_written_as_it_is_meant(view):
    view.set(share=0.1 + 0.2)
    assert " -p share 0.3" in view.command + " "
    assert "0000" not in view.command


def test_texts_in_the_command_are_quoted_and_handed_over_as_they_are():
    view = explore(
        lambda name: figures.histogram([1]),
        chapter="02",
        name=widgets.Dropdown(options=["two words", "1"]),
    )
    assert view.command.endswith("-r name 'two words'")


def test_the_badge_says_what_is_shown_and_how_it_ran(monkeypatch):
    monkeypatch.setenv("JPY_SESSION_NAME", "chapter.ipynb")
    view = explore(draw, chapter="02", **knobs())
    assert "top_k = 2, share = 0.5" in view._badge.value
    assert " ms" in view._badge.value
    view._controls["top_k"].value = 7
    assert "seven is broken. The picture still shows" in view._badge.value


def test_the_implementation_is_named_once_kernels_are_loaded():
    import lab.kernels  # noqa: F401

    assert module.implementation()


def test_more_than_six_knobs_are_refused():
    many = {f"k{i}": widgets.IntSlider() for i in range(7)}
    with pytest.raises(ValueError, match="7 knobs are not allowed"):
        explore(draw, chapter="02", **many)
    with pytest.raises(ValueError, match="0 knobs are not allowed"):
        explore(draw, chapter="02")


def test_an_unknown_chapter_is_refused():
    with pytest.raises(ValueError, match="no chapter"):
        explore(draw, chapter="99", **knobs())


def test_other_kinds_of_knob_know_what_they_take():
    view = explore(
        lambda **_: figures.histogram([1]),
        chapter="02",
        log=widgets.FloatLogSlider(value=1, base=10, min=-4, max=0),
        loss=widgets.Dropdown(options=[("null", 1), ("plain", 2)]),
        on=widgets.Checkbox(value=True),
    )
    view.set(log=0.0001, loss=2, on=False)
    for wrong in (dict(log=2.0), dict(loss=3), dict(on=1)):
        with pytest.raises(ValueError, match="is not allowed"):
            view.set(**wrong)


def test_moves_from_two_threads_end_at_the_knobs_values(view):
    def run(values):
        for value in values:
            view.set(top_k=value)

    threads = [
        threading.Thread(target=run, args=(order,))
        for order in ([1, 3, 5], [6, 4, 2])
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert view.title.startswith(f"{view.values['top_k']}.00 experts")


def changed(first, second):
    figure = go.Figure(first)
    bring(figure, picture(first), picture(second))
    return figure


def test_any_figure_becomes_any_other():
    bars = figures.selection_bars([0.6, 0.4], {0}, p=0.5)
    table = figures.heatmap([[1, 2]], "a table")
    effect = figures.effect([1, 2], 0, 3, 1, "above", "undecided", "a", "b")
    both = figures.panels([[bars, effect]], "two")
    for first in (bars, table, effect, both):
        for second in (bars, table, effect, both):
            figure = changed(first, second)
            new = figure.to_plotly_json()["data"]
            for trace, wanted in zip(new, second.data, strict=True):
                wanted = wanted.to_plotly_json()
                assert {k: trace[k] for k in wanted} == wanted
                assert all(trace[k] is None for k in trace if k not in wanted)
            for name in ("shapes", "annotations"):
                assert figure.layout[name] == second.layout[name]
            assert figure.layout.title.text == second.layout.title.text


def test_one_annotation_moves_and_the_others_stay():
    first, second = go.Figure(), go.Figure()
    first.layout.meta, second.layout.meta = {"a": 1, "b": 2}, {"a": 1}
    for figure, text in ((first, "one"), (second, "two")):
        figure.add_annotation(text="same", x=0, y=0)
        figure.add_annotation(text=text, x=1, y=1, font=dict(size=9))
    second.layout.annotations[1].font = dict(color="red")
    figure = changed(first, second)
    assert figure.layout.annotations == second.layout.annotations
    assert figure.layout.meta == {"a": 1}


def test_the_template_is_not_sent_again():
    figure = changed(figures.histogram([1]), figures.histogram([1, 2]))
    assert figure.layout.template.layout.font.size == 13


def test_a_new_height_is_sent_with_a_width_that_follows_the_page(monkeypatch):
    sent = []
    monkeypatch.setattr(
        go.FigureWidget,
        "_send_update_msg",
        lambda *_, relayout_data, **__: sent.append(relayout_data),
    )
    low, high = (go.Figure(layout_height=height) for height in (300, 400))
    figure = go.FigureWidget(low)
    for old, new in ((low, high), (high, low), (low, high)):
        bring(figure, picture(old), picture(new))
        assert picture(figure) == picture(new)
    # plotly.js reads the height first, then that it may choose the width
    assert [[*one.items()] for one in sent] == [
        [("height", height), ("autosize", True)] for height in (400, 300, 400)
    ]


def test_arrays_are_compared_too():
    first = go.Figure(go.Scatter(x=np.arange(3), y=np.arange(3.0)))
    second = go.Figure(go.Scatter(x=np.arange(4), y=np.arange(4.0) ** 2))
    assert list(changed(first, second).data[0].y) == [0, 1, 4, 9]
    assert list(changed(first, first).data[0].y) == [0, 1, 2]


CELL = """\
from ipywidgets import IntSlider
from lab import figures
from lab.explore import explore

def draw(top_k):
    return figures.histogram([0] * top_k + [1])

view = explore(draw, chapter="02", top_k=IntSlider(value=2, min=1, max=8))
view.set(top_k=4)
assert view.title.startswith("4.00 experts")"""


def test_a_run_without_a_front_end_leaves_a_picture_and_no_megabytes(
    tmp_path, monkeypatch
):
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(CELL)]
    )
    # stores widget state, as papermill's command line does
    nbclient.NotebookClient(notebook, timeout=120).execute()
    shown = [out["data"] for out in notebook.cells[0].outputs if "data" in out]
    assert [list(data) for data in shown] == [
        ["application/vnd.plotly.v1+json"]
    ]
    assert len(nbformat.writes(notebook)) < 100_000


def test_a_page_without_its_kernel_says_how_to_see_the_view(monkeypatch):
    monkeypatch.setenv("JPY_SESSION_NAME", "chapter.ipynb")
    view = explore(draw, chapter="02", **knobs())
    # GitHub and nbconvert find only this in a notebook that JupyterLab saved
    text = view._box._repr_mimebundle_()["text/plain"]
    assert text.startswith("Run this cell")
    assert text.endswith("kernel.")


def test_the_command_names_what_the_drawing_depends_on_and_no_knob_moves():
    view = explore(
        lambda name: figures.histogram([1]),
        chapter="39",
        fixed={"leaves": 6},
        name=widgets.Dropdown(options=["one", "two"]),
    )
    assert view.command.endswith(" out.ipynb -p leaves 6 -r name one")
