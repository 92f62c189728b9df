"""Curves against a baseline's line, and gaps with their intervals."""

import pytest

from lab import figures
from lab.figures.fronts import fronts, gaps


def at(x, y, spread=0.1):
    return dict(x=x, y=y, low=y - spread, high=y + spread, hover=f"{x}, {y}")


CURVES = {
    "top-k": [at(1, 3.0), at(2, 2.5), at(8, 2.0)],
    "a": [at(2, 2.6), at(1, 3.2)],
    "b": [at(2, 2.61)],
}
AMONG = ("top-k", "a", "b", "c")


def plane(curves=CURVES, here=None):
    return fronts(
        curves, "top-k", "t", here=here, among=AMONG, ticks=(1, 2, 4, 8)
    )


def test_the_line_is_straight_in_compute_whatever_the_axis():
    line = plane().data[0]
    halfway = list(line.x).index(5.0)
    assert line.y[halfway] == pytest.approx(2.25)
    assert line.x[0] == 1 and line.x[-1] == 8


def test_a_curve_keeps_its_look_whoever_else_is_there():
    full, alone = plane(), plane({"b": CURVES["b"]})
    assert len(full.data) == len(alone.data)
    one, other = full.data[3], alone.data[3]
    assert one.name == other.name == "b"
    assert one.marker.color == other.marker.color
    assert len(alone.data[2].x) == 0 and len(alone.data[0].x) == 0
    looks = {(t.marker.color, t.marker.symbol) for t in full.data[1:-1]}
    assert len(looks) == len(AMONG)


def test_names_that_would_meet_are_moved_apart():
    notes = {one.text: one for one in plane().layout.annotations}
    assert set(notes) == set(CURVES)
    assert notes["b"].y > notes["a"].y + 0.01
    assert notes["a"].y == 2.6


def test_nothing_ticked_still_shows_where_we_are():
    figure = plane({}, here=at(4, 2.2))
    assert list(figure.data[-1].x) == [4]
    low, high = figure.layout.yaxis.range
    assert low < 2.2 < high


def test_an_axis_is_never_without_ticks():
    # of the ticks 1, 2, 4 and 8 only 4 lies between 3 and 7
    narrow = plane({"a": [at(3, 2.6), at(7, 2.2)]})
    assert narrow.layout.xaxis.tickmode == "auto"
    for figure in (plane(), plane({}, here=at(4, 2.2))):
        assert figure.layout.xaxis.tickmode == "array"


def test_gaps_are_coloured_by_the_side_of_their_interval():
    figure = gaps(
        {"good": (-1, -2, -0.5), "so": (0, -1, 1), "bad": (2, 1, 3)},
        "t",
        unit="bits",
    )
    best, open_, cut = (list(trace.customdata) for trace in figure.data)
    assert (best, open_, cut) == (["good"], ["so"], ["bad"])
    assert list(figure.data[2].error_x.array) == [1]
    assert list(figure.layout.yaxis.ticktext) == ["good", "so", "bad"]


def test_both_can_be_panels():
    both = figures.panels([[plane()], [gaps({"x": (0, -1, 1)}, "g")]], "two")
    assert len(both.data) == len(plane().data) + 3
