"""Top-p routing against the paper's and the authors' formulas."""

import json
import math
from fractions import Fraction
from functools import partial
from itertools import accumulate

import numpy as np
import pytest
import torch
from scipy import special, stats
from seed_0 import measured

from lab.data import ROOT
from lab.exercises import judge
from lab.kernels.topp_gate import topp_gate
from lab.tokens import experts_per_token, top_p_routing
from lab.tokens.char_lm import Evaluation, evaluate
from lab.tokens.experts_per_token import Arm, train_and_measure
from lab.tokens.routers import balance_loss, entropy, weight_table
from lab.tokens.top_p_routing import EXERCISES, TopPRouter
from lab.tokens.top_p_routing_recorded import baseline, picture


def router(experts=16, **options):
    made = TopPRouter(48, experts, **options)
    generator = torch.Generator().manual_seed(0)
    torch.nn.init.normal_(made.weight, std=0.3, generator=generator)
    return made


def hidden(tokens=400, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(tokens, 48, generator=generator)


def authors_rule(scores, p):
    """The released rule: mass > p, the first crossing expert restored."""
    order = np.argsort(-scores, axis=1, kind="stable")
    mass = np.take_along_axis(scores, order, axis=1).cumsum(axis=1)
    beyond = mass > p
    first = beyond.argmax(axis=1)
    beyond[np.arange(len(scores)), first] = False
    kept = np.zeros_like(beyond)
    np.put_along_axis(kept, order, ~beyond, axis=1)
    # a partial sum within rounding of p may fall on either side
    clear = np.abs(mass - p).min(axis=1) > 1e-6
    return kept, clear


@pytest.mark.parametrize("p", [0.1, 0.4, 0.73, 0.99])
def test_the_sets_are_the_authors_sets(p):
    made, x = router(p=p), hidden()
    scores = special.softmax((x @ made.weight).double().detach().numpy(), 1)
    expected, clear = authors_rule(scores, p)
    table = weight_table(made(x).gate, 16).detach().numpy()
    assert clear.sum() > 390
    assert ((table > 0) == expected)[clear].all()
    # raw probabilities, not renormalized
    np.testing.assert_allclose(table[table > 0], scores[table > 0], atol=1e-6)


def test_uniform_scores_take_p_times_n_experts():
    made = TopPRouter(48, 16, p=0.4)
    torch.nn.init.zeros_(made.weight)
    assert (made(hidden(3)).gate.experts >= 0).sum(1).tolist() == [7, 7, 7]


def test_no_rounding_decides_about_the_tokens_with_a_pencil():
    """No sum of a token's best scores equals p, for p in steps of 0.05."""
    path = ROOT / "notebooks" / "1-tokens" / "01-top-p-routing.ipynb"
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    (tiny,) = ("".join(c["source"]) for c in cells if c["id"] == "tiny")
    made = {"torch": torch}
    exec(tiny, made)
    scores = made["scores"]
    exact = [[Fraction(f"{x:.2f}") for x in row] for row in scores.tolist()]
    sums = [list(accumulate(sorted(row, reverse=True))) for row in exact]
    assert all(row[-1] == 1 for row in sums)
    for p in (Fraction(n, 20) for n in range(1, 21)):
        assert p == 1 or not any(p in row for row in sums), p
        gate = topp_gate(scores.log(), float(p))
        needed = [sum(one < p for one in row) + 1 for row in sums]
        assert (gate.experts >= 0).sum(1).tolist() == needed, p


def test_temperature_changes_the_compute_bill():
    cold, hot = router(temperature=0.25), router(temperature=4.0)
    count = [(r(hidden()).gate.experts >= 0).sum().item() for r in (cold, hot)]
    assert count[1] > 2 * count[0]


def test_entropy_agrees_with_scipy_and_survives_certainty():
    logits = torch.randn(50, 8, dtype=torch.float64)
    expected = stats.entropy(special.softmax(logits.numpy(), 1), axis=1)
    assert entropy(logits).item() == pytest.approx(expected.mean(), abs=1e-12)
    assert entropy(torch.tensor([[0.0, -500.0]])).item() == 0.0


def test_balance_loss_by_counting():
    made = router()
    routing = made(hidden())
    scores = routing.scores.detach().numpy()
    total = 0.0
    for expert in range(16):
        tokens = (routing.gate.experts == expert).any(dim=1)
        total += tokens.float().mean().item() * scores[:, expert].mean()
    got = balance_loss(routing.gate.experts, routing.scores).item()
    assert got == pytest.approx(16 * total, rel=1e-5)


def test_even_a_lone_expert_teaches_the_router():
    made = router(p=0.01, balance=0.0, entropy_weight=0.0)
    routing = made(hidden())
    assert ((routing.gate.experts >= 0).sum(1) == 1).all()
    routing.gate.weights.sum().backward()
    # with renormalized weights this would be exactly 0
    assert made.weight.grad.abs().max() > 1e-3


def test_an_experiment_is_reproducible_and_paired():
    one = top_p_routing.experiment(0, steps=10)
    top_p_routing.top_p_arm.cache_clear()
    top_p_routing.top_k_arm.cache_clear()
    assert top_p_routing.experiment(0, steps=10) == one
    assert one.top_1.experts == 1
    assert one.top_2.experts == 2
    assert 1 <= one.top_p.experts <= 8
    assert all(math.isfinite(arm.bits) for arm in one)


def test_every_claim_runs_on_a_short_training():
    for claim in top_p_routing.CLAIMS:
        if claim.experiment:
            parameters = {**claim.reduced, "steps": 10}
            assert math.isfinite(claim.experiment(0, **parameters))


def test_an_effect_is_what_its_claim_says(monkeypatch):
    def arm(bits, experts):
        return Arm(bits, experts, [1.9, 1.0, 1.4], 0.3, 2.5, 1.5)

    bits = {1: 2.0, 2: 1.6}
    monkeypatch.setattr(
        top_p_routing, "top_k_arm", lambda seed, k, *_: arm(bits[k], k)
    )
    monkeypatch.setattr(top_p_routing, "top_p_arm", lambda *_: arm(1.7, 1.5))
    effects = measured(top_p_routing)
    # at 1.5 experts the line from top-1 to top-2 is at 1.8 bits
    assert effects == pytest.approx(
        {
            "quality-of-top-2": 0.1,
            "under-90-percent": 75,
            "better-than-mixing": -0.1,
            "harder-tokens-more-experts": 0.3,
            "harder-tokens-sharp-router": 0.3,
            "fewer-as-training-goes-on": 1.0,
            "lower-layers-use-more": 0.5,
        }
    )


def test_experts_are_counted_per_token_and_layer_while_it_trains(monkeypatch):
    short = partial(evaluate, positions=200)
    monkeypatch.setattr(experts_per_token, "evaluate", short)
    model = top_p_routing.top_k_model(0, 2, 8)
    found = train_and_measure(model, 0, 3, "prose")
    assert found.experts_early == found.experts_late == found.experts == 2


def test_an_arm_is_described_by_hand():
    # the dearer a token, the more experts in the first of two layers
    experts = torch.stack([torch.arange(1, 21), torch.full((20,), 3)], dim=1)
    found = experts_per_token.describe(
        Evaluation(
            token_loss=torch.arange(20).float() ** 2,
            experts=experts,
            load=torch.zeros(2, 8),
            scores=[],
            chosen=[],
        ),
        early=5.0,
        late=4.0,
    )
    assert found == Arm(
        bits=pytest.approx(19 * 39 / 6),
        experts=6.75,
        experts_by_layer=[10.5, 3],
        difficulty_rho=pytest.approx(1),
        experts_early=5,
        experts_late=4,
    )


def test_the_loss_of_a_router_asks_for_balance_and_for_low_entropy():
    made = router(balance=0.5, entropy_weight=0.25)
    routing = made(hidden())
    spread = entropy(hidden() @ made.weight)
    even = balance_loss(routing.gate.experts, routing.scores)
    assert routing.loss.item() == pytest.approx(
        (0.5 * even + 0.25 * spread).item(), rel=1e-6
    )


def test_the_recorded_model_answers_the_knobs():
    paper = picture()
    hot = picture(temperature=3.0)
    strict = picture(entropy_weight=0.1)
    assert hot.sample.mean_experts > paper.sample.mean_experts + 0.5
    assert strict.sample.mean_experts < paper.sample.mean_experts
    for k in (1, 2):
        (load,), (bits,) = baseline(k, experts=8)
        assert load == k
        assert 1.5 < bits < 3


RIGHT = {
    "exercise-1": [{0}, {0}, {0, 2}, {0, 2, 3, 4}],
    "exercise-2": lambda experts, p: math.ceil(p * experts - 1e-9),
    "exercise-3": lambda scores, p: _loop(scores, p),
}
WRONG = {
    "exercise-1": [{0}, {0, 2}, {0, 2}, {0, 2, 3, 4}],  # the code's > rule
    "exercise-2": lambda experts, p: int(p * experts),
    "exercise-3": lambda scores, p: scores >= p,
}


def _loop(scores, p):
    kept, mass = torch.zeros(len(scores), dtype=torch.bool), 0.0
    for expert in scores.argsort(descending=True, stable=True).tolist():
        if mass >= p:
            break
        kept[expert] = True
        mass += scores[expert].item()
    return kept


@pytest.mark.parametrize("slug", RIGHT)
def test_the_checker_knows_right_from_wrong(slug):
    assert judge(EXERCISES[slug], RIGHT[slug]) == "correct"
    assert judge(EXERCISES[slug], WRONG[slug]) != "correct"
