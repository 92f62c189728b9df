"""Stored outputs: each figure as a picture, each checked number as text.

A code host runs no JavaScript, so `lab render` executes a notebook, turns
its figures into PNG and drops everything else: widget state (5 MB per live
figure), time stamps, random ids. `normalised` is the form that is committed.
"""

from __future__ import annotations

import base64
import copy
import io
import json
import os
import shutil
import struct
from contextlib import contextmanager
from pathlib import Path

from lab.atomic import write_bytes
from lab.front_end import without_front_end
from lab.headless import QUIET, NotebookFailed, failure

KERNEL = {
    "display_name": "Python 3 (ipykernel)",
    "language": "python",
    "name": "python3",
}
CHECKED = "nbval-check-output"
PLOTLY = "application/vnd.plotly.v1+json"
WIDTH, HEIGHT, SCALE = 760, 420, 2
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
APPLICATIONS = (
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
)
PLAYWRIGHT = ("~/.cache/ms-playwright", "~/Library/Caches/ms-playwright")


def browser() -> str | None:
    """The Chromium or Chrome that draws pictures, None if there is none."""
    named = os.environ.get("BROWSER_PATH")
    if named and Path(named).exists():
        return named
    for name in BROWSERS:
        if found := shutil.which(name):
            return found
    candidates = [Path(name) for name in APPLICATIONS]
    for folder in PLAYWRIGHT:
        base = Path(folder).expanduser()
        candidates += sorted(base.glob("chromium-*/chrome-*/chrome"))
        candidates += sorted(base.glob("chromium-*/*/*/*/Chromium"))
    return next((str(one) for one in candidates if one.exists()), None)


@contextmanager
def one_browser():
    """Keeps one Chromium open for all pictures inside the `with` block."""
    import kaleido

    found = browser()
    if found is None:
        raise ValueError(
            "no Chromium or Chrome was found to draw the pictures; install "
            "one, or run `playwright install chromium`"
        )
    # kaleido reads this variable; the user's own value may name no file
    os.environ["BROWSER_PATH"] = found
    # no figure has formulas; MathJax would be loaded from the network
    kaleido.start_sync_server(silence_warnings=True, mathjax=False)
    try:
        yield
    finally:
        kaleido.stop_sync_server(silence_warnings=True)


