"""Bricks against closed forms, zeroed weights and hand-made neurons."""

import copy
import math

import pytest
import torch
from seed_0 import measured

from lab.exercises import judge
from lab.tokens import brick_damage, brick_scores, bricks, custom_bricks
from lab.tokens.brick_damage import percent, tables
from lab.tokens.brick_scores import (
    DOMAINS,
    INDICATORS,
    WINDOW,
    activations,
    at_random,
    beginnings,
    bits,
    chance_scores,
    expected_chance,
    function_scores,
    instances,
    most,
    overlap,
    sparse_bits,
    token_bits,
)
from lab.tokens.bricks import EXERCISES
from lab.tokens.bricks_recorded import picture
from lab.tokens.char_lm import CONTEXT
from lab.tokens.dense_lm import recorded

FEW = 4  # windows of a domain


def few(half="judge"):
    return instances(half, FEW)


def test_no_window_both_chooses_and_judges():
    for characters in (9001, 50_000):
        chosen = beginnings(characters, "choose", 60)
        judged = beginnings(characters, "judge", 60)
        assert chosen.min() >= CONTEXT
        assert chosen.max() + WINDOW <= judged.min() - CONTEXT
        assert judged.max() + WINDOW <= characters
    seen = instances("choose")
    assert (seen.domain.bincount() == 60).all()
    assert len(seen.target) == 60 * WINDOW * len(DOMAINS)


def test_pruning_is_zeroing_what_the_neurons_write():
    model = recorded()
    seen = few()
    gone = most(at_random((3, 192), 0), 0.3)
    cut = copy.deepcopy(model)
    with torch.no_grad():
        for layer, pruned in zip(cut.layers, gone, strict=True):
            layer.w_down[pruned] = 0
    expected = token_bits(cut, seen)
    torch.testing.assert_close(
        token_bits(model, seen, gone), expected, atol=1e-5, rtol=0
    )
    assert (token_bits(model, seen) - expected).abs().max() > 0.1


def test_instance_activation_is_the_mean_over_its_characters():
    model, seen = recorded(), few()
    means = activations(model, seen)
    one = slice(5 * WINDOW, 6 * WINDOW)
    with torch.no_grad():
        hidden = model(seen.context[one]).hidden
    for layer in range(3):
        torch.testing.assert_close(
            means[5, layer], hidden[layer].abs().mean(0), atol=1e-6, rtol=0
        )


def test_a_perfect_specialist_scores_one_and_a_silent_neuron_chance():
    seen = few()
    means = torch.zeros(len(seen.domain), 1, 2)
    means[seen.domain == 2, 0, 0] = 1.0
    scores = function_scores(means, seen)
    assert scores[2, 0, 0] == 1
    prevalence = 1 / len(DOMAINS)
    assert scores[:, 0, 1].tolist() == pytest.approx(7 * [prevalence])


def test_random_neurons_score_the_closed_form_on_average():
    scores = chance_scores((3, 192), instances("choose"), seed=1)
    expected = expected_chance(60, 420)
    assert expected == pytest.approx(0.1544, abs=1e-4)
    # 576 neurons, each about 0.02 from the mean
    assert scores.mean().item() == pytest.approx(expected, abs=0.002)
    assert scores.flatten(1).amax(1).min() > expected + 0.04


def test_most_takes_the_share_of_every_layer_and_the_first_of_equals():
    table = torch.tensor([[0.0, 3.0, 1.0, 2.0], [5.0, 5.0, 5.0, 5.0]])
    chosen = most(table, 0.5)
    assert chosen.tolist() == [
        [False, True, False, True],
        [True, True, False, False],
    ]
    assert most(table, 0.24).sum() == 0
    assert most(at_random((3, 192), 0)).sum(1).tolist() == [9, 9, 9]


def test_random_sets_overlap_as_much_as_chance_says():
    dice = torch.stack([at_random((3, 192), s) for s in range(40)])
    shared = overlap(dice)
    assert shared.diagonal().tolist() == pytest.approx(40 * [1.0])
    mean = (shared.sum() - 40).item() / (40 * 39)
    assert mean == pytest.approx(9 / 192, abs=0.005)


