"""Each archetype's title says what its data say, and all look alike."""

import subprocess
import sys

import plotly.graph_objects as go
import plotly.io as pio
import pytest
import torch

from lab import figures
from lab.figures.text import broken
from lab.figures.theme import voices

P = [0.05, 0.31, 0.04, 0.22, 0.16, 0.09, 0.02, 0.11]
ARMS = {
    "top-1": ([1, 1, 1], [2.7, 2.6, 2.8]),
    "top-2": ([2, 2, 2], [2.5, 2.4, 2.6]),
    "ours": ([1.5, 1.4, 1.6], [2.55, 2.45, 2.65]),
}
TABLES = {1: [[1, 0], [0, 1]], 2: [[0.5, 0.5], [0.3, 0.7]]}

# every archetype at a small size; this is also the gallery of examples
EXAMPLES = {
    "selection_bars": lambda: figures.selection_bars(P, {1, 3}, p=0.4),
    "histogram": lambda: figures.histogram([1, 6, 3], expected=1.0),
    "heatmap": lambda: figures.heatmap([[1, 2], [3, None]], "four cells"),
    "load_heatmap": lambda: figures.load_heatmap([[10, 30], [20, 20]]),
    "text_strip": lambda: figures.text_strip(
        "a <b> & c", [1, 2, 3, 1, 2, 3, 1, 2, 3], "experts", "some text"
    ),
    "trade_off": lambda: figures.trade_off(ARMS, ("top-1", "top-2"), "ours"),
    "curves": lambda: figures.curves(
        [0, 1, 2], {"a": [[1, 2, 3], [3, 2, 1]], "b": [1, 1, 1]}, "t", "x", "y"
    ),
    "bars": lambda: figures.bars({"ours": 1.0, "theirs": 3.5}, "two", "s"),
    "effect": lambda: figures.effect(
        [1.0, 2.0, 3.0], -0.5, 4.5, 0.0, "above", "undecided", "gain", "bits"
    ),
    "roofline": lambda: figures.roofline(
        {"ours": 20.0, "torch": 40.0}, 10.0, "gate", "a machine", "2026-11-24"
    ),
    "tour_map": lambda: figures.tour_map(
        [[0, 0], [4, 0], [4, 3], [0, 3]],
        [0, 2, 1, 3],
        "four cities",
        heat=[(0, 1, 0.5), (1, 3, 0.1)],
        best=[0, 1, 2, 3],
    ),
    "network": lambda: figures.network(
        [[0, 0], [4, 0], [4, 3], [0, 3]],
        [(0, 1), (1, 2), (2, 3)],
        "four vertices",
        groups={"core": ("kept", [1, 2]), "rest": ("best", [0, 3])},
        names="0123",
        bold={"a match": ("mean", [(1, 2)])},
        dotted={"no edge": ("baseline", [(0, 3)])},
        arrows=[(0, 3)],
    ),
    "road_map": lambda: figures.road_map(
        [[0, 0], [4, 0], [4, 3]],
        [(0, 1), (1, 0), (1, 2)],
        [0.4, 1.2, 2.0],
        [False, True, False],
        "three roads",
    ),
    "horizon": lambda: figures.horizon(
        [[2], [0, 3], [1]],
        [(2, 0), (2, 3), (0, 1), (0, 3)],
        ["a", "b", "c", "d"],
        {2, 0, 3},
        {2},
        "four actors",
        public=[3],
    ),
    "answers": lambda: figures.answers(
        {"a": 30.0, "beyond": 70.0},
        {"a": 100.0, "beyond": 0.0},
        {"a"},
        "two who answer",
    ),
    "patch_grids": lambda: figures.patch_grids(
        [[0, 1, 2, 3]] * 4, [[[0, 1], [2, 1]]], ["a"], "four patches"
    ),
    "block_grid": lambda: figures.block_grid(6, 3, 4, 2, 48),
    "steps": lambda: figures.steps({"select": "top-2"}, "five steps"),
    "first_look": lambda: figures.first_look(
        TABLES, "k", {1: "one each", 2: "two each"}, ["t", "h"], ["A", "B"]
    ),
}


@pytest.fixture(params=EXAMPLES, ids=str)
def figure(request):
    return EXAMPLES[request.param]()


