"""Candidates that fit against Python sets, and triangles against NumPy."""

import networkx as nx
import numpy as np
import pytest
import torch
from on_device import on_device

from lab.kernels.intersect import intersect, intersect_triton

KERNELS = {"reference": intersect, "kernel": on_device(intersect_triton)}


def lists(graph):
    """Sorted neighbour lists of a networkx graph, as the kernel takes them."""
    rows = [sorted(graph[v]) for v in range(len(graph))]
    ends = np.cumsum([0, *map(len, rows)])
    col = [w for row in rows for w in row]
    return rows, torch.tensor(ends), torch.tensor(col, dtype=torch.int32)


def candidates(rows, rowptr, matches, place=0):
    """All neighbours of one place of each match as candidates."""
    walked = [row[place] for row in matches]
    begin = rowptr[torch.tensor(walked, dtype=torch.int64)]
    lengths = [len(rows[v]) for v in walked]
    first = torch.tensor(np.cumsum([0, *lengths]))
    return begin, first, int(first[-1])


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize(
    ("near", "far"), [((0, 1), ()), ((0,), (1, 2)), ((0, 2), (1,)), ((), ())]
)
def test_what_fits_is_what_sets_say(name, near, far):
    graph = nx.gnp_random_graph(70, 0.3, seed=3)
    rows, rowptr, col = lists(graph)
    dice = np.random.default_rng(0)
    matches = dice.integers(70, size=(90, 3)).tolist()
    begin, first, slots = candidates(rows, rowptr, matches)
    found = KERNELS[name](
        torch.tensor(matches).int(), rowptr, col, begin, first, slots,
        sum(1 << p for p in near), sum(1 << p for p in far),
    )  # fmt: skip
    wanted = []
    for match in matches:
        fits = set(graph[match[0]]) - set(match)
        for p in near:
            fits &= set(graph[match[p]])
        for p in far:
            fits -= set(graph[match[p]])
        wanted += [w if w in fits else -1 for w in rows[match[0]]]
    assert found.tolist() == wanted
    assert found.dtype == torch.int32


@pytest.mark.parametrize("name", KERNELS)
def test_triangles_are_a_third_of_the_trace_over_two(name):
    graph = nx.gnp_random_graph(90, 0.2, seed=1)
    rows, rowptr, col = lists(graph)
    matches = list(graph.edges)
    begin, first, slots = candidates(rows, rowptr, matches, place=1)
    found = KERNELS[name](
        torch.tensor(matches).int(), rowptr, col, begin, first, slots, 3, 0
    )
    A = nx.to_numpy_array(graph, nodelist=range(90))
    # every edge of a triangle finds the third vertex
    assert (found >= 0).sum() == np.trace(A @ A @ A) / 2


@pytest.mark.parametrize("name", KERNELS)
def test_a_piece_of_a_list_is_read_from_where_it_begins(name):
    graph = nx.complete_graph(9)
    _, rowptr, col = lists(graph)
    matches = torch.tensor([[2], [5], [7]]).int()
    # of the lists of 2, 5 and 7: three entries, none, and the last two
    begin = torch.tensor([rowptr[2] + 1, rowptr[5] + 8, rowptr[7] + 6])
    first = torch.tensor([0, 3, 3, 5])
    found = KERNELS[name](matches, rowptr, col, begin, first, 5, 1, 0)
    assert found.tolist() == [1, 3, 4, 6, 8]


def test_on_a_gpu_what_lies_outside_is_no_candidate_and_has_no_neighbour():
    _, rowptr, col = lists(nx.complete_graph(4))
    matches = torch.tensor([[0, -1], [0, 9], [0, 1]]).int()
    begin = torch.tensor([0, 0, 10])
    first = torch.tensor([0, 2, 4, 7])
    found = KERNELS["kernel"](matches, rowptr, col, begin, first, 7, 2, 0)
    # vertices -1 and 9 have no list; places 12 and on hold no candidate
    assert found.tolist() == [-1] * 5 + [2, -1]


GRAPH = lists(nx.complete_graph(4))[1:]
ONE = torch.tensor([[0, 1]]).int()
ALL = {"begin": torch.tensor([0]), "first": torch.tensor([0, 3]), "slots": 3}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"matches": ONE.long()}, "matches is torch.int64"),
        ({"matches": ONE[0]}, r"shape \(2,\) do not fit"),
        ({"begin": torch.tensor([0, 1])}, r"begin is .* \(1,\)"),
        ({"col": GRAPH[1].long()}, "col is torch.int64"),
        ({"near": 1, "far": 3}, "different bits of 2"),
        ({"near": 8}, "near=1000"),
        ({"matches": ONE + 3}, "has vertex 4; use 0 to 3"),
        ({"matches": ONE - 1}, "has vertex -1; use 0 to 3"),
        ({"slots": 4}, "rise from 0 to slots=4"),
        ({"slots": -1}, "slots=-1 do not fit 1 matches"),
        ({"begin": torch.tensor([11])}, "end at 14, but col holds 12"),
    ],
)
def test_wrong_input_is_refused_in_a_sentence(change, sentence):
    given = {"matches": ONE, "rowptr": GRAPH[0], "col": GRAPH[1]} | ALL
    with pytest.raises(ValueError, match=sentence):
        intersect(**given | {"near": 3, "far": 0} | change)
