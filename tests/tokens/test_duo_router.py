"""The big-or-small router against the paper's formulas, counted by hand."""

import pytest
import torch

from lab.tokens.char_lm import DIM, CharLM, evaluate, train
from lab.tokens.duo_router import BIG, DuoRouter, temperature


def model(budget=1 / 6, steps=600):
    def router(layer):
        return DuoRouter(DIM, 8, layer, budget=budget, steps=steps)

    return CharLM(router, 8, seed=0)


def tokens(n=65):
    return torch.randn(n, DIM, generator=torch.Generator().manual_seed(0))


def networks(layer, hidden):
    """Outputs of the big and the small network, one expert at a time."""
    each = [
        (hidden @ up).relu() @ down
        for up, down in zip(layer.w_up, layer.w_down, strict=True)
    ]
    return sum(each[:7]), each[7]


def test_at_work_a_token_takes_all_experts_but_the_last_or_the_last():
    layer = model().layers[0].eval()
    x = tokens()
    hidden = layer.norm(x)
    big, small = networks(layer, hidden)
    logits = hidden @ layer.router.weight
    wants = (logits[:, 1] > logits[:, 0])[:, None]
    assert 5 < wants.sum() < 60
    y, routing = layer(x, None)
    torch.testing.assert_close(y, x + torch.where(wants, big, small))
    calls = (routing.gate.experts >= 0).sum(dim=1)
    assert calls.tolist() == [7 if big else 1 for big in wants]


def test_in_training_both_networks_are_mixed():
    layer = model().layers[0].train()
    x = tokens()
    hidden = layer.norm(x)
    big, small = networks(layer, hidden)
    share = (hidden @ layer.router.weight).softmax(dim=1)  # tau starts at 1
    expected = x + share[:, [1]] * big + share[:, [0]] * small
    torch.testing.assert_close(layer(x, None)[0], expected)


def test_the_budget_is_one_for_all_layers():
    routers = [DuoRouter(DIM, 8, layer, budget=0.25) for layer in range(3)]
    memory, big = None, []
    for number, router in enumerate(routers):
        router.weight.data = tokens(2).T
        hidden = tokens() + number
        big.append((hidden @ router.weight).softmax(1)[:, BIG].mean().item())
        routing = router(hidden, memory)
        memory = routing.memory
        assert bool(routing.loss > 0) == (number == 2)
        assert routing.scores.sum(1).allclose(torch.ones(65))
    expected = 10 * (sum(big) / 3 - 0.25) ** 2
    assert routing.loss.item() == pytest.approx(expected, rel=1e-5)


def test_the_temperature_falls_from_1_to_a_tenth():
    assert temperature(0) == 1
    assert temperature(1) == temperature(2) == pytest.approx(0.1)
    assert temperature(0.5) == pytest.approx(10**-0.5)
    router = DuoRouter(DIM, 8, 0, steps=4)
    router.weight.data = 0.1 * tokens(2).T

    def sharpness():
        small = router(tokens()).scores[:, -1]
        return (2 * small - 1).abs().mean().item()

    first, *_, last = [sharpness() for _ in range(4)]
    assert last > first + 0.2


@pytest.mark.parametrize("budget", [0.2, 0.8])
def test_training_meets_the_budget(budget):
    lab = train(model(budget, steps=60), "prose", 60, seed=0)
    big = evaluate(lab, "prose", 2048).load[:, 0].mean().item()
    assert big == pytest.approx(budget, abs=0.1)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"experts": 1}, "experts=1"),
        ({"budget": 1.5}, "budget=1.5"),
        ({"layer": 3}, "layer=3"),
    ],
)
def test_wrong_arguments_are_refused_in_a_sentence(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        DuoRouter(DIM, **({"experts": 8, "layer": 0} | settings))
