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
    unrecorded = aot.UNRECORDED.format(aot.version("triton"))
    if unrecorded in run.stdout:
        pytest.skip(f"{unrecorded}; only spills were looked for")


@pytest.mark.parametrize("triton", ["3.6.0", "3.7.1", "3.8.0", "3.9.0"])
def test_no_kernel_spills_under_a_triton_that_people_have(triton):
    rows = [row for key, row in aot.read_ledger().items() if key[-1] == triton]
    assert rows, f"record Triton {triton}: see lab/aot.py"
    # only the installed Triton can tell whether a row should use matrix units
    assert not [found for row in rows for found in aot.faults(row, row, False)]


def key_of(kernel, configuration):
    return kernel, configuration, "sm_90", "3.7.1"


def test_one_operation_leaves_the_rows_of_others_alone():
    keys = {
        key_of("expert_up", "gone"),
        key_of("expert_product", "gone"),
        # a kernel that two operations launch
        key_of("expert_product", "W bf16 128x128x64"),
        key_of("expert_product", "W^T bf16 128x128x64"),
        key_of("combine", "H2048 fp32"),
    }
    assert aot.foreign(keys, "expert_mlp") == {
        key_of("expert_product", "W^T bf16 128x128x64"),
        key_of("combine", "H2048 fp32"),
    }
    assert aot.foreign(keys, "") == set()


def test_an_operation_that_does_not_exist_is_not_without_fault(capsys):
    with pytest.raises(SystemExit) as status:
        aot.main(["--only", "topk"])
    assert status.value.code == 2
    assert "there is no topk; use ap_counts, " in capsys.readouterr().err


def test_the_ledger_reads_back_as_written(tmp_path):
    ledger = aot.read_ledger()
    assert ledger, "data/aot.csv is empty"
    aot.write_ledger(ledger, tmp_path / "aot.csv")
    assert (tmp_path / "aot.csv").read_bytes() == aot.LEDGER.read_bytes()


def fine(**changes):
    row = dict(zip(aot.KEY, ("gate", "E8", "sm_75", "3.7.1"), strict=True))
    row |= {"registers": 64, "stack": 0, "shared": 65536, "instructions": 100}
    return row | {"hmma": 4} | changes


def test_a_spill_is_allowed_for_one_triton_and_may_not_grow(monkeypatch):
    reason = {("gate", "E8", "sm_75", "3.7.1"): "a tile too large"}
    monkeypatch.setattr(aot, "MAY_SPILL", reason)
    spill, more = fine(stack=8), fine(stack=16)
    assert aot.faults(spill, spill, matrix_units=True) == []
    (sentence,) = aot.faults(more, spill, matrix_units=True)
    assert "spills 16 bytes; 8 are allowed" in sentence
    elsewhere = fine(stack=8, triton="3.9.0")
    assert aot.faults(elsewhere, elsewhere, matrix_units=True)


def test_what_may_spill_is_recorded_and_does():
    ledger = aot.read_ledger()
    assert all(ledger[key]["stack"] for key in aot.MAY_SPILL)


def test_what_the_ledger_holds_is_no_fault():
    assert aot.faults(fine(), fine(), matrix_units=True) == []
    bigger = fine(registers=72, instructions=110)
    assert aot.faults(bigger, fine(), matrix_units=True) == []


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"stack": 8}, "spills 8 bytes"),
        ({"shared": 65537}, "there are 65536"),
        ({"hmma": 0}, "no matrix instruction"),
        ({"registers": 73}, "takes 73 registers, but 64 are recorded"),
        ({"instructions": 3}, "3 instructions: it was compiled to nothing"),
        ({"instructions": 111}, "has 111 instructions, but 100 are recorded"),
    ],
)
def test_each_regression_is_a_fault(changes, words):
    (sentence,) = aot.faults(fine(**changes), fine(), matrix_units=True)
    assert words in sentence
