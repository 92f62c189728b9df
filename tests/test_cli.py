"""The `lab` command answers quickly, and a mistake gets one sentence."""

import os
import re
import subprocess
import sys
import time

import pytest
from typer.testing import CliRunner

from lab import bench, cli, doctor, headless, readme, structure
from lab.catalogue import CHAPTERS

TO_COME = next(one for one in CHAPTERS if not one.ready)


def lab(*words, cwd=None):
    return subprocess.run(
        [sys.executable, "-m", "lab.cli", *words],
        capture_output=True,
        text=True,
        timeout=100,
        cwd=cwd,
        env=os.environ | {"COLUMNS": "100", "NO_COLOR": "1"},
    )


@pytest.fixture
def status(monkeypatch):
    """`status(*words)` runs the command here and returns its exit status."""

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["lab", *words])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return ended.value.code

    return run


def test_help_imports_nothing_heavy():
    code = (
        "import sys; sys.argv = ['lab', '--help']\n"
        "from lab import cli\n"
        "try: cli.main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'triton', 'numpy', 'plotly', 'papermill',"
        " 'distributed', 'pandas'} & set(sys.modules)\n"
        "print('heavy:', sorted(heavy))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True
    )
    assert "heavy: []" in done.stdout
    for command in "list run sweep claims bench doctor render".split():
        assert command in done.stdout


def test_without_a_command_there_is_help_and_nothing_else():
    done = lab()
    assert done.stdout.strip() == lab("--help").stdout.strip()
    assert done.stderr == ""


def test_list_shows_all_chapters_by_part():
    done = lab("list")
    assert done.returncode == 0
    assert "AdaMoE: experts that do nothing" in done.stdout
    assert done.stdout.index("cities-to-series") < done.stdout.index("alpine")
    assert "of 57 chapters are ready" in done.stdout
    states = re.findall(r"\d\d +(ready|to come) *$", done.stdout, re.M)
    assert len(states) == 57 + 1, "57 chapters and what closes a part"
    assert "The router arena" in done.stdout


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["run", "adamo"], "did you mean adamoe (02)?"),
        (["run", TO_COME.number], "still to come"),
        (["run", "missing.ipynb"], "there is no notebook missing.ipynb"),
        (["claims", "99"], "there is no chapter '99'"),
        (["nonsense"], "No such command 'nonsense'; see `lab --help`"),
        (["run"], "see `lab --help`"),
        (["run", "02", "--colour"], "--colour"),
        (["sweep", "02", "--workers", "few"], "--workers"),
    ],
)
def test_a_mistake_is_one_sentence_and_status_2(words, sentence):
    done = lab(*words)
    assert done.returncode == 2
    assert done.stdout == ""
    assert sentence in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_run_shows_the_scores(tiny_notebook, tmp_path):
    done = lab("run", str(tiny_notebook()), "-p", "top_k=6", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "3.0" in done.stdout
    assert (tmp_path / "runs/tiny/top_k=6/scores.json").is_file()


def test_a_long_path_stays_on_one_line(tiny_notebook, tmp_path):
    folder = tmp_path / "long name" / "-".join("folder" for _ in range(20))
    done = lab("run", str(tiny_notebook()), "--out", str(folder))
    assert done.stdout.endswith(f"everything is in {folder}\n")


def test_what_is_printed_is_printed_as_it_is(tiny_notebook, tmp_path):
    body = "loss = '[lab] :key: [true, false]'"
    done = lab("run", str(tiny_notebook(body)), "--out", "a[b]", cwd=tmp_path)
    assert "[lab] :key: [true, false]" in done.stdout
    assert "everything is in a[b]" in done.stdout
    done = lab("run", "[b]:key:", cwd=tmp_path)
    assert "there is no chapter '[b]:key:'" in done.stderr


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["run", "-p", "topk=4"], "no parameter topk; did you mean top_k?"),
        (["run", "-p", "top_k=x"], "top_k=x is not a whole number"),
        (["run", "-p", "top_k=1,2"], "use `lab sweep`"),
        (["run", "--out", "."], "is the notebook's own folder"),
        (["run", "--out", "tiny.ipynb"], "give another one with --out"),
        (["run", "--out", "/dev/null/a"], "give another one with --out"),
        (
            ["sweep", "-p", "top_k=1", "--out", "tiny.ipynb"],
            "tiny.ipynb cannot be a folder for results (File exists)",
        ),
        (["sweep"], "the grid is empty"),
        (["sweep", "-p", "top_k=1", "--workers", "0"], "use 1 or more"),
    ],
)
def test_wrong_values_are_refused(
    tiny_notebook, tmp_path, monkeypatch, capsys, status, words, sentence
):
    notebook = str(tiny_notebook())
    monkeypatch.chdir(tmp_path)
    assert status(words[0], notebook, *words[1:]) == 2
    assert sentence in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["tiny.ipynb"]


