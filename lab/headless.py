"""Runs notebooks without a browser: one run, or a sweep on Dask.

papermill executes a run. A sweep is one run per combination of parameters on a
Dask cluster: a local one, unless the address of a running scheduler is given.
Each finished run is one file, so a sweep resumes where it was stopped.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import NamedTuple

from lab import grid as grids
from lab import results
from lab.atomic import write_json
from lab.catalogue import REPOSITORY, Page, chapter
from lab.data import ROOT
from lab.fanout import fan_out
from lab.front_end import without_front_end

# a kernel warns on the terminal that its local sockets are not encrypted, and
# logs a traceback of its own when Ctrl-C closes them
QUIET = ["--IPKernelApp.log_level=CRITICAL"]
FIRST_PAGE = ROOT / "notebooks" / "00-start-here.ipynb"


class NotebookFailed(RuntimeError):
    """A notebook failed; the message is its own sentence and the cell."""


class Run(NamedTuple):
    """The results of one run."""

    scores: dict[str, object]
    notebook: Path  # executed, with its outputs
    seconds: float


class Sweep(NamedTuple):
    """The results of a sweep; `failed`: parameters as text to a sentence."""

    table: Path | None  # Parquet, None if nothing has finished
    figure: Path | None  # HTML, None without a numeric score
    done: int
    reused: int  # of `done`, those that an earlier start had finished
    total: int
    failed: dict[str, str]


def notebook_of(which: Page | str | int | Path) -> Path:
    """The path of a chapter's notebook, or of a .ipynb file given by path.

    0 is the first page, which is not a paper's chapter.
    """
    if str(which).strip() in ("0", "00"):
        which = FIRST_PAGE
    if str(which).endswith(".ipynb"):
        path = Path(which)
        if not path.is_file():
            raise FileNotFoundError(f"there is no notebook {path}")
        _check(path)
        return path.resolve()
    one = which if isinstance(which, Page) else chapter(which)
    if not one.ready:
        raise ValueError(
            f"chapter {one.number} ({one.slug}) is still to come; "
            "`lab list` shows which are ready"
        )
    if not one.path.is_file():
        raise FileNotFoundError(
            f"the notebook of chapter {one.number} ({one.slug}) is not here; "
            f"clone https://github.com/{REPOSITORY}, or name a .ipynb file"
        )
    return one.path


def _check(path: Path) -> None:
    """Refuses a file that is named like a notebook but is not one."""
    import nbformat

    try:
        nbformat.read(path, as_version=4)
    except (AttributeError, ValueError, nbformat.ValidationError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(
            f"{path} is not a notebook ({reason}); save it from Jupyter, or "
            "name a chapter"
        ) from None


def run_chapter(
    which: Page | str | int | Path,
    parameters: dict[str, object],
    out_folder: Path | str,
    progress: bool = False,
) -> Run:
    """Runs a notebook with `parameters` into `out_folder`.

    Leaves `<name>.ipynb` (executed) and `scores.json` there; a failed run
    leaves `<name>.failed.ipynb` and raises `NotebookFailed`.
    """
    notebook = notebook_of(which)
    parameters = grids.check_values(parameters, grids.declared(notebook))
    folder = Path(out_folder).resolve()
    if folder == notebook.parent:
        raise ValueError(
            f"{folder} is the notebook's own folder, where the result would "
            "replace it; give another one"
        )
    results.make_folder(folder)
    executed = folder / notebook.name
    failed = folder / f"{notebook.stem}.failed.ipynb"
    for old in (executed, failed, folder / "scores.json"):
        old.unlink(missing_ok=True)
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(dir=folder, prefix=".run-") as scratch:
        try:
            scores = _execute(
                notebook, parameters, Path(scratch), notebook.parent, progress
            )
        except NotebookFailed:
            if (Path(scratch) / "executed.ipynb").exists():
                os.replace(Path(scratch) / "executed.ipynb", failed)
            raise
        os.replace(Path(scratch) / "executed.ipynb", executed)
        write_json(folder / "scores.json", scores)
    return Run(scores, executed, time.monotonic() - begin)


def _execute(
    notebook: Path,
    parameters: dict[str, object],
    scratch: Path,
    working: Path,
    progress: bool = False,
) -> dict[str, object]:
    """Executes into `scratch`/executed.ipynb and returns the scores."""
    import papermill
    from nbclient.exceptions import DeadKernelError

    logging.getLogger("papermill").setLevel(logging.ERROR)
    out = scratch / "scores.json"
    try:
        with without_front_end():
            papermill.execute_notebook(
                str(notebook),
                str(scratch / "executed.ipynb"),
                parameters={**parameters, "out": str(out)},
                cwd=str(working),
                progress_bar=progress,
                # otherwise each live figure adds 5 MB of plotly.js
                store_widget_state=False,
                extra_arguments=QUIET,
            )
    except papermill.PapermillExecutionError as error:
        executed = (scratch / "executed.ipynb").read_text(encoding="utf-8")
        cells = json.loads(executed)["cells"]
        raise failure(error, cells) from None
    except DeadKernelError:
        raise NotebookFailed(
            "the notebook's process died, perhaps for lack of memory"
        ) from None
    if not out.is_file():
        raise NotebookFailed(
            "the notebook wrote no scores; its last cell must call "
            "record(scores, out)"
        )
    return json.loads(out.read_text(encoding="utf-8"))


def failure(error, cells: list[dict]) -> NotebookFailed:
    """Makes one sentence of `error`, which comes from papermill or nbclient,
    and names the cell among the executed `cells` that failed.
    """
    sentence = error.evalue.strip().split("\n")[0]
    if error.ename != "ValueError":
        sentence = f"{error.ename}: {sentence}".removesuffix(": ")
    stopped = [
        cell.get("id", "?")
        for cell in cells
        if any(o["output_type"] == "error" for o in cell.get("outputs", []))
        and "raises-exception" not in cell["metadata"].get("tags", [])
    ]
    where = f' (in cell "{stopped[0]}")' if stopped else ""
    return NotebookFailed(sentence + where)


def run_one(
    source: str, working: str, parameters: dict[str, object]
) -> dict[str, object]:
    """Does one run of a sweep on a worker: the notebook arrives as text and
    the scores are returned as a value, so no shared file system is needed.

    If the notebook fails, {"error": its sentence} is returned.
    """
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="lab-sweep-") as scratch:
        notebook = Path(scratch) / "chapter.ipynb"
        notebook.write_text(source, encoding="utf-8")
        # on another machine the chapter's folder may not exist
        folder = working if Path(working).is_dir() else scratch
        try:
            scores = _execute(
                notebook, parameters, Path(scratch), Path(folder)
            )
        except NotebookFailed as error:
            return {"error": str(error)}
    return {"scores": scores, "seconds": time.monotonic() - begin}


def sweep(
    which: Page | str | int | Path,
    grid: dict[str, list[object]],
    out_folder: Path | str,
    scheduler: str | None = None,
    workers: int = 2,
    progress: bool = False,
) -> Sweep:
    """Runs every combination of the values in `grid`, each once.

    Call it again with the same arguments to resume after an interruption:
    finished combinations are kept, failed ones are tried again. A folder
    that holds another sweep or another version of the code is refused.
    """
    notebook = notebook_of(which)
    if not grid:
        raise ValueError(
            "the grid is empty; give a parameter, for example -p top_k=1:4"
        )
    known = grids.declared(notebook)
    jobs = [grids.check_values(one, known) for one in grids.combinations(grid)]
    if workers < 1:
        raise ValueError(f"workers={workers} is too few; use 1 or more")
    folder = results.open_folder(Path(out_folder), notebook, grid)
    finished = results.finished(folder, jobs)
    todo = [job for job in jobs if results.key(job) not in finished]
    failed: dict[str, str] = {}
    try:
        answers = fan_out(
            partial(run_one, _source(notebook), str(notebook.parent)),
            todo,
            scheduler=scheduler,
            workers=workers,
            title=notebook.stem if progress else "",
        )
        for job, answer in answers:
            if "error" in answer:
                failed[results.as_text(job)] = answer["error"]
            else:
                results.store(folder, job, answer)
    finally:
        # even after Ctrl-C the table has all that has finished
        done = results.finished(folder, jobs)
        table, figure = results.summarise(
            folder, jobs, list(grid), notebook.stem
        )
    return Sweep(table, figure, len(done), len(finished), len(jobs), failed)


def _source(notebook: Path) -> str:
    """The notebook without its stored pictures, to be sent to workers."""
    content = json.loads(notebook.read_text(encoding="utf-8"))
    for cell in content["cells"]:
        if cell["cell_type"] == "code":
            cell["outputs"] = []
    return json.dumps(content)
