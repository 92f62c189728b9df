"""The best route by budget against a dictionary filled by a loop."""

import itertools

import pytest
import torch
from on_device import on_device

from lab.kernels.min_by_budget import min_by_budget, min_by_budget_triton


def by_loop(losses, budgets, menus):
    """(loss, route) of every menu and token; the first of equals stays."""
    R, T = losses.shape
    best = [[(float("inf"), -1)] * T for _ in range(menus)]
    for route, budget in enumerate(budgets.tolist()):
        for t in range(T):
            loss = losses[route, t].item()
            if 0 <= budget < menus and loss < best[budget][t][0]:
                best[budget][t] = (loss, route)
    return best


@pytest.mark.parametrize(
    "function", [min_by_budget, on_device(min_by_budget_triton)]
)
@pytest.mark.parametrize("seed", range(3))
def test_it_is_the_loop_with_ties_and_infinities(function, seed):
    dice = torch.Generator().manual_seed(seed)
    losses = torch.randint(0, 4, (37, 41), generator=dice).float()
    losses[losses == 3] = float("inf")
    budgets = torch.randint(-2, 7, (37,), generator=dice).int()
    best = function(losses, budgets, 5)
    expected = by_loop(losses, budgets, 5)
    for menu, t in itertools.product(range(5), range(41)):
        found = best.loss[menu, t].item(), best.route[menu, t].item()
        assert found == expected[menu][t]


def test_budgets_are_the_ones_of_a_binary_number():
    layers = 5
    routes = range(2**layers)
    budgets = torch.tensor([r.bit_count() for r in routes]).int()
    losses = torch.arange(2.0**layers)[:, None].flip(0)
    best = min_by_budget(losses, budgets, layers + 1)
    # the losses fall, so the largest number of so many ones wins
    largest = [
        max(r for r in routes if r.bit_count() == b) for b in range(layers + 1)
    ]
    assert best.route[:, 0].tolist() == largest


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"losses": torch.ones(4)}, "give floats"),
        ({"losses": torch.ones(4, 2).int()}, "give floats"),
        ({"losses": torch.ones(4, 2) * torch.nan}, "8 NaN entries"),
        ({"budgets": torch.ones(3).int()}, "each of the 4 routes"),
        ({"budgets": torch.ones(4)}, "give int32"),
        ({"num_budgets": 0}, "num_budgets=0 is not within 1 to 32767"),
        ({"num_budgets": 2**15}, "num_budgets=32768"),
    ],
)
def test_wrong_arguments_are_refused_in_a_sentence(change, sentence):
    good = {
        "losses": torch.ones(4, 2),
        "budgets": torch.tensor([0, 1, 1, 2]).int(),
        "num_budgets": 3,
    }
    with pytest.raises(ValueError, match=sentence):
        min_by_budget(**(good | change))
