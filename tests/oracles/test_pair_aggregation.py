"""Sums over pairs of vertices against networkx and loops anyone can read."""

import networkx as nx
import pytest
import torch
from on_device import on_device

from lab.kernels.pair_aggregation import (
    neighbour_lists,
    pair_aggregation,
    pair_aggregation_triton,
)

KERNELS = {
    "reference": pair_aggregation,
    "kernel": on_device(pair_aggregation_triton),
}


def lists_of(*graphs):
    """Padded neighbour lists of networkx graphs on 0 to n - 1."""
    most = max(d for graph in graphs for _, d in graph.degree)
    rows = [
        [sorted(g[v]) + [-1] * (most - g.degree(v)) for v in range(len(g))]
        for g in graphs
    ]
    return torch.tensor(rows, dtype=torch.int32)


@pytest.mark.parametrize("name", KERNELS)
def test_sums_are_those_of_a_loop_over_the_neighbours(name):
    graphs = [nx.gnp_random_graph(7, 0.4, seed=s) for s in (1, 2)]
    x = torch.randn(2, 7, 7, 3, generator=torch.Generator().manual_seed(0))
    found = KERNELS[name](x, lists_of(*graphs))
    assert found.shape == (2, 2, 7, 7, 3)
    for b, graph in enumerate(graphs):
        for u in graph:
            for v in graph:
                inside = sum((x[b, u, w] for w in graph[v]), torch.zeros(3))
                across = sum((x[b, w, v] for w in graph[u]), torch.zeros(3))
                close = {"atol": 1e-5, "rtol": 0}
                torch.testing.assert_close(found[0, b, u, v], inside, **close)
                torch.testing.assert_close(found[1, b, u, v], across, **close)


@pytest.mark.parametrize("name", KERNELS)
def test_each_sum_can_be_had_alone(name):
    graph = nx.gnp_random_graph(9, 0.3, seed=3)
    A = torch.tensor(nx.to_numpy_array(graph, nodelist=range(9))).float()
    x = torch.randn(1, 9, 9, 1, generator=torch.Generator().manual_seed(1))
    X, lists = x[0, :, :, 0], lists_of(graph)
    close = {"atol": 1e-5, "rtol": 0}
    (inside,) = KERNELS[name](x, lists, True, False)
    torch.testing.assert_close(inside[0, :, :, 0], X @ A, **close)
    (across,) = KERNELS[name](x, lists, False, True)
    torch.testing.assert_close(across[0, :, :, 0], A @ X, **close)


@pytest.mark.parametrize("name", KERNELS)
def test_whole_numbers_are_exact_and_wrap_around(name):
    graph = nx.gnp_random_graph(8, 0.6, seed=4)
    generator = torch.Generator().manual_seed(2)
    x = torch.randint(-(1 << 62), 1 << 62, (1, 8, 8, 1), generator=generator)
    x[0, 0, 0] = (1 << 63) - 1
    found = KERNELS[name](x, lists_of(graph))
    assert found.dtype == torch.int64
    for u in graph:
        for v in graph:
            # Python's numbers do not wrap
            inside = sum(int(x[0, u, w]) for w in graph[v]) % (1 << 64)
            across = sum(int(x[0, w, v]) for w in graph[u]) % (1 << 64)
            assert int(found[0, 0, u, v]) % (1 << 64) == inside
            assert int(found[1, 0, u, v]) % (1 << 64) == across


@pytest.mark.parametrize("name", KERNELS)
def test_new_numbers_for_the_vertices_permute_the_sums(name):
    graph = nx.gnp_random_graph(10, 0.4, seed=5)
    p = torch.randperm(10, generator=torch.Generator().manual_seed(3))
    # vertex p[i] of the graph is called i
    other = nx.relabel_nodes(graph, {int(v): i for i, v in enumerate(p)})
    x = torch.randint(100, (1, 10, 10, 2)).long()
    before = KERNELS[name](x, lists_of(graph))
    after = KERNELS[name](x[:, p][:, :, p], lists_of(other))
    assert torch.equal(after, before[:, :, p][:, :, :, p])


@pytest.mark.parametrize("name", KERNELS)
def test_a_nan_spreads_only_where_it_is_heard(name):
    graph = nx.path_graph(4)
    x = torch.zeros(1, 4, 4, 1)
    x[0, 1, 2] = torch.nan
    inside, across = KERNELS[name](x, lists_of(graph))[:, 0, :, :, 0].isnan()
    # vertices 1 and 3 hear vertex 2 in copy 1; copies 0 and 2 hear copy 1
    assert inside.nonzero().tolist() == [[1, 1], [1, 3]]
    assert across.nonzero().tolist() == [[0, 2], [2, 2]]


def test_on_a_gpu_what_is_no_vertex_counts_for_nothing():
    x = torch.ones(1, 3, 3, 1)
    lists = torch.tensor([[[1, 9], [0, 2], [1, -5]]]).int()
    inside, across = KERNELS["kernel"](x, lists)[:, 0, :, :, 0]
    assert inside.tolist() == [[1, 2, 1]] * 3
    assert across.tolist() == [[1] * 3, [2] * 3, [1] * 3]


def test_gradients_flow_back_along_the_same_edges():
    graph = nx.gnp_random_graph(6, 0.5, seed=6)
    A = torch.tensor(nx.to_numpy_array(graph, nodelist=range(6)))
    x = torch.zeros(1, 6, 6, 1, dtype=torch.float64, requires_grad=True)
    pull = torch.randn(2, 1, 6, 6, 1, dtype=torch.float64)
    (pair_aggregation(x, lists_of(graph)) * pull).sum().backward()
    inside, across = pull[:, 0, :, :, 0]
    torch.testing.assert_close(x.grad[0, :, :, 0], inside @ A.T + A.T @ across)


def test_lists_name_the_neighbours_in_order():
    graphs = [nx.star_graph(4), nx.cycle_graph(5)]
    joined = [
        torch.tensor(nx.to_numpy_array(g, nodelist=range(5))) for g in graphs
    ]
    found = neighbour_lists(torch.stack(joined).bool())
    assert torch.equal(found, lists_of(*graphs))
    # without an edge there is one free place
    empty = neighbour_lists(torch.zeros(2, 3, 3).bool())
    assert empty.tolist() == [[[-1]] * 3] * 2


X = torch.zeros(1, 3, 3, 2)
LISTS = torch.tensor([[[1, -1], [0, 2], [1, -1]]]).int()


@pytest.mark.parametrize(
    ("change", "error", "sentence"),
    [
        ({"x": X[:, :2]}, ValueError, r"\(1, 2, 3, 2\) has no pairs"),
        ({"x": X.int()}, TypeError, "x is torch.int32; use a floating"),
        ({"lists": LISTS[:, :2]}, ValueError, "1 graphs with 3 vertices"),
        ({"lists": LISTS.long()}, TypeError, "lists are torch.int64"),
        ({"lists": LISTS + 1}, ValueError, "hold 0 to 3; use vertices 0 to 2"),
        ({"lists": LISTS - 1}, ValueError, "hold -2 to 1; use vertices"),
        ({"lists": LISTS.roll(1, 1)}, ValueError, "not symmetric"),
        ({"inside": False, "across": False}, ValueError, "no sum is wanted"),
    ],
)
def test_wrong_input_is_refused_in_a_sentence(change, error, sentence):
    with pytest.raises(error, match=sentence):
        pair_aggregation(**{"x": X, "lists": LISTS} | change)
