"""The figure of a whole route shows what the operators decided."""

import json
from fractions import Fraction
from itertools import combinations

import pytest
import torch

from lab import figures
from lab.data import ROOT
from lab.figures.theme import voices
from lab.kernels.combine import combine
from lab.kernels.dispatch import dispatch
from lab.kernels.expert_mlp import expert_mlp
from lab.kernels.topk_gate import topk_gate
from lab.tokens.capacity import within_capacity

WORDS = list("abcdefgh")
# all words prefer A; the second choice of half of them is B, of the others D
LOGITS = torch.tensor([[3.0, 2.0, 0.0, 1.0]] * 4 + [[3.0, 1.0, 0.0, 2.0]] * 4)


def drawn(k=2, capacity=8):
    asked = topk_gate(LOGITS, k)
    gate = within_capacity(asked, 4, capacity)
    sent = dispatch(gate.experts, 4)
    inks = torch.tensor(figures.INKS).unsqueeze(1)
    printed = expert_mlp(
        torch.ones(8, 3), sent.pairs, sent.rows, sent.offsets,
        torch.full((4, 3, 1), 1 / 3), inks, "relu",
    )  # fmt: skip
    return figures.five_steps(
        WORDS, "ABCD", LOGITS.softmax(dim=1), asked.experts,
        gate.experts, gate.weights, sent.pairs,
        combine(printed, sent.rows, gate.weights), capacity,
    )  # fmt: skip


def first_page():
    """The logits [12, 4] from which notebook 00 draws this figure."""
    path = ROOT / "notebooks" / "00-start-here.ipynb"
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    (words,) = ("".join(c["source"]) for c in cells if c["id"] == "words")
    made = {"torch": torch, "figures": figures, "device": lambda: "cpu"}
    exec(words, made)
    return made["logits"]


def test_no_rounding_decides_on_the_first_page():
    """Scores may be equal there as written, but not once a balance is
    subtracted."""
    logits = [[Fraction(x) for x in row] for row in first_page().tolist()]
    means = [sum(column) / len(logits) for column in zip(*logits, strict=True)]
    for balance in (Fraction(n, 10) for n in range(1, 11)):
        for row in logits:
            pairs = zip(row, means, strict=True)
            scores = [z - balance * mean for z, mean in pairs]
            gaps = [abs(a - b) for a, b in combinations(scores, 2)]
            assert min(gaps) > Fraction(1, 1000), (float(balance), row)


def test_temperature_changes_no_choice_on_the_first_page():
    logits = first_page()
    for balance in (n / 10 for n in range(11)):
        fair = logits - balance * logits.mean(dim=0)
        order = topk_gate(fair, 4).experts
        for temperature in (n / 4 for n in range(1, 17)):
            assert topk_gate(fair / temperature, 4).experts.equal(order)


def test_the_title_counts_requests():
    assert voices(drawn())[0] == (
        "Expert A is asked by 8 of 8 words; none of 16 requests turned away"
    )
    head, note = voices(drawn(capacity=3))
    assert "7 of 16 requests turned away" in head
    assert note == "a fair share would be 4 words an expert; each has 3 seats"
    assert voices(drawn(k=4))[0].startswith("Every expert is asked by 8")
    assert voices(drawn(capacity=1))[1].endswith("each has 1 seat")


def test_a_choice_shows_its_rank_or_that_it_was_turned_away():
    choices = drawn(capacity=3).data[1]
    assert list(choices.text[0]) == ["1", "2", "", ""]
    assert list(choices.z[0]) == [0, 1, -1, -1]
    # the fourth word finds both experts full
    assert list(choices.text[3]) == ["×", "×", "", ""]
    assert list(choices.z[3]) == [-2, -2, -1, -1]


def test_every_word_sits_with_its_expert_in_order_of_arrival():
    rooms = drawn(capacity=3).data[2]
    flat = [name for row in rooms.text for name in row]
    assert flat[0:8] == ["a", "b", "c", "", "", "", "", ""]
    assert flat[8:16] == ["a", "b", "c", "", "", "", "", ""]
    assert flat[16:24] == [""] * 8
    assert flat[24:32] == ["e", "f", "g", "", "", "", "", ""]
    # a place without a seat is blank, a free seat is pale
    seats = [value for row in rooms.z for value in row]
    assert seats[16:24] == [-1, -1, -1, None, None, None, None, None]


def test_bars_are_loads_and_those_turned_away():
    bars = drawn(capacity=3).data[3]
    assert list(bars.x) == [3, 3, 0, 3, 5, 1, 0, 1]
    assert list(bars.base) == [0, 0, 0, 0, 3, 3, 0, 3]


def test_the_mix_of_colours_is_the_weighted_sum():
    figure = drawn(k=1, capacity=3)
    mixed = figure.data[5].marker.color
    ink = figures.INKS[0]
    pure = "#" + "".join(f"{round(255 * (1 - part)):02X}" for part in ink)
    assert list(mixed) == [pure] * 3 + ["#FFFFFF"] * 5
    weights = figure.data[4]
    assert list(weights.x) == [1, 1, 1, 0, 0, 0, 0, 0]


@pytest.mark.parametrize("k", [1, 2, 4])
def test_the_number_of_traces_does_not_depend_on_the_values(k):
    kinds = [trace.type for trace in drawn(k).data]
    assert kinds == ["heatmap"] * 3 + ["bar"] * 2 + ["scatter"]


def test_panels_do_not_overlap():
    layout = drawn().layout
    spans = [layout[f"xaxis{i}"].domain for i in ("", 2, 3, 4, 5)]
    for (_, end), (begin, _) in zip(spans, spans[1:], strict=False):
        assert begin - end > 0.025
