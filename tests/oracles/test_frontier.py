"""The frontier against a linear programme, a merge of lines, and loops."""

import numpy as np
import pytest
import torch
from scipy.optimize import linprog

from lab.kernels import frontier as module
from lab.kernels import runtime
from lab.kernels.frontier import (
    frontier,
    frontier_reference,
    frontier_triton,
)
from lab.models import llm_routing
from lab.models.pareto import hull

DEVICE = runtime.device()


def pool(prompts, models, seed, by_prompt=False):
    random = np.random.default_rng(seed)
    scores = random.random((prompts, models))
    costs = random.random((prompts, models) if by_prompt else models) + 0.05
    return torch.from_numpy(scores), torch.from_numpy(costs)


def breakpoints(predicted, costs):
    """Prices of money between which no prompt changes its model.

    Prompt by prompt two models change places at (s_i - s_j) / (c_i - c_j);
    one value from each interval between two such points, and one beyond.
    """
    gain = predicted[:, :, None] - predicted[:, None, :]
    price = costs[:, :, None] - costs[:, None, :]
    at = (gain / price)[price > 0]
    at = at[at > 0].unique()
    edges = torch.cat([at.new_zeros(1), at, at.new_full((1,), 1.0)])
    edges[-1] += 2 * edges[-2]
    return (edges[1:] + edges[:-1]) / 2


def best_within(scores, costs, budget):
    """The fractional problem, solved by HiGHS: the best mean score."""
    N, M = scores.shape
    one_model = np.kron(np.eye(N), np.ones(M))
    found = linprog(
        -scores.flatten() / N,
        A_ub=np.broadcast_to(costs, (N, M)).reshape(1, -1) / N,
        b_ub=[budget],
        A_eq=one_model,
        b_eq=np.ones(N),
        bounds=(0, 1),
    )
    assert found.status == 0
    return -found.fun


@pytest.mark.parametrize(
    ("prompts", "models", "by_prompt"), [(60, 3, False), (31, 5, True)]
)
def test_the_hull_is_the_optimum_of_every_budget(prompts, models, by_prompt):
    scores, costs = pool(prompts, models, 7, by_prompt)
    wide = costs.expand(prompts, models)
    # a router that knows the scores: belief and truth are the same
    swept = frontier(scores, scores, costs, breakpoints(scores, wide))
    best = hull(swept.cost, swept.quality)
    cheapest = wide.min(1).values.mean().item()
    for budget in np.linspace(cheapest + 1e-9, wide.max().item(), 9):
        exact = best_within(scores.numpy(), costs.numpy(), budget)
        assert best.at(budget) == pytest.approx(exact, abs=1e-8)


def test_every_policy_of_two_models_is_a_prefix_of_one_order():
    scores, _ = pool(40, 2, 3)
    truth, _ = pool(40, 2, 4)
    costs = torch.tensor([0.25, 1.0], dtype=torch.float64)
    gain = scores[:, 1] - scores[:, 0]
    order = sorted(range(40), key=lambda i: -gain[i])
    useful = [i for i in order if gain[i] > 0]
    expected = []
    for count in range(len(useful), -1, -1):
        chosen = [truth[i, int(i in useful[:count])] for i in range(40)]
        expected.append((count, sum(chosen).item() / 40))
    lambdas = breakpoints(scores, costs.expand(40, 2))
    swept = frontier(scores, truth, costs, lambdas)
    assert swept.load[:, 1].tolist() == [count for count, _ in expected]
    np.testing.assert_allclose(swept.quality, [q for _, q in expected])


def test_loops_agree_with_the_sweep_ties_included():
    generator = torch.Generator().manual_seed(0)
    N, M = 37, 4
    scores, truth, costs = (
        torch.randint(0, 3, (N, M), generator=generator) / 2 for _ in range(3)
    )
    lambdas = [0.0, 0.5, 1.0, 3.0]
    swept = frontier(scores, truth, costs, torch.tensor(lambdas))
    for place, price in enumerate(lambdas):
        load, quality, cost = [0] * M, 0.0, 0.0
        for n in range(N):
            value = [scores[n, m] - price * costs[n, m] for m in range(M)]
            chosen = value.index(max(value))
            load[chosen] += 1
            quality += truth[n, chosen].item() / N
            cost += costs[n, chosen].item() / N
        assert swept.load[place].tolist() == load
        assert swept.quality[place].item() == pytest.approx(quality, rel=1e-6)
        assert swept.cost[place].item() == pytest.approx(cost, rel=1e-6)


S, C, L = torch.rand(4, 3), torch.rand(3), torch.rand(2)
NAN = torch.full((4, 3), float("nan"))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((S[:0], S[:0], C, L), "route nothing"),
        ((torch.rand(2, 65), torch.rand(2, 65), torch.rand(65), L), "M=65"),
        ((S, S[:3], C, L), "do not fit"),
        ((S, S, C[:2], L), "do not fit"),
        ((S, S, C, L[0]), "do not fit"),
        ((NAN, S, C, L), "predicted has a NaN or infinite value"),
        ((S, S, C, -L), "would reward spending"),
    ],
)
def test_wrong_arguments_are_refused_in_a_sentence(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        frontier(*arguments)


def test_the_kernel_agrees_on_real_predictions():
    # nothing here lies on a grid; a tie within rounding may fall either way
    real = llm_routing.guess("classifier", "nine")
    inputs = [real.predicted[:300], real.truth[:300], real.costs]
    lambdas = torch.tensor([0.0, 0.05, 0.3], dtype=torch.float64)
    wide = frontier_reference(*inputs, lambdas)
    narrow = [x.float().to(DEVICE) for x in (*inputs, lambdas)]
    found = frontier_triton(*narrow)
    assert (found.load.cpu() - wide.load).abs().sum() <= 2
    for name in ("quality", "cost"):
        left, right = getattr(found, name).cpu(), getattr(wide, name)
        torch.testing.assert_close(left.double(), right, atol=4e-3, rtol=0)


@pytest.mark.parametrize("N", [255, 257], ids=["one program", "two"])
def test_a_program_counts_all_its_prompts(monkeypatch, N):
    # four counts share an integer, and the last has the sign bit
    monkeypatch.setattr(runtime, "multiprocessors", lambda tensor: 1)
    monkeypatch.setattr(module, "PROGRAMS", 1)
    scores = torch.zeros(N, 5, device=DEVICE)
    scores[:, 3] = 1.0
    zero = torch.zeros(5, device=DEVICE), torch.zeros(2, device=DEVICE)
    found = frontier_triton(scores, scores, *zero)
    assert found.load.tolist() == [[0, 0, 0, N, 0]] * 2
    assert found.quality.tolist() == [1.0, 1.0]


@pytest.mark.filterwarnings("ignore:All-NaN slice")  # NumPy's
def test_a_prediction_that_is_no_number_loses_to_all_others():
    nan, inf = float("nan"), float("inf")
    scores = [
        [nan, -5.0, -7.0], [nan, -inf, nan], [0.0, inf, nan], [nan] * 3,
    ]  # fmt: skip
    scores = torch.tensor(scores, device=DEVICE)
    costs = torch.ones(3, device=DEVICE)
    found = frontier_triton(scores, torch.ones_like(scores), costs, costs[:1])
    assert found.load.tolist() == [[1, 3, 0]]


def test_more_prompts_than_fp32_can_count():
    N = 2**24 + 1
    one = torch.ones(1, 1)
    found = frontier(
        one.expand(N, 1), one.expand(N, 1), one[0], torch.zeros(1)
    )
    assert found.load.tolist() == [[N]]
