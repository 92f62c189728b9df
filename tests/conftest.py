"""A fixture that several tests share: it makes tiny notebooks."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest

PARAMETERS = """\
top_k: int = 2  # experts per token
alpha: float = 0.5  # weight of the loss
loss: str = "null"  # null or ordinary
fast: bool = False  # skip the slow half
out: str = ""  # where to write the scores (JSON)"""
SCORES = """\
import json
from pathlib import Path
if out:
    scores = {"load": top_k * alpha, "loss": loss, "parts": {"a": 1}}
    Path(out).write_text(json.dumps(scores))"""


@pytest.fixture
def tiny_notebook(tmp_path):
    """Makes a notebook with parameters, `body` and a cell of scores."""

    def make(body: str = "", name: str = "tiny.ipynb") -> Path:
        v4 = nbformat.v4
        notebook = v4.new_notebook(
            cells=[
                v4.new_code_cell(
                    PARAMETERS,
                    id="parameters",
                    metadata={"tags": ["parameters"]},
                ),
                v4.new_code_cell(body, id="body"),
                v4.new_code_cell(SCORES, id="record"),
            ],
            metadata={
                "kernelspec": {
                    "display_name": "Python 3",
                    "language": "python",
                    "name": "python3",
                }
            },
        )
        path = tmp_path / name
        nbformat.write(notebook, path)
        return path

    return make
