"""Duo-LLM's routers, choosers and claims on small trainings."""

import math

import pytest
import torch
from seed_0 import measured

from lab.exercises import judge
from lab.tokens import duo_llm
from lab.tokens.char_lm import spread
from lab.tokens.duo_char_lm import DuoCharLM, bits, train_by_coin, trained
from lab.tokens.duo_comparison import Null, Routed, experiment, overlap
from lab.tokens.duo_llm import EXERCISES, at_budget, depth
from lab.tokens.duo_llm_recorded import picture, recorded
from lab.tokens.duo_router import LearnedRoutes, learn
from lab.tokens.duo_routes import (
    Choice,
    layers_of,
    route_losses,
    shuffled,
    taken,
)

SHORT = {"steps": 20, "router_steps": 4, "positions": 300}


def test_a_coin_is_tossed_for_every_token_and_layer():
    model, seen = DuoCharLM(seed=0), []

    def remember(layer, args):
        seen.append(args[1].float().mean().item())

    for layer in model.layers:
        layer.register_forward_pre_hook(remember)
    train_by_coin(model, 3, seed=0)
    assert len(seen) == 3 * 6
    assert len(set(seen)) > 10
    assert all(0.4 < share < 0.6 for share in seen)


def test_training_repeats_bit_for_bit():
    once, again = (
        train_by_coin(DuoCharLM(seed=2), 4, seed=2).state_dict()
        for _ in range(2)
    )
    assert all(torch.equal(once[name], again[name]) for name in once)


def some_router(budget=3.0):
    routed = LearnedRoutes(trained(0, 20), budget)
    dice = torch.Generator().manual_seed(1)
    routed.weight.data = torch.randn(routed.weight.shape, generator=dice)
    return routed


def test_at_work_the_more_probable_network_is_taken_alone():
    routed = some_router()
    context, target = spread("prose", 200)
    routes = routed.routes(context)
    x = routed.model.start(context)
    for place, layer in enumerate(routed.model.layers):
        share = (layer.norm(x) @ routed.weight[place]).softmax(dim=1)
        big = share[:, 1] > share[:, 0]
        assert torch.equal(routes >> place & 1, big.long())
        x = x + torch.where(big[:, None], layer.big(x), layer.small(x))
    # and the table of all routes knows what that costs
    losses = route_losses(routed.model, context, target)
    expected = bits(routed.model.finish(x), target)
    torch.testing.assert_close(
        taken(losses, routes), expected, atol=1e-5, rtol=0
    )


def test_a_colder_mixture_comes_closer_to_the_hard_choice():
    routed = some_router()
    context, target = spread("prose", 200)
    losses = route_losses(routed.model, context, target)
    hard = taken(losses, routed.routes(context)).mean()
    gaps = []
    for tau in (1.0, 0.1, 0.001):
        routed.tau = tau
        soft = bits(routed.mixed(context)[0], target).mean()
        gaps.append(abs(soft - hard).item())
    assert gaps[0] > gaps[1] > gaps[2]
    assert gaps[2] < 1e-3


def test_only_the_routers_learn_and_the_budget_is_met():
    model = trained(0, 20)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    routed = learn(model, budget=1.5, steps=80, seed=0)
    for name, weight in routed.model.state_dict().items():
        assert torch.equal(weight, before[name]), name
    assert routed.weight.abs().max() > 0.01
    routed.tau = 0.1
    _, share = routed.mixed(spread("prose", 500)[0])
    assert 6 * share.item() == pytest.approx(1.5, abs=0.3)


def test_the_gradient_of_a_router_is_the_papers():
    # dL/dz_big = P_big P_small (g_big - g_small) / tau, g_x = <dL/dy, H_x>
    share_of = torch.tensor([0.3, -0.2], requires_grad=True)
    networks, pull, tau = torch.randn(2, 5), torch.randn(5), 0.4
    share = (share_of / tau).softmax(0)
    (share @ networks @ pull).backward()
    g = networks @ pull
    expected = share[0] * share[1] * (g[1] - g[0]) / tau
    assert share_of.grad[1].item() == pytest.approx(expected.item(), rel=1e-4)


def test_shuffling_keeps_every_layers_share_and_nothing_else():
    routes = torch.randint(64, (500,), generator=torch.manual_seed(0))
    dealt = shuffled(routes, 6)
    before, after = layers_of(routes), layers_of(dealt)
    assert torch.equal(before.sum(1), after.sum(1))
    assert (before != after).any(dim=1).all()
    assert torch.equal(shuffled(routes, 6), dealt)


def test_a_budget_between_two_is_their_mixture():
    curve = torch.tensor([3.0, 2.0, 1.0, 4.0])
    assert at_budget(curve, 0.25) == pytest.approx(2.75)
    assert at_budget(curve, 3) == pytest.approx(4)
    assert at_budget(curve, 2.5) == pytest.approx(2.5)


def test_depth_and_overlap_by_hand():
    # layers 1 and 3; layer 6
    assert depth(torch.tensor([0b000101, 0b100000])) == pytest.approx(10 / 3)
    losses = torch.zeros(64, 20)
    losses[:, 10:] = 8.0  # dear on every route
    losses[:, 0] = 9.0  # hard, and nothing helps
    losses[0, 1] = 10.0  # hard, and worth it
    losses[0, 2] = 5.0  # worth it
    assert overlap(losses) == pytest.approx(50)