def render(path: Path) -> bool:
    """Executes the notebook at `path` with its default parameters and stores
    pictures and checked text in it; returns whether the file changed.

    Call it inside `with one_browser():`. If the notebook fails, its file
    stays as it was.
    """
    import nbformat

    old = path.read_text(encoding="utf-8")
    notebook = nbformat.reads(old, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    execute(notebook, path.parent)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [_as_picture(one) for one in cell.outputs]
            _refuse_unstable(cell)
    new = text_of(normalised(notebook))
    if new == old:
        return False
    write_bytes(path, new.encode("utf-8"))
    return True


def execute(notebook, folder: Path) -> None:
    """Runs all cells in place, in `folder`, without keeping widget state."""
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError

    client = NotebookClient(
        notebook,
        timeout=600,
        kernel_name="python3",
        store_widget_state=False,
        extra_arguments=QUIET,
        resources={"metadata": {"path": str(folder)}},
    )
    try:
        with without_front_end():
            # figures arrive as data; here one browser draws all of them
            env = os.environ | {"PLOTLY_RENDERER": "plotly_mimetype"}
            client.execute(env=env)
    except CellExecutionError as error:
        raise failure(error, notebook.cells) from None


def _as_picture(output):
    """A plotly output drawn as PNG; any other output as it is."""
    data = output.get("data", {})
    if PLOTLY not in data or "image/png" in data:
        return output
    import kaleido

    figure = {key: data[PLOTLY][key] for key in ("data", "layout")}
    layout = figure["layout"]
    picture = kaleido.calc_fig_sync(
        figure,
        opts={
            "format": "png",
            "width": layout.get("width") or WIDTH,
            "height": layout.get("height") or HEIGHT,
            "scale": SCALE,
        },
    )
    small = base64.b64encode(_fewer_colours(picture)).decode("ascii")
    output["data"] = {"image/png": small}
    return output


def _fewer_colours(png: bytes) -> bytes:
    """The picture with a palette of 256 colours: a third of the bytes, and
    no visible difference in a drawing.
    """
    from PIL import Image

    picture, small = Image.open(io.BytesIO(png)).convert("RGB"), io.BytesIO()
    picture = picture.quantize(256, dither=Image.Dither.NONE)
    picture.save(small, "PNG", optimize=True)
    return small.getvalue()


def _refuse_unstable(cell) -> None:
    """Refuses a checked cell that leaves anything but text, because nbval
    compares its outputs kind by kind.
    """
    if CHECKED not in cell.metadata.get("tags", []):
        return
    for one in cell.outputs:
        extra = sorted(set(one.get("data", {})) - {"text/plain"})
        if extra or one.get("name") == "stderr":
            kind = extra[0] if extra else "stderr"
            raise NotebookFailed(
                f'cell "{cell.id}" is checked but leaves {kind}; print the '
                "numbers, and draw or warn in another cell"
            )


def normalised(notebook: dict) -> dict:
    """The notebook as it is committed: no noise, ids kept, at most PNG
    pictures and the text of checked cells. Normalising twice changes nothing.
    """
    cells, count = [], 0
    for old in notebook["cells"]:
        cell = {
            "cell_type": old["cell_type"],
            "id": old.get("id", ""),
            "metadata": _cell_metadata(old),
            "source": _joined(old["source"]),
        }
        if old.get("attachments"):
            cell["attachments"] = copy.deepcopy(old["attachments"])
        if old["cell_type"] == "code":
            count += 1
            cell["outputs"] = _kept(old, count)
            # nbval refuses outputs of a cell without an execution count
            cell["execution_count"] = count if cell["outputs"] else None
        cells.append(cell)
    return {
        "cells": cells,
        "metadata": {"kernelspec": dict(KERNEL)},
        "nbformat": 4,
        "nbformat_minor": 5,
    }


def _cell_metadata(cell: dict) -> dict:
    metadata = cell.get("metadata", {})
    kept: dict[str, object] = {}
    if metadata.get("tags"):
        kept["tags"] = list(metadata["tags"])
    if metadata.get("jupyter", {}).get("source_hidden"):
        kept["jupyter"] = {"source_hidden": True}
    return kept


def _kept(cell: dict, count: int) -> list[dict]:
    checked = CHECKED in cell.get("metadata", {}).get("tags", [])
    outputs: list[dict] = []
    for old in cell.get("outputs", []):
        kind, data = old["output_type"], old.get("data", {})
        if kind == "stream" and checked and old["name"] == "stdout":
            text = _joined(old["text"])
            if outputs and outputs[-1]["output_type"] == "stream":
                outputs[-1]["text"] += text
            else:
                outputs.append(
                    {"output_type": kind, "name": "stdout", "text": text}
                )
        elif "image/png" in data:
            outputs.append(_picture(_joined(data["image/png"])))
        elif "text/plain" in data and checked:
            text = {"text/plain": _joined(data["text/plain"])}
            one = {"output_type": kind, "data": text, "metadata": {}}
            if kind == "execute_result":
                one["execution_count"] = count
            outputs.append(one)
    return outputs


def _picture(png: str) -> dict:
    png = png.replace("\n", "")
    # width and height are the first numbers of every PNG
    head = base64.b64decode(png[:32])
    width, height = struct.unpack(">II", head[16:24])
    size = {"width": width // SCALE, "height": height // SCALE}
    return {
        "output_type": "display_data",
        "data": {"image/png": png},
        "metadata": {"image/png": size},
    }


def _joined(text: str | list[str]) -> str:
    return text if isinstance(text, str) else "".join(text)


def text_of(notebook: dict) -> str:
    """The text that a normalised notebook has on disk."""
    lines = copy.deepcopy(notebook)
    for cell in lines["cells"]:
        cell["source"] = cell["source"].splitlines(keepends=True)
        for one in cell.get("outputs", []):
            if "text" in one:
                one["text"] = one["text"].splitlines(keepends=True)
            if "text/plain" in one.get("data", {}):
                text = one["data"]["text/plain"]
                one["data"]["text/plain"] = text.splitlines(keepends=True)
    return (
        json.dumps(lines, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    )


def is_normalised(path: Path) -> bool:
    """Whether the file at `path` is byte for byte in its committed form."""
    text = path.read_text(encoding="utf-8")
    return text_of(normalised(json.loads(text))) == text
