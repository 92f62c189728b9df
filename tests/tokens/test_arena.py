"""The arena: every entrant plays by the rules, and the record is theirs."""

import csv
import math
from collections import Counter
from itertools import takewhile

import numpy as np
import pytest
import torch
from scipy.interpolate import interp1d
from torch.utils.flop_counter import FlopCounterMode

from lab.data import ROOT
from lab.exercises import judge
from lab.ledger import recorded
from lab.tokens import arena, arena_records, arena_view, entrants, own_router
from lab.tokens.arena_records import Point, point, points, runs
from lab.tokens.char_lm import DIM, spread
from lab.tokens.entrants import ENTRANTS, EXPERTS, Training, entrant
from lab.tokens.routers import TopKRouter
from lab.tokens.routing_profile import KINDS, information, kinds_of, profile
from lab.tokens.text import ALPHABET, encode

each = pytest.mark.parametrize("one", ENTRANTS, ids=lambda one: one.name)


def short(p, seed=0, steps=3):
    training = Training(p.setting, seed, steps)
    return arena_records.train_and_measure(entrant(p.router), training, 256)


@each
def test_an_entrant_trains_and_routes(one):
    for p in points([one.name]):
        run, seen = short(p)
        assert math.isfinite(run.bits) and 0 < run.experts <= EXPERTS
        assert run.multiply_adds == pytest.approx(
            run.router_multiply_adds + run.experts * 2 * 48 * 32
        )
        assert run.fullest >= 1 and run.told >= 0 and run.depth >= 0
        assert seen.load.shape == (3, EXPERTS)
        assert seen.load.sum(1).mean().item() == pytest.approx(run.experts)


