"""The folder of a sweep: a sweep that breaks off leaves no obstacle."""

import os
from pathlib import Path

import pandas
import pytest
from plotly.offline import get_plotlyjs

from lab import results

JOBS = [{"k": 0}, {"k": 1}]
GRID = {"k": [0, 1]}


def keep(folder, **scores):
    """Scores for each of `JOBS`, as a sweep leaves them."""
    (folder / "results").mkdir(exist_ok=True)
    for job in JOBS:
        results.store(folder, job, {"scores": scores, "seconds": 1.5})


def test_a_start_on_a_full_disk_can_be_repeated(
    tiny_notebook, tmp_path, monkeypatch
):
    def full(handle):
        raise OSError(28, "No space left on device")

    notebook, folder = tiny_notebook(), tmp_path / "out"
    with monkeypatch.context() as disk, pytest.raises(OSError):
        disk.setattr(results.os, "fsync", full)
        results.open_folder(folder, notebook, GRID)
    assert list(folder.iterdir()) == []
    results.open_folder(folder, notebook, GRID)
    # and as a kill in the middle of the first file would leave it
    os.replace(folder / "sweep.json", folder / ".part-x1")
    (folder / "results").rmdir()
    results.open_folder(folder, notebook, GRID)
    assert (folder / "results").is_dir()


def test_two_sweeps_may_end_together(tmp_path, monkeypatch):
    keep(tmp_path, load=0.5)
    replace, ends = os.replace, []

    def other_first(old, new):
        # the other one comes between the file and its name
        if not ends:
            ends.append("other")
            results.summarise(tmp_path, JOBS, ["k"], "n")
        replace(old, new)

    monkeypatch.setattr(results.os, "replace", other_first)
    table, _ = results.summarise(tmp_path, JOBS, ["k"], "n")
    assert ends and pandas.read_parquet(table).load.tolist() == [0.5, 0.5]
    assert not list(tmp_path.glob(".part-*"))


def test_a_figure_that_broke_off_is_made_whole(tmp_path):
    keep(tmp_path, load=0.5)
    script = tmp_path / "plotly.min.js"
    script.write_text("half")
    _, figure = results.summarise(tmp_path, JOBS, ["k"], "n")
    assert script.name in figure.read_text(encoding="utf-8")
    assert script.read_text(encoding="utf-8") == get_plotlyjs()


def test_a_score_keeps_clear_of_every_other_name(tmp_path):
    keep(tmp_path, k=5, score_k=7, seconds=123)
    table, _ = results.summarise(tmp_path, JOBS, ["k"], "n")
    assert pandas.read_parquet(table).to_dict("list") == {
        "k": [0, 1],
        "score_k": [5, 5],
        "score_score_k": [7, 7],
        "score_seconds": [123, 123],
        "seconds": [1.5, 1.5],
    }


def test_a_folder_that_others_own_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(results.os, "access", lambda folder, mode: False)
    with pytest.raises(ValueError, match="Permission denied.*with --out"):
        results.make_folder(tmp_path)


@pytest.mark.parametrize("left", ["", "{}", "[]", '{"seconds": 1'])
def test_a_broken_result_is_named(tmp_path, left):
    keep(tmp_path, load=0.5)
    broken = tmp_path / "results" / f"{results.key(JOBS[0])}.json"
    broken.write_text(left)
    with pytest.raises(ValueError, match=f"{broken.name} is not .*; remove"):
        results.finished(tmp_path, JOBS)


@pytest.mark.parametrize("left", ["", "{}", "[]", '{"grid": '])
def test_a_folder_whose_sweep_cannot_be_read_is_named(
    tiny_notebook, tmp_path, left
):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/sweep.json").write_text(left)
    with pytest.raises(ValueError, match="sweep.json is not .*with --out"):
        results.open_folder(tmp_path / "out", tiny_notebook(), GRID)


@pytest.mark.parametrize("cell", ["if 0:\n    %pip list", "(\n2\n% 3\n)"])
def test_an_import_beside_lines_with_percent_signs_is_followed(
    cell, tiny_notebook, monkeypatch
):
    notebook = tiny_notebook(f"{cell}\nimport lab.rounding")
    monkeypatch.setattr(results, "_source", lambda name: "one = 1")
    before = results.version(notebook)
    monkeypatch.setattr(results, "_source", lambda name: "one = 2")
    assert results.version(notebook) != before


def test_runs_of_other_values_have_other_folders():
    texts = ["ab", "a b", "a,b", "a;b", "a=b", "../ab", "x" * 99, "x" * 98]
    given = [{"text": text} for text in texts]
    given += [{"text": "a", "b": 1}, {"text": "a b=1"}, {}]
    folders = [results.run_folder(Path("02-x.ipynb"), one) for one in given]
    assert len(set(folders)) == len(given)
    assert {folder.parent for folder in folders} == {Path("runs/02-x")}
    assert folders[0].name == "text=ab" and folders[-1].name == "defaults"
    assert max(len(folder.name) for folder in folders) < 100
