"""Headless runs and sweeps, on tiny notebooks in a temporary folder."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas
import pytest

from lab.catalogue import CHAPTERS
from lab.headless import NotebookFailed, notebook_of, run_chapter, sweep

# leaves one line a run, so that a test can count the runs
COUNT = """\
from pathlib import Path
log = Path("runs.log")
with log.open("a") as file:
    file.write(f"{top_k} {alpha}\\n")
"""


def runs_of(notebook):
    log = notebook.parent / "runs.log"
    return log.read_text().splitlines() if log.exists() else []


def test_a_run_leaves_scores_and_the_executed_notebook(
    tiny_notebook, tmp_path
):
    notebook = tiny_notebook()
    run = run_chapter(notebook, {"top_k": 3, "alpha": 2}, tmp_path / "out")
    assert run.scores["load"] == 6.0
    assert json.loads((tmp_path / "out/scores.json").read_text()) == run.scores
    executed = json.loads(run.notebook.read_text())
    assert "widgets" not in executed["metadata"]
    sources = ["".join(cell["source"]) for cell in executed["cells"]]
    assert any("top_k = 3" in source for source in sources)
    left = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert left == ["scores.json", "tiny.ipynb"]


def test_the_first_page_has_a_number():
    assert notebook_of("00").name == "00-start-here.ipynb"
    assert notebook_of("00").is_file() and notebook_of(0) == notebook_of("00")


def test_an_error_is_reported_as_the_notebooks_own_sentence(
    tiny_notebook, tmp_path
):
    notebook = tiny_notebook(
        'raise ValueError(f"top_k={top_k} is more than 8; use 1 to 8")'
    )
    with pytest.raises(NotebookFailed) as caught:
        run_chapter(notebook, {"top_k": 9}, tmp_path / "out")
    assert str(caught.value) == (
        'top_k=9 is more than 8; use 1 to 8 (in cell "body")'
    )
    assert (tmp_path / "out/tiny.failed.ipynb").is_file()
    assert not (tmp_path / "out/scores.json").exists()


def test_a_run_started_in_jupyterlab_is_no_front_end(
    tiny_notebook, tmp_path, monkeypatch
):
    monkeypatch.setenv("JPY_SESSION_NAME", "chapter.ipynb")
    notebook = tiny_notebook("import os\nloss = str(sorted(os.environ))")
    run = run_chapter(notebook, {}, tmp_path / "out")
    assert "PATH" in run.scores["loss"]
    assert "JPY_SESSION_NAME" not in run.scores["loss"]
    assert os.environ["JPY_SESSION_NAME"] == "chapter.ipynb"


def test_notebooks_are_read_as_utf_8_on_every_system(
    tiny_notebook, tmp_path, monkeypatch
):
    read = Path.read_text

    def read_text(path, encoding=None):
        # what Windows uses in Western countries if no encoding is given
        return read(path, encoding=encoding or "cp1252")

    monkeypatch.setattr(Path, "read_text", read_text)
    notebook = tiny_notebook('if fast: raise ValueError("→ ”")\nloss = "→ ”"')
    run = run_chapter(notebook, {}, tmp_path / "out")
    assert run.scores["loss"] == "→ ”"
    with pytest.raises(NotebookFailed, match="→ ”"):
        run_chapter(notebook, {"fast": True}, tmp_path / "out")


def test_a_failed_run_leaves_no_scores_of_an_earlier_one(
    tiny_notebook, tmp_path
):
    notebook = tiny_notebook("assert top_k < 5")
    run_chapter(notebook, {"top_k": 1}, tmp_path / "out")
    with pytest.raises(NotebookFailed, match="AssertionError"):
        run_chapter(notebook, {"top_k": 5}, tmp_path / "out")
    assert not (tmp_path / "out/scores.json").exists()


def test_a_notebook_that_records_nothing_is_an_error(tiny_notebook, tmp_path):
    notebook = tiny_notebook("out = ''")
    with pytest.raises(NotebookFailed, match="wrote no scores"):
        run_chapter(notebook, {}, tmp_path / "out")


def test_a_notebook_whose_process_dies_is_an_error(tiny_notebook, tmp_path):
    notebook = tiny_notebook(
        "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)"
    )
    with pytest.raises(NotebookFailed, match="process died, perhaps for lack"):
        run_chapter(notebook, {}, tmp_path / "out")


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"topk": 3}, "no parameter topk; did you mean top_k"),
        ({"top_k": "three"}, "type str; the notebook wants int"),
        ({"top_k": True}, "type bool; the notebook wants int"),
        ({"out": "x.json"}, "out is set by the runner"),
    ],
)
def test_wrong_parameters_are_refused_before_anything_runs(
    tiny_notebook, tmp_path, parameters, words
):
    notebook = tiny_notebook(COUNT)
    with pytest.raises(ValueError, match=words):
        run_chapter(notebook, parameters, tmp_path / "out")
    assert not runs_of(notebook)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "content", [b"", b"hello", b"[]", b"{}", b"\xff\xfe", b'{"cells": [{}]}']
)
def test_a_file_that_is_no_notebook_is_named(tmp_path, content):
    path = tmp_path / "mine.ipynb"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"mine\.ipynb is not a notebook \("):
        notebook_of(path)


def test_a_chapter_still_to_come_is_named():
    chapter = next(one for one in CHAPTERS if not one.ready)
    said = rf"{chapter.number} \({chapter.slug}\) is still to"
    with pytest.raises(ValueError, match=said):
        run_chapter(chapter.number, {}, "nowhere")


def test_a_ready_chapter_whose_notebook_is_elsewhere_is_said(
    monkeypatch, tmp_path
):
    monkeypatch.setattr("lab.catalogue.ROOT", tmp_path)
    with pytest.raises(FileNotFoundError, match="is not here; clone https:"):
        run_chapter("02", {}, tmp_path / "out")


def test_a_sweep_survives_a_killed_worker(tiny_notebook, tmp_path):
    # the kernel kills its parent, the Dask worker, once and in mid-run
    notebook = tiny_notebook(
        COUNT
        + """
