"""The exact placement against every placement there is, and against HiGHS."""

import itertools
import math

import pytest
import torch

from lab.serving.placement import (
    SOLVERS,
    crossing,
    descent,
    exact,
    independent,
    integer_program,
    random_placements,
    states,
)


def random_counts(pairs, experts, seed=0, most=100):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(most, (pairs, experts, experts), generator=generator)


def kept(rows, counts):
    return sum(
        int(w[a][b])
        for w, one, two in zip(counts.tolist(), rows, rows[1:], strict=False)
        for a in range(len(one))
        for b in range(len(two))
        if one[a] == two[b]
    )


def best_of_all(counts, gpus):
    """The most tokens kept, by trying every balanced placement."""
    pairs, E, _ = counts.shape
    rows = {
        row
        for row in itertools.product(range(gpus), repeat=E)
        if all(row.count(g) == E // gpus for g in range(gpus))
    }
    return max(
        kept(chain, counts)
        for chain in itertools.product(rows, repeat=pairs + 1)
    )


@pytest.mark.parametrize(
    ("pairs", "experts", "gpus"),
    [(3, 4, 2), (2, 4, 4), (2, 3, 3), (1, 6, 3), (1, 6, 2), (2, 4, 1)],
)
@pytest.mark.parametrize("seed", [0, 1])
def test_exact_is_the_best_of_all_placements(pairs, experts, gpus, seed):
    counts = random_counts(pairs, experts, seed)
    found = kept(exact(counts, gpus).tolist(), counts)
    assert found == best_of_all(counts, gpus)


@pytest.mark.parametrize(
    ("pairs", "experts", "gpus"), [(2, 6, 2), (2, 4, 4), (1, 6, 3)]
)
def test_exact_and_the_integer_program_agree(pairs, experts, gpus):
    counts = random_counts(pairs, experts, 2)
    program = integer_program(counts, gpus)
    assert program.optimal and program.gap < 1e-6
    found = kept(program.placement.tolist(), counts)
    assert found == kept(exact(counts, gpus).tolist(), counts)


@pytest.mark.parametrize(
    ("experts", "gpus"), [(8, 2), (8, 4), (8, 8), (12, 4), (16, 16)]
)
def test_no_solver_beats_the_exact_one(experts, gpus):
    counts = random_counts(3, experts, 3)
    if states(experts, gpus) > 10_000:
        with pytest.raises(ValueError, match="too many"):
            exact(counts, gpus)
        return
    best = crossing(exact(counts, gpus), counts)
    for name, solver in SOLVERS.items():
        placed = solver(counts, gpus)
        even = torch.arange(experts) * gpus // experts
        assert (placed.sort(dim=1).values == even).all(), name
        assert crossing(placed, counts) >= best - 1e-12, name
    assert crossing(descent(counts, gpus), counts) < 1 - 1 / gpus


def test_the_mean_of_all_placements_crosses_in_one_minus_one_over_g():
    counts = random_counts(4, 8, 4)
    guesses = random_placements(5, 8, 4, 3000, seed=5)
    mean = sum(crossing(one, counts) for one in guesses) / len(guesses)
    assert mean == pytest.approx(0.75, abs=2e-3)


def test_the_states_are_the_set_partitions():
    assert states(8, 4) * math.factorial(4) == 2520
    assert [states(8, 2), states(8, 4), states(8, 8)] == [35, 105, 1]


def test_the_control_keeps_the_loads_and_forgets_the_pairs():
    counts = random_counts(2, 5, 6)
    blind = independent(counts)
    for axis in (1, 2):
        torch.testing.assert_close(blind.sum(axis), counts.double().sum(axis))
    assert torch.linalg.matrix_rank(blind).tolist() == [1, 1]
