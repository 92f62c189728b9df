"""Scores are printed and kept if JSON can hold them, else refused."""

import json
import math

import pytest
import torch

from lab.record import record


def test_scores_are_printed_and_written(tmp_path, capsys):
    scores = {"bits per character": 2.40812345, "load": [1.5, 2], "on": True}
    out = tmp_path / "deep" / "scores.json"
    record(scores, str(out))
    assert json.loads(out.read_text()) == scores
    assert capsys.readouterr().out == (
        "bits per character  2.408\n"
        "load                1.5, 2\n"
        "on                  True\n"
    )


def test_without_a_file_nothing_is_written(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    record({"bits": 2.0, "by layer": {"first": 1.0}})
    assert list(tmp_path.iterdir()) == []
    assert "first 1" in capsys.readouterr().out


@pytest.mark.parametrize(
    "scores, said",
    [
        ({"bits": math.nan}, "score bits is nan"),
        ({"bits": -math.inf}, "score bits is -inf"),
        ({"load": [1.0, math.nan]}, r"score load\[1\] is nan"),
        ({"load": {"a": math.inf}}, "score load.a is inf"),
        ({"bits": torch.tensor(1.0)}, "score bits is of type Tensor; use"),
        ({"set": {1, 2}}, "score set is of type set"),
        ({3: 1.0}, "the name 3 is not a text"),
        ({"load": {3: 1.0}}, "the name 3 is not a text"),
    ],
)
def test_what_json_cannot_hold_is_refused_before_writing(
    tmp_path, scores, said, capsys
):
    with pytest.raises(ValueError, match=said):
        record(scores, str(tmp_path / "scores.json"))
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().out == ""


def test_an_older_file_is_replaced(tmp_path):
    out = tmp_path / "scores.json"
    record({"bits": 1.0}, str(out))
    record({"bits": 2.0}, str(out))
    assert json.loads(out.read_text()) == {"bits": 2.0}
    assert [path.name for path in tmp_path.iterdir()] == ["scores.json"]
