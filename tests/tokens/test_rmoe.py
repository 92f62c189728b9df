"""RMoE against the paper's formulas, counted by hand."""

import math
from collections import Counter

import pytest
import torch
from scipy.stats import entropy
from seed_0 import measured
from torch import nn

from lab.exercises import judge
from lab.kernels.gru_router_step import gru_router_step
from lab.tokens import rmoe
from lab.tokens.char_lm import DIM, Evaluation
from lab.tokens.layer_information import (
    adjacent,
    binned_information,
    by_distance,
    mutual_information,
)
from lab.tokens.mlp_router import router_parameters
from lab.tokens.rmoe import EXERCISES, Cell, RMoERouter
from lab.tokens.rmoe_recorded import picture, reach


def model(variant, **options):
    return rmoe.untrained(variant, **options)


def context(tokens=40, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(97, (tokens, 12), generator=generator)


@torch.no_grad()
def by_hand(network, ids):
    """Logits of every layer, from torch's own cell, token by token."""
    x = network.enter(network.embedding(ids).flatten(1))
    shared = network.layers[0].router.cell
    cell = nn.GRUCell(shared.width, shared.width)
    cell.weight_ih.copy_(shared.w_input.T)
    cell.weight_hh.copy_(shared.w_state.T)
    cell.bias_ih.copy_(shared.input_bias)
    cell.bias_hh.copy_(shared.state_bias)
    state = torch.zeros(len(ids), shared.width)
    for layer in network.layers:
        tokens = layer.norm(x)
        state = cell(tokens @ layer.router.project, state)
        scores = (state @ layer.router.weight).softmax(1)
        yield scores
        outputs = []
        for token, row in zip(tokens, scores, strict=True):
            best = row.argsort(descending=True)[:2]
            parts = [
                row[e] / row[best].sum()
                * (token @ layer.w_up[e]).relu() @ layer.w_down[e]
                for e in best
            ]  # fmt: skip
            outputs.append(sum(parts))
        x = x + torch.stack(outputs)


def test_every_layer_routes_by_one_gru_over_depth():
    network, ids = model("passed", layers=4), context()
    found = network(ids).routings
    for routing, scores in zip(found, by_hand(network, ids), strict=True):
        assert (routing.scores - scores).abs().max() < 1e-5


def test_all_layers_share_one_cell_and_have_their_own_projection():
    routers = [layer.router for layer in model("passed").layers]
    assert len({id(router.cell) for router in routers}) == 1
    assert len({id(router.project) for router in routers}) == len(routers)


def test_without_passing_a_layer_starts_from_nothing():
    ids = context()
    first, second = model("passed", seed=1), model("not passed", seed=1)
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    one, other = first(ids).routings, second(ids).routings
    assert torch.equal(one[0].scores, other[0].scores)
    assert not torch.equal(one[1].scores, other[1].scores)
    for layer in first.layers:
        layer.router.keep = 0.0
    forgetful = first(ids).routings
    pairs = zip(forgetful, other, strict=True)
    assert all(torch.equal(a.scores, b.scores) for a, b in pairs)


def test_the_gradient_goes_through_the_state_or_it_does_not():
    cell = Cell(4)
    routers = {
        state: [RMoERouter(6, 3, 2, cell, state) for _ in range(2)]
        for state in rmoe.RECURRENT
    }
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(9, 6, generator=generator)
    reached = {}
    for state, (low, high) in routers.items():
        for weight in [*low.parameters(), *high.parameters()]:
            nn.init.normal_(weight, generator=generator)
            weight.grad = None
        scores = high(hidden, low(hidden).memory).scores
        scores[:, 0].sum().backward()
        reached[state] = low.project.grad is not None
        if state == "not passed":
            assert cell.w_state.grad.abs().max() == 0
            assert cell.state_bias.grad.abs().max() > 0
    assert reached == {
        "passed": True,
        "no gradient": False,
        "not passed": False,
    }


def test_parameters_are_counted_as_they_are():
    for variant in rmoe.VARIANTS:
        network = model(variant)
        found = sum(
            weight.numel()
            for name, weight in network.named_parameters()
            if ".router." in name
        )
        wide = 0 if variant == "linear" else rmoe.WIDTH
        counted = router_parameters(rmoe.LAYERS, DIM, 8, wide)
        slack = 0.01 if variant == "mlp" else 0
        assert found == pytest.approx(counted, rel=slack, abs=0)


def test_mutual_information_is_that_of_scipys_entropies():
    generator = torch.Generator().manual_seed(0)
    one = torch.randint(5, (400,), generator=generator)
    other = (one + torch.randint(2, (400,), generator=generator)) % 5

    def nats(values):
        return entropy(list(Counter(values).values()))

    pairs = list(zip(one.tolist(), other.tolist(), strict=True))
    expected = nats(one.tolist()) + nats(other.tolist()) - nats(pairs)
    found = mutual_information(one, other, 5)
    assert found == pytest.approx(expected, abs=1e-12)
    assert mutual_information(one, one * 0, 5) == pytest.approx(0)
    assert mutual_information(one, one, 5) == pytest.approx(nats(one.tolist()))


def test_the_papers_measure_is_near_its_ceiling_for_noise():
    generator = torch.Generator().manual_seed(0)
    values = [
        binned_information(*torch.rand(2, 16, generator=generator))
        for _ in range(50)
    ]
    assert sum(values) / 50 > 0.85 * math.log(16)


def test_a_map_is_read_by_neighbours_and_by_distance():
    table = [[None, 1, 2], [1, None, 3], [2, 3, None]]
    assert adjacent(table) == 2
    assert by_distance(table) == [2, 2]


def test_a_token_in_the_papers_measure_shares_its_bins_with_its_neighbour():
    one = torch.linspace(0, 1, 16)
    for other in (one - 1, one, one + 1):
        found = binned_information(one, other)
        assert found == pytest.approx(math.log(16), rel=1e-6)


def test_an_arm_is_described_by_hand():
    scores = torch.tensor(
        [[0.6, 0.3, 0.1, 0.0], [0.1, 0.4, 0.1, 0.4], [0.5, 0.1, 0.2, 0.2]]
    )
    found = rmoe.describe(
        Evaluation(
            token_loss=torch.tensor([1.0, 2.0, 6.0]),
            experts=torch.full((3, 2), 2),
            load=torch.tensor([[1.0, 1.0, 0.0, 0.0], [0.5] * 4]),
            scores=[scores, scores],
            chosen=[torch.tensor([[0, 1], [1, 3], [0, 2]]).int()] * 2,
        )
    )
    assert found.bits == 3
    # two different first choices, told by the layer before: H(1/3)
    assert found.information == pytest.approx(entropy([1, 2]), rel=1e-5)
    assert found.entropy == pytest.approx(
        sum(entropy(row) for row in scores) / 3, rel=1e-5
    )


def test_the_same_seed_gives_the_same_arm():
    first = rmoe.arm("passed", 0, 2)
    rmoe.trained.cache_clear()
    rmoe.arm.cache_clear()
    assert rmoe.arm("passed", 0, 2) == first


def test_every_claim_runs_on_a_short_training():
    for claim in rmoe.CLAIMS:
        if claim.experiment:
            assert math.isfinite(claim.experiment(0, steps=2))


def test_an_effect_is_what_its_claim_says(monkeypatch):
    arms = {  # bits, information, entropy
        "passed": (1.0, 20.0, 300.0),
        "not passed": (1.1, 22.0, 0.0),
        "linear": (1.3, 15.0, 310.0),
        "no gradient": (0.6, 0.0, 0.0),
        "mlp": (0.9, 0.0, 0.0),
    }
    monkeypatch.setattr(rmoe, "arm", lambda name, *_: rmoe.Arm(*arms[name]))
    effects = measured(rmoe)
    assert effects == pytest.approx(
        {
            "memory-ties-the-layers": -2.0,
            "more-than-a-linear-router": 5.0,
            "flatter-gates": -10.0,
            "better-than-linear": -0.3,
            "passing-helps": -0.1,
            "its-gradient-helps": 0.4,
            "not-only-parameters": 0.1,
        }
    )


def test_the_recorded_models_answer_the_knobs():
    shown = picture("passed")
    assert shown.sample.mean_experts == rmoe.TOP_K
    assert picture("passed", top_k=3).sample.mean_experts == 3
    forgetful = picture("passed", keep=0.0)
    assert not torch.equal(
        forgetful.sample.chosen[-1], shown.sample.chosen[-1]
    )
    for variant in rmoe.VARIANTS:
        assert len(reach(variant)) == rmoe.LAYERS - 1
    # the memory ties neighbours, and layers further apart hardly more
    passed, linear = reach("passed"), reach("linear")
    gain = [a - b for a, b in zip(passed, linear, strict=True)]
    assert gain[0] > 0.1 > 2 * max(gain[1:])


def test_the_pencil_cell_forgets_at_the_rate_it_says():
    x, state = torch.tensor([[0.3, -1.0, 0.0, 2.0]]), torch.ones(1, 4)
    for update in (0.0, 0.5, 0.9):
        step = gru_router_step(x, state, **rmoe.leaky_cell(update))
        expected = (1 - update) * x.tanh() + update
        assert (step.state - expected).abs().max() < 1e-6
        assert (step.logits - 4 * expected).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: Cell(0), "width=0"),
        (lambda: rmoe.untrained("lstm"), "variant='lstm'"),
        (lambda: RMoERouter(4, 2, 1, Cell(3), "half"), "state='half'"),
    ],
)
def test_wrong_arguments_are_refused_in_a_sentence(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()


def _slow_state(x, state, w_input, w_state, input_bias, state_bias):
    P = x.shape[1]
    a, c = x @ w_input + input_bias, state @ w_state + state_bias
    r = (a[:, :P] + c[:, :P]).sigmoid()
    u = (a[:, P : 2 * P] + c[:, P : 2 * P]).sigmoid()
    return (1 - u) * (a[:, 2 * P :] + r * c[:, 2 * P :]).tanh() + u * state


def _u_the_other_way(x, state, *weights):
    return x.tanh() + state - _slow_state(x, state, *weights)


RIGHT = {
    "exercise-1": (45_056, 475_904),
    "exercise-2": _slow_state,
    "exercise-3": {"w_state"},
}
WRONG = {
    "exercise-1": (45_056, 377_600),
    "exercise-2": _u_the_other_way,
    "exercise-3": {"w_state", "state_bias"},
}


@pytest.mark.parametrize("slug", RIGHT)
def test_the_checker_knows_right_from_wrong(slug):
    assert judge(EXERCISES[slug], RIGHT[slug]) == "correct"
    assert judge(EXERCISES[slug], WRONG[slug]) != "correct"
