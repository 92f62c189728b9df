"""Average precision against a sort, by hand, and against pure chance."""

import itertools
from fractions import Fraction

import numpy as np
import pytest
import torch
from on_device import on_device

from lab.kernels import ap_counts as module
from lab.kernels.ap_counts import (
    ap_counts,
    ap_counts_reference,
    ap_counts_triton,
)

BOTH = [ap_counts, on_device(ap_counts_triton)]


def run(function, scores, labels, functions):
    scores = torch.tensor(scores, dtype=torch.float32)
    labels = torch.tensor(labels, dtype=torch.int32)
    return function(scores, labels, functions).numpy()


def by_sorting(scores, needs):
    """The sum over the ranking of precision times the step of recall."""
    ranked = needs[np.argsort(-scores)]
    precision = np.cumsum(ranked) / np.arange(1, len(ranked) + 1)
    return (precision * ranked).sum() / ranked.sum()


def by_thresholds(scores, needs):
    """Average precision with ties: one step for each distinct score."""
    total, recall = 0.0, 0.0
    for threshold in sorted(set(scores), reverse=True):
        taken = scores >= threshold
        now = needs[taken].sum() / needs.sum()
        total += (now - recall) * needs[taken].mean()
        recall = now
    return total


@pytest.mark.parametrize("function", BOTH)
def test_distinct_scores_agree_with_a_sorted_ranking(function):
    rng = np.random.default_rng(0)
    scores = rng.permuted(np.arange(61 * 5).reshape(61, 5), axis=0)
    labels = rng.integers(1, 7, 61)
    found = run(function, scores, labels, 3)
    for f, i in itertools.product(range(3), range(5)):
        expected = by_sorting(scores[:, i], labels >> f & 1)
        assert found[f, i] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("function", BOTH)
def test_ties_are_one_step_of_the_ranking(function):
    rng = np.random.default_rng(1)
    scores = rng.integers(0, 4, (70, 6))
    labels = rng.integers(1, 3, 70)
    found = run(function, scores, labels, 2)
    for f, i in itertools.product(range(2), range(6)):
        expected = by_thresholds(scores[:, i], labels >> f & 1)
        assert found[f, i] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("function", BOTH)
def test_the_order_of_the_instances_does_not_matter(function):
    rng = np.random.default_rng(2)
    scores, labels = rng.integers(0, 3, (40, 4)), rng.integers(1, 3, 40)
    mixed = rng.permutation(40)
    one = run(function, scores, labels, 2)
    other = run(function, scores[mixed], labels[mixed], 2)
    np.testing.assert_allclose(one, other, atol=1e-6)


@pytest.mark.parametrize("function", BOTH)
def test_the_example_of_the_exercise(function):
    scores = [[0.9], [0.8], [0.8], [0.1]]
    found = run(function, scores, [1, 0, 1, 0], 1)
    assert found[0, 0] == pytest.approx((1 + 2 / 3) / 2, abs=1e-6)


@pytest.mark.parametrize("function", BOTH)
def test_a_silent_neuron_scores_the_prevalence(function):
    found = run(function, np.zeros((10, 2)), [1, 1, 1] + 7 * [0], 1)
    np.testing.assert_allclose(found, 0.3, atol=1e-6)


@pytest.mark.parametrize("few", [module.FEW, 21, 20])
def test_the_sum_of_both_counts_is_exact_in_either_type(few, monkeypatch):
    # from `FEW` instances on, both counts need more than fp32's 24 bits
    monkeypatch.setattr(module, "FEW", few)
    scores = torch.arange(20).remainder(7)[:, None].float()
    labels = torch.full((20,), 1, dtype=torch.int32)
    labels[:3] = 0
    found = on_device(ap_counts_triton)(scores, labels, 1)
    expected = ap_counts_reference(scores, labels, 1)
    np.testing.assert_allclose(found.numpy(), expected.numpy(), atol=1e-6)


def test_all_rankings_of_six_average_to_the_closed_form():
    # every order of 2 positives among 6: E[AP] = rho + (1 - rho) H_C / C
    C, P = 6, 2
    orders = np.array(list(itertools.permutations(range(C)))).T
    mean = run(ap_counts, orders, [1, 1, 0, 0, 0, 0], 1).mean()
    rho = (P - 1) / (C - 1)
    harmonic = sum(1 / i for i in range(1, C + 1))
    assert mean == pytest.approx(rho + (1 - rho) * harmonic / C, abs=1e-6)


SCORES, LABELS = torch.ones(4, 2), torch.tensor([1, 1, 2, 2]).int()


@pytest.mark.parametrize(
    ("arguments", "error", "sentence"),
    [
        ((SCORES * float("nan"), LABELS, 2), ValueError, "8 NaN"),
        ((SCORES, LABELS, 3), ValueError, "needed by 0 of 4"),
        ((SCORES, LABELS | 1, 1), ValueError, "needed by 4 of 4"),
        ((SCORES, LABELS, 32), ValueError, "functions=32"),
        ((SCORES, LABELS, 0), ValueError, "functions=0"),
        ((SCORES, LABELS.long(), 2), ValueError, "int32 bit mask"),
        ((SCORES, LABELS[:3], 2), ValueError, "do not fit"),
        ((SCORES[:0], LABELS[:0], 2), ValueError, "rank nothing"),
        ((SCORES.int(), LABELS, 2), TypeError, "floating type"),
    ],
)
def test_what_has_no_ranking_is_refused(arguments, error, sentence):
    with pytest.raises(error, match=sentence):
        ap_counts(*arguments)


def test_float64_is_as_exact_as_it_says():
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(30, 3, generator=generator, dtype=torch.float64)
    labels = torch.randint(2, (30,), generator=generator).int()
    found = ap_counts(scores, labels, 1)[0]
    needs = labels.bool()
    for column, precision in zip(scores.T, found.tolist(), strict=True):
        exact = [
            Fraction(int((column[needs] >= z).sum()), int((column >= z).sum()))
            for z in column[needs]
        ]
        assert precision == pytest.approx(
            float(sum(exact) / len(exact)), abs=1e-14
        )
