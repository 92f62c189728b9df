"""Finding and loading what lies in data/."""

import re

import numpy as np
import pytest

from lab import data
from lab.data import ROOT, data_path, read_arrays, read_json, read_text


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "DATA", tmp_path)
    return tmp_path


def test_a_missing_file_names_its_nearest_neighbour(folder):
    (folder / "flows").mkdir()
    (folder / "flows/od.npz").touch()
    with pytest.raises(FileNotFoundError) as caught:
        data_path("flow/od.npz")
    assert str(caught.value) == (
        "there is no data/flow/od.npz; did you mean data/flows/od.npz?"
    )


def test_arrays_come_by_name(folder):
    np.savez(folder / "a.npz", x=np.arange(3), y=np.eye(2))
    np.save(folder / "b.npy", np.arange(4))
    loaded = read_arrays("a.npz")
    assert sorted(loaded) == ["x", "y"]
    assert loaded["x"].tolist() == [0, 1, 2]
    assert read_arrays("b.npy")["array"].tolist() == [0, 1, 2, 3]


def test_pickled_objects_are_refused(folder):
    np.save(folder / "c.npy", np.array([{}], dtype=object))
    with pytest.raises(ValueError, match="allow_pickle"):
        read_arrays("c.npy")


def test_broken_json_is_named(folder):
    (folder / "x.json").write_text('{"a": ')
    with pytest.raises(ValueError, match=r"data/x\.json is not valid JSON"):
        read_json("x.json")


def test_everything_in_data_has_a_source_and_a_licence():
    table = (ROOT / "data/README.md").read_text()
    named = set(re.findall(r"^\| `([^`]+?)/?` \|", table, re.M))
    there = {p.name for p in (ROOT / "data").iterdir()} - {"README.md"}
    assert there <= named, f"not in data/README.md: {there - named}"
    assert named <= there, f"no longer there: {named - there}"


def test_no_data_file_is_large():
    for path in (ROOT / "data").rglob("*"):
        assert path.stat().st_size < 5_000_000, path


def test_text_is_utf8(folder):
    (folder / "t.txt").write_bytes("Bjarne — é".encode())
    assert read_text("t.txt") == "Bjarne — é"