def test_plotly_knows_every_word_of_every_figure(figure):
    # figures are built without this check, which is too slow for a slider
    go.Figure(figure.to_dict())


def test_panels_are_checked_likewise():
    examples = EXAMPLES["text_strip"](), EXAMPLES["trade_off"]()
    go.Figure(figures.panels([[e] for e in examples], "two").to_dict())
    wrong = figures.drawn([dict(type="bar", x=[1], colour="red")], "wrong")
    with pytest.raises(ValueError, match="colour"):
        go.Figure(wrong.to_dict())


def test_every_figure_has_a_title_and_a_height(figure):
    assert isinstance(figure, go.Figure)
    assert voices(figure)[0]
    assert 150 <= figure.layout.height <= 620


# no axes, or named by the caller
BARE = {
    "answers", "heatmap", "horizon", "network", "patch_grids", "road_map",
    "steps", "text_strip",
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(set(EXAMPLES) - BARE))
def test_every_axis_is_named_unless_its_ticks_are_words(name):
    figure = EXAMPLES[name]()
    assert figure.layout.xaxis.title.text
    if name not in ("bars", "effect", "roofline"):
        assert figure.layout.yaxis.title.text


def test_every_figure_travels_as_json(figure):
    assert pio.from_json(figure.to_json()).data


def test_a_figure_may_be_a_panel():
    names = [n for n in EXAMPLES if n != "first_look"]
    for name in names:
        panel = EXAMPLES[name]()
        both = figures.panels([[panel, EXAMPLES["histogram"]()]], "two")
        assert len(both.data) == len(panel.data) + 3
        assert len(both.layout.shapes) == len(panel.layout.shapes)


def test_selection_bars_sort_and_colour():
    figure = figures.selection_bars(P, {1, 3}, p=0.4, item="the letter e")
    kept, null, dropped, sums, cut = figure.data
    assert list(kept.x) == [0, 1] and list(kept.y) == [0.31, 0.22]
    assert list(kept.customdata) == ["1", "3"]
    assert len(null.x) == 0 and len(dropped.x) == 6
    assert list(sums.y)[:2] == pytest.approx([0.31, 0.53])
    assert list(cut.y) == [0.4, 0.4]
    assert kept.marker.color == figures.COLOURS["kept"]
    assert voices(figure) == (
        "The letter e uses 2 of 8 experts",
        "they hold 0.53 of the probability; "
        "the smallest set that reaches p = 0.4",
    )


def test_selection_bars_tell_nulls_from_experts():
    figure = figures.selection_bars([0.2, 0.3, 0.1, 0.4], {1, 3}, nulls=[2, 3])
    assert list(figure.data[1].y) == [0.4]
    assert "1 of 2 experts and 1 that does nothing" in voices(figure)[0]


def test_the_name_of_a_large_p_is_not_cut_off():
    figure = figures.selection_bars(P, range(8), p=1.0)
    cut = next(t for t in figure.data if t.text and "p = 1" in t.text)
    assert cut.cliponaxis is False


def test_ties_are_sorted_by_the_lowest_index():
    figure = figures.selection_bars([0.25] * 4, {0, 1})
    assert list(figure.data[0].x) == [0, 1]


def test_the_number_of_traces_does_not_depend_on_the_values():
    one = figures.selection_bars(P, {1}, p=0.4)
    two = figures.selection_bars(P, {1, 3}, nulls=[3])
    assert len(one.data) == len(two.data)
    assert len(figures.histogram([1]).data) == len(
        figures.histogram([1, 2], expected=1).data
    )


def test_a_histogram_counts_from_its_start():
    figure = figures.histogram([1, 6, 3], expected=1.5, start=1)
    assert "2.20 experts per token on average, 1.50 expected" in (
        figure.layout.title.text
    )
    assert list(figure.data[0].y) == pytest.approx([10, 60, 30])


def test_the_numbers_of_thin_bars_keep_their_size():
    few, many = figures.histogram([1, 3]), figures.histogram([0] * 15 + [2])
    assert few.data[0].text == ("25 %", "75 %")
    assert many.data[0].text[-1] == "100"
    assert many.data[0].constraintext == "none"


