"""The doctor's judgement, even of machines that are not here."""

import sys

import pytest

from lab.doctor import PACKAGES, Facts, findings, look

LAPTOP = Facts(
    python=(3, 12, 4),
    system="Linux",
    versions=dict.fromkeys(PACKAGES, "1.0") | {"triton": "3.7.1"},
    gpu="",
    capability=(0, 0),
    gpu_gib=0.0,
    rocm=False,
    driver=False,
    interpret=None,
    cores=4,
    memory_gib=16.0,
    disk_gib=50.0,
    browser="/usr/bin/chromium",
)
T4 = LAPTOP._replace(
    gpu="Tesla T4", capability=(7, 5), gpu_gib=15.0, driver=True
)
H100 = T4._replace(gpu="NVIDIA H100", capability=(9, 0), gpu_gib=79.0)


def lines(facts, level):
    return [one.what for one in findings(facts) if one.level == level]


def test_a_plain_laptop_has_no_problem():
    assert lines(LAPTOP, "problem") == []
    assert any(
        "no GPU: every chapter runs" in w for w in lines(LAPTOP, "note")
    )
    assert any("references run" in w for w in lines(LAPTOP, "ok"))


def test_a_t4_sends_matrix_products_through_torch():
    (note,) = lines(T4, "note")
    assert "no tensor cores: matrix products go through torch" in note
    assert "Tesla T4, compute capability 7.5, 15 GiB" in lines(T4, "ok")


def test_a_large_gpu_compiles_and_needs_no_note():
    assert lines(H100, "note") == lines(H100, "problem") == []
    assert "kernels are compiled by Triton for this GPU" in lines(H100, "ok")


@pytest.mark.parametrize(
    ("change", "level", "words", "way_out"),
    [
        ({"python": (3, 9, 1)}, "problem", "too old", "install Python 3.11"),
        ({"driver": True}, "problem", "this torch cannot use", "remove .venv"),
        ({"browser": None}, "note", "no Chromium", "install chromium"),
        ({"memory_gib": 2.0}, "note", "three open chapters", "shut down"),
        ({"disk_gib": 0.5}, "problem", "only 0 GiB free", "free some"),
    ],
)
def test_each_trouble_comes_with_a_way_out(change, level, words, way_out):
    found = [one for one in findings(LAPTOP._replace(**change))]
    (one,) = [f for f in found if words in f.what]
    assert one.level == level
    assert way_out in one.way_out


def test_a_gpu_that_is_interpreted_is_noticed():
    assert any(
        "TRITON_INTERPRET is set: kernels are interpreted" in what
        for what in lines(H100._replace(interpret=True), "note")
    )


def test_kernels_that_nothing_can_run_are_a_problem():
    (problem,) = lines(LAPTOP._replace(interpret=False), "problem")
    assert "TRITON_INTERPRET is off: the kernels cannot run" in problem
    assert lines(LAPTOP._replace(interpret=True), "problem") == []
    assert lines(H100._replace(interpret=False), "problem") == []


@pytest.mark.parametrize(
    ("word", "interpret"), [("on", True), ("0", False), (None, None)]
)
def test_the_switch_is_read_as_triton_reads_it(monkeypatch, word, interpret):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    if word:
        monkeypatch.setenv("TRITON_INTERPRET", word)
    assert look().interpret is interpret


@pytest.mark.parametrize(
    ("version", "tried"),
    [("3.5.1", False), ("3.6.0", True), ("3.9.0", True), ("3.10.0", False)],
)
def test_a_triton_that_no_test_has_seen_is_noticed(version, tried):
    there = LAPTOP.versions | {"triton": version}
    notes = lines(LAPTOP._replace(versions=there), "note")
    untried = [one for one in notes if f"Triton {version} is untried" in one]
    assert bool(untried) is not tried


def test_missing_packages_are_named():
    versions = {n: "1" for n in PACKAGES if n not in ("papermill", "triton")}
    (problem,) = lines(LAPTOP._replace(versions=versions), "problem")
    assert problem == "not installed: triton, papermill"


@pytest.mark.parametrize(
    ("system", "name"), [("Darwin", "macOS"), ("Windows", "Windows")]
)
def test_a_system_without_triton_is_a_problem(system, name):
    versions = {n: "1" for n in PACKAGES if n != "triton"}
    here = LAPTOP._replace(versions=versions, system=system)
    (problem,) = lines(here, "problem")
    assert problem.startswith(f"Triton has no build for {name}, and without")
    assert not any(
        "runs" in w for w in lines(here, "ok") + lines(here, "note")
    )


def test_a_machine_without_torch_is_still_looked_at(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    facts = look()
    assert "torch" not in facts.versions
    assert "not installed: torch" in lines(facts, "problem")