def test_masking_nothing_changes_nothing_and_more_costs_more():
    model, seen = recorded(), few()
    whole = bits(model, seen).mean().item()
    for indicator in INDICATORS:
        costs = [
            sparse_bits(model, seen, share, indicator)
            for share in (0.0, 0.9, 0.97)
        ]
        assert costs[0] == pytest.approx(whole, abs=1e-5)
        assert costs[0] < costs[1] < costs[2]


def test_the_two_indicators_agree_where_all_neurons_write_alike():
    model, seen = copy.deepcopy(recorded()), few()
    with torch.no_grad():
        for layer in model.layers:
            layer.w_down /= layer.w_down.norm(dim=1, keepdim=True)
    one, other = (sparse_bits(model, seen, 0.9, i) for i in INDICATORS)
    assert one == pytest.approx(other, abs=1e-5)


def test_bits_and_per_cent_are_one_damage():
    assert percent(torch.tensor(1.0)).item() == pytest.approx(100)
    assert percent(torch.tensor(0.0)).item() == 0


def test_every_claim_runs_on_few_windows():
    short = {"per_domain": 2, "pretraining": 5}
    for claim in bricks.CLAIMS:
        if claim.experiment:
            bricks_added = claim.source.startswith("section 3")
            steps = {"steps": 3} if bricks_added else {}
            assert math.isfinite(claim.experiment(0, **short, **steps))


def test_neurons_that_two_functions_share_are_a_share():
    found = brick_damage.measure(0, per_domain=2, pretraining=5)
    assert 0 < found.overlap < 1


def test_an_effect_is_what_its_claim_says(monkeypatch):
    ones, own = torch.ones(7), torch.eye(7)
    others = 1 - own
    # 50 % more perplexity on the own text, 10 % on every other
    damage = math.log2(1.5) * own + math.log2(1.1) * others
    found = brick_damage.Found(
        best=torch.tensor([0.9] * 6 + [0.5]),
        best_by_chance=0.25 * ones,
        mean=0.15,
        mean_by_chance=0.2,
        damage=damage,
        by_activation=3 * own + 0.5 * others,
        at_random=0.25 * ones,
        overlap=0.125,
        half=2.5 * ones,
        half_at_random=3 * ones,
        sparse={
            (0.7, "activation"): 0.02,
            (0.8, "activation"): 0.04,
            (0.8, "output magnitude"): 0.01,
        },
    )
    used = custom_bricks.Used(
        none=3 * ones,
        own=2 * ones,
        found=2.25 * ones,
        shared=2.5 * ones,
        merged=2.75 * ones,
        fine_tuned=own + 3.5 * others,
        trained_on=1.75 * ones,
        grown=1.5 * ones,
        hits=0.5,
    )
    monkeypatch.setattr(bricks, "measure", lambda *_, **__: found)
    monkeypatch.setattr(bricks, "use", lambda *_, **__: used)
    effects = measured(bricks)
    assert effects == pytest.approx(
        {
            "its-own-text-breaks-most": 7,
            "three-times-the-others": 5,
            "more-than-random": math.log2(1.5) - 0.25,
            "specialists-exist": 0.25,
            "most-neurons-know-nothing": 0.05,
            "different-neurons": 0.125,
            "seventy-percent-idle": 0.02,
            "output-magnitude-is-better": -0.03,
            "resident-neurons": 0.25,
            "run-what-is-needed": -0.5,
            "neurons-route-to-bricks": -0.75,
            "bricks-beat-one-brick": -0.5,
            "merged-bricks-serve-both": -0.25,
            "without-bricks-it-forgets": 0.5,
            "growing-beats-training-on": -0.25,
        },
        rel=1e-5,
    )


def test_in_the_recorded_picture_the_own_text_breaks():
    dice = picture("chance", "tables", 5)
    for function in ("tables", "python"):
        aimed = picture("score", function, 5)
        own = aimed.damage[aimed.row, aimed.row]
        assert aimed.damage[aimed.row].argmax() == aimed.row
        assert own > dice.damage[aimed.row, aimed.row]
        assert torch.equal(aimed.damage, aimed.aimed)
    assert torch.equal(dice.aimed, aimed.aimed)
    rise = picture("score", "tables", 5, unit="%").damage
    row = DOMAINS.index("tables")
    assert rise[row, row] > 10 * rise[row].sort().values[-2]