def test_the_fullest_expert_is_named():
    figure = figures.load_heatmap(torch.tensor([[10.0, 30.0], [20.0, 20.0]]))
    assert voices(figure) == (
        "The fullest expert carries 1.50 times its fair share",
        "it is expert 1 of layer 0; numbers in % of tokens",
    )


def test_a_table_that_shows_its_numbers_has_no_colour_bar():
    small = figures.heatmap([[1, 2]], "two", unit="%")
    assert small.data[0].showscale is False
    assert voices(small) == ("two", "numbers in %")
    large = figures.heatmap([[1] * 20], "many", unit="%")
    assert large.data[0].showscale
    assert large.data[0].colorbar.title.text == "%"
    assert voices(large) == ("many", "")


def test_an_idle_layer_is_drawn_too():
    figures.load_heatmap([[0, 0], [0, 0]])


def test_a_table_of_zeros_is_pale():
    cells = figures.heatmap([[0, 0]], "t", low=0, high=0.0).data[0]
    assert (cells.zmin, cells.zmax) == (0, 1)


def test_text_breaks_at_spaces_and_loses_nothing():
    text = "the cat\n sat on a verylongwordindeed and so on "
    lines = broken(text, 10)
    assert "".join(lines) == text
    assert max(map(len, lines)) <= 10
    assert lines[0] == "the cat\n"


def test_text_keeps_each_value_with_its_character():
    text = "ab <cd&\nef"
    figure = figures.text_strip(text, range(len(text)), "u", "t", width=4)
    strip, pairs = (figure.data[0].hovertext, figure.data[0].z), {}
    for signs, values in zip(*strip, strict=True):
        pairs |= {
            v: s for s, v in zip(signs, values, strict=True) if v is not None
        }
    assert [pairs[i] for i in range(len(text))] == [
        "a", "b", " ", "&lt;", "c", "d", "&amp;", "⏎", "e", "f",
    ]  # fmt: skip
    drawn = [sign for line in figure.data[0].text for sign in line if sign]
    assert "".join(drawn) == "ab&lt;cd&amp;⏎ef"


@pytest.mark.parametrize("most, sign", [(3, ""), (4.5, "≥ ")])
def test_the_colour_bar_says_what_lies_above_it(most, sign):
    figure = figures.text_strip("abc", [0, 1, most], "bits", "t", high=3)
    bar = figure.data[0].colorbar
    assert (bar.tickprefix, bar.showtickprefix) == (sign, "last")
    assert figure.data[0].zmax == 3


def test_text_without_a_value_for_each_character_is_refused():
    with pytest.raises(ValueError, match="2 values for 3 characters"):
        figures.text_strip("abc", [1, 2], "u", "t")


def test_the_trade_off_measures_against_the_line():
    figure = figures.trade_off(ARMS, ("top-1", "top-2"), "ours", digits=2)
    assert (
        "2.55 bits per character at 1.5 experts per token, 0.05 below"
        in (voices(figure)[0])
    )


def test_curves_draw_a_band_from_lowest_to_highest():
    band, line, _, _ = EXAMPLES["curves"]().data
    assert list(line.y) == [2, 2, 2]
    assert list(band.y) == [3, 2, 3, 1, 2, 1]


def test_only_a_few_whole_numbers_are_all_labelled():
    def step(x):
        figure = figures.curves(x, {"a": x}, "steps", "layers apart", "y")
        return figure.layout.xaxis.dtick

    assert step([1, 2, 3, 4, 5]) == step([0.0, 1.0, 2.0]) == 1
    for x in (range(20), [0, 2, 3], [0.5, 1.5], [3]):
        assert step(list(x)) is None


def test_curves_on_logarithmic_axes_are_labelled_where_measured():
    figure = figures.curves(
        [1, 4, 16], {"a": [1, 2, 3]}, "t", "x", "y", marks={"m": 4}, log="x"
    )
    assert figure.layout.xaxis.type == "log"
    assert list(figure.layout.xaxis.tickvals) == [1, 4, 16]
    assert figure.layout.yaxis.type is None
    # on a log axis plotly wants a line's value, but a text's exponent
    assert figure.layout.shapes[0].x0 == 4
    assert figure.layout.annotations[0].x == pytest.approx(0.60206)