def test_one_seed_gives_every_number():
    result = experiment(0, **SHORT)
    assert len(result.choice.oracle) == 7 and len(result.null) == 5
    assert (result.choice.oracle <= result.choice.best_fixed + 1e-6).all()
    assert (result.choice.best_fixed <= result.choice.mean_fixed + 1e-6).all()
    for null in result.null:
        assert null.best < null.mean < 10  # bits
        assert null.scatter == pytest.approx(null.wanted, rel=0.1)


def test_every_claim_runs_on_a_short_training():
    for claim in duo_llm.CLAIMS:
        if claim.experiment:
            assert math.isfinite(claim.experiment(0, **SHORT))


def test_an_effect_is_what_its_claim_says(monkeypatch):
    # with two big layers the first two, with four the last four
    routes = [0, 1, 0b000011, 0b111, 0b111100, 0b11111, 0b111111]
    choice = Choice(
        oracle=torch.tensor([2.0, 1.7, 1.5, 1.4, 1.3, 1.6, 1.9]),
        best_fixed=torch.tensor([2.0, 1.9, 1.8, 1.7, 1.6, 1.8, 1.9]),
        mean_fixed=torch.tensor([2.0, 2.0, 1.9, 1.8, 1.7, 1.8, 1.9]),
        routes=torch.tensor(routes).int()[:, None],
    )
    null = Null(scatter=0.2, wanted=0.2, mean=2.1, best=1.6)
    routed = Routed(bits=1.6, budget=2.5, random_tokens=1.7)
    monkeypatch.setattr(duo_llm, "all_routes", lambda *_, **__: choice)
    monkeypatch.setattr(duo_llm, "null_oracle", lambda *_, **__: null)
    monkeypatch.setattr(duo_llm, "learned", lambda *_, **__: routed)
    effects = measured(duo_llm, but=["hard-is-not-worth-compute"])
    assert effects == pytest.approx(
        {
            "one-big-layer-beats-all": -0.2,
            "half-is-best": 0.1,
            "better-than-noise-one-layer": 0.1,
            "better-than-noise-half": -0.2,
            # 0.3 bits of the oracle to 0.5 bits of the null
            "gains-more-than-noise": 60,
            # 2.5 layers: between 1.8 and 1.7 bits
            "router-like-best-fixed": 0.15,
            "better-than-random-tokens": -0.1,
            "later-when-scarce": -3.0,
        },
        rel=1e-5,
    )


def test_the_recording_is_the_recorded_models():
    kept = recorded()
    context, target = spread("prose", 4096)
    few = slice(0, 4096, 100)
    live = route_losses(kept.model, context[few], target[few])
    # both the weights and the losses are kept in half precision
    error = (live - kept.losses[:, few]).abs()
    assert error.mean() < 0.01


def test_the_null_oracle_draws_the_oracles_curve():
    oracle = picture("oracle")
    null = picture("null oracle")
    for curve in (oracle.curve, null.curve):
        # one big layer beats all, half is best, then it rises again
        assert curve[1] < curve[6]
        assert min(curve) == curve[3]
    assert set(null.layers.values()) == {100}
    assert sum(oracle.layers.values()) == pytest.approx(100, abs=0.1)


def test_the_knobs_do_what_they_say():
    curves = {most: picture("oracle", most=most).curve for most in (1, 6, 20)}
    assert curves[1][3] > curves[6][3] > curves[20][3]
    fixed = picture("mean fixed").curve
    assert curves[1] == pytest.approx(fixed, abs=0.05)
    quiet = picture("null oracle", noise=0.5)
    assert quiet.curve[3] > picture("null oracle").curve[3] + 0.1
    gap = picture("oracle", budget=0, colour="gap")
    assert max(map(abs, gap.values)) < 1e-6
    deep = picture("oracle", budget=1, colour="depth").values
    assert set(deep) <= {1, 2, 3, 4, 5, 6} and len(set(deep)) > 3
    router = picture("router", budget=3)
    dealt = picture("random tokens", budget=3)
    assert router.layers == dealt.layers
    assert router.curve[3] < dealt.curve[3]


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: LearnedRoutes(DuoCharLM(), 7), "budget=7"),
        (lambda: picture("tea leaves"), "chooser='tea leaves'"),
        (lambda: picture(colour="red"), "colour='red'"),
    ],
)
def test_wrong_arguments_are_refused_in_a_sentence(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()


def _slow_oracle(losses, budgets):
    rows = []
    for b in range(int(budgets.max()) + 1):
        menu = [
            row
            for row, k in zip(losses, budgets.tolist(), strict=True)
            if k == b
        ]
        best = [min(loss) for loss in zip(*menu, strict=True)]
        rows.append(sum(best) / len(best))
    return torch.tensor(rows)


RIGHT = {
    "exercise-1": (495, 8190),
    "exercise-2": 2.63,
    "exercise-3": _slow_oracle,
}
WRONG = {
    "exercise-1": (495, 49152),
    "exercise-2": 2.645,
    # the fixed route that is best on average
    "exercise-3": lambda losses, budgets: torch.stack(
        [
            losses[budgets == b].mean(dim=1).min()
            for b in range(int(budgets.max()) + 1)
        ]
    ),
}


@pytest.mark.parametrize("slug", RIGHT)
def test_the_checker_knows_right_from_wrong(slug):
    assert judge(EXERCISES[slug], RIGHT[slug]) == "correct"
    assert judge(EXERCISES[slug], WRONG[slug]) != "correct"
