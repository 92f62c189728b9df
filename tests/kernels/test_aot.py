"""Every kernel compiles for every GPU, and costs what the ledger says."""

import subprocess
import sys

import pytest

from lab import aot


def test_no_kernel_costs_more_than_recorded():
    run = subprocess.run(
        [sys.executable, "-m", "lab.aot"], capture_output=True, text=True
    )
    faults = [line for line in run.stdout.splitlines() if "fault:" in line]
    assert not faults
    assert run.returncode == 0, run.stderr


def test_the_ledger_reads_back_as_written(tmp_path):
    ledger = aot.read_ledger()
    assert ledger, "data/aot.csv is empty"
    aot.write_ledger(ledger, tmp_path / "aot.csv")
    assert (tmp_path / "aot.csv").read_bytes() == aot.LEDGER.read_bytes()


def fine(**changes):
    row = {"kernel": "gate", "configuration": "E8", "target": "sm_75"}
    row |= {"registers": 64, "stack": 0, "shared": 65536, "instructions": 100}
    return row | {"hmma": 4} | changes


def test_what_the_ledger_holds_is_no_fault():
    assert aot.faults(fine(), fine(), matrix_units=True) == []
    bigger = fine(registers=72, instructions=110)
    assert aot.faults(bigger, fine(), matrix_units=True) == []


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"stack": 8}, "spills 8 bytes"),
        ({"shared": 65537}, "a T4 has 65536"),
        ({"hmma": 0}, "no matrix instruction"),
        ({"registers": 73}, "takes 73 registers, recorded are 64"),
        ({"instructions": 111}, "has 111 instructions, recorded are 100"),
    ],
)
def test_each_regression_is_a_fault(changes, words):
    (sentence,) = aot.faults(fine(**changes), fine(), matrix_units=True)
    assert words in sentence
