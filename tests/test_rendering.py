"""Stored outputs: pictures and checked text, nothing else."""

import base64
import json
import os
import subprocess
import sys

import nbformat
import pytest

from lab.headless import NotebookFailed
from lab.rendering import (
    browser,
    is_normalised,
    normalised,
    one_browser,
    render,
    text_of,
)

CHECKED = {"tags": ["nbval-check-output", "keep_output"]}
FIGURE = """\
import plotly.graph_objects as go
go.Figure(go.Bar(x=[1, 2], y=[3, 1]), layout=dict(width=300, height=200))"""


def write(path, *cells):
    v4 = nbformat.v4
    made = [
        v4.new_code_cell(source, id=name, metadata=metadata)
        for name, source, metadata in cells
    ]
    nbformat.write(v4.new_notebook(cells=made), path)
    return path


needs_browser = pytest.mark.skipif(
    browser() is None, reason="no Chromium or Chrome to draw pictures"
)


@needs_browser
def test_pictures_and_checked_text_are_stored_and_compared(tmp_path):
    path = write(
        tmp_path / "n.ipynb",
        ("parameters", "import sys\nx = 2\nprint('not kept')", {}),
        ("figure", FIGURE, {}),
        ("checked", "print(x)\nprint(sys.platform and x + 1)\nx", CHECKED),
        ("noisy", "print('warning', file=sys.stderr)\nobject()", {}),
    )
    with one_browser():
        assert render(path) is True
        first = path.read_bytes()
        # a second time, nothing is different
        assert render(path) is False
    assert path.read_bytes() == first
    assert is_normalised(path)

    cells = {cell["id"]: cell for cell in json.loads(first)["cells"]}
    assert list(cells) == ["parameters", "figure", "checked", "noisy"]
    assert cells["parameters"]["outputs"] == cells["noisy"]["outputs"] == []
    (picture,) = cells["figure"]["outputs"]
    assert list(picture["data"]) == ["image/png"]
    assert picture["metadata"] == {"image/png": {"width": 300, "height": 200}}
    png = base64.b64decode(picture["data"]["image/png"])
    assert png.startswith(b"\x89PNG")
    assert len(png) < 60_000
    stream, result = cells["checked"]["outputs"]
    assert stream["text"] == ["2\n", "3\n"]
    assert result["data"] == {"text/plain": ["2"]}

    # an independent tool finds no noise either
    words = "--keep-output --keep-count --keep-id --extra-keys".split()
    words += ["metadata.language_info cell.metadata.execution"]
    command = [sys.executable, "-m", "nbstripout", "--verify", *words]
    subprocess.run([*command, str(path)], check=True)

    # nbval compares the checked cell: true as it is, false once falsified
    assert nbval(path).returncode == 0
    path.write_text(path.read_text().replace('"3\\n"', '"4\\n"'))
    failed = nbval(path)
    assert failed.returncode == 1
    assert "Cell 2" in failed.stdout


def nbval(path):
    words = "-m pytest --nbval-lax -p no:cacheprovider -n0 -c /dev/null"
    return subprocess.run(
        [sys.executable, *words.split(), str(path)],
        capture_output=True,
        text=True,
        cwd=path.parent,
    )


@needs_browser
@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("1 / 0", 'ZeroDivisionError: division by zero (in cell "bad")'),
        ("raise ValueError('k=9')", 'k=9 (in cell "bad")'),
        (FIGURE, 'cell "bad" is checked but leaves '),
        ("import sys\nprint(1, file=sys.stderr)", "is checked but leaves std"),
    ],
)
def test_a_notebook_that_fails_keeps_its_file(tmp_path, source, words):
    path = write(tmp_path / "n.ipynb", ("bad", source, CHECKED))
    before = path.read_bytes()
    with one_browser(), pytest.raises(NotebookFailed) as caught:
        render(path)
    assert words in str(caught.value)
    assert path.read_bytes() == before


def test_normalising_drops_noise_and_keeps_ids_and_tags():
    noisy = {
        "cells": [
            {
                "cell_type": "code",
                "id": "draw",
                "metadata": {
                    "tags": ["nbval-skip"],
                    "execution": {"iopub.status.busy": "now"},
                    "papermill": {"duration": 1.2},
                    "collapsed": False,
                },
                "source": ["a\n", "b"],
                "execution_count": 17,
                "outputs": [
                    {"output_type": "stream", "name": "stdout", "text": "x"}
                ],
            }
        ],
        "metadata": {"widgets": {"state": "5 MB"}, "language_info": {}},
        "nbformat": 4,
        "nbformat_minor": 4,
    }
    clean = normalised(noisy)
    assert clean["cells"] == [
        {
            "cell_type": "code",
            "id": "draw",
            "metadata": {"tags": ["nbval-skip"]},
            "source": "a\nb",
            "execution_count": None,
            "outputs": [],
        }
    ]
    assert list(clean["metadata"]) == ["kernelspec"]
    assert normalised(clean) == clean


def test_a_normalised_notebook_is_what_nbformat_would_write(tmp_path):
    notebook = normalised({"cells": [], "metadata": {}})
    notebook["cells"] = [
        {
            "cell_type": "markdown",
            "id": "title",
            "metadata": {},
            "source": "# Ideas\n\nθ → é\n",
        }
    ]
    path = tmp_path / "n.ipynb"
    path.write_text(text_of(notebook), encoding="utf-8")
    assert is_normalised(path)
    nbformat.write(nbformat.read(path, as_version=4), path)
    assert is_normalised(path)


@needs_browser
def test_a_named_browser_that_does_not_exist_is_passed_over(monkeypatch):
    monkeypatch.setenv("BROWSER_PATH", "/nowhere/chrome")
    for what in ("start_sync_server", "stop_sync_server"):
        monkeypatch.setattr(f"kaleido.{what}", lambda **_: None)
    with one_browser():
        assert os.environ["BROWSER_PATH"] == browser() != "/nowhere/chrome"


def test_without_a_browser_the_way_out_is_said(monkeypatch):
    monkeypatch.setattr("lab.rendering.browser", lambda: None)
    with pytest.raises(ValueError, match="playwright install chromium"):
        with one_browser():
            pass
