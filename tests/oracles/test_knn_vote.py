"""Neighbours against SciPy's k-d tree, votes and entropy against SciPy's."""

import math
from collections import Counter

import numpy as np
import pytest
import torch
from on_device import on_device
from scipy.spatial import KDTree
from scipy.stats import entropy

from lab.kernels import runtime
from lab.kernels.knn_vote import (
    knn_vote,
    knn_vote_reference,
    knn_vote_triton,
    tally,
)

KERNELS = {"reference": knn_vote, "kernel": on_device(knn_vote_triton)}
DEVICE = runtime.device()


def drawn(N, R, D, C, seed=0):
    """Rows of length 1, on which the nearest are the most similar."""
    random = np.random.default_rng(seed)
    queries, memory = random.standard_normal((N, D)), random.random((R, D))
    for rows in (queries, memory):
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return queries, memory, random.integers(0, C, R)


def tensors(queries, memory, labels, dtype=torch.float32):
    q, m = (torch.from_numpy(x).to(dtype) for x in (queries, memory))
    return q, m, torch.from_numpy(labels).int()


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize(
    ("N", "R", "D", "k", "C"), [(70, 300, 24, 20, 12), (5, 129, 9, 40, 57)]
)
def test_neighbours_are_those_of_a_tree_and_vote(name, N, R, D, k, C):
    queries, memory, labels = drawn(N, R, D, C)
    found = KERNELS[name](*tensors(queries, memory, labels), k, C)
    apart, near = KDTree(memory).query(queries, k)
    # within rounding two neighbours may change places
    clear = np.diff(apart, axis=1).min(axis=1) > 1e-5
    assert clear.sum() > 0.8 * N
    assert found.neighbours[clear].tolist() == near[clear].tolist()
    for n in np.flatnonzero(clear):
        count = Counter(labels[near[n]].tolist())
        assert found.votes[n].tolist() == [count[c] for c in range(C)]
        expected = entropy(list(count.values()), base=C)
        assert found.unsure[n].item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("name", KERNELS)
def test_ties_go_to_the_lowest_row(name):
    # rows 1, 4 and 70 are as near as can be, and all others equally far
    memory = torch.zeros(80, 2)
    memory[[1, 4, 70], 0] = 1
    labels = torch.arange(80, dtype=torch.int32) % 8
    found = KERNELS[name](torch.tensor([[1.0, 0.0]]), memory, labels, 6, 8)
    assert found.neighbours[0].tolist() == [1, 4, 70, 0, 2, 3]
    assert found.votes[0].tolist() == [1, 1, 1, 1, 1, 0, 1, 0]


