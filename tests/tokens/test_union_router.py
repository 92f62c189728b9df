"""The router that reads the character model's experts as slices."""

import torch

from lab.kernels.topk_gate import Gate
from lab.tokens.char_lm import DIM, CharLM
from lab.tokens.routers import weight_table
from lab.tokens.union_router import UnionRouter, best_tokens


def router(k=2, capacity=1.0, seed=0):
    one = UnionRouter(DIM, 8, k, capacity)
    generator = torch.Generator().manual_seed(seed)
    torch.nn.init.normal_(one.weight, generator=generator)
    return one


def hidden(T=500, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(T, DIM, generator=generator)


def test_all_slices_of_an_indifferent_gate_are_the_dense_layer():
    model = CharLM(lambda _: UnionRouter(DIM, 8, 8), seed=3).eval()
    layer = model.layers[0]
    torch.nn.init.zeros_(layer.router.weight)
    x = hidden()
    normed = layer.norm(x)
    up = layer.w_up.permute(1, 0, 2).reshape(DIM, -1)
    dense = (normed @ up).relu() @ layer.w_down.reshape(-1, DIM)
    torch.testing.assert_close(layer(x, None)[0], x + dense)


def test_weights_are_n_times_the_score_and_average_1_over_all_slices():
    one = router(k=8).eval()
    routing = one(hidden())
    table = weight_table(routing.gate, 8)
    torch.testing.assert_close(table.mean(1), torch.ones(500))
    scores = (hidden() @ one.weight).softmax(1)
    torch.testing.assert_close(table, 8 * scores)
    torch.testing.assert_close(routing.scores, scores)


def test_in_training_an_expert_keeps_its_best_tokens():
    one = router(k=2).train()
    table = weight_table(one(hidden()).gate, 8)
    wished = weight_table(one.eval()(hidden()).gate, 8)
    c = 500 * 2 // 8
    for got, asked in zip(table.T, wished.T, strict=True):
        best = asked.sort(descending=True).values[:c]
        assert sorted(got[got > 0]) == sorted(best[best > 0])
    assert (table > 0).sum() < (wished > 0).sum() == 1000


def test_at_work_a_token_does_not_feel_its_neighbours():
    one = router().eval()
    alone = torch.cat([one(x[None]).gate.experts for x in hidden()])
    assert torch.equal(one(hidden()).gate.experts, alone)


def test_an_expert_that_few_chose_keeps_them_all():
    gate = Gate(
        torch.tensor([[0], [0], [0], [1]], dtype=torch.int32),
        torch.tensor([[0.2], [0.9], [0.5], [0.1]]),
    )
    kept = best_tokens(gate, 2, 2)
    assert kept.experts.flatten().tolist() == [-1, 0, 0, 1]
    assert kept.weights.flatten().tolist() == [0, *gate.weights[1:, 0]]


def test_the_gate_learns_from_the_loss_alone():
    one = router()
    routing = one(hidden())
    routing.gate.weights.square().sum().backward()
    assert one.weight.grad.abs().max() > 0
    assert routing.loss == 0
