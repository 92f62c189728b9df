"""The atlas has every chapter once, and nothing overlaps."""

import itertools
import math
import re

import pytest

from lab import atlas
from lab.atlas import VIEWS, laid_out
from lab.catalogue import CHAPTERS, PAGES, PARTS, chapter
from lab.figures.theme import voices

WIDTH = 760 - atlas.LEFT - atlas.RIGHT  # a notebook beside the file browser
views = pytest.mark.parametrize(
    "view", VIEWS, ids=lambda v: f"{v[0].key}-{v[1].key}"
)


@pytest.fixture(scope="module")
def figure():
    return atlas.figure()


def dots(figure):
    return [trace for trace in figure.data if trace.mode == "markers+text"]


@views
def test_each_chapter_lies_once_in_its_own_cell(view):
    down, across = view
    where = laid_out(CHAPTERS, down, across)
    assert len(where.spots) == len(CHAPTERS) == 57
    for one in CHAPTERS:
        x, y = where.spots[one.number]
        assert across.values[round(x)] == atlas.value(one, across)
        top, bottom = where.rows[down.values.index(atlas.value(one, down))]
        assert top < y < bottom


@views
def test_no_number_lies_over_another(view):
    down, across = view
    where = laid_out(CHAPTERS, down, across)
    wide = WIDTH / len(across.values)
    high = atlas.HEIGHT / where.height
    for one, other in itertools.combinations(where.spots.values(), 2):
        apart = math.hypot(
            wide * (one[0] - other[0]), high * (one[1] - other[1])
        )
        # a circle, its outline and a pixel of space
        assert apart >= atlas.DOT + 3


@views
def test_labels_of_the_columns_keep_apart(view):
    _, across = view
    figure_width = WIDTH / len(across.values)
    longest = max(
        len(line)
        for label in across.labels
        for line in atlas.folded(label).split("<br>")
    )
    # letters of 11 pixels are 5.5 wide on average
    assert 5.5 * longest < figure_width


def test_the_map_shows_each_chapter_once(figure):
    numbers = [number for trace in dots(figure) for number in trace.text]
    assert sorted(numbers) == [f"{n:02}" for n in range(1, 58)]
    assert len(dots(figure)) == len(PARTS)


def test_filled_is_what_exists_on_disk(figure):
    for trace in dots(figure):
        for number, fill in zip(trace.text, trace.marker.color, strict=True):
            full = fill != "#FFFFFF"
            assert full == chapter(number).path.is_file(), number
    ready = sum(one.ready for one in CHAPTERS)
    assert voices(figure)[0] == f"The atlas: 57 chapters, {ready} ready"


def test_hovering_tells_the_paper(figure):
    text = dots(figure)[0].hovertext[1]
    for part in ("02 AdaMoE", "EMNLP 2024", "35 minutes", "a learned gate"):
        assert part in text


def test_every_button_moves_every_chapter_to_its_place(figure):
    buttons = figure.layout.updatemenus[0].buttons
    assert len(buttons) == len(VIEWS)
    for button, view in zip(buttons, VIEWS, strict=True):
        moved, frame = button.args
        where = laid_out(CHAPTERS, *view)
        assert len(moved["x"]) == len(figure.data)
        for trace, x, y in zip(
            figure.data, moved["x"], moved["y"], strict=True
        ):
            if trace.mode != "markers+text":
                continue
            spots = list(zip(x, y, strict=True))
            assert spots == [where.spots[number] for number in trace.text]
        assert len(frame["yaxis"]["ticktext"]) == len(view[0].values)


def test_the_map_begins_with_its_first_button(figure):
    moved, _ = figure.layout.updatemenus[0].buttons[0].args
    for trace, x in zip(figure.data, moved["x"], strict=True):
        assert list(trace.x) == list(x)


def test_the_table_has_a_line_a_chapter_and_links_what_is_ready():
    lines = re.findall(r"^\| (\d\d) \|.*$", atlas.table(), re.M)
    assert sorted(lines) == [f"{n:02}" for n in range(1, 58)]
    table = atlas.table(base="notebooks/")
    for one in CHAPTERS:
        assert table.count(one.url) == 1
        assert (f"]({one.notebook})" in table) == one.ready
    # every line has as many cells as the head
    for line in table.splitlines():
        if line.startswith("|"):
            assert len(re.findall(r"(?<!\\)\|", line)) == 8


def test_without_notebooks_what_is_ready_is_ready_and_opens_on_colab(
    monkeypatch, tmp_path
):
    """As in a wheel, which holds only `lab` and `data`."""
    monkeypatch.setattr("lab.catalogue.ROOT", tmp_path)
    ready = sum(one.ready for one in CHAPTERS)
    assert ready >= 15
    assert (
        voices(atlas.figure())[0] == f"The atlas: 57 chapters, {ready} ready"
    )
    table = atlas.table()
    for one in PAGES:
        assert (f"]({one.colab_url})" in table) == one.ready


def test_a_closing_notebook_is_linked_below_its_part():
    first, second = atlas.table(base="notebooks/").split("<details")[1:3]
    assert ("](notebooks/1-tokens/arena.ipynb)" in first) == (
        chapter("arena").ready
    )
    assert "To close" not in second


@pytest.mark.parametrize(
    ("number", "name"),
    [
        ("02", "Zeng et al."),
        ("11", "He et al."),
        ("25", "Desai and Shrivastava"),
        ("55", "Spadon"),
    ],
)
def test_a_paper_is_cited_by_its_first_author(number, name):
    assert f"[{name} " in atlas.table([chapter(number)])
