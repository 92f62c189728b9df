"""The table of choices: one colour for each server."""

import pytest

from lab import figures


def table(**more):
    return figures.assignments(
        [[0, 1, None], [1, 1, 0]], ["anna", "boris"], ["first", "second"],
        "a \n", "who serves", **more,
    )  # fmt: skip


def test_each_server_has_one_flat_colour():
    (cells,) = table().data
    shades = [shade for _, shade in cells.colorscale]
    assert shades[0] == shades[1] != shades[2] == shades[3]
    # whole numbers fall in the middle of their colour
    assert (cells.zmin, cells.zmax) == (-0.5, 1.5)
    assert list(cells.colorbar.ticktext) == ["anna", "boris"]


def test_letters_that_nobody_sees_are_shown():
    figure = table()
    assert list(figure.layout.xaxis.ticktext) == ["a", "␣", "⏎"]
    assert figure.data[0].text[0][2] == ""


def test_a_tip_says_more():
    tips = [["1.0", "0.5", ""], ["0.7", "0.8", "0.9"]]
    assert table(tips=tips).data[0].text[1][2] == "anna 0.9"


def test_more_servers_than_colours_are_refused():
    with pytest.raises(ValueError, match="7 servers"):
        figures.assignments([[0]], list("abcdefg"), ["r"], "c", "t")
