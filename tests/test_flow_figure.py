"""The picture of items that pass from stage to stage."""

from lab import figures
from lab.figures.flow import WIDTHS, stage_flow

GROUPS = [[0, 1], [1, 0], [0, 1]]
FLOWS = [[[8, 0], [0, 4]], [[1, 1], [0, 2]]]


def drawn_lines(figure, kind):
    """How many lines of one kind there are, by width."""
    traces = [t for t in figure.data if t.legendgroup == kind]
    assert [t.line.width for t in traces] == list(WIDTHS)
    return [sum(x is None for x in t.x) for t in traces]


def test_a_flow_between_groups_is_drawn_as_a_change():
    figure = stage_flow(FLOWS, GROUPS, "a title")
    # 8 and 4 change group in the first step, 1 and 2 in the second; 1 stays
    assert drawn_lines(figure, "changes the group") == [0, 2, 1, 1]
    assert drawn_lines(figure, "stays on its group") == [0, 1, 0, 0]


def test_a_thin_flow_is_left_out():
    few = stage_flow(FLOWS, GROUPS, "a title", least=0.6)
    assert sum(drawn_lines(few, "stays on its group")) == 0
    assert sum(drawn_lines(few, "changes the group")) == 3


def test_a_flow_of_the_least_share_is_drawn():
    figure = stage_flow([[[17, 3], [0, 0]]], GROUPS[:2], "a title", least=0.15)
    assert sum(drawn_lines(figure, "stays on its group")) == 1


def test_items_stand_sorted_by_group():
    items = stage_flow(FLOWS, GROUPS, "a title").data[-1]
    rows = zip(items.x, items.text, items.y, strict=True)
    heights = {(stage, name): height for stage, name, height in rows}
    assert heights[0, "0"] < heights[0, "1"]
    assert heights[1, "0"] > heights[1, "1"]


def test_no_flow_at_all_still_makes_a_picture():
    figure = stage_flow([[[0, 0], [0, 0]]], GROUPS[:2], "nothing")
    assert sum(drawn_lines(figure, "changes the group")) == 0


def test_it_can_be_a_panel():
    panel = stage_flow(FLOWS, GROUPS, "a title", group="GPU")
    both = figures.panels([[panel], [figures.bars({"a": 1.0}, "t", "%")]], "x")
    assert len(both.data) == len(panel.data) + 1
    assert both.layout.height > 550


def test_the_legend_names_both_kinds_even_without_a_line():
    figure = stage_flow(FLOWS, [[0, 0]] * 3, "all stay", group="GPU")
    named = [t.name for t in figure.data if t.name]
    assert named == ["changes the GPU", "stays on its GPU"]