def test_bars_stand_out_where_asked_and_show_the_bound():
    figure = figures.bars({"a": 1, "b": 3.456}, "t", "s", best="b", at=1)
    (row,) = figure.data
    assert list(row.text) == ["1.00", "3.46"]
    assert list(row.marker.color) == [
        figures.COLOURS["baseline"],
        figures.COLOURS["best"],
    ]
    assert figure.layout.shapes[0].x0 == 1
    assert not EXAMPLES["bars"]().layout.shapes


def test_bars_of_nothing_start_at_zero_and_have_no_sign():
    figure = figures.bars({"a": 0, "b": 0.0}, "t", "s")
    assert figure.layout.xaxis.range == (0, 1)
    figure = figures.bars({"a": -0.001, "b": 2}, "t", "s")
    assert figure.data[0].text == ("0.00", "2.00")


@pytest.mark.parametrize("side", ["above", "below"])
def test_the_claimed_side_is_named_inside_the_figure(side):
    sign = 1 if side == "above" else -1
    # beyond the threshold there is room for the label, or hardly any room
    for effect, beyond in ((40 * sign, True), (-40 * sign, False)):
        seen = [effect] * 3
        figure = figures.effect(seen, *seen[:2], 0, side, "word", "it", "%")
        (label,) = figure.layout.annotations
        # it begins or ends at the line, which never crosses it
        assert label.x == 0
        assert (label.xanchor == "left") == ((side == "above") == beyond)
        assert ("→" in label.text) == (side == "above" and not beyond)
        assert ("←" in label.text) == (side == "below" and not beyond)
        assert (label.y, label.yanchor) == (1, "top")


def test_an_effect_shows_its_verdict_and_its_seeds():
    figure = EXAMPLES["effect"]()
    assert voices(figure)[0] == "Undecided: gain = 2.0 bits"
    assert list(figure.data[1].x) == [1, 2, 3]


def test_the_roofline_says_how_near_the_floor_is():
    figure = EXAMPLES["roofline"]()
    assert "50 % of what memory allows" in voices(figure)[0]
    assert voices(figure)[1] == "recorded 2026-11-24 on a machine"


def test_the_roofline_of_a_reference_does_not_pass_for_a_kernel():
    figure = figures.roofline({"reference": 1358.0}, 4.57, "sum", "a CPU")
    assert voices(figure)[0] == "sum in PyTorch: 1\u202f358 µs, floor 4.57 µs"


def test_a_block_grid_of_many_cells_is_numbered_by_program():
    few = figures.block_grid(6, 20, 4, 4, 48)
    many = figures.block_grid(70, 150, 64, 64, 48)
    assert few.layout.xaxis.dtick == 1 and few.data[0].xgap == 2
    assert many.layout.xaxis.dtick == 64
    assert many.data[0].xgap < 1 and many.data[0].ygap < 1


def test_the_block_grid_masks_what_lies_past_the_edge():
    figure = EXAMPLES["block_grid"]()
    cells = [c for row in figure.data[0].z for c in row]
    assert len(cells) == 8 * 4
    assert cells.count(0) == 8 * 4 - 6 * 3
    assert "4 programs of 4 tokens x 2 experts: 48 bytes" in voices(figure)[0]


@pytest.mark.parametrize("columns", [6, 10, 12])
def test_programs_beside_and_below_each_other_differ(columns):
    figure = figures.block_grid(6, columns, 1, 2, 48)
    cells = [row[::2] for row in figure.data[0].z]
    for row in cells:
        assert all(a != b for a, b in zip(row, row[1:], strict=False))
    for one, other in zip(cells, cells[1:], strict=False):
        assert all(a != b for a, b in zip(one, other, strict=True))
    tips = [tip for row in figure.data[0].text for tip in row[::2]]
    assert tips == [f"program {i}" for i in range(3 * columns)]


def test_one_column_is_no_plural():
    title = voices(figures.block_grid(6, 3, 4, 1, 48))[0]
    assert title.startswith("6 programs of 4 tokens x 1 expert: 48 bytes")


def test_a_first_look_at_counts_tells_them_apart():
    tables = {1: [[1, 0]], 3: [[3, 2]]}
    figure = figures.first_look(tables, "k", {1: "", 3: "t"}, ["a"], [0, 1])
    assert figure.data[0].zmax == 3
    assert list(figure.data[0].text[0]) == ["1", "·"]
    assert all(frame.data[0].zmax == 3 for frame in figure.frames)
    assert EXAMPLES["first_look"]().data[0].zmax == 1


