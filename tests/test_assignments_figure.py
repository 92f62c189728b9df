"""The table of choices: one colour for each server."""

import pytest

from lab import figures
from lab.figures.assignments import assignments
from lab.figures.theme import COLOURS


def table(**more):
    return figures.assignments(
        [[0, 1, None], [1, 1, 0]], ["anna", "boris"], ["first", "second"],
        "a \n", "who serves", **more,
    )  # fmt: skip


def test_each_server_has_one_flat_colour():
    (cells,) = table().data
    shades = [shade for _, shade in cells.colorscale]
    assert shades[0] == shades[1] != shades[2] == shades[3]
    assert [edge for edge, _ in cells.colorscale] == [0, 0.5, 0.5, 1]
    # whole numbers fall in the middle of their colour
    assert (cells.zmin, cells.zmax) == (-0.5, 1.5)
    assert list(cells.colorbar.ticktext) == ["anna", "boris"]


def test_letters_that_nobody_sees_are_shown():
    figure = table()
    assert list(figure.layout.xaxis.ticktext) == ["a", "␣", "⏎"]
    assert figure.data[0].text[0][2] == ""


def test_a_column_without_a_name_has_no_tick():
    x = assignments([[0] * 3], ["a"], ["row"], ["", "b", ""], "t").layout.xaxis
    assert (list(x.tickvals), list(x.ticktext)) == ([1], ["b"])


def test_a_tip_says_more():
    tips = [["1.0", "0.5", ""], ["0.7", "0.8", "0.9"]]
    assert table(tips=tips).data[0].text[1][2] == "anna 0.9"


def test_more_servers_than_colours_are_refused():
    with pytest.raises(ValueError, match="7 servers"):
        figures.assignments([[0]], list("abcdefg"), ["r"], "c", "t")


def test_servers_have_the_colours_that_are_asked_for():
    figure = assignments(
        [[0, 1]], ["a", "b"], ["row"], "xy", "t", colours=("dropped", "cut"),
        room=90,
    )  # fmt: skip
    (cells,) = figure.data
    used = [shade for _, shade in cells.colorscale]
    assert used == [COLOURS["dropped"]] * 2 + [COLOURS["cut"]] * 2
    assert figure.layout.meta["room"] == 90
    with pytest.raises(ValueError, match="give 1 to 1"):
        assignments([[0]], ["a", "b"], ["r"], "x", "t", colours=("cut",))
