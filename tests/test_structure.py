"""Each rule for notebooks reports when it is broken."""

import json

import pytest

from lab.rendering import normalised, text_of
from lab.structure import CELLS, CLOSING, PROSE, TAGS, anatomy, problems

PARAMETERS = (
    "top_k: int = 2  # experts per token, 1 to 8\n"
    'out: str = ""  # where to write the scores (JSON)'
)


def chapter(fixed=CELLS):
    """A chapter that keeps every rule, as a dictionary of its cells."""
    cells = {}
    for name in fixed:
        kind = "markdown" if name in PROSE | {"grid"} else "code"
        source = PARAMETERS if name == "parameters" else f"{name!r}"
        if name == "draw":
            source = "def draw(top_k):\n    figure = top_k\n    return figure"
        if name == "explore":
            source = "view = explore(draw, top_k=3)"
        metadata = {"tags": sorted(TAGS[name])} if name in TAGS else {}
        cell = {
            "cell_type": kind,
            "id": name,
            "metadata": metadata,
            "source": source,
        }
        if kind == "code":
            stream = {"output_type": "stream", "name": "stdout", "text": "1"}
            checked = "keep_output" in TAGS.get(name, ())
            cell |= {
                "outputs": [stream] if checked else [],
                "execution_count": 1,
            }
        cells[name] = cell
    return cells


def found(cells, tmp_path, fixed=CELLS):
    notebook = {"cells": list(cells.values()), "metadata": {}}
    path = tmp_path / "n.ipynb"
    path.write_text(text_of(normalised(notebook)))
    return problems(path, fixed)


def test_a_good_chapter_has_no_problem(tmp_path):
    assert found(chapter(), tmp_path) == []


def edit(name, **changes):
    def apply(cells):
        cells[name] |= changes

    return apply


def drop(name):
    def apply(cells):
        del cells[name]

    return apply


def swap(cells):
    cells["draw"], cells["explore"] = cells["explore"], cells["draw"]


def picture(markdown):
    return edit("problem", source=markdown)


def cell(source):
    return edit("first-look", source=source)


@pytest.mark.parametrize(
    ("break_it", "sentence"),
    [
        (drop("verdict"), 'cell "verdict" is missing'),
        (swap, 'cell "draw" should come before "explore"'),
        (edit("limits", id="3f2a-9C"), 'cell id "3f2a-9C" is not a word'),
        (edit("limits", id="onward"), 'cell id "onward" occurs 2 times'),
        (edit("imports", cell_type="markdown"), '"imports" should be code'),
        (edit("title", cell_type="code"), '"title" should be Markdown'),
        (edit("verdict", metadata={}), "lacks the tag keep_output, nbval-ch"),
        (edit("draw", metadata={"tags": ["x"]}), "has an unknown tag x"),
        (
            edit("draw", metadata={"tags": ["keep_output"]}),
            "needs both tags",
        ),
        (edit("same", outputs=[]), "stores no text, so nothing would be"),
        (
            edit("draw", metadata={"tags": ["parameters"]}),
            "2 cells are tagged parameters",
        ),
        (
            edit("parameters", source="top_k = 2\n" + PARAMETERS),
            "parameter line `top_k = 2` should read",
        ),
        (
            edit("parameters", source="top_k: int = 2\n" + PARAMETERS),
            "parameter line `top_k: int = 2` should read",
        ),
        (
            edit("parameters", source=PARAMETERS.split("\n")[0]),
            "the last parameter should be",
        ),
        (cell("x = 1\n" * 15 + "x"), "has 16 lines; at most 15"),
        (cell("x = '" + "a" * 75 + "'"), "has a line of 81 columns"),
        (cell("explore(1)\nexplore(2)"), "explore is called 3 times"),
        (
            cell("def f():\n    a = 1\n    b = 2\n    return a"),
            "f has 4 lines",
        ),
        (cell("from lab.kernels import *"), "uses import *"),
        (cell("import sys\nsys.path.append('.')"), "uses sys.path"),
        (cell("import os\nos.chdir('/')"), "uses chdir"),
        (
            cell("import warnings\nwarnings.filterwarnings('ignore')"),
            "uses a warnings filter",
        ),
        (picture("word " * 100_001), "kB is too large; at most 500"),
        (picture("![map](map.png)"), "shows map.png, which is missing"),
        (picture("![x](https://a.org/x.png)"), "shows a foreign picture"),
        (picture('<img src="data:image/png;x">'), "shows a foreign picture"),
        (
            edit("problem", attachments={"a.png": {"image/png": "eA=="}}),
            "has a pasted picture",
        ),
    ],
)
def test_a_broken_rule_is_named(tmp_path, break_it, sentence):
    cells = chapter()
    break_it(cells)
    said = found(cells, tmp_path)
    assert any(sentence in one for one in said), said


def test_a_picture_in_the_repository_is_fine(tmp_path):
    cells = chapter()
    (tmp_path / "map.png").touch()
    edit("problem", source="![map](map.png)")(cells)
    assert found(cells, tmp_path) == []


def test_extra_cells_and_colabs_install_line_are_fine(tmp_path):
    cells = chapter()
    cells["install"]["source"] = (
        'import sys\nif "google.colab" in sys.modules:\n'
        '    %pip install -q "plotly>=6"'
    )
    cells["record"], last = {**cells["draw"], "id": "more"}, cells["record"]
    cells["last"] = last
    assert found(cells, tmp_path) == []


def test_a_page_that_is_no_chapter_needs_no_fixed_cells(tmp_path):
    cells = {name: chapter()[name] for name in ("title", "draw")}
    assert found(cells, tmp_path, fixed=[]) == []
    assert found(cells, tmp_path, fixed=CELLS) != []


def test_a_closing_notebook_has_fixed_cells_of_its_own(tmp_path):
    cells = chapter(CLOSING)
    assert found(cells, tmp_path, CLOSING) == []
    drop("table")(cells)
    assert found(cells, tmp_path, CLOSING) == ['cell "table" is missing']


@pytest.mark.parametrize(
    ("name", "fixed"),
    [
        ("1-tokens/02-adamoe.ipynb", CELLS),
        ("1-tokens/arena.ipynb", CLOSING),
        ("00-start-here.ipynb", []),
    ],
)
def test_the_kind_of_a_notebook_follows_from_its_place(tmp_path, name, fixed):
    assert anatomy(tmp_path / "notebooks" / name) == fixed


def test_noise_is_noticed(tmp_path):
    path = tmp_path / "n.ipynb"
    clean = {"cells": list(chapter().values()), "metadata": {}}
    notebook = json.loads(text_of(normalised(clean)))
    notebook["metadata"]["language_info"] = {"version": "3.11.7"}
    path.write_text(json.dumps(notebook))
    assert problems(path, CELLS) == [
        "not in its committed form: run `lab render` on it"
    ]
