"""Reach against networkx and SciPy, with and without cycles."""

import networkx as nx
import pytest
import torch
from on_device import on_device
from scipy.sparse.csgraph import shortest_path

from lab.kernels.mask_overlap import pack, unpack
from lab.kernels.reach_bits import own_bits, reach_bits, reach_bits_triton

KERNELS = {"reference": reach_bits, "kernel": on_device(reach_bits_triton)}
GRAPHS = {
    "with cycles": nx.gnp_random_graph(40, 0.05, seed=2, directed=True),
    "a tree": nx.balanced_tree(3, 3, create_using=nx.DiGraph),
    "a ring": nx.cycle_graph(35, create_using=nx.DiGraph),
    "nobody knows anybody": nx.empty_graph(3, create_using=nx.DiGraph),
}


def lists(graph):
    """Suppliers of a networkx graph, as the kernel takes them."""
    rows = [sorted(graph[v]) for v in range(len(graph))]
    ends = torch.tensor([0, *map(len, rows)]).cumsum(0)
    return ends, torch.tensor([j for row in rows for j in row]).int()


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("graph", GRAPHS.values(), ids=GRAPHS)
def test_who_is_in_reach_is_who_networkx_finds(name, graph):
    V, hops = len(graph), 3
    found = KERNELS[name](own_bits(V), *lists(graph), hops)
    met = unpack(found.words, V)
    for v in range(V):
        near = nx.single_source_shortest_path_length(graph, v, cutoff=hops)
        assert set(met[v].nonzero()[:, 0].tolist()) == set(near)
        steps = list(near.values())
        right = [sum(d <= h for d in steps) for h in range(hops + 1)]
        assert found.counts[:, v].tolist() == right


@pytest.mark.parametrize("name", KERNELS)
def test_counts_are_those_of_scipys_distances(name):
    graph = nx.gnp_random_graph(35, 0.06, seed=5, directed=True)
    far = shortest_path(nx.to_scipy_sparse_array(graph), unweighted=True)
    found = KERNELS[name](own_bits(35), *lists(graph), 3)
    for h, counts in enumerate(found.counts.tolist()):
        assert counts == (far <= h).sum(axis=1).tolist()


@pytest.mark.parametrize("name", KERNELS)
def test_any_marks_travel_along_the_edges(name):
    graph = nx.gnp_random_graph(20, 0.1, seed=1, directed=True)
    mark = torch.rand(20, 37, generator=torch.Generator().manual_seed(0)) < 0.2
    found = KERNELS[name](pack(mark), *lists(graph), 2)
    met = unpack(found.words, 37)
    for v in range(20):
        near = list(nx.single_source_shortest_path_length(graph, v, cutoff=2))
        assert met[v].tolist() == mark[near].any(dim=0).tolist()


@pytest.mark.parametrize("name", KERNELS)
def test_all_32_bits_of_a_word_are_counted(name):
    none = torch.zeros(2, dtype=torch.int64)
    full = torch.full((1, 3), -1, dtype=torch.int32)
    found = KERNELS[name](full, none, torch.empty(0).int(), 1)
    assert found.counts.tolist() == [[96], [96]]
    assert torch.equal(found.words, full)


@pytest.mark.parametrize("name", KERNELS)
def test_marks_are_not_changed_even_by_no_step(name):
    marks, (rowptr, col) = own_bits(35), lists(GRAPHS["a ring"])
    for hops in (0, 2):
        before = marks.clone()
        found = KERNELS[name](marks, rowptr, col, hops)
        assert torch.equal(marks, before)
        assert found.words.data_ptr() != marks.data_ptr()
        assert found.counts.tolist() == [[h + 1] * 35 for h in range(hops + 1)]


def test_suppliers_outside_the_graph_are_not_there_for_the_kernel():
    # as on a GPU, where nobody may look first
    rowptr = torch.tensor([0, 3, 3])
    col = torch.tensor([7, -1, 1]).int()
    # around the marks lies memory of others, with all bits set
    around = torch.full((10, 1), -1, dtype=torch.int32)
    around[1:3] = own_bits(2)
    found = KERNELS["kernel"](around[1:3], rowptr, col, 1)
    assert found.counts.tolist() == [[1, 1], [2, 1]]
    # lists that end outside of col, in the midst of other lists
    others = torch.tensor([2, 2, 1, 2, 2]).int()
    beyond = torch.tensor([-2, 5, 9, 9])
    found = KERNELS["kernel"](own_bits(3), beyond, others[2:3], 1)
    assert found.counts[1].tolist() == [2, 1, 1]


def test_what_does_not_fit_is_refused():
    marks, (rowptr, col) = own_bits(3), lists(GRAPHS["a ring"])
    with pytest.raises(ValueError, match="own_bits"):
        reach_bits(marks.long(), rowptr, col, 1)
    with pytest.raises(ValueError, match=r"rowptr is .* of shape \(36,\)"):
        reach_bits(marks, rowptr, col, 1)
    rowptr = torch.tensor([0, 1, 2, 2])
    with pytest.raises(ValueError, match="hops=-1"):
        reach_bits(marks, rowptr, col[:2], -1)
    with pytest.raises(ValueError, match="rise from 0 to 3"):
        reach_bits(marks, rowptr, col[:3], 1)
    with pytest.raises(ValueError, match="names actor 3; use 0 to 2"):
        reach_bits(marks, rowptr, torch.tensor([1, 3]).int(), 1)
