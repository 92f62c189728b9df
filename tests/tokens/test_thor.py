"""THOR against the paper's rules, with dice that can be counted."""

import math

import pytest
import torch
import torch.nn.functional as F
from seed_0 import measured

from lab.exercises import judge
from lab.tokens import thor
from lab.tokens.char_lm import DIM, next_character, windows
from lab.tokens.dice import Dice, RandomRouter, SwitchRouter
from lab.tokens.text import split
from lab.tokens.thor import EXERCISES, two_passes, untrained
from lab.tokens.thor_recorded import (
    LONG,
    RECORDED_ALPHA,
    expert_distance,
    picture,
)


def batch(size=64, seed=0):
    ids = split("prose").train
    generator = torch.Generator().manual_seed(seed)
    return windows(ids, torch.randint(20, 5000, (size,), generator=generator))


def test_in_training_a_whole_batch_shares_one_expert_of_each_layer():
    model = untrained("random", 4).train()
    seen = [set(), set(), set()]
    for _ in range(24):
        for layer, routing in enumerate(model(batch()[0]).routings):
            assert len(routing.gate.experts.unique()) == 1
            assert (routing.gate.weights == 1).all()
            seen[layer].add(routing.gate.experts[0].item())
    assert seen == [{0, 1, 2, 3}] * 3


def test_at_work_each_token_throws_for_itself_and_evenly():
    router = RandomRouter(4, seed=1).eval()
    hidden = torch.zeros(8000, DIM)
    chosen = router(hidden).gate.experts.flatten().long()
    counts = torch.bincount(chosen, minlength=4)
    # five standard deviations of 8000 fair throws
    assert (counts - 2000).abs().max() < 5 * math.sqrt(8000 * 3 / 16)
    router.per = "batch"
    assert len(router(hidden).gate.experts.unique()) == 1


def test_throws_repeat_and_another_draw_differs():
    dice = Dice(4, seed=3)
    first = dice.throw(100, "token", training=False)
    assert torch.equal(first, dice.throw(100, "token", training=False))
    dice.draw = 1
    assert not torch.equal(first, dice.throw(100, "token", training=False))


def test_the_output_is_that_of_the_drawn_expert_alone():
    model = untrained("random", 4).eval()
    layer = model.layers[0]
    x = torch.randn(50, DIM, generator=torch.Generator().manual_seed(0))
    found, routing = layer(x, None)
    tokens, right = layer.norm(x), x.clone()
    # the authors' way: every expert, and a mask
    for e in range(4):
        mask = routing.gate.experts == e
        out = torch.relu(tokens @ layer.w_up[e]) @ layer.w_down[e]
        right = right + mask * out
    torch.testing.assert_close(found, right, atol=1e-5, rtol=1e-5)


def test_a_switch_by_dice_keeps_the_weight_and_changes_the_expert():
    router = SwitchRouter(DIM, 4).eval()
    torch.nn.init.normal_(router.weight)
    hidden = torch.randn(400, DIM)
    by_gate = router(hidden)
    router.by_dice = True
    by_dice = router(hidden)
    assert torch.equal(by_gate.gate.weights, by_dice.gate.weights)
    same = by_gate.gate.experts == by_dice.gate.experts
    assert 0.1 < same.double().mean() < 0.4


def test_the_objective_is_both_losses_and_alpha_times_the_mean_cr():
    context, target = batch()

    def fresh():
        return thor.add_dropout(untrained("random", 4, 5), 0.2, 5).train()

    _, loss = two_passes(3.0)(fresh(), context, target)
    model = fresh()
    a, loss_a = next_character(model, context, target)
    b, loss_b = next_character(model, context, target)
    log_p, log_q = a.logits.log_softmax(1), b.logits.log_softmax(1)
    both = [
        F.kl_div(x, y, reduction="batchmean", log_target=True)
        for x, y in ((log_p, log_q), (log_q, log_p))
    ]
    right = loss_a + loss_b + 3.0 * sum(both) / 2
    assert loss.item() == pytest.approx(right.item(), rel=1e-5)
    assert not torch.equal(a.logits, b.logits)


def test_both_passes_get_a_gradient():
    a = torch.randn(9, 5, requires_grad=True)
    b = torch.randn(9, 5, requires_grad=True)
    thor.consistency(a, b).backward()
    assert (a.grad != 0).all() and (b.grad != 0).all()


def test_a_batch_of_padding_alone_has_no_loss():
    a, b = torch.randn(2, 4, 7)
    nobody = torch.zeros(4, dtype=torch.bool)
    assert thor.consistency(a, b, nobody) == 0