def test_without_its_neurons_python_alone_loses_more_than_by_chance():
    aimed, dice = (
        picture(way, "python", 5).damage[DOMAINS.index("python")]
        for way in ("score", "chance")
    )
    row = DOMAINS.index("python")
    assert aimed[row] > 1.8 * dice[row]
    others = torch.arange(len(DOMAINS)) != row
    assert (aimed[others] < dice[others] + 0.01).all()


def test_the_whole_model_reads_a_passage_once(monkeypatch):
    read = []

    def counting(model, seen, pruned=None):
        read.append(pruned is None)
        return token_bits(model, seen, pruned)

    picture("score", "tables", 5)
    monkeypatch.setattr(brick_scores, "token_bits", counting)
    for pruned in (5, 10):
        picture("score", "tables", pruned)
    assert read == [False] * 4


def test_nothing_pruned_costs_nothing():
    nothing = picture("score", "python", 0)
    assert nothing.damage.abs().max() == 0
    assert max(nothing.lost["python"]) == 0
    for name, text in nothing.texts.items():
        assert len(text) == len(nothing.lost[name])


def test_the_recorded_damage_is_that_of_the_recorded_model():
    found = picture("score", "tables", 5, "2")
    gone = most(tables(recorded()).score[found.row], 0.05)
    gone &= (torch.arange(3) == 1)[:, None]
    seen = instances("judge")
    damage = bits(recorded(), seen, gone) - bits(recorded(), seen)
    torch.testing.assert_close(
        found.damage[found.row], damage, atol=1e-3, rtol=0
    )


def test_one_layer_alone_costs_less_than_all():
    everywhere = picture("score", "python", 30).damage[0, 0]
    for layer in "123":
        there = picture("score", "python", 30, layer).damage[0, 0]
        assert there < everywhere


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: most(torch.ones(2, 4), 1.0), "share=1.0"),
        (lambda: instances("both"), "half='both'"),
        (lambda: sparse_bits(recorded(), few(), 0.5, "size"), "'size'"),
        (lambda: sparse_bits(recorded(), few(), 1.5, "activation"), "1.5"),
    ],
)
def test_wrong_arguments_are_refused_in_a_sentence(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()


def _by_thresholds(scores, needs):
    total = 0.0
    for score in scores[needs]:
        crowd = scores >= score
        total += (crowd & needs).sum().item() / crowd.sum().item()
    return total / needs.sum().item()


def _by_sorting(scores, needs):
    ranked = needs[scores.argsort(descending=True, stable=True)].double()
    precision = ranked.cumsum(0) / torch.arange(1, len(ranked) + 1)
    return ((precision * ranked).sum() / ranked.sum()).item()


RIGHT = {
    "exercise-1": (1 + 2 / 3) / 2,
    "exercise-2": _by_thresholds,
    "exercise-3": 0.046875,
}
WRONG = {"exercise-1": 0.75, "exercise-2": _by_sorting, "exercise-3": 0.05}


@pytest.mark.parametrize(
    "slug, mine, right",
    [
        ("exercise-1", 0.833, True),
        ("exercise-1", 0.83, False),
        ("exercise-3", 0.047, True),
        ("exercise-3", 9 / 191, False),
        ("exercise-3", 0.0465, False),
    ],
)
def test_what_the_solution_prints_is_right(slug, mine, right):
    assert (judge(EXERCISES[slug], mine) == "correct") == right


def test_the_most_active_neurons_cost_even_more_but_everywhere():
    elsewhere = ~torch.eye(len(DOMAINS)).bool()
    score, busy = (picture(by).damage for by in ("score", "activation"))
    own, own_busy = score.diagonal().mean(), busy.diagonal().mean()
    rest, rest_busy = score[elsewhere].mean(), busy[elsewhere].mean()
    assert own_busy > 1.5 * own and 2.5 > rest_busy / rest > 1.7
    # a score finds those that matter more here than elsewhere
    assert own / rest > own_busy / rest_busy


@pytest.mark.parametrize("slug", RIGHT)
def test_the_checker_knows_right_from_wrong(slug):
    assert judge(EXERCISES[slug], RIGHT[slug]) == "correct"
    assert judge(EXERCISES[slug], WRONG[slug]) != "correct"
