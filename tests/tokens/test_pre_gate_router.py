"""The router that decides once for all layers."""

import pytest
import torch

from lab.tokens.char_lm import DIM, CharLM, evaluate, spread, train
from lab.tokens.pre_gate_router import PreGateRouter


def model(k=2, seed=0):
    return CharLM(lambda layer: PreGateRouter(DIM, 8, k, layer), seed=seed)


def test_all_layers_use_the_experts_of_the_first():
    context, _ = spread("prose", 300)
    first, *others = model()(context).routings
    for other in others:
        assert torch.equal(other.gate.experts, first.gate.experts)
        assert torch.equal(other.gate.weights, first.gate.weights)
        assert other.loss == 0
    assert first.loss > 0


def test_only_the_first_layer_has_router_weights():
    names = [n for n, _ in model().named_parameters() if ".router." in n]
    assert names == ["layers.0.router.weight"]


@pytest.mark.parametrize("k", [1, 3])
def test_the_language_model_teaches_the_router(k):
    one = model(k)
    before = one.layers[0].router.weight.clone()
    train(one, "prose", 3, seed=0)
    assert (one.layers[0].router.weight - before).abs().max() > 1e-3
    assert (evaluate(one, "prose", 100).experts == k).all()


def test_a_later_layer_alone_is_refused():
    router = PreGateRouter(DIM, 8, 2, layer=1)
    with pytest.raises(ValueError, match="layer=0"):
        router(torch.zeros(3, DIM))
