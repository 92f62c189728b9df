"""The picture of who is busy when."""

import plotly.graph_objects as go

from lab import figures
from lab.figures.timeline import timeline

KINDS = {"loads": "best", "runs": "kept", "waits": "cut"}
LANES = {
    "link": [("loads", 0.0, 2.0, "expert 3"), ("loads", 2.0, 4.0, "expert 1")],
    "GPU": [("runs", 2.5, 3.0, "expert 3")],
}


def test_every_job_is_a_bar_from_its_start_to_its_end():
    figure = timeline(LANES, KINDS, "a title")
    loads, runs, waits = figure.data
    assert list(loads.base) == [0.0, 2.0] and list(loads.x) == [2.0, 2.0]
    assert list(loads.y) == ["link", "link"]
    assert (list(runs.base), list(runs.x)) == ([2.5], [0.5])
    assert runs.customdata[0] == ["expert 3", 2.5, 3.0]
    # nothing to see but an entry in the legend
    assert (list(waits.x), list(waits.y)) == ([0], [None])


def test_the_legend_names_every_kind_even_without_a_job():
    figure = timeline(LANES, KINDS, "a title")
    assert [t.name for t in figure.data if t.showlegend] == list(KINDS)


def test_plotly_knows_every_word_of_it():
    # figures are built without this check, which is too slow for a slider
    go.Figure(timeline(LANES, KINDS, "a title").to_dict())


def test_the_first_worker_is_on_top_and_the_time_ends_where_asked():
    figure = timeline(LANES, KINDS, "a title", ends=3.0)
    assert figure.layout.yaxis.categoryarray == ("GPU", "link")
    assert figure.layout.xaxis.range == (0, 3.0)
    assert timeline(LANES, KINDS, "t").layout.xaxis.range == (0, 4.0)


def test_no_job_at_all_still_makes_a_picture():
    figure = timeline({"link": [], "GPU": []}, KINDS, "nothing")
    assert figure.layout.xaxis.range == (0, 1)


def test_it_can_be_a_panel():
    panel = timeline(LANES, KINDS, "a title")
    both = figures.panels([[panel], [figures.bars({"a": 1.0}, "t", "%")]], "x")
    assert len(both.data) == len(panel.data) + 1
