"""The plane of cost and quality, and the bars of how work is shared."""

import pytest

from lab import figures
from lab.figures.pareto import pareto, shares
from lab.figures.theme import voices

CURVES = {"a": ([0, 50, 100], [0.5, 0.7, 0.8]), "b": ([], []), "c": ([1], [1])}


def plane():
    return pareto(
        CURVES,
        {"small": (0, 0.5), "poor": (10, 0.1), "large": (100, 0.8)},
        (50, 0.7),
        "a",
        "a title",
        bound={"c"},
        mixing=([0, 100], [0.5, 0.8]),
    )


def test_the_best_curve_is_the_boldest_and_the_bound_is_dashed():
    mixing, a, b, c, points, here = plane().data
    assert a.line.width > 2 * b.line.width
    assert a.name == "<b>a</b>" and c.line.dash == "dash"
    assert list(mixing.x) == [0, 100] and list(here.y) == [0.7]


def test_a_curve_without_a_point_keeps_its_place_and_hides_its_name():
    shown = [trace.showlegend for trace in plane().data[1:4]]
    assert shown == [True, False, True]


def test_a_point_below_the_picture_becomes_a_triangle_on_its_edge():
    figure = plane()
    points = figure.data[4]
    assert list(points.marker.symbol) == ["square", "triangle-down", "square"]
    assert points.y[1] == figure.layout.yaxis.range[0]
    assert points.text[1] == "poor: 0.100 at 10"


def test_shares_name_every_part_in_order():
    figure = shares({"first": 75.0, "second": 25.0}, "who works")
    assert list(figure.layout.yaxis.ticktext) == ["first", "second"]
    assert list(figure.data[0].text) == ["75 %", "25 %"]
    assert voices(figure)[0] == "who works"


@pytest.mark.parametrize("build", [plane, lambda: shares({"x": 1.0}, "t")])
def test_both_can_be_panels(build):
    panel = build()
    both = figures.panels([[panel], [shares({"x": 100.0}, "u")]], "two")
    assert len(both.data) == len(panel.data) + 1


def test_a_panel_may_ask_for_more_room():
    low = figures.panels([[shares({"x": 1.0}, "t")]], "one").layout.height
    high = figures.panels([[plane()]], "one").layout.height
    assert high - low > 150
