"""AdaMoE against the paper's formulas, counted by hand."""

import math

import pytest
import torch
from scipy import special
from seed_0 import measured

from lab.exercises import judge
from lab.kernels.topk_gate import topk_gate
from lab.tokens import adamoe
from lab.tokens.adamoe import EXERCISES, null_loss, route
from lab.tokens.adamoe_phases import adapt, add_null_experts, pretrained
from lab.tokens.adamoe_recorded import baseline, picture
from lab.tokens.routers import weight_table


def logits(tokens=300, columns=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(
        tokens, columns, generator=generator, dtype=torch.float64
    )


def by_hand(row, k, nulls):
    """Weights of the true experts of one token, with Python's own sort."""
    true_experts = len(row) - nulls
    scores = special.softmax(row)
    ranked = sorted(range(len(row)), key=lambda i: (-scores[i], i))[:k]
    chosen = [i for i in ranked if i < true_experts]
    total = sum(scores[i] for i in chosen) or 1.0
    return [
        scores[i] / total if i in chosen else 0.0 for i in range(true_experts)
    ]


@pytest.mark.parametrize(("k", "nulls"), [(3, 8), (4, 12), (1, 15), (2, 0)])
def test_weights_are_shared_by_the_chosen_true_experts(k, nulls):
    z = logits()
    table = weight_table(route(z, k, nulls), 16 - nulls)
    expected = torch.tensor([by_hand(row, k, nulls) for row in z.tolist()])
    torch.testing.assert_close(table, expected.double(), atol=1e-12, rtol=0)


def test_normalizing_over_all_leaves_the_nulls_their_share():
    z = logits()
    true_only = weight_table(route(z, 3, 8), 8)
    over_all = weight_table(route(z, 3, 8, "all"), 8)
    assert ((true_only > 0) == (over_all > 0)).all()
    assert over_all.sum(1).mean() < 0.7


def test_the_load_stays_between_k_minus_m_and_n():
    for k, nulls in [(6, 4), (3, 8), (12, 8)]:
        n = 16 - nulls
        load = (route(logits(), k, nulls).experts >= 0).sum(1)
        assert load.min() >= max(0, k - nulls)
        assert load.max() <= min(k, n)


def test_null_loss_is_equation_6():
    z = logits(columns=12)
    n, m, k = 8, 4, 3
    scores = z.softmax(1)
    chosen = z.argsort(dim=1, descending=True)[:, :k]
    rate = [(chosen == i).any(1).double().mean().item() for i in range(n + m)]
    shared = sum(rate[n:]) / m
    total = sum(
        (rate[i] if i < n else shared) * scores[:, i].mean().item()
        for i in range(n + m)
    )
    got = null_loss(route(z, k, m).experts, scores, m).item()
    assert got == pytest.approx((n + m) * total, rel=1e-6)


def test_null_loss_is_k_at_perfect_balance():
    # four tokens, each with another pair of four columns, two of them null
    experts = torch.tensor([[0, 1], [1, -1], [-1, -1], [-1, 0]])
    scores = torch.full((4, 4), 0.25)
    assert null_loss(experts, scores, 2).item() == pytest.approx(2)


def test_the_task_never_moves_a_null_logit():
    z = logits().requires_grad_()
    gate = route(z, 3, 8)
    (gate.weights * torch.randn(gate.weights.shape)).sum().backward()
    assert z.grad[:, 8:].abs().max() == 0
    alone = (gate.experts >= 0).sum(1) <= 1
    assert alone.sum() > 20
    assert z.grad[alone].abs().max() < 1e-12
    assert z.grad[~alone].abs().max() > 1e-3


def test_copied_columns_tie_and_the_lowest_index_wins():
    weight = torch.randn(48, 8)
    x = torch.randn(500, 48)
    for nulls, k in [(8, 3), (16, 4)]:
        wide = add_null_experts(weight, nulls)
        assert torch.equal(wide[:, 8:16], weight)
        # every true expert comes before its twins: the load starts at 2
        z = x @ wide[:, :8]
        tied = torch.cat([z] * (1 + nulls // 8), dim=1)
        load = (route(tied, k, nulls).experts >= 0).sum(1).float().mean()
        assert load == 2
    nudged = add_null_experts(weight, 8, "nudge")
    assert not torch.equal(nudged[:, 8:], weight)
    assert (nudged[:, 8:] - weight).abs().max() < 0.1


def test_without_null_experts_it_is_top_k():
    expected = topk_gate(logits(), 2)
    got = route(logits(), 2, 0)
    assert torch.equal(got.experts, expected.experts)
    assert torch.equal(got.weights, expected.weights)


def test_the_expected_load_of_the_papers_settings():
    loads = [adamoe.expected_load(k, m) for m, k in ((8, 3), (16, 4), (32, 6))]
    assert loads == pytest.approx([1.5, 4 / 3, 1.2])


def test_all_arms_start_from_one_pretrained_model_and_leave_it_alone():
    before = pretrained(0, 5).state_dict()
    before = {name: weight.clone() for name, weight in before.items()}
    result = adamoe.experiment(0, steps=4, pretraining_steps=5)
    after = pretrained(0, 5).state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert (result.top_1.load, result.top_2.load) == (1, 2)


def test_every_claim_runs_on_a_short_training():
    for claim in adamoe.CLAIMS:
        if claim.experiment:
            short = {**claim.reduced, "steps": 4, "pretraining_steps": 5}
            assert math.isfinite(claim.experiment(0, **short))


def test_an_effect_is_what_its_claim_says(monkeypatch):
    arms = {  # bits, true experts per token
        (1, 0, "null"): (2.0, 1.0),
        (2, 0, "null"): (1.6, 2.0),
        (3, 8, "null"): (1.7, 1.5),
        (3, 8, "ordinary"): (1.75, 1.4),
    }

    def arm(seed, top_k, null_experts, loss="null", **budget):
        return adamoe.Arm(*arms[top_k, null_experts, loss])

    monkeypatch.setattr(adamoe, "arm", arm)
    effects = measured(adamoe)
    # at 1.5 experts the line from top-1 to top-2 is at 1.8 bits
    assert effects == pytest.approx(
        {
            "fewer-expert-calls": 25,
            "no-worse-than-top-2": 0.1,
            "better-than-mixing": -0.1,
            "null-loss-helps": -0.05,
        }
    )


def test_the_recorded_models_answer_the_knobs():
    paper = picture()
    assert 1.2 < paper.sample.mean_experts < 1.9
    more = picture(top_k=5)
    assert more.sample.mean_experts > paper.sample.mean_experts + 0.4
    assert baseline(2)[0] == [2]


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: add_null_experts(torch.ones(2, 8), 4), "not a multiple"),
        (lambda: add_null_experts(torch.ones(2, 8), 8, "x"), "start='x'"),
        (lambda: route(torch.ones(2, 8), 2, 4, "none"), "normalize='none'"),
        (lambda: route(torch.ones(2, 8), 9, 4), "k=9"),
        (lambda: route(torch.ones(2, 8), 2, 8), "null_experts=8"),
    ],
)
def test_wrong_arguments_are_refused_in_a_sentence(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()


@pytest.mark.parametrize(
    ("nulls", "expected"),
    [
        (8, [0.02, 0.5, 0.5, 0.5, 0.25, 0.25]),
        (0, [0.01, 0.5, 0.5, 0.5, 0.25, 0.25]),
        (8, [0.02, 0.5, 0.5, 0.5, 0.25]),
    ],
)
def test_alpha_is_set_for_the_next_step(nulls, expected):
    model, seen = adamoe.untrained(3, nulls), []
    router = model.layers[0].router
    router.register_forward_pre_hook(lambda r, _: seen.append(r.balance))
    steps = len(expected)
    adapt(model, nulls, 0, alpha=(0.5, 0.25), steps=steps, pretraining_steps=1)
    assert seen == expected


def _slow_weights(z, k, nulls):
    rows = [by_hand(row, k, nulls) for row in z.double().tolist()]
    return torch.tensor(rows)


RIGHT = {
    "exercise-1": (8, 3),
    "exercise-2": _slow_weights,
    "exercise-3": 0.0,
}
WRONG = {
    "exercise-1": (16, 4),
    "exercise-2": lambda z, k, m: z.softmax(1)[:, : z.shape[1] - m],
    "exercise-3": 1.0,
}


def test_weights_by_topk_are_right_whatever_it_does_with_ties():
    def by_topk(logits, k, nulls):
        value, place = logits.topk(k, dim=1)
        chosen = torch.full_like(logits, -torch.inf).scatter(1, place, value)
        true = chosen[:, : logits.shape[1] - nulls].exp()
        return true / true.sum(1, keepdim=True).clamp_min(1e-30)

    assert judge(EXERCISES["exercise-2"], by_topk) == "correct"


def test_what_fp32_leaves_of_a_zero_is_right():
    assert judge(EXERCISES["exercise-3"], 1.6e-7) == "correct"
    assert judge(EXERCISES["exercise-3"], 0.01) != "correct"


@pytest.mark.parametrize("slug", RIGHT)
def test_the_checker_knows_right_from_wrong(slug):
    assert judge(EXERCISES[slug], RIGHT[slug]) == "correct"
    assert judge(EXERCISES[slug], WRONG[slug]) != "correct"
