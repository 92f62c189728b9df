"""The folder of a sweep: one file per finished run, one table, one figure.

sweep.json      which notebook, which version of the code, which grid
results/*.json  one finished run each, named by its parameters
results.parquet, figure.html   written when the sweep ends, and plotly.min.js
"""

from __future__ import annotations

import ast
import errno
import hashlib
import json
import os
import re
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

from IPython.core.inputtransformer2 import TransformerManager

from lab.atomic import PART, write_bytes, write_json


def _digest(value: object) -> str:
    text = json.dumps(value, sort_keys=True)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:16]


def key(job: dict[str, object]) -> str:
    """The name of a run: a digest of its parameters and their values."""
    return _digest(job)


def as_text(job: dict[str, object]) -> str:
    """The parameters as a reader writes them: `top_k=2 loss=null`."""
    return " ".join(f"{name}={value}" for name, value in job.items())


def version(notebook: Path) -> str:
    """A digest of the notebook's code and of all it imports from `lab`.

    Markdown cells, raw cells and outputs do not count.
    """
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    code = [
        "".join(cell["source"])
        for cell in cells
        if cell["cell_type"] == "code"
    ]
    seen: dict[str, str] = {}
    for cell in code:
        # lines in IPython's own syntax are not Python
        _follow(TransformerManager().transform_cell(cell), seen)
    return _digest([code, sorted(seen.items())])


