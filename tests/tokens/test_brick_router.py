"""The brick router against activations counted by a loop."""

import copy

import pytest
import torch
import torch.nn.functional as F

from lab.tokens.brick_router import BrickRouter, mean_activation
from lab.tokens.char_lm import DIM, CharLM, next_character, train, windows
from lab.tokens.routers import Router
from lab.tokens.text import split


def model(oracle=False, k=2):
    return CharLM(lambda _: BrickRouter(DIM, 8, k, oracle), 8, seed=0)


def tokens(n=65):
    return torch.randn(n, DIM, generator=torch.Generator().manual_seed(0))


def test_the_oracle_takes_the_bricks_that_react_most():
    layer = model(oracle=True).layers[0]
    hidden = tokens()
    routing = layer.router(hidden)
    for t, x in enumerate(hidden):
        activations = [F.relu(x @ brick).mean().item() for brick in layer.w_up]
        ranked = sorted(range(8), key=lambda e: -activations[e])
        assert routing.gate.experts[t].tolist() == ranked[:2]
    assert (routing.gate.weights == 1).all()


def test_all_bricks_together_are_the_dense_layer():
    layer = model(k=8).layers[0]
    x = tokens()
    hidden = layer.norm(x)
    wide = F.relu(torch.cat(list(layer.w_up), dim=1).T @ hidden.T).T
    dense = x + wide @ torch.cat(list(layer.w_down))
    torch.testing.assert_close(layer(x, None)[0], dense)


def test_only_the_predictor_learns_from_the_router():
    lab = model()
    lab.train()
    ids = split("prose").train[:400]
    context, target = windows(ids, torch.arange(20, 220))
    prediction, _ = next_character(lab, context, target)
    sum(r.loss for r in prediction.routings).backward()
    for name, weight in lab.named_parameters():
        learns = weight.grad is not None and bool(weight.grad.any())
        assert learns == ("router" in name), name


def test_the_prediction_gets_better_with_training():
    lab = model()
    layer, hidden = lab.layers[0], tokens()

    def error():
        actual = mean_activation(hidden, layer.w_up)
        return F.mse_loss(
            layer.router.predicted_activation(hidden), actual
        ).item()

    before = error()
    train(lab, "prose", 60, 0)
    assert error() < before / 2


def test_a_copy_watches_its_own_bricks():
    lab = model()
    twin = copy.deepcopy(lab)
    assert twin.layers[0].router.seen[0] is twin.layers[0].w_up
    assert lab.layers[0].router.seen[0] is lab.layers[0].w_up
    assert not any("seen" in name for name in lab.state_dict())


def test_a_router_without_bricks_says_what_is_missing():
    with pytest.raises(ValueError, match="call watch"):
        BrickRouter(DIM, 8, 2).train()(tokens())
    assert Router(DIM, 8).watch(torch.ones(8, DIM, 4)) is None
