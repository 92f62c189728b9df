"""All routes by brute force, and what a minimum of noise must be."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from lab.tokens.char_lm import CONTEXT
from lab.tokens.duo_char_lm import DuoCharLM, bits
from lab.tokens.duo_routes import (
    budgets,
    choose,
    matched_rate,
    noisy_losses,
    route_losses,
    scatter,
    shortened,
)


def small_model(layers=4, tokens=33):
    model = DuoCharLM(seed=1, layers=layers).eval()
    dice = torch.Generator().manual_seed(0)
    ids = torch.randint(97, (tokens, CONTEXT + 1), generator=dice)
    # untrained networks add little; louder ones tell the routes apart
    for layer in model.layers:
        for name in ("big_down", "small_down"):
            getattr(layer, name).data *= 5
    return model, ids[:, :-1], ids[:, -1]


def test_the_tree_is_every_route_one_after_the_other():
    model, context, target = small_model()
    wide = model.double()
    found = route_losses(wide, context, target)
    assert found.shape == (16, 33)
    for route in range(16):
        x = wide.start(context)
        for place, layer in enumerate(wide.layers):
            add = layer.big if route >> place & 1 else layer.small
            x = x + add(x)
        scores = wide.finish(x).log_softmax(dim=1)
        expected = -scores[torch.arange(33), target] / math.log(2)
        torch.testing.assert_close(found[route], expected, rtol=0, atol=1e-12)
    assert found.std(dim=0).min() > 1e-3


def test_a_route_is_what_the_model_does_with_that_mask():
    model, context, target = small_model()
    found = route_losses(model, context, target)
    for route in (0, 1, 6, 15):
        big = torch.tensor([bool(route >> place & 1) for place in range(4)])
        logits = model(context, big[:, None].expand(-1, 33))
        torch.testing.assert_close(
            found[route], bits(logits, target), rtol=0, atol=1e-5
        )


def test_with_skip_the_routes_are_numbers_to_the_base_3():
    model, context, target = small_model(layers=3)
    options = ("skip", "small", "big")
    found = route_losses(model, context, target, options)
    assert found.shape == (27, 33)
    count = budgets(3, options)
    for route in range(27):
        digits = [route // 3**place % 3 for place in range(3)]
        assert count[route] == digits.count(2)
        x = model.start(context)
        for layer, digit in zip(model.layers, digits, strict=True):
            x = x + (0, layer.small(x), layer.big(x))[digit]
        expected = bits(model.finish(x), target)
        torch.testing.assert_close(found[route], expected, atol=1e-5, rtol=0)
    # without skipping it is the tree of two
    two = [sum(3**p * (1 + (r >> p & 1)) for p in range(3)) for r in range(8)]
    both = route_losses(model, context, target)
    torch.testing.assert_close(found[two], both, atol=1e-5, rtol=0)


def test_the_menus_are_binomial():
    count = budgets(6).bincount().tolist()
    assert count == [math.comb(6, b) for b in range(7)]


def test_the_choosers_are_what_a_loop_says():
    dice = torch.Generator().manual_seed(0)
    losses = torch.rand(8, 50, generator=dice)
    choice = choose(losses, budgets(3))
    for b in range(4):
        menu = [r for r in range(8) if r.bit_count() == b]
        best = [min(losses[r, t].item() for r in menu) for t in range(50)]
        assert choice.oracle[b].item() == pytest.approx(np.mean(best))
        means = [losses[r].double().mean().item() for r in menu]
        assert choice.best_fixed[b].item() == pytest.approx(min(means))
        assert choice.mean_fixed[b].item() == pytest.approx(np.mean(means))


def expected_best(n):
    """Mean of the least of n standard normal numbers, by quadrature."""

    def density(x):
        return x * n * stats.norm.pdf(x) * stats.norm.sf(x) ** (n - 1)

    return integrate.quad(density, -12, 12)[0]


@pytest.mark.parametrize(
    ("n", "known"), [(1, 0.0), (6, -1.267), (15, -1.736), (20, -1.867)]
)
def test_the_best_of_noise_lies_where_statistics_puts_it(n, known):
    assert expected_best(n) == pytest.approx(known, abs=1e-3)
    dice = torch.Generator().manual_seed(n)
    T = 200_000
    losses = 3 + 0.2 * torch.randn(n, T, generator=dice)
    found = choose(losses, torch.zeros(n, dtype=torch.int32)).oracle.item()
    # the mean of T minima varies by less than 0.2 / sqrt(T)
    assert found == pytest.approx(3 + 0.2 * known, abs=2e-3)


def test_a_shorter_menu_gains_what_its_length_allows():
    dice = torch.Generator().manual_seed(0)
    losses = 3 + 0.2 * torch.randn(20, 100_000, generator=dice)
    one_menu = torch.zeros(20, dtype=torch.int32)
    for most in (1, 6, 20, 30):
        found = shortened(losses, one_menu, most, seed=1).loss.mean().item()
        expected = 3 + 0.2 * expected_best(min(most, 20))
        assert found == pytest.approx(expected, abs=3e-3)


def test_the_noise_is_made_to_scatter_as_wanted():
    model, context, target = small_model(tokens=400)
    for wanted in (0.05, 0.3):
        rate = matched_rate(model, context, target, wanted, copies=6)
        noisy = noisy_losses(model, context, target, rate, copies=6)
        assert scatter(noisy) == pytest.approx(wanted, rel=0.03)
    still = noisy_losses(model, context, target, 0.0, copies=2)
    everything = torch.ones(4, 400, dtype=torch.bool)
    expected = bits(model(context, everything), target)
    for row in still:
        torch.testing.assert_close(row, expected, atol=1e-5, rtol=0)


def test_the_noise_is_dropout_on_what_a_network_gives_out():
    model, context, target = small_model(layers=1, tokens=5)
    found = noisy_losses(model, context, target, 0.25, copies=3, seed=9)
    dice = torch.Generator().manual_seed(9)
    kept = torch.rand(3, 5, 48, generator=dice) >= 0.25
    x = model.start(context)
    y = model.layers[0].big(x)
    for copy in range(3):
        # dropped to 0, the rest made larger so that the mean stays
        noisy = torch.where(kept[copy], y / 0.75, torch.zeros(()))
        expected = bits(model.finish(x + noisy), target)
        torch.testing.assert_close(found[copy], expected, atol=1e-5, rtol=0)
    far = noisy_losses(model, context, target, 0.25, copies=3, seed=10)
    assert not torch.equal(found, far)


def test_scatter_is_the_mean_of_numpys_standard_deviations():
    losses = torch.randn(7, 11, dtype=torch.float64)
    expected = np.std(losses.numpy(), axis=0, ddof=1).mean()
    assert scatter(losses) == pytest.approx(expected)


def test_prefixes_shared_need_two_networks_a_state():
    model, context, target = small_model(layers=4)
    calls = itertools.count()
    for layer in model.layers:
        for name in ("big", "small"):
            network = getattr(layer, name)

            def counted(x, network=network):
                for _ in range(len(x)):
                    next(calls)
                return network(x)

            setattr(layer, name, counted)
    route_losses(model, context, target)
    assert next(calls) == 2**5 - 2


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: budgets(15), "layers=15"),
        (lambda: DuoCharLM(layers=0), "layers=0"),
        (
            lambda: route_losses(*small_model(), options=("small", "huge")),
            "huge",
        ),
        (lambda: noisy_losses(*small_model(), rate=1.0, copies=2), "rate=1"),
    ],
)
def test_wrong_arguments_are_refused_in_a_sentence(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()
