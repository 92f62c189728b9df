"""The picture of those who travel through a layered graph."""

import pytest

from lab import figures
from lab.figures.travellers import FEW, GAP, SPREAD, STOP, THICK, THIN

ROADS = [(0, 1, 0), (0, 1, 1), (1, 0, 1), (1, 1, 1)]
GROUPS = {
    "some": ("kept", [[1, 0, 1], [1, 1, 1]]),
    "one": ("best", [[1, 0, 1]]),
}


def drawn():
    return figures.travellers(ROADS, GROUPS, "a title", places="ab")


def named(figure, name):
    return next(t for t in figure.data if t.name == name)


def paths(trace):
    """The places of every line of a trace, without its lane."""
    lines, line = [], []
    for x, y in zip(trace.x, trace.y, strict=True):
        if x is None:
            lines.append(line)
            line = []
        else:
            line.append((x, y))
    assert not line
    return lines


def test_every_traveller_visits_its_places_in_a_lane_of_its_own():
    figure, lanes = drawn(), []
    for name, (_, wanted) in GROUPS.items():
        for line, path in zip(paths(named(figure, name)), wanted, strict=True):
            assert [x for x, _ in line] == pytest.approx(
                [h + side for h in range(3) for side in (-STOP, STOP)]
            )
            off = {round(y - path[i // 2], 9) for i, (_, y) in enumerate(line)}
            assert len(off) == 1
            lanes += off
    assert lanes == sorted(set(lanes))
    assert max(map(abs, lanes)) < SPREAD / 2
    # two lanes are free between the groups
    step = lanes[1] - lanes[0]
    assert lanes[2] - lanes[1] == pytest.approx((1 + GAP) * step)


def test_the_roads_lie_behind_and_every_place_is_marked():
    figure = drawn()
    roads = paths(figure.data[0])
    assert roads == [[(h, s), (h + 1, t)] for h, s, t in ROADS]
    stops = set(zip(figure.data[-1].x, figure.data[-1].y, strict=True))
    assert stops == {(0, 1), (1, 0), (1, 1), (2, 1)}
    assert list(figure.layout.yaxis.ticktext) == ["a", "b"]
    assert figure.layout.yaxis.range[0] > figure.layout.yaxis.range[1]


def test_many_lines_are_thin_and_none_is_not_in_the_legend():
    many = {"many": ("kept", [[1, 0, 1]] * (FEW + 1)), "none": ("best", [])}
    figure = figures.travellers(ROADS, many, "a title")
    assert named(figure, "many").line.width == THIN
    assert named(figure, "none").showlegend is False
    assert named(drawn(), "some").line.width == THICK


def test_it_can_be_a_panel():
    both = figures.panels([[drawn(), drawn()]], "x")
    assert len(both.data) == 2 * len(drawn().data)
