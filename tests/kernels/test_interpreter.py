"""The faster interpreter against Triton's own."""

import os
import pathlib
import subprocess
import sys

import pytest
import torch
import triton
import triton.language as tl

from lab.kernels import interpreter, runtime

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


@pytest.mark.parametrize(
    ("word", "interpreted"), [("1", True), ("TRUE", True), ("0", False)]
)
def test_a_kernel_is_interpreted_when_triton_says_so(word, interpreted):
    code = (
        "from triton import knobs; from lab.kernels import runtime;"
        "print(runtime.INTERPRETED, knobs.runtime.interpret)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=os.environ | {"TRITON_INTERPRET": word},
    )
    assert run.stdout == f"{interpreted} {interpreted}\n", run.stderr


@triton.jit
def dot_kernel(a_ptr, b_ptr, out_ptr, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)[:, None] * SIZE + tl.arange(0, SIZE)
    product = tl.dot(tl.load(a_ptr + at), tl.load(b_ptr + at))
    tl.store(out_ptr + at, product)


@pytest.mark.skipif(not runtime.INTERPRETED, reason="asks the interpreter")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_tiles_of_16_bits_are_multiplied_as_numbers(dtype):
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 16, 16, generator=generator).to(dtype)
    out = torch.empty(16, 16)
    dot_kernel[(1,)](a, b, out, SIZE=16)
    torch.testing.assert_close(out, a.float() @ b.float())