@pytest.mark.parametrize("name", KERNELS)
def test_the_entropy_is_0_if_all_agree_and_1_if_all_differ(name):
    memory = torch.tensor([[2.0], [1.0], [-1.0], [-2.0]])
    labels = torch.tensor([3, 3, 0, 2]).int()
    queries = torch.tensor([[1.0], [-1.0]])
    two = KERNELS[name](queries, memory, labels, 2, 4)
    assert two.votes.tolist() == [[0, 0, 0, 2], [1, 0, 1, 0]]
    assert two.unsure.tolist() == pytest.approx([0, 0.5], abs=1e-6)
    labels = torch.tensor([1, 3, 0, 2]).int()
    four = KERNELS[name](queries, memory, labels, 4, 4)
    assert four.unsure.tolist() == pytest.approx([1, 1], abs=1e-6)
    lone = KERNELS[name](queries, memory, labels * 0, 3, 1)
    assert lone.unsure.tolist() == [0, 0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bits_lose_nothing_but_their_inputs_digits(dtype):
    q, m, labels = tensors(*drawn(40, 200, 48, 5, seed=1), dtype)
    found = KERNELS["kernel"](q, m, labels, 8, 5)
    similar = q.double() @ m.double().T
    best = similar.topk(9)
    clear = best.values.diff(dim=1).abs().amin(dim=1) > 1e-6
    assert clear.sum() > 30
    near = best.indices[clear, :8].int()
    assert torch.equal(found.neighbours[clear], near)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_the_kernel_takes_what_is_no_number_as_the_lowest(bad):
    memory = torch.tensor([[1.0], [bad], [-3e38], [0.5]], device=DEVICE)
    labels = torch.tensor([0, 1, 2, 9], device=DEVICE).int()
    query = torch.ones(1, 1, device=DEVICE)
    found = knn_vote_triton(query, memory, labels, 4, 3)
    assert found.neighbours[0].tolist() == [0, 3, 2, 1]
    # the unknown label 9 is a vote for nobody
    assert found.votes[0].tolist() == [1, 1, 1]


@pytest.mark.parametrize("unknown", [-1, 3, 9])
def test_an_unknown_label_counts_neither_as_a_vote_nor_as_doubt(unknown):
    # the kernel's tile has a place for category 3, the answer has not
    memory = torch.tensor([[4.0], [3.0], [2.0], [1.0]], device=DEVICE)
    labels = torch.tensor([0, unknown, 1, unknown], device=DEVICE).int()
    query = torch.ones(1, 1, device=DEVICE)
    found = knn_vote_triton(query, memory, labels, 4, 3)
    assert found.votes[0].tolist() == [1, 1, 0]
    expected = -2 * 0.25 * math.log(0.25) / math.log(3)
    assert found.unsure[0].item() == pytest.approx(expected, abs=1e-5)


def test_a_tally_is_what_the_operator_counts():
    q, m, labels = tensors(*drawn(30, 100, 12, 6))
    found = knn_vote(q, m, labels, 9, 6)
    longer = knn_vote(q, m, labels, 40, 6).neighbours[:, :9]
    assert torch.equal(found.neighbours, longer)
    votes, unsure = tally(labels[longer.long()], 6)
    assert torch.equal(votes, found.votes)
    assert torch.equal(unsure, found.unsure)


Q, M, Y = torch.rand(4, 3), torch.rand(5, 3), torch.zeros(5).int()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((Q[0], M, Y, 2, 3), r"shape \(3,\) resemble nothing"),
        ((Q[:, :0], M[:, :0], Y, 2, 3), "resemble nothing"),
        ((Q, M[:, :2], Y, 2, 3), "does not fit queries of width 3"),
        ((Q, M[:0], Y[:0], 1, 3), "at least one row"),
        ((Q, M, Y[:4], 2, 3), r"labels \(4,\)"),
        ((Q, M, Y.long(), 2, 3), "torch.int64"),
        ((Q, M, Y, 6, 3), "k=6 neighbours are not within 1 to 5"),
        ((Q, M, Y, 0, 3), "k=0"),
        ((Q, M.repeat(20, 1), Y.repeat(20), 65, 3), "within 1 to 64"),
        ((Q, M, Y, 2, 0), "categories=0"),
        ((Q, M, Y, 2, 129), "categories=129 is not within 1 to 128"),
        ((Q, M, Y + 3, 2, 3), "from 3 to 3"),
        ((Q, M, Y - 1, 2, 3), "from -1 to -1"),
        ((Q / 0, M, Y, 2, 3), "infinite values in the queries"),
        ((Q, M * math.nan, Y, 2, 3), "NaN or infinite values in the memory"),
    ],
)
def test_wrong_arguments_are_refused_in_a_sentence(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        knn_vote(*arguments)


def test_one_floating_type_is_asked_for():
    with pytest.raises(TypeError, match="the same floating type"):
        knn_vote(Q.half(), M, Y, 2, 3)
    with pytest.raises(TypeError, match="torch.int64"):
        knn_vote(Q.long(), M.long(), Y, 2, 3)


def test_wide_queries_have_a_wide_entropy():
    found = knn_vote(Q.double(), M.double(), Y, 2, 3)
    assert found.unsure.dtype == torch.float64
    wide = knn_vote_reference(Q.double(), M.double(), Y, 2, 3)
    assert torch.equal(found.neighbours, wide.neighbours)