def test_the_first_look_has_a_frame_and_a_step_for_each_value():
    figure = EXAMPLES["first_look"]()
    assert [frame.name for frame in figure.frames] == ["1", "2"]
    assert [s.label for s in figure.layout.sliders[0].steps] == ["1", "2"]
    assert figure.frames[1].layout.title.text == "two each"


def test_panels_keep_apart():
    three = [EXAMPLES[n]() for n in ("histogram", "heatmap", "effect")]
    figure = figures.panels([three[:2], three[2:]], "three")
    one, two, below = (figure.layout[f"xaxis{i}"].domain for i in ("", 2, 3))
    assert one[1] < two[0] and two[1] <= 1 and below == (0, 1)
    assert figure.layout.yaxis3.domain[1] < figure.layout.yaxis.domain[0]
    shapes = {(s.xref, s.yref) for s in figure.layout.shapes}
    assert shapes == {("x3", "y3 domain")}


def test_a_heading_stands_above_the_names_of_marks():
    line = {"a": [[1, 2]]}
    marked = figures.curves([0, 1], line, "marked", "x", "y", marks={"m": 1})
    plain = figures.curves([0, 1], line, "plain", "x", "y")
    both = figures.panels([[marked], [plain]], "two").layout.annotations
    mark, above, usual = both
    assert mark.text == "m" and mark.yanchor == above.yanchor == "bottom"
    assert above.yshift >= usual.yshift + mark.font.size


def test_long_titles_are_broken_and_get_room():
    short = figures.heatmap([[1]], "short")
    long = figures.heatmap([[1]], "a rather long title " * 9)
    assert long.layout.title.text.count("<br>") >= 2
    assert long.layout.margin.t > short.layout.margin.t + 30


def test_a_broken_title_can_be_put_together_again():
    title = "word " * 14 + "look-ahead"
    assert voices(figures.heatmap([[1]], title))[0] == title


def test_a_role_keeps_its_colour():
    assert figures.colour("kept") == "#0072B2"
    assert figures.colour("#123456") == "#123456"


def test_a_tour_is_split_by_what_the_best_one_shares():
    square = [[0, 0], [4, 0], [4, 3], [0, 3]]
    figure = figures.tour_map(
        square, [0, 2, 1, 3], "t", heat=[(0, 1, 0.01)], best=[0, 1, 2, 3]
    )
    lines = {t.name: t for t in figure.data if t.mode == "lines"}
    # three numbers an edge: two ends and the lifted pen
    assert len(lines["tour, as in the best one"].x) == 2 * 3
    assert len(lines["tour, elsewhere"].x) == 2 * 3
    heat = [t for t in figure.data if t.name == "heat"]
    assert not any(x is not None for t in heat for x in t.x)
    assert not any(t.showlegend for t in heat)
    alone = figures.tour_map(square, [0, 2, 1, 3], "t")
    assert sum(len(t.x) for t in alone.data if t.name == "tour") == 4 * 3


def test_a_horizon_lights_what_is_seen_and_whose_list_is_known():
    figure = EXAMPLES["horizon"]()
    there = {t.name: list(t.customdata) for t in figure.data[2:5]}
    assert there == {
        "the product": ["c"],
        "in view": ["a", "d"],
        "beyond the horizon": ["b"],
    }
    dark, lit = figure.data[:2]
    # the way within a row makes a bow above it
    assert list(dark.y) == [1, 2, None, 1, 0.9, 0.85, 0.9, 1, None]
    assert list(lit.x) == [0.5, 0.25, None, 0.5, 0.75, None]
    # a row that is too long for its names goes without
    long = figures.horizon([[0], [1, 2]], [], ["x", "y" * 60, "z" * 60],
                           {0}, {0}, "t")  # fmt: skip
    assert [list(t.text) for t in long.data[2:5]] == [["x"], [], ["", ""]]
    assert figure.layout.shapes[0].y0 == 1.5
    (ring,) = (t for t in figure.data if t.name == "discloses")
    assert list(ring.x) == [0.75]
    far = figures.horizon([[0], [1]], [(0, 1)], "ab", {0, 1}, {0}, "t", h=1)
    assert not far.layout.shapes and not far.layout.annotations
    assert not far.data[4].showlegend


