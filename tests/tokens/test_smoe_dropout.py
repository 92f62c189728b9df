"""SMoE-Dropout against the authors' arithmetic and a dense layer."""

import math

import numpy as np
import pytest
import torch
from seed_0 import measured
from torch.nn import functional as F

from lab.exercises import judge
from lab.kernels.moe_layer import moe_layer
from lab.tokens import smoe_dropout
from lab.tokens.char_lm import DIM, measure, train
from lab.tokens.routers import balance_loss, weight_table
from lab.tokens.slimmable_layer import all_experts
from lab.tokens.smoe_dropout import (
    CLAIMS,
    EXERCISES,
    EXPERTS,
    SCHEDULES,
    Schedule,
    SlimmableRouter,
    active_experts,
    mean_experts,
    untrained,
)
from lab.tokens.smoe_dropout_recorded import ARMS, curve, picture


def normal(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=dtype)


def router(k, frozen=True, dim=6, experts=EXPERTS):
    made = SlimmableRouter(dim, experts, k, frozen).double()
    made.weight.data.copy_(normal(dim, experts, seed=1))
    return made


def theirs(shape, steps, overall, low, high):
    """The arithmetic of the authors' schedule, `new_utils.py`."""
    if shape == "linear":
        k = round((high - low) * steps / overall) + low
    elif shape == "cosine":
        k = round((low - high) * np.cos(np.pi * steps / (2 * overall))) + high
    elif shape == "exponential":
        k = round((low - high) * 0.99 ** (steps // (overall // 300))) + high
    else:
        k = [1, 2, 4, 8, 16][int(5 * steps / overall)]
    return int(np.clip(k, low, high))


@pytest.mark.parametrize("shape", ["linear", "cosine", "exponential"])
@pytest.mark.parametrize(("low", "high"), [(8, 16), (1, 16), (3, 4), (2, 2)])
def test_k_grows_as_in_the_authors_code(shape, low, high):
    plan = Schedule(shape, low, high)
    for step in range(601):
        expected = theirs(shape, step, 600, low, high)
        assert active_experts(step, 600, plan) == expected, step


def test_doubling_is_theirs_and_does_not_run_off_its_end():
    plan = Schedule("doubling", 1, 16)
    for step in range(600):
        assert active_experts(step, 600, plan) == theirs(
            "doubling", step, 600, 1, 16
        )
    assert active_experts(600, 600, plan) == 16


def test_halves_are_rounded_to_even():
    plan = Schedule("linear", 8, 16)
    assert [active_experts(s, 16, plan) for s in range(6)] == [
        8, 8, 9, 10, 10, 10,
    ]  # fmt: skip


def test_the_mean_k_is_the_cost_of_a_training():
    assert mean_experts(SCHEDULES["constant 2"]) == 2
    # the sums stop one step short of the last k
    linear, cosine = (
        mean_experts(SCHEDULES[f"{shape} 8 to 16"])
        for shape in ("linear", "cosine")
    )
    assert linear == pytest.approx(12, abs=0.03)
    assert cosine == pytest.approx(16 - 8 * 2 / math.pi, abs=0.03)


@pytest.mark.parametrize("k", [1, 3, EXPERTS])
def test_the_gate_is_theirs(k):
    """`CustomNaiveGate`: top-k of the logits, softmax over those."""
    x, made = normal(63, 6), router(k)
    z = x @ made.weight
    value, place = torch.topk(z, k, dim=-1)
    expected = torch.zeros_like(z).scatter(1, place, F.softmax(value, -1))
    got = weight_table(made(x).gate, EXPERTS)
    torch.testing.assert_close(got, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("k", [1, 5, EXPERTS])
@pytest.mark.parametrize("T", [1, 63])
def test_the_layer_is_a_masked_average_of_all_experts(k, T):
    x, up, down = normal(T, 6), normal(EXPERTS, 6, 5), normal(EXPERTS, 5, 6)
    gate = router(k)(x).gate
    expected = torch.zeros(T, 6, dtype=torch.float64)
    for t in range(T):
        z = x[t] @ router(k).weight
        best = sorted(range(EXPERTS), key=lambda e: -z[e].item())[:k]
        total = sum(math.exp(z[e]) for e in best)
        for e in best:
            out = (x[t] @ up[e]).clamp(min=0) @ down[e]
            expected[t] += math.exp(z[e]) / total * out
    # single precision would do; the combining sum is kept in double here
    got = moe_layer(x, gate, up, down, "relu")
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    if k == EXPERTS:
        dense = all_experts(x, weight_table(gate, EXPERTS), up, down)
        torch.testing.assert_close(dense, expected, atol=1e-10, rtol=0)


def test_training_moves_everything_but_a_frozen_router():
    for frozen in (True, False):
        start = untrained(0, frozen, 8).state_dict()
        start = {name: weight.clone() for name, weight in start.items()}
        after = train(untrained(0, frozen, 8), "prose", 3, 0).state_dict()
        for name, weight in start.items():
            still = frozen and name.endswith("router.weight")
            assert torch.equal(weight, after[name]) == still, name


def test_frozen_and_learned_start_alike_with_the_authors_spread():
    one, two = untrained(0, True), untrained(0, False)
    for name, weight in one.state_dict().items():
        assert torch.equal(weight, two.state_dict()[name])
    x = F.layer_norm(normal(2000, DIM, dtype=torch.float32), (DIM,))
    for layer in one.layers:
        spread = (x @ layer.router.weight).std().item()
        # 768 weights a layer, so the spread is known to a few percent
        assert spread == pytest.approx(0.32, rel=0.1)


def gradient(k, detach):
    x = normal(9, 6).requires_grad_()
    made, up, down = router(k), normal(EXPERTS, 6, 5), normal(EXPERTS, 5, 6)
    gate = made(x).gate
    if detach:
        gate = gate._replace(weights=gate.weights.detach())
    y = moe_layer(x, gate, up, down, "relu")
    (y * normal(9, 6, seed=5)).sum().backward()
    assert made.weight.grad is None
    return x.grad


@pytest.mark.parametrize("k", [1, 2, 8, EXPERTS])
def test_freezing_does_not_cut_the_gradient_but_at_k_1(k):
    gap = (gradient(k, False) - gradient(k, True)).abs().max()
    assert (gap < 1e-9) == (k == 1)


def test_only_a_learned_router_is_balanced():
    x = normal(63, 6)
    assert router(4)(x).loss == 0
    made = router(4, frozen=False)
    routing = made(x)
    expected = balance_loss(routing.gate.experts, routing.scores) / 4
    assert routing.loss.item() == pytest.approx(0.01 * expected.item())


def test_a_dense_twin_has_as_many_expert_weights_and_no_choice():
    dense, sparse = smoe_dropout.dense_twin(0), untrained(0)
    for one, other in zip(dense.layers, sparse.layers, strict=True):
        assert one.w_up.numel() == other.w_up.numel()
        assert one.w_down.numel() == other.w_down.numel()
    context = torch.zeros(3, 12, dtype=torch.long)
    seen = measure(dense, context, torch.zeros(3, dtype=torch.long))
    assert (seen.experts == 1).all()


def test_the_schedule_reaches_the_routers(monkeypatch):
    seen = []

    def watched(model, domain, steps, seed, on_step):
        for step in range(steps):
            seen.append({layer.router.k for layer in model.layers})
            on_step(step, None)
        return model

    monkeypatch.setattr(smoe_dropout, "train", watched)
    smoe_dropout.trained(7, True, "linear 8 to 16", 8)
    # 8 + round(s), as in the first exercise
    assert seen == [{8}, {9}, {10}, {11}, {12}, {13}, {14}, {15}]


def test_every_claim_runs_on_a_short_training():
    for claim in CLAIMS:
        if claim.experiment:
            effect = claim.experiment(0, steps=3, positions=100)
            assert math.isfinite(effect)


def test_an_effect_is_what_its_claim_says(monkeypatch):
    at_16 = {
        "constant 16": 1.6,
        "cosine 8 to 16": 1.4,
        "exponential 8 to 16": 1.8,
    }
    by_k = {  # frozen or not, and the schedule: bits at each k
        (True, "linear 8 to 16"): [2.0, 1.9, 1.95, 1.7, 1.72, 1.5],
        (False, "linear 8 to 16"): [2.0, 1.8, 1.6, 1.4, 1.5, 1.45],
        (False, "constant 2"): [2.0, 1.8, 1.9, 2.0, 2.1, 2.3],
        **{(True, name): [0] * 5 + [bits] for name, bits in at_16.items()},
    }

    def bits(seed, frozen, schedule, k, **budget):
        return by_k[frozen, schedule][(1, 2, 4, 8, 12, 16).index(k)]

    monkeypatch.setattr(smoe_dropout, "bits", bits)
    monkeypatch.setattr(smoe_dropout, "dense_bits", lambda *_, **__: 1.3)
    effects = measured(smoe_dropout)
    assert effects == pytest.approx(
        {
            "grows-with-k": 0.05,
            "learned-gets-worse": 0.5,
            "freezing-is-needed": 0.1,
            "random-beats-learned": 0.05,
            "better-than-dense": 0.2,
            "growing-helps": -0.1,
            "linear-beats-cosine": 0.1,
            "linear-beats-exponential": -0.3,
        }
    )


@pytest.mark.parametrize("arm", ARMS)
def test_a_recorded_model_is_still_the_one_whose_curve_is_kept(arm):
    for k in (1, 6, EXPERTS):
        shown = picture(k, arm)
        assert shown.mean_experts == k
        # weights are kept in half precision
        assert shown.bits_per_character == pytest.approx(
            curve(arm)[k - 1], abs=5e-3
        )


def test_the_recorded_models_show_the_aha():
    learned, random = (curve(arm) for arm in ("learned, 2", "random, 8 to 16"))
    assert learned[15] > learned[1] + 0.02
    assert random[15] < random[7] < random[1]
    # the chapter says that this seed does not show what ten seeds do
    assert curve("random, 16")[15] < random[15]


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (
            lambda: active_experts(0, 9, Schedule("linear", 4, 2)),
            "k from 4 to 2",
        ),
        (
            lambda: active_experts(0, 9, Schedule("square", 1, 2)),
            "shape='square'",
        ),
        (lambda: router(17)(normal(3, 6)), "k=17"),
        (lambda: router(0)(normal(3, 6)), "k=0"),
    ],
)
def test_wrong_arguments_are_refused_in_a_sentence(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()


def _slow_layer(tokens, weights, w_up, w_down):
    rows = torch.zeros_like(tokens)
    for e in range(len(w_up)):
        rows += weights[:, e : e + 1] * ((tokens @ w_up[e]).relu() @ w_down[e])
    return rows


def _dense_network(tokens, weights, w_up, w_down):
    return _slow_layer(tokens, torch.ones_like(weights), w_up, w_down)


RIGHT = {"exercise-1": 0.71875, "exercise-2": {1}, "exercise-3": _slow_layer}
WRONG = {"exercise-1": 0.75, "exercise-2": {16}, "exercise-3": _dense_network}


@pytest.mark.parametrize("slug", RIGHT)
def test_the_checker_knows_right_from_wrong(slug):
    assert judge(EXERCISES[slug], RIGHT[slug]) == "correct"
    assert judge(EXERCISES[slug], WRONG[slug]) != "correct"


def test_cutting_s_into_eight_steps_gives_the_first_answer():
    plan = Schedule("linear", 8, 16)
    assert mean_experts(plan, 8) / 16 == EXERCISES["exercise-1"].answer


def test_three_decimals_as_in_the_solution_are_enough():
    assert judge(EXERCISES["exercise-1"], 0.719) == "correct"
    for wrong in (0.72, 0.71, 12 / 16, 12.5 / 16):
        assert judge(EXERCISES["exercise-1"], wrong) != "correct"
