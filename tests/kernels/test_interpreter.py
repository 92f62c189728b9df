"""The faster interpreter against Triton's own."""

import pathlib
import subprocess
import sys

import pytest
import triton

from lab.kernels import interpreter

CASES = pathlib.Path(__file__).with_name("interpreter_cases.py")


def test_the_faster_interpreter_changes_no_bit():
    # in a process of its own, which may turn the fast one off and on
    run = subprocess.run(
        [sys.executable, CASES], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert len(run.stdout.splitlines()) == 8


@pytest.mark.parametrize("version", ["3.5.1", "3.10.0", "4.0.0+git1234"])
def test_an_untried_triton_keeps_its_own_interpreter(monkeypatch, version):
    monkeypatch.setattr(triton, "__version__", version)
    before = interpreter.interpreter._patch_lang
    assert not interpreter.install()
    assert interpreter.interpreter._patch_lang is before
