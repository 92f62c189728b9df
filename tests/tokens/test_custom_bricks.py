"""Added bricks: what they change, and above all what they do not."""

import pytest
import torch
import torch.nn.functional as F

from lab.tokens import custom_bricks
from lab.tokens.brick_scores import DOMAINS, bits, instances, token_bits
from lab.tokens.custom_bricks import (
    asked_for,
    fine_tuned,
    fresh,
    merged,
    update,
    use,
    with_bricks,
)
from lab.tokens.dense_lm import recorded

MODEL = recorded()
SEEN = instances("judge", 4)


def learned(domain, steps=20, start=None):
    return update(MODEL, start or fresh(), [domain], steps)


def test_a_fresh_brick_changes_nothing():
    read = with_bricks(MODEL, [fresh(), fresh(seed=1)])
    # what is added is 0, but a CPU may sum more columns in another order
    torch.testing.assert_close(
        token_bits(read, SEEN), token_bits(MODEL, SEEN), atol=1e-5, rtol=0
    )


def test_a_brick_adds_its_own_network_to_every_layer():
    brick = learned(DOMAINS[0])
    context = SEEN.context[:9]
    x = MODEL.enter(MODEL.embedding(context).flatten(1))
    for layer, up, down in zip(MODEL.layers, *brick, strict=True):
        tokens = layer.norm(x)
        own = F.relu(tokens @ layer.w_up) @ layer.w_down
        x = x + own + F.relu(tokens @ up) @ down
    expected = MODEL.leave(MODEL.norm(x))
    found = with_bricks(MODEL, [brick])(context).logits
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_a_brick_helps_its_own_text():
    brick = learned(DOMAINS[0], steps=60)
    gain = bits(with_bricks(MODEL, [brick]), SEEN) - bits(MODEL, SEEN)
    assert gain[0] < 0


def test_training_a_brick_touches_neither_model_nor_other_bricks():
    before = {n: w.clone() for n, w in MODEL.state_dict().items()}
    other = learned(DOMAINS[1])
    kept = [w.clone() for w in other]
    start = learned(DOMAINS[0])
    first = [w.clone() for w in start]
    changed = update(MODEL, start, [DOMAINS[0]], 5, 1, beside=[other])
    assert not torch.equal(changed.up, start.up)
    assert all(map(torch.equal, other, kept))
    assert all(map(torch.equal, start, first))
    after = MODEL.state_dict()
    assert all(torch.equal(before[n], after[n]) for n in before)


def test_merging_is_the_mean_of_the_parameters():
    one, two = learned(DOMAINS[0]), learned(DOMAINS[1])
    mean = merged([one, two], [0.25, 0.75])
    torch.testing.assert_close(mean.up, 0.25 * one.up + 0.75 * two.up)
    alone = merged([one, two], [1.0, 0.0])
    assert all(map(torch.equal, alone, one))


def test_bricks_stand_side_by_side_in_any_order():
    one, two = learned(DOMAINS[0]), learned(DOMAINS[1])
    found = token_bits(with_bricks(MODEL, [one, two]), SEEN)
    turned = token_bits(with_bricks(MODEL, [two, one]), SEEN)
    torch.testing.assert_close(found, turned, atol=1e-4, rtol=0)


def test_fine_tuning_is_another_model_and_leaves_this_one_alone():
    before = bits(MODEL, SEEN)
    tuned = bits(fine_tuned(MODEL, DOMAINS[0], 5), SEEN)
    assert torch.equal(bits(MODEL, SEEN), before)
    assert (tuned - before).abs().max() > 1e-3


def test_neurons_ask_for_the_right_brick_far_above_chance():
    judge = instances("judge", 20)
    asked = asked_for(MODEL, judge, 20)
    assert (asked == judge.domain).float().mean() > 3 / len(DOMAINS)


def test_one_seed_is_one_result():
    one = learned(DOMAINS[2], steps=4)
    two = learned(DOMAINS[2], steps=4)
    assert all(map(torch.equal, one, two))


def test_routing_by_label_is_the_diagonal(monkeypatch):
    monkeypatch.setattr(
        custom_bricks, "asked_for", lambda model, judge, _: judge.domain
    )
    used = use.__wrapped__(0, per_domain=2, steps=3, pretraining=5)
    assert used.own.shape == used.none.shape == (len(DOMAINS),)
    torch.testing.assert_close(used.found, used.own)
    assert used.hits == 1


def test_bricks_that_learned_nothing_change_nothing():
    used = use(0, per_domain=2, steps=0, pretraining=5)
    for lost in used[1:-1]:
        torch.testing.assert_close(
            lost, used.none.expand_as(lost), atol=1e-5, rtol=0
        )


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: fresh(0), "neurons=0"),
        (lambda: merged([fresh(), fresh()], [0.5, 0.4]), "sum 1"),
        (lambda: merged([fresh()], [0.5, 0.5]), "do not fit 1"),
    ],
)
def test_wrong_arguments_are_refused_in_a_sentence(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()