@each
def test_a_training_gives_the_same_bits_twice(one):
    p = points([one.name])[-1]
    entrants._shared.cache_clear()
    first, seen = short(p, seed=3)
    entrants._shared.cache_clear()
    again, same = short(p, seed=3)
    assert first == again
    pairs = zip(seen, same, strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def drawn(one, setting):
    """The matrices of an untrained model, in the order of their draws."""
    model = entrants.untrained(one, Training(setting, 1, 3))
    return {n: w for n, w in model.named_parameters() if w.ndim >= 2}


@each
def test_all_start_equal_up_to_the_first_router_of_another_shape(one):
    plain, mine = drawn(entrant("top-k"), 2), drawn(one, one.settings[0])
    shapes = [[(n, w.shape) for n, w in m.items()] for m in (plain, mine)]
    pairs = zip(*shapes, strict=False)
    same = [name for (name, _), _ in takewhile(lambda p: p[0] == p[1], pairs)]
    first = "embedding.weight enter.weight layers.0.w_up layers.0.w_down"
    assert same[:4] == first.split()
    for name, weight in plain.items():
        if ".router." not in name:
            assert mine[name].shape == weight.shape, name
            equal = torch.equal(mine[name], weight)
            assert equal == (name in same), name


# by hand, per token and layer: D = 48 numbers, E = 8 experts
BY_HAND = {
    "top-k": 48 * 8,
    "dense": 0,
    "top-p": 48 * 8,
    "AdaMoE": 48 * (8 + 4),
    "THOR": 0,
    "SMoE-Dropout": 48 * 8,
    # projection, GRU of width 16 with three gates from input and state, gate
    "RMoE": 48 * 16 + 2 * 3 * 16 * 16 + 16 * 8,
    "Union": 48 * 8,
    "Duo-LLM": 48 * 2,
    # one router for three layers
    "Read-ME": 48 * 8 / 3,
    "bricks": 48 * 16 + 16 * 8,
}


@each
def test_a_routers_work_is_what_a_hand_counts(one):
    assert one.name in BY_HAND, "count the new router's work by hand"
    model = entrants.untrained(one, Training(one.settings[0], 0, 3))
    assert entrants.router_work(model) == BY_HAND[one.name]


@pytest.mark.parametrize("name", ["top-k", "AdaMoE", "Duo-LLM", "bricks"])
def test_the_work_is_what_torch_counts(name):
    """Where the router consists of torch's own products, torch counts too."""
    one = entrant(name)
    model = entrants.untrained(one, Training(one.settings[0], 0, 3)).eval()
    router, hidden = model.layers[0].router, torch.randn(63, DIM)
    with FlopCounterMode(display=False) as counter:
        router(hidden)
    # a multiply-add is two operations
    assert counter.get_total_flops() == 2 * 63 * entrants.matrices(router)


def test_thor_makes_as_many_predictions_as_the_others():
    seen = []

    def make(training):
        router = entrant("THOR").make(training)

        def layer(number):
            one = router(number)
            one.register_forward_pre_hook(lambda _, x: seen.append(len(x[0])))
            return one

        return layer

    one = entrant("THOR")._replace(make=make)
    entrants.trained(one, Training(5.0, 0, 1))
    assert seen == [256] * 6, "three layers, two passes"


def test_thor_throws_other_dice_in_every_layer_and_for_every_seed():
    x = torch.zeros(200, DIM)
    throws = [
        make(layer).eval()(x).gate.experts
        for seed in (0, 1)
        for make in [entrant("THOR").make(Training(0.0, seed, 1))]
        for layer in range(3)
    ]
    assert len({tuple(one.flatten().tolist()) for one in throws}) == 6


def test_smoe_dropout_grows_while_it_trains_and_is_slimmed_after():
    run, _ = short(Point("SMoE-Dropout", 2), steps=5)
    assert run.experts == 2 and 4 < run.experts_in_training < 8


def test_smoe_dropout_makes_its_first_step_with_all_experts():
    run, _ = short(Point("SMoE-Dropout", 2), steps=1)
    assert run.experts_in_training == EXPERTS


def test_smoe_dropout_starts_with_the_spread_of_its_chapter():
    wide, calm = (
        entrants.untrained(entrant(name), Training(2, 0, 1)).layers[0]
        for name in ("top-k", "SMoE-Dropout")
    )
    # logits spread by 0.32, where the character model draws 1 / sqrt(3)
    ratio = calm.router.weight.std() / wide.router.weight.std()
    assert ratio.item() == pytest.approx(0.32 * 3**0.5, rel=0.01)


def test_the_record_has_every_point_and_seed_once():
    with open(arena_records.HOME / "runs.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    keys = Counter((r["router"], float(r["setting"]), r["seed"]) for r in rows)
    wanted = {
        (p.router, p.setting, str(seed)) for p in points() for seed in range(5)
    }
    assert keys == Counter(wanted), "run `lab train arena`"


def test_the_record_is_what_the_table_and_the_profiles_say():
    for p in points():
        for seed in range(5):
            run = runs()[p, seed]
            seen = arena_records.recorded_profile(p, seed)
            assert seen["load"].sum(1).mean() == pytest.approx(
                run.experts, abs=0.02
            )
            fullest = seen["load"].max(1) / seen["load"].mean(1)
            assert fullest.mean() == pytest.approx(run.fullest, abs=0.01)
            told = [information(torch.from_numpy(t)) for t in seen["pairs"]]
            mean = float(sum(told[:2]) / 2)
            assert mean == pytest.approx(run.depth, abs=0.01)
        mean = arena_view.summary(p).run["experts"]
        assert f"{p.label:<15} {mean:6.2f}" in arena_view.table()


def test_a_recorded_run_can_be_made_again():
    """The whole training; not to a bit, for other machines round otherwise."""
    run = runs()[Point("top-k", 1), 0]
    again, _ = arena_records.train_and_measure(
        entrant("top-k"), Training(1, 0, arena_records.STEPS)
    )
    assert again.bits == pytest.approx(run.bits, abs=0.02)


def test_the_line_is_numpys_between_its_ends_and_goes_on_beyond():
    work, bits = [3.0, 6.0, 12.0, 24.0], [2.6, 2.5, 2.45, 2.44]
    for x in (3.0, 4.5, 6.0, 11.0, 23.9, 24.0):
        expected = 2.5 - np.interp(x, work, bits)
        assert arena.above_line(x, 2.5, work, bits) == pytest.approx(expected)
    # a third of the first piece's way back; half of the last one's way on
    assert arena.above_line(2.0, 2.6, work, bits) == pytest.approx(-0.1 / 3)
    assert arena.above_line(30.0, 2.435, work, bits) == pytest.approx(0.0)


def test_the_baseline_lies_on_its_own_line():
    for p in points(["top-k"]):
        assert arena.gap(p, 0) == pytest.approx(0.0, abs=1e-12)


def test_the_champion_is_chosen_on_the_other_seeds(monkeypatch):
    """The luckiest on seed 0 does not win if the others speak against it."""

    def gap(p, seed, **_):
        if p == Point("THOR", 0.0):
            return -1.0 if seed == 0 else 0.12
        return 0.1 if p == Point("RMoE", 1) else 0.2

    monkeypatch.setattr(arena, "gap", gap)
    assert arena._champion(0) == 0.1


def test_the_verdicts_are_those_of_the_recorded_runs():
    for claim in arena.CLAIMS:
        verdict = recorded(claim)
        assert verdict is not None, "run `lab claims arena --run`"
        effects = [claim.experiment(s, **claim.parameters) for s in range(5)]
        assert verdict.effects == pytest.approx(effects, abs=1e-6), claim.slug


def test_a_new_entrant_is_one_line(monkeypatch, tmp_path):
    line = entrants.Entrant("new", "", "k", (3,), entrants.alike(TopKRouter))
    monkeypatch.setattr(arena_records, "ENTRANTS", (*ENTRANTS, line))
    monkeypatch.setattr(entrants, "ENTRANTS", (*ENTRANTS, line))
    monkeypatch.setattr(arena_records, "HOME", tmp_path / "arena")
    monkeypatch.setattr(arena_records, "STEPS", 2)
    monkeypatch.setattr(arena_records, "POSITIONS", 256)
    monkeypatch.setattr(arena_records, "SEEDS", 2)
    clear()
    try:
        arena_records.record(names=["top-k"])
        before = dict(runs())
        arena_records.record(names=["new"])
        new = runs()[Point("new", 3.0), 1]
        assert new.experts == 3 and len(runs()) == len(before) + 2
        assert all(runs()[key] == run for key, run in before.items())
        assert arena_records.recorded_profile(point("new 3"), 1)["load"].shape
    finally:
        clear()


def clear():
    for known in (arena_records.runs, arena_records._arrays):
        known.cache_clear()


def test_an_unknown_name_is_refused_with_all_names():
    with pytest.raises(ValueError, match="use one of top-k, dense, top-p"):
        entrant("top-q")
    with pytest.raises(ValueError, match="'top-p 0.5' is not a point"):
        point("top-p 0.5")


def test_a_kind_is_told_from_the_last_two_characters():
    texts = {
        "line break": "the end.\nxxx"[:9].rjust(12),
        "space": "hello world "[-12:],
        "digit": "version 3.12",
        "capital": "    the Long"[:9].rjust(12),
        "first letter": "  import thi"[:10].rjust(12),
        "vowel": "        code",
        "consonant": "        lists"[-12:],
        "sign": "       f(x);"[-12:],
    }
    context = torch.stack([encode(text) for text in texts.values()])
    names = list(KINDS)
    assert [names[i] for i in kinds_of(context)] == list(texts)
    assert len(kinds_of(torch.randint(len(ALPHABET), (50, 12)))) == 50


def test_a_profile_is_counted_by_hand():
    context, target = spread("prose", 300)
    model = entrants.untrained(entrant("AdaMoE"), Training(16, 0, 3))
    seen = arena_records.measure(model, context, target)
    found, kinds = profile(seen, context), kinds_of(context)
    counts = Counter()
    for kind, row in zip(kinds.tolist(), seen.chosen[1].tolist(), strict=True):
        counts.update((kind, e) for e in row if e >= 0)
    for kind in range(len(KINDS)):
        total = sum(counts[kind, e] for e in range(EXPERTS))
        for e in range(EXPERTS):
            share = counts[kind, e] / max(1, total)
            assert found.kinds[1, kind, e].item() == pytest.approx(share)
    firsts = [
        [next((e for e in row if e >= 0), EXPERTS) for row in layer.tolist()]
        for layer in seen.chosen
    ]
    pairs = Counter(zip(firsts[2], firsts[0], strict=True))
    for (one, other), number in pairs.items():
        share = found.pairs[2, one, other].item()
        assert share == pytest.approx(number / 300)


ANSWERS = {
    "exercise-1": (5 / 3, 1.5),
    "exercise-2": (
        lambda w, b, x, y: b - interp1d(x, y, fill_value="extrapolate")(w),
        # stops at the ends
        lambda w, b, x, y: b - float(np.interp(w, x, y)),
    ),
    "exercise-3": (
        lambda s: (
            (s >= s.amax(1, keepdim=True) / 2)
            & (s.argsort(1, descending=True).argsort(1) < 2)
        ),
        lambda s: s >= s.amax(1, keepdim=True) / 2,
    ),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_an_exercise_takes_the_right_answer_and_no_other(name):
    right, wrong = ANSWERS[name]
    exercise = arena.EXERCISES[name]
    assert judge(exercise, right) == "correct"
    assert judge(exercise, wrong) not in ("correct", "not attempted yet")
    assert judge(exercise, ...) == "not attempted yet"


def test_the_second_expert_may_have_exactly_half():
    def more_than_half(scores):
        best, second = scores.topk(2).values.T[:, :, None]
        return (scores == best) | ((scores == second) & (second > best / 2))

    said = judge(arena.EXERCISES["exercise-3"], more_than_half)
    assert said.startswith("case 1: values differ, first at (3, 1)")


def test_your_own_router_enters_and_competes():
    two = own_router.enter(lambda s: s >= s.topk(2).values[:, 1:], steps=2)
    assert "after 2 steps: 2.00 experts per token" in two
    assert own_router.enter(lambda s: ...) == "not attempted yet"
    with pytest.raises(ValueError, match="booleans of shape .4, 8."):
        own_router.enter(lambda s: s)
    with pytest.raises(ValueError, match="returned torch.int64 of shape"):
        own_router.enter(lambda s: (s > 0).long())
    nobody = own_router.enter(lambda s: s > 2, steps=2)
    assert "0.00 experts" in nobody


def test_a_router_that_writes_into_its_scores_competes_all_the_same():
    def clean(scores):
        return scores >= 0.125

    def careless(scores):
        return scores.sub_(0.125) >= 0

    assert own_router.enter(careless, steps=2) == own_router.enter(
        clean, steps=2
    )


def test_every_router_of_the_part_is_in_the_arena():
    chapters = {one.chapter for one in ENTRANTS} - {""}
    assert chapters == {f"{number:02}" for number in range(1, 10)}
    assert (ROOT / "data/arena/README.md").is_file()
