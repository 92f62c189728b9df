"""A verdict follows from the interval alone, and is kept in full."""

import json
import math
import random
from importlib import import_module

import pytest
from scipy import stats

from lab import claims, ledger
from lab.catalogue import PAGES
from lab.claims import Claim
from lab.verdict import interval, word


def experiment(seed, gain=1.0, noise=0.1):
    return gain + noise * (seed - 1)


def claim(**changes):
    return Claim(
        **{
            "slug": "it-helps",
            "chapter": "02",
            "sentence": "It helps by | a lot.",
            "source": "table 2",
            "effect": "gain over the baseline",
            "unit": "points",
            "experiment": experiment,
            "threshold": 0.5,
            "side": "above",
            "parameters": {"gain": 1.0, "noise": 0.1},
            "reduced": {"noise": 0.2},
            **changes,
        }
    )


def run(one, seeds=3, **parameters):
    return claims.run(one, seeds, progress=False, **parameters)


@pytest.mark.parametrize(
    "low, high, side, expected",
    [
        (0.6, 0.9, "above", "confirmed"),
        (0.6, 0.9, "below", "refuted"),
        (0.1, 0.4, "above", "refuted"),
        (0.1, 0.4, "below", "confirmed"),
        (0.4, 0.6, "above", "undecided"),
        (0.4, 0.6, "below", "undecided"),
        (0.5, 0.6, "above", "undecided"),
        (0.4, 0.5, "above", "undecided"),
        (0.5, 0.5, "below", "undecided"),
    ],
)
def test_the_rule(low, high, side, expected):
    assert word(low, high, 0.5, side) == expected


def test_the_interval_is_students():
    random.seed(3)
    effects = [random.gauss(1, 2) for _ in range(7)]
    low, high = stats.t.interval(0.95, 6, sum(effects) / 7, stats.sem(effects))
    assert interval(effects) == pytest.approx((sum(effects) / 7, low, high))


def test_equal_effects_make_an_interval_of_no_width():
    assert interval([2.0, 2.0, 2.0]) == (2.0, 2.0, 2.0)


def test_a_run_measures_each_seed_and_says_so():
    verdict = run(claim())
    assert verdict.word == "confirmed"
    assert verdict.effects == pytest.approx((0.9, 1.0, 1.1))
    assert verdict.seeds == (0, 1, 2)
    assert verdict.parameters == {"gain": 1.0, "noise": 0.1}
    assert str(verdict) == (
        "confirmed: gain over the baseline = 1.00 points [0.75, 1.25], 3 seeds"
    )
    assert "claimed: above 0.5 points" in verdict._repr_markdown_()
    assert verdict.machine and verdict.versions["torch"] and verdict.date


def test_parameters_replace_those_of_the_full_run():
    assert run(claim(), **claim().reduced).parameters["noise"] == 0.2
    assert run(claim(), gain=0.0).word == "refuted"
    assert run(claim(), gain=0.55).word == "undecided"


def test_the_full_run_has_the_claims_own_number_of_seeds():
    assert len(claims.run(claim(seeds=4), progress=False).seeds) == 4


def test_a_bar_changes_nothing():
    assert claims.run(claim(), 3) == run(claim())


def test_a_second_look_has_other_seeds_and_says_what_the_first_one_gave():
    again = claims.second_look("1 point (-1 to 3)", "Small.", range(3, 7))
    verdict = claims.run(claim(**again), progress=False)
    assert verdict.seeds == (3, 4, 5, 6)
    assert verdict.limits == (
        "Small. A second look, by seeds 3 to 6 alone: seeds 0 to 2 had left it"
        " undecided, 1 point (-1 to 3)."
    )
    again = claims.second_look("1 point (-1 to 3)", "", range(8, 9), range(2))
    assert "by seeds 8 to 8 alone: seeds 0 to 1 had" in again["limits"]


@pytest.mark.parametrize("seeds", [2, [0, 1], [0, 0, 1], [1, 1, 1, 1], []])
def test_too_few_or_repeated_seeds_are_refused_before_any_work(seeds):
    never = claim(experiment=lambda seed, **_: pytest.fail("was run"))
    with pytest.raises(ValueError, match="at least 3 different ones"):
        run(never, seeds)


def test_an_unknown_parameter_is_refused():
    with pytest.raises(ValueError, match="k is not a parameter .* gain"):
        run(claim(), k=3)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_an_effect_that_is_no_number_is_refused(bad):
    with pytest.raises(ValueError, match="seed 0 of claim it-helps measured"):
        run(claim(experiment=lambda seed, **_: bad))


def test_a_claim_out_of_reach_is_never_run():
    far = claim(experiment=None, out_of_reach="it needs 64 GPUs")
    verdict = claims.run(far)
    assert verdict.word == "out of reach"
    assert str(verdict) == "out of reach: it needs 64 GPUs"
    with pytest.raises(ValueError, match="was not measured"):
        verdict.figure()


def test_a_claim_without_experiment_or_side_is_refused():
    with pytest.raises(ValueError, match="has no experiment"):
        claim(experiment=None)
    with pytest.raises(ValueError, match="use 'above' or 'below'"):
        claim(side="beyond")


def test_a_verdict_has_a_figure():
    figure = run(claim()).figure()
    assert (
        "Confirmed: gain over the baseline = 1.00" in figure.layout.title.text
    )