import os, signal, time
flag = Path("killed")
if top_k == 2 and not flag.exists():
    flag.touch()
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(60)
"""
    )
    grid = {"top_k": [1, 2, 3], "alpha": [0.5, 1.0]}
    done = sweep(notebook, grid, tmp_path / "out", workers=2)
    assert (tmp_path / "killed").exists()
    assert (done.done, done.total, done.failed) == (6, 6, {})
    table = pandas.read_parquet(done.table)
    # the order of the grid, whichever run finishes first
    assert list(table.columns[:3]) == ["top_k", "alpha", "load"]
    assert table.top_k.tolist() == [1, 1, 2, 2, 3, 3]
    assert table.load.tolist() == [0.5, 1.0, 1.0, 2.0, 1.5, 3.0]
    assert table["parts.a"].tolist() == [1] * 6
    assert done.figure == tmp_path / "out/figure.html"
    assert done.figure.stat().st_size < 1_000_000
    assert len(runs_of(notebook)) >= 7


def test_failed_combinations_are_named_and_tried_again(
    tiny_notebook, tmp_path
):
    notebook = tiny_notebook(
        COUNT
        + """
if top_k == 2 and not Path("mended").exists():
    raise ValueError("top_k=2 does not fit today; use 1")
"""
    )
    grid = {"top_k": [1, 2]}
    first = sweep(notebook, grid, tmp_path / "out", workers=1)
    assert (first.done, first.total) == (1, 2)
    assert first.failed == {
        "top_k=2": 'top_k=2 does not fit today; use 1 (in cell "body")'
    }
    (tmp_path / "mended").touch()
    second = sweep(notebook, grid, tmp_path / "out", workers=1)
    assert (second.done, second.reused, second.failed) == (2, 1, {})
    assert runs_of(notebook) == ["1 0.5", "2 0.5", "2 0.5"]


def test_an_interrupted_sweep_goes_on_where_it_stopped(
    tiny_notebook, tmp_path
):
    notebook = tiny_notebook(COUNT + "import time\ntime.sleep(1.5)\n")
    out = tmp_path / "out"
    command = [sys.executable, "-m", "lab.cli", "sweep", str(notebook)]
    command += ["-p", "top_k=1:6", "--out", str(out), "--workers", "1"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    until = time.monotonic() + 100
    while not list(out.glob("results/*.json")):
        assert time.monotonic() < until and process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in said
    assert said.endswith("the same command resumes the sweep\nstopped\n")
    finished = {p: p.stat().st_mtime_ns for p in out.glob("results/*.json")}
    assert 1 <= len(finished) < 6
    done = sweep(notebook, {"top_k": [1, 2, 3, 4, 5, 6]}, out, workers=2)
    assert (done.done, done.reused) == (6, len(finished))
    for path, moment in finished.items():
        assert path.stat().st_mtime_ns == moment


def test_another_version_of_the_notebook_is_never_mixed_in(
    tiny_notebook, tmp_path
):
    grid = {"top_k": [1]}
    sweep(tiny_notebook("x = 1"), grid, tmp_path / "out", workers=1)
    changed = tiny_notebook("x = 2")
    with pytest.raises(ValueError, match="another version"):
        sweep(changed, grid, tmp_path / "out", workers=1)


def test_another_grid_or_notebook_is_never_mixed_in(tiny_notebook, tmp_path):
    sweep(tiny_notebook(), {"top_k": [1]}, tmp_path / "out", workers=1)
    with pytest.raises(ValueError, match="another grid"):
        sweep(tiny_notebook(), {"top_k": [1, 2]}, tmp_path / "out")
    other = tiny_notebook(name="other.ipynb")
    with pytest.raises(ValueError, match="another notebook"):
        sweep(other, {"top_k": [1]}, tmp_path / "out")


def test_a_folder_with_other_things_is_left_alone(tiny_notebook, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("dear to me")
    with pytest.raises(ValueError, match="holds something else") as caught:
        sweep(tiny_notebook(), {"top_k": [1]}, tmp_path / "mine")
    assert "remove" not in str(caught.value)


def test_a_sweep_runs_on_any_scheduler_by_its_address(tiny_notebook, tmp_path):
    from distributed import LocalCluster

    with LocalCluster(
        n_workers=1,
        threads_per_worker=2,
        processes=True,
        dashboard_address=":0",
    ) as cluster:
        done = sweep(
            tiny_notebook(),
            {"loss": ["null", "ordinary"]},
            tmp_path / "out",
            scheduler=cluster.scheduler_address,
        )
    assert (done.done, done.failed) == (2, {})


def test_a_silent_scheduler_is_said_in_one_sentence(tiny_notebook, tmp_path):
    with pytest.raises(ValueError, match="no Dask scheduler answers at"):
        sweep(
            tiny_notebook(),
            {"top_k": [1]},
            tmp_path / "out",
            scheduler="tcp://127.0.0.1:1",
        )