def test_dropout_acts_in_training_only_and_keeps_the_mean():
    model = thor.add_dropout(untrained("dense"), 0.5, seed=0)
    norm = model.layers[0].norm
    x = torch.randn(2000, DIM)
    plain = norm.eval()(x)
    dropped = norm.train()(x)
    assert 0.45 < (dropped == 0).double().mean() < 0.55
    kept = dropped != 0
    torch.testing.assert_close(dropped[kept], 2 * plain[kept])


def test_the_consistency_loss_makes_throws_agree():
    without, with_loss = (picture(alpha=alpha) for alpha in RECORDED_ALPHA)
    assert with_loss.differ < without.differ / 2
    # it ties the predictions, not the experts
    far, near = (sum(map(sum, s.distance)) for s in (without, with_loss))
    assert near == pytest.approx(far, rel=0.05)


def test_the_distance_of_experts_is_that_of_their_outputs():
    model, (context, _) = untrained("random", 3), batch()
    table = expert_distance(model, context)
    assert table.diagonal().abs().max() == 0
    torch.testing.assert_close(table, table.T)
    layer = model.layers[0]
    tokens = layer.norm(model.enter(model.embedding(context).flatten(1)))
    outputs = [
        torch.relu(tokens @ up) @ down
        for up, down in zip(layer.w_up, layer.w_down, strict=True)
    ]
    mean = torch.stack([out.norm(dim=1).mean() for out in outputs]).mean()
    far = (outputs[0] - outputs[2]).norm(dim=1).mean() / mean
    assert table[0, 2].item() == pytest.approx(far.item(), rel=1e-5)


def test_dice_ruin_a_trained_gate_but_not_who_learned_with_them():
    by_gate, by_dice = picture("gate"), picture("dice")
    lost = {n: by_dice.bits[n] - by_gate.bits[n] for n in by_gate.bits}
    assert lost[LONG] > 0.3
    assert lost["Switch"] > 0.05
    assert lost["THOR"] == 0
    assert abs(lost["Switch that learned by dice"]) < 0.01
    assert len(by_gate.text) == len(by_gate.lost)


def test_the_same_seed_gives_the_same_bits():
    runs = [
        thor.trained(3, "random", 0.1, 5.0, steps=3).state_dict()
        for _ in range(2)
    ]
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])


def test_every_claim_runs_on_a_short_training():
    for claim in thor.CLAIMS:
        if claim.experiment:
            assert math.isfinite(claim.experiment(0, steps=2))


def test_an_effect_is_what_its_claim_says(monkeypatch):
    bits = {
        "thor": 1.0,
        "switch": 1.2,
        "random": 1.3,
        "switch by dice": 1.5,
        "r-drop": 1.6,
    }

    def arm(seed, name, characters, steps):
        return bits[name] if characters == "scarce" else math.nan

    monkeypatch.setattr(thor, "arm", arm)
    effects = measured(thor)
    assert effects == pytest.approx(
        {
            "dice-as-good-as-a-gate": 0.3,
            "better-than-switch": -0.2,
            "consistency-helps": -0.3,
            "more-than-consistency": -0.6,
        }
    )


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: RandomRouter(0), "experts=0"),
        (lambda: two_passes(-1.0), "alpha=-1"),
        (lambda: untrained("moe"), "kind='moe'"),
        (lambda: Dice(2, 0).throw(3, "layer", True), "per='layer'"),
        (lambda: thor.add_dropout(untrained("dense"), 1.0, 0), "dropout=1"),
        (lambda: picture(chooser="dice", draws=0), "draws=0"),
    ],
)
def test_wrong_arguments_are_refused_in_a_sentence(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()


RIGHT = {
    "exercise-1": 1 - 2**-3,
    "exercise-2": lambda a, b: (
        ((a.softmax(1) - b.softmax(1)) * (a - b)).sum(1) / 2
    ),
    "exercise-3": 0.0,
}
WRONG = {
    "exercise-1": 0.125,
    "exercise-2": lambda a, b: (
        (a.softmax(1).log() - b.softmax(1).log()) * a.softmax(1)
    ).sum(1),
    "exercise-3": 7.0,
}


def test_what_fp32_leaves_of_a_zero_is_right():
    assert judge(EXERCISES["exercise-3"], 6e-7) == "correct"
    assert judge(EXERCISES["exercise-3"], 0.01) != "correct"


@pytest.mark.parametrize("slug", RIGHT)
def test_the_checker_knows_right_from_wrong(slug):
    assert judge(EXERCISES[slug], RIGHT[slug]) == "correct"
    assert judge(EXERCISES[slug], WRONG[slug]) != "correct"