def _follow(code: str, seen: dict[str, str]) -> None:
    """Adds the source of every `lab` module that `code` imports."""
    try:
        tree = ast.parse(code)
    except SyntaxError:
        return
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
            names += [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            if name.split(".")[0] == "lab" and name not in seen:
                source = _source(name)
                if source is not None:
                    seen[name] = source
                    _follow(source, seen)


def _source(module: str) -> str | None:
    try:
        found = find_spec(module)
    except ModuleNotFoundError:
        return None
    if found is None or not found.origin or found.origin == "frozen":
        return None
    return Path(found.origin).read_text(encoding="utf-8")


def make_folder(folder: Path) -> None:
    """Makes `folder`, or says why it cannot be used."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise ValueError(
            f"{folder} cannot be a folder for results ({error.strerror}); "
            "give another one with --out"
        ) from None


def run_folder(notebook: Path, parameters: dict[str, object]) -> Path:
    """Where a single run goes, such as runs/02-adamoe/top_k=4.

    The run's key is appended where a folder's name cannot spell the values.
    """
    name = re.sub(r"[^\w=.-]+", ",", as_text(parameters)) or "defaults"
    values = map(str, parameters.values())
    if len(name) > 80 or any(re.search(r"[^\w.-]", one) for one in values):
        name = f"{name[:80]}-{key(parameters)}"
    return Path("runs") / notebook.stem / name


def default_folder(notebook: Path, grid: dict[str, list[object]]) -> Path:
    """A sweep's folder: the same for the same code and grid, to resume in."""
    name = f"{notebook.stem}-{_digest([version(notebook), grid])[:8]}"
    return Path("runs") / name


def open_folder(
    folder: Path, notebook: Path, grid: dict[str, list[object]]
) -> Path:
    """Makes `folder` for this sweep, or checks that it belongs to it."""
    another = "give another folder with --out"
    mine = {
        "notebook": notebook.name,
        "version": version(notebook),
        "grid": grid,
    }
    manifest = folder / "sweep.json"
    if manifest.is_file():
        theirs = _read(manifest, mine, another)
        for what, words in (
            ("notebook", "of another notebook"),
            ("version", "of another version of the notebook or its code"),
            ("grid", "of another grid"),
        ):
            if theirs[what] != mine[what]:
                raise ValueError(
                    f"{folder} holds results {words}; {another}, or remove "
                    "this one"
                )
    elif folder.is_dir() and any(
        # a sweep that is killed at its start leaves at most half a manifest
        not one.name.startswith(PART)
        for one in folder.iterdir()
    ):
        raise ValueError(f"{folder} holds something else; {another}")
    make_folder(folder)
    # written first, so that the same command recognises the folder
    write_json(manifest, mine)
    (folder / "results").mkdir(exist_ok=True)
    return folder


def store(folder: Path, job: dict[str, object], answer: dict) -> None:
    """Keeps one finished run."""
    record = {"parameters": job, **answer}
    write_json(folder / "results" / f"{key(job)}.json", record)


def finished(folder: Path, jobs: list[dict]) -> dict[str, dict]:
    """The results of those `jobs` that have finished, by key."""
    found = {}
    for job in jobs:
        path = folder / "results" / f"{key(job)}.json"
        if path.is_file():
            found[key(job)] = _read(
                path, ("scores", "seconds"), "remove it and repeat the command"
            )
    return found


def _read(path: Path, names: Iterable[str], way_out: str) -> dict:
    """What `path` has under `names`; the error names a file without them."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {name: found[name] for name in names}
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{path} is not what a sweep writes ({error}); {way_out}"
        ) from None


def flat(scores: dict, prefix: str = "") -> dict[str, object]:
    """Nested scores as one row: {"a": {"b": 1}} is {"a.b": 1}."""
    row = {}
    for name, value in scores.items():
        if isinstance(value, dict):
            row |= flat(value, f"{prefix}{name}.")
        elif isinstance(value, list):
            row[prefix + name] = json.dumps(value)
        else:
            row[prefix + name] = value
    return row


def summarise(
    folder: Path, jobs: list[dict], swept: list[str], name: str
) -> tuple[Path | None, Path | None]:
    """Writes the table and the figure of what has finished, in grid order."""
    import pandas

    found = finished(folder, jobs)
    # the parameters in the grid's order, which JSON does not keep
    done = [
        found[key(job)] | {"parameters": job}
        for job in jobs
        if key(job) in found
    ]
    if not done:
        return None, None
    table = pandas.DataFrame([_row(one) for one in done])
    path = folder / "results.parquet"
    write_bytes(path, table.to_parquet(index=False))
    return path, _draw(table, folder, swept, name)


def _row(run: dict) -> dict[str, object]:
    """A row of the table; a score whose name is taken becomes score_..."""
    row = dict(run["parameters"])
    for name, value in flat(run["scores"]).items():
        while name in row or name == "seconds":
            name = f"score_{name}"
        row[name] = value
    return row | {"seconds": run["seconds"]}


def _draw(table, folder: Path, swept: list[str], name: str) -> Path | None:
    """The first numeric score against the first swept parameter, one line
    for each value of the second; further parameters are averaged over.
    """
    import plotly.graph_objects as go
    from plotly.offline import get_plotlyjs

    from lab.figures import drawn

    numeric = table.drop(columns=[*swept, "seconds"]).select_dtypes("number")
    if not len(numeric.columns):
        return None
    score, x = numeric.columns[0], swept[0]
    groups = [("", table)]
    if len(swept) > 1:
        groups = [
            (f"{swept[1]} = {value}", part)
            for value, part in table.groupby(swept[1], sort=False)
        ]
    traces = []
    for label, part in groups:
        mean = part.groupby(x, sort=False)[score].mean()
        traces.append(
            go.Scatter(
                x=mean.index.tolist(),
                y=mean.tolist(),
                mode="lines+markers",
                name=label,
            )
        )
    figure = drawn(
        traces,
        f"{name}: {score} against {x}, {len(table)} runs",
        showlegend=len(groups) > 1,
        x=dict(title_text=x),
        y=dict(title_text=score),
    )
    html = folder / "figure.html"
    # the 5 MB of plotly.js lie beside the page, not in it; works offline
    write_bytes(folder / "plotly.min.js", get_plotlyjs().encode("utf-8"))
    page = figure.to_html(include_plotlyjs="directory")
    write_bytes(html, page.encode("utf-8"))
    return html
