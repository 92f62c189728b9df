"""A knob of several tick boxes, moved by hand and by code."""

import ipywidgets as widgets
import pytest

from lab import figures
from lab.explore import explore
from lab.ticks import Ticks

NAMES = ("top-k", "top-p", "THOR")


def boxes(ticks):
    return {box.description: box for box in ticks.children[1].children}


def test_the_value_lists_what_is_ticked_in_the_order_of_the_names():
    ticks = Ticks(NAMES, "THOR,top-k")
    assert ticks.value == "top-k, THOR"
    assert [b.value for b in boxes(ticks).values()] == [True, False, True]
    boxes(ticks)["top-p"].value = True
    boxes(ticks)["THOR"].value = False
    assert ticks.value == "top-k, top-p"


def test_setting_the_value_is_one_change_and_ticks_the_boxes():
    ticks, seen = Ticks(NAMES, "top-k"), []
    ticks.observe(lambda change: seen.append(change["new"]), "value")
    ticks.value = "top-p, THOR"
    assert [n for n, b in boxes(ticks).items() if b.value] == ["top-p", "THOR"]
    assert seen == ["top-p, THOR"]
    ticks.value = ""
    assert not any(box.value for box in boxes(ticks).values())


@pytest.mark.parametrize("live", [False, True])
def test_explore_takes_ticks_and_refuses_a_stranger(monkeypatch, live):
    if live:
        monkeypatch.setenv("JPY_SESSION_NAME", "x.ipynb")

    def draw(who, k):
        return figures.bars({who or "nobody": k}, f"{who} at {k}", "x")

    view = explore(
        draw,
        chapter="02",
        who=Ticks(NAMES, "top-k"),
        k=widgets.IntSlider(1, min=1, max=4),
    )
    view.set(who="THOR, top-k")
    assert view.title == "top-k, THOR at 1"
    assert "-r who 'top-k, THOR' -p k 1" in view.command
    with pytest.raises(ValueError, match="use any of top-k, top-p, THOR"):
        view.set(who="top-q")
    assert view.title == "top-k, THOR at 1"