def test_answers_are_grey_out_of_view_and_alike_names_stay_apart():
    names = ["one-and-the-same-beginning-" + c for c in "ab"]
    values = dict(zip(names, (1.0, 2.0), strict=True))
    figure = figures.answers(values, values, {names[0]}, "t")
    bars, marks = figure.data
    shades = figures.COLOURS["kept"], figures.COLOURS["dropped"]
    assert tuple(bars.marker.color) == shades
    assert list(bars.y) == list(marks.y) == [0, 1]
    assert all(len(t) <= 22 for t in figure.layout.yaxis.ticktext)


def test_a_road_map_keeps_to_the_right_and_shows_what_was_widened():
    points, links = [[0, 0], [10, 0]], [(0, 1), (1, 0)]
    figure = figures.road_map(points, links, [1.2, 0.2], [True, False], "t")
    band, *levels = [t for t in figure.data if t.mode == "lines"]
    west, east = (t for t in levels if len(t.x) > 1)
    assert list(east.x[1:]) == [0, 10, None]
    assert list(west.x[1:]) == [10, 0, None]
    assert east.y[1] < 0 < west.y[1] and east.line.color != west.line.color
    # the band lies behind the widened one
    assert (band.x, band.y) == (east.x, east.y)
    assert band.line.width > 2 * east.line.width
    # one entry for each level, with or without a road
    named = [t.name for t in figure.data if t.mode == "lines"]
    assert len(named) == len(set(named)) == 5
    empty = figures.road_map(points, links, [0, 0], [False, False], "t")
    assert len(empty.data) == len(figure.data)


def test_heat_has_one_name_whatever_its_levels():
    square = [[0, 0], [4, 0], [4, 3], [0, 3]]
    for value in (0.1, 0.3, 1.0):
        heat = [(0, 1, value)]
        figure = figures.tour_map(square, [0, 1, 2, 3], "t", heat=heat)
        named = [t for t in figure.data if t.showlegend and t.name == "heat"]
        # plotly's legend leaves out a trace without a point
        assert len(named) == 1 and named[0].x


def test_no_figure_waits_for_a_parser_of_web_addresses():
    """The parser takes 1.3 s to import, and jsonschema can do without it."""
    calls = """
import sys
import lab.explore
import subprocess
import sys

import plotly.graph_objects as go
go.FigureWidget().add_scatter(x=[1], y=[2])._repr_mimebundle_()
print("lark" in sys.modules)
import rfc3987_syntax  # whoever wants it later gets it
"""
    done = subprocess.run(
        [sys.executable, "-c", calls], capture_output=True, text=True
    )
    assert done.stdout == "False\n", done.stderr
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("counts", "words"),
    [([0, 0], "0 tokens"), ([0, 1], "1 token"), ([1, 2], "3 tokens")],
)
def test_a_histogram_says_how_many_were_counted(counts, words):
    assert voices(figures.histogram(counts))[1] == words


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (999.4, "999"),
        (999.5, "1\u202f000"),
        (-999.7, "-1\u202f000"),
        (1234.5, "1\u202f234"),
        (2.0, "2"),
        (0.12345, "0.123"),
    ],
)
def test_a_number_is_written_for_a_reader(value, text):
    assert figures.number(value) == text


def test_what_a_network_lacks_is_not_in_its_legend():
    figure = figures.network(
        [[0, 0], [1, 1]],
        [(0, 1)],
        "two vertices",
        groups={"here": ("kept", [0, 1]), "gone": ("best", [])},
        bold={"a match": ("mean", [])},
    )
    named = [t.name for t in figure.data if t.showlegend is not False]
    assert named == ["here"]


def test_an_arrow_of_a_network_lies_beside_its_line_and_points_on():
    points = [[0, 0], [4, 0], [4, 4]]
    (arrow,) = figures.network(
        points, [(0, 1)], "an arrow", arrows=[(0, 1)]
    ).layout.annotations
    assert 0 < arrow.ax < arrow.x < 4
    assert arrow.ay == arrow.y != 0
