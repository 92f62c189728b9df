"""The set-up files agree with each other."""

import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import version

import pytest
import yaml

from lab.data import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS = PROJECT["project"]["optional-dependencies"]
CORE = PROJECT["project"]["dependencies"]
# conda-forge's name for the CPU build
CONDA = {"pytorch-cpu": "torch"}
# these come from PyPI even on Binder
FROM_PIP = {"kaleido", "triton"}


def bounds(requirements):
    """Names and lower bounds, without markers: {"torch": "2.6"}."""
    plain = (one.split(";")[0].strip() for one in requirements)
    return dict(one.split(">=") for one in plain)


def pins():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return dict(x.split("==") for x in lines if x and not x.startswith("#"))


def test_dependencies_are_lower_bounds_only():
    for one in CORE + EXTRAS["lab"] + EXTRAS["test"]:
        assert re.fullmatch(r"[a-z-]+>=[\d.]+(; .+)?", one), one


def test_each_direct_dependency_is_pinned_and_nothing_else():
    direct = bounds(CORE + EXTRAS["lab"] + EXTRAS["test"])
    assert set(pins()) == set(direct)


def test_the_pins_meet_the_bounds():
    def numbers(text):
        return tuple(int(part) for part in text.split("."))

    for name, low in bounds(CORE + EXTRAS["lab"] + EXTRAS["test"]).items():
        assert numbers(pins()[name]) >= numbers(low), name


@pytest.mark.parametrize("name", sorted(pins()))
def test_what_is_installed_is_what_is_pinned(name):
    # +cpu and +cu130 are builds of the same version
    assert version(name).split("+")[0] == pins()[name]


def test_colabs_kernel_packages_stay_out_of_the_core():
    heavy = {"jupyterlab", "papermill", "nbval", "kaleido", "ipykernel"}
    assert not heavy & set(bounds(CORE))


def test_binder_installs_what_the_project_asks_for():
    environment = yaml.safe_load((ROOT / "binder/environment.yml").read_text())
    *conda, pip = environment["dependencies"]
    assert conda[0] == "python=3.11"
    assert conda[-1] == "pip"
    found = {
        CONDA.get(name, name): low for name, low in bounds(conda[1:-1]).items()
    }
    assert set(bounds(pip["pip"])) == FROM_PIP
    found |= bounds(pip["pip"])
    assert found == bounds(CORE + EXTRAS["lab"])


def test_binders_last_step_stops_at_the_first_error():
    path = ROOT / "binder/postBuild"
    lines = path.read_text().splitlines()
    assert lines[:2] == ["#!/bin/bash", "set -e"]
    assert "pip install --no-deps -e ." in lines
    assert os.access(path, os.X_OK)


def test_condas_environment_is_the_package_itself():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert environment["dependencies"][-1] == {"pip": ["-e .[lab]"]}


def test_the_extras_name_no_package_twice():
    # except ipywidgets: Colab keeps its own, JupyterLab needs a newer one
    names = [re.match(r"[a-z-]+", x).group() for x in CORE]
    for extra in EXTRAS.values():
        names += [re.match(r"[a-z-]+", x).group() for x in extra]
    names.remove("ipywidgets")
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("python", "words"),
    [
        ('[ "$1" = -V ] && echo Python 3.9.2; exit 1', "Python 3.9.2;"),
        (
            'case "$2" in *ensurepip*) exit 1;; esac; exit 0',
            "sudo apt install python3-venv",
        ),
    ],
)
def test_make_is_kind_to_a_python_that_will_not_do(tmp_path, python, words):
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    stand_in = tmp_path / "python"
    stand_in.write_text(f"#!/bin/sh\n{python}\n")
    stand_in.chmod(0o755)
    done = subprocess.run(
        ["make", "test", f"PYTHON={stand_in}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert words in done.stdout
    assert not (tmp_path / ".venv").exists()


@pytest.mark.parametrize("ready", [True, False])
@pytest.mark.parametrize(
    ("place", "python"),
    [("/elsewhere", "exit 0"), (None, "exit 1"), (None, None)],
    ids=["moved", "too old", "gone"],
)
def test_make_says_that_a_venv_no_longer_fits(tmp_path, ready, place, python):
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    programs = tmp_path / ".venv/bin"
    programs.mkdir(parents=True)
    (programs / "pip").write_text(f"#!{place or tmp_path}/.venv/bin/python\n")
    (programs / "python").symlink_to("stand-in")
    if python:
        (programs / "stand-in").write_text(f"#!/bin/sh\n{python}\n")
        (programs / "stand-in").chmod(0o755)
    if ready:
        (tmp_path / ".venv/.ready").touch()
    for command in ("lab", "test"):
        done = subprocess.run(
            ["make", command, f"PYTHON={sys.executable}"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert done.returncode != 0
        assert "make clean" in done.stdout
        assert "Installing" not in done.stdout


def test_what_is_ready_is_not_built_again(tmp_path):
    (tmp_path / ".venv").mkdir()
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    (tmp_path / ".venv/.ready").touch()
    done = subprocess.run(["make", "--question", ".venv/.ready"], cwd=tmp_path)
    assert done.returncode == 0
    os.utime(tmp_path / ".venv/.ready", (1, 1))
    done = subprocess.run(["make", "--question", ".venv/.ready"], cwd=tmp_path)
    assert done.returncode == 1


def test_the_ci_script_calls_the_readmes_command():
    path = ROOT / ".ci/run"
    assert os.access(path, os.X_OK)
    assert path.read_text().rstrip().endswith("make test")
    subprocess.run(["bash", "-n", str(path)], check=True)


@pytest.mark.parametrize(
    "words", [["check"], ["format", "--check"]], ids=["lint", "format"]
)
def test_the_code_is_as_ruff_leaves_it(words):
    done = subprocess.run(
        [sys.executable, "-m", "ruff", *words, "lab", "tests"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
