"""Many verdicts in one figure: to the right of the line is as claimed."""

import pytest

from lab import figures
from lab.figures.ledger import placed
from lab.figures.theme import voices
from lab.ledger import in_a_row, record, verdicts
from lab.verdict import Verdict


def verdict(word, low, high, side="above", chapter="01"):
    out = word == "out of reach"
    return Verdict(
        claim=f"it-is-{word.replace(' ', '-')}",
        chapter=chapter,
        word=word,
        sentence="The paper says so.",
        effect="the effect",
        unit="%",
        threshold=10.0,
        side=side,
        mean=None if out else (low + high) / 2,
        low=low,
        high=high,
        reason="needs a cluster" if out else "",
    )


FOUND = [
    verdict("confirmed", 12.0, 14.0),
    verdict("refuted", 12.0, 14.0, side="below"),
    verdict("undecided", 9.0, 12.0),
    verdict("out of reach", None, None),
]


def test_the_claimed_side_is_on_the_right():
    rows = [in_a_row(one) for one in FOUND]
    mean, low, high = placed(rows[0])
    assert 0 < low < mean < high == 1
    mean, low, high = placed(rows[1])
    assert low == -1 < mean < high < 0
    mean, low, high = placed(rows[2])
    assert low == -0.5 < 0 < mean < high == 1


def test_the_title_counts_the_verdicts():
    figure = figures.ledger([in_a_row(one) for one in FOUND], "Here: ")
    assert voices(figure)[0] == (
        "Here: 4 claims: 1 confirmed, 1 refuted, 1 undecided, 1 out of reach"
    )
    assert list(figure.data[-1].text) == ["out of reach"]
    assert [list(trace.y) for trace in figure.data] == [[0], [1], [2], [3]]
    assert figure.layout.yaxis.ticktext[3] == "01 it is out of reach"


def test_an_empty_ledger_is_drawn_too():
    assert "none measured yet" in voices(figures.ledger([]))[0]


@pytest.mark.parametrize("chapters", [["01"], ["02", "01"], ["*"]])
def test_verdicts_are_read_by_chapter(tmp_path, chapters):
    for chapter in ("01", "02"):
        record(verdict("confirmed", 12.0, 14.0, chapter=chapter), tmp_path)
    found = [one.chapter for one in verdicts(chapters, tmp_path)]
    assert found == (["01", "02"] if chapters == ["*"] else chapters)