def test_a_failing_notebook_gives_its_sentence_and_status_1(
    tiny_notebook, tmp_path
):
    notebook = tiny_notebook("raise ValueError('k=9 is too many; use 1 to 8')")
    done = lab("run", str(notebook), cwd=tmp_path)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last == 'k=9 is too many; use 1 to 8 (in cell "body")'
    # a kernel that is being closed sometimes logs an error of its own
    assert "ValueError" not in done.stderr
    assert "PapermillExecutionError" not in done.stderr


def test_a_sweep_on_the_command_line_ends_in_a_table(tiny_notebook, tmp_path):
    words = ["sweep", str(tiny_notebook()), "-p", "top_k=1:2", "--out", "s"]
    done = lab(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "2 of 2 combinations done, 0 of them in an earl" in done.stdout
    begin = time.monotonic()
    again = lab(*words, cwd=tmp_path)
    assert "2 of 2 combinations done, 2 of them in an earl" in again.stdout
    assert time.monotonic() - begin < 60
    assert (tmp_path / "s/results.parquet").is_file()


def test_after_failed_texts_the_quotes_are_explained(
    tiny_notebook, tmp_path, monkeypatch, capsys
):
    failed = {"loss=k = 2": "loss='k = 2' is not allowed"}
    answer = headless.Sweep(None, None, 0, 0, 2, failed)
    monkeypatch.setattr(headless, "sweep", lambda *_, **__: answer)
    with pytest.raises(cli.typer.Exit):
        cli.sweep(str(tiny_notebook()), ["loss=k = 2, learned"], tmp_path)
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == (
        "put a text that contains a comma in quotes: -p 'loss=\"a, b\"'"
    )


@pytest.mark.parametrize(
    "words",
    [["claims", "39", "--run"], ["train", "08"], ["render", "02"], ["readme"]],
)
def test_work_that_could_not_be_kept_is_refused_before_it_begins(
    words, monkeypatch, capsys, status
):
    monkeypatch.setattr(os, "access", lambda folder, mode: False)
    assert status(*words) == 2
    said = capsys.readouterr().err
    assert "cannot be written to, so nothing would be kept" in said


def test_without_a_clone_there_is_nothing_to_render(monkeypatch, tmp_path):
    monkeypatch.setattr(structure, "ROOT", tmp_path)
    monkeypatch.setattr(readme, "README", tmp_path / "README.md")
    for command in (cli.render, cli.readme):
        with pytest.raises((ValueError, OSError), match="not here, .*; clone"):
            command()


def test_ctrl_c_is_answered(monkeypatch, capsys, status):
    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr(doctor, "look", interrupted)
    assert status("doctor") == 130
    assert capsys.readouterr().err == "stopped\n"


def test_doctor_writes_its_ways_out_in_full(monkeypatch, capsys):
    found = doctor.Finding("problem", "not installed: x", "pip '.[lab]'")
    monkeypatch.setattr(doctor, "look", lambda: None)
    monkeypatch.setattr(doctor, "findings", lambda facts: [found])
    with pytest.raises(cli.typer.Exit):
        cli.doctor()
    assert "pip '.[lab]'" in capsys.readouterr().out


def test_doctor_says_what_runs_here():
    done = lab("doctor")
    assert done.returncode in (0, 1)
    assert "Python 3." in done.stdout
    assert "torch " in done.stdout
    assert "Traceback" not in done.stderr


def test_the_benchmark_reads_its_own_arguments(monkeypatch):
    asked = []
    monkeypatch.setattr(bench, "main", asked.append)
    CliRunner().invoke(cli.app, ["bench", "--only", "combine", "--help"])
    assert asked == [["--only", "combine", "--help"]]