def test_the_ledger_gives_back_what_was_recorded(tmp_path):
    verdict = run(claim())
    path = ledger.record(verdict, tmp_path)
    assert path.name == "02-it-helps.json"
    assert ledger.recorded(claim(), tmp_path) == verdict
    assert ledger.recorded(claim(slug="other"), tmp_path) is None


def test_recorded_json_says_how_to_measure_again(tmp_path):
    path = ledger.record(run(claim()), tmp_path)
    found = json.loads(path.read_text())
    assert found["command"] == "lab claims 02 --run"
    assert found["seeds"] == [0, 1, 2]
    assert {"machine", "versions", "date", "parameters"} <= found.keys()


def test_an_interrupted_run_writes_nothing(tmp_path):
    def stopped(seed, **_):
        if seed == 2:
            raise KeyboardInterrupt
        return 1.0

    with pytest.raises(KeyboardInterrupt):
        ledger.record(run(claim(experiment=stopped)), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_verdict_is_named(tmp_path):
    (tmp_path / "02-it-helps.json").write_text("{}")
    with pytest.raises(
        ValueError, match=r"02-it-helps\.json holds no verdict"
    ):
        ledger.recorded(claim(), tmp_path)


def test_a_changed_claim_makes_its_verdict_old():
    verdict = run(claim())
    assert not ledger.out_of_date(claim(), verdict)
    for change in (
        dict(threshold=0.6),
        dict(side="below"),
        dict(parameters={"gain": 2.0}),
        dict(out_of_reach="too large"),
    ):
        assert ledger.out_of_date(claim(**change), verdict)


def test_a_tuple_among_the_parameters_is_not_a_change(tmp_path):
    one = claim(experiment=lambda seed, of: seed, parameters={"of": (1, 2)})
    ledger.record(run(one), tmp_path)
    verdict = ledger.recorded(one, tmp_path)
    assert not ledger.out_of_date(one, verdict)
    assert ledger.out_of_date(claim(parameters={"of": (1, 3)}), verdict)


def test_the_table_lists_claims_with_and_without_a_verdict(tmp_path):
    ledger.record(run(claim()), tmp_path)
    far = claim(slug="far", out_of_reach="it needs 64 GPUs")
    new, old = claim(slug="new"), claim(threshold=0.6)
    lines = ledger.table([claim(), far, new, old], tmp_path).splitlines()
    assert lines[2].endswith("| confirmed |")
    assert "by \\| a lot" in lines[2]
    assert lines[3].endswith("| it needs 64 GPUs | out of reach |")
    assert "`lab claims 02 --run` | not run yet" in lines[4]
    assert lines[5].endswith("| confirmed (of an older claim) |")


def test_the_table_of_a_chapter_comes_from_the_ledger_alone(tmp_path):
    ledger.record(run(claim()), tmp_path)
    ledger.record(run(claim(chapter="03")), tmp_path)
    lines = ledger.table(["02"], tmp_path).splitlines()
    assert len(lines) == 3 and lines[2].startswith("| 02 |")


def test_the_button_leaves_the_command_where_nobody_looks(capsys, monkeypatch):
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    full = claims.full_run_button(claim(), 3)
    full.start()
    assert full.wait(10) == run(claim())


def test_the_button_runs_in_full_and_says_the_verdict(monkeypatch):
    monkeypatch.setenv("JPY_SESSION_NAME", "chapter.ipynb")
    full = claims.full_run_button(claim(), 3)
    full._button.click()
    assert full.wait(10).word == "confirmed"
    assert full._said.value.startswith("confirmed: gain")
    assert full._progress.value == 3
    assert full._button.description == "Run in full"


def test_a_stopped_button_keeps_nothing(monkeypatch):
    monkeypatch.setenv("JPY_SESSION_NAME", "chapter.ipynb")

    def stopping(seed, **_):
        full.stop()
        return 1.0

    full = claims.full_run_button(claim(experiment=stopping), 3)
    full.start()
    assert full.wait(10) is None
    assert full._said.value == "stopped, nothing was kept"


def test_a_failing_run_is_said_beside_the_button(monkeypatch):
    monkeypatch.setenv("JPY_SESSION_NAME", "chapter.ipynb")
    full = claims.full_run_button(claim(experiment=lambda seed, **_: 1 / 0), 3)
    full.start()
    assert full.wait(10) is None
    assert full.error == "ZeroDivisionError: division by zero."


def test_what_claims_cannot_show_is_said_once_with_their_names(tmp_path):
    for slug, limits in (
        ("a", "Small."),
        ("b", "Small. Counted, not timed."),
        ("c", "Small."),
        ("d", "On one machine."),
    ):
        verdict = run(claim(slug=slug, limits=limits))
        ledger.record(verdict, tmp_path)
    away = claim(slug="e", limits="Small.", out_of_reach="too large")
    ledger.record(run(away), tmp_path)
    assert ledger.limits(["02"], tmp_path).splitlines() == [
        "- 02 a, b, c: Small.",
        "- 02 d: On one machine.",
        "- 02 b: Counted, not timed.",
    ]
    (tmp_path / "02-d.json").unlink()
    assert ledger.limits(["02"], tmp_path).splitlines()[0] == "- 02: Small."


def test_the_ledger_says_what_each_claim_cannot_show():
    for page in (one for one in PAGES if one.ready):
        for one in import_module(page.module).CLAIMS:
            assert ledger.recorded(one).limits == one.limits, one.slug
