"""The survey's routers against loops, SciPy and the metrics' own formulas."""

import math

import numpy as np
import pytest
import torch
from scipy import optimize, stats
from seed_0 import in_the_ledger, measured

from lab.exercises import judge
from lab.models import judging, llm_routing, pareto, recorded, routers
from lab.models import strategies as families
from lab.models.llm_routing import EXERCISES


def data(n=60, D=5, M=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, D, generator=generator, dtype=torch.float64)
    y = torch.rand(n, M, generator=generator, dtype=torch.float64)
    return x[:40], y[:40], x[40:]


def test_nearest_is_a_full_sort():
    x, y, new = data()
    found = routers.nearest(x, y, new, k=7, block=6)
    for row, guess in zip(new, found, strict=True):
        order = sorted(range(40), key=lambda i: -(row @ x[i]).item())
        expected = torch.stack([y[i] for i in order[:7]]).mean(0)
        torch.testing.assert_close(guess, expected)
    all_of_them = routers.nearest(x, y, new, k=40)
    torch.testing.assert_close(all_of_them, y.mean(0).expand(20, 3))


def test_ridge_minimises_its_loss():
    x, y, new = data(M=1)

    def loss(w):
        rest = y[:, 0].numpy() - x.numpy() @ w[:-1] - w[-1]
        return rest @ rest + 3.0 * w[:-1] @ w[:-1]

    w = optimize.minimize(loss, np.zeros(6), tol=1e-12).x
    found = routers.ridge(x, y, new, 3.0)[:, 0]
    np.testing.assert_allclose(found, new.numpy() @ w[:-1] + w[-1], atol=1e-5)


def test_logistic_minimises_its_loss():
    x, y, new = data(M=2)
    mean, spread = x.mean(0).numpy(), x.std(0).numpy()
    z, fresh = (x.numpy() - mean) / spread, (new.numpy() - mean) / spread

    def loss(w):
        score = z @ w[:-1] + w[-1]
        cross = np.logaddexp(0, score) - y[:, 1].numpy() * score
        return cross.sum() + w[:-1] @ w[:-1]

    w = optimize.minimize(loss, np.zeros(6), tol=1e-12).x
    expected = 1 / (1 + np.exp(-(fresh @ w[:-1] + w[-1])))
    found = routers.logistic(x, y, new, 2.0)[:, 1]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_preferences_count_wins_minus_losses():
    scores = torch.tensor([[1.0, 0.0, 0.0], [0.3, 0.3, 0.3], [0.2, 0.5, 0.9]])
    expected = [[1.0, -0.5, -0.5], [0, 0, 0], [-1.0, 0.0, 1.0]]
    assert routers.preferences(scores).tolist() == expected


def test_a_group_nobody_remembers_gets_the_mean():
    scores = torch.tensor([[1.0], [0.0], [0.5]], dtype=torch.float64)
    group, new = torch.tensor([0, 0, 2]), torch.tensor([0, 1, 2])
    found = routers.table(group, scores, new, 3)[:, 0].tolist()
    assert found == [0.5, 0.5, 0.5]


def test_the_bandit_hears_only_the_model_it_called():
    x, y, new = data(M=2)
    theta, A, b = np.zeros((2, 6)), [np.eye(6)] * 2, np.zeros((2, 6))
    rows = np.c_[x.numpy(), np.ones(40)]
    for i in np.random.default_rng(5).permutation(40):
        v = [rows[i] @ np.linalg.solve(A[m], rows[i]) for m in (0, 1)]
        m = int(np.argmax(theta @ rows[i] + 0.5 * np.sqrt(v)))
        A[m] = A[m] + np.outer(rows[i], rows[i])
        b[m] += y[i, m].item() * rows[i]
        theta[m] = np.linalg.solve(A[m], b[m])
    expected = np.c_[new.numpy(), np.ones(20)] @ theta.T
    found = routers.lin_ucb(x, y, new, 0.5, seed=5)
    np.testing.assert_allclose(found, expected, atol=1e-10)


def test_the_auc_is_the_statistic_of_mann_and_whitney():
    random = np.random.default_rng(1)
    guess, right = random.integers(0, 9, 200) / 9, random.random(200) < 0.4
    u = stats.mannwhitneyu(guess[right], guess[~right]).statistic
    expected = u / (right.sum() * (~right).sum())
    found = pareto.auc(torch.from_numpy(guess), torch.from_numpy(right))
    assert found == pytest.approx(expected, abs=1e-12)


def test_apgr_is_routellms_area():
    random = np.random.default_rng(2)
    gain, weak, strong = random.random((3, 101))
    order = np.argsort(-gain)
    quality = [
        np.where(np.isin(np.arange(101), order[:n]), strong, weak).mean()
        for n in range(102)
    ]
    recovered = (np.array(quality) - weak.mean()) / (strong - weak).mean()
    expected = np.trapezoid(recovered, np.linspace(0, 1, 102))
    found = pareto.apgr(*map(torch.from_numpy, (gain, weak, strong)))
    assert found == pytest.approx(expected, abs=1e-12)


def test_chance_recovers_half_of_the_gap():
    scores = recorded.load("gsm8k").scores
    flat = torch.zeros(len(scores), dtype=torch.float64)
    found = [pareto.apgr(flat, *scores.T, seed=seed) for seed in range(60)]
    assert np.mean(found) == pytest.approx(0.5, abs=0.02)


def test_two_models_that_score_alike_have_no_gap_to_recover():
    gain, weak = torch.tensor([0.2, 0.1]), torch.tensor([1.0, 0.0])
    with pytest.raises(ValueError, match="no gap to recover"):
        pareto.apgr(gain, weak, weak.flip(0))


def test_the_hull_is_scipys_and_never_falls():
    points = np.random.default_rng(3).random((80, 2))
    found = pareto.hull(*torch.from_numpy(points).T)
    corners = {tuple(p) for p in torch.stack([*found], 1).tolist()}
    from scipy.spatial import ConvexHull

    every = {tuple(points[i]) for i in ConvexHull(points).vertices}
    assert corners <= every
    assert (found.quality.diff() > 0).all() and (found.cost.diff() > 0).all()
    for x, y in points:
        assert x < found.cost[0] or found.at(x) >= y - 1e-12


def test_budgets_and_areas_of_a_hull():
    cost = torch.tensor([1.0, 3.0, 2.0, 4.0])
    quality = torch.tensor([0.0, 1.0, 0.2, 0.5])
    found = pareto.hull(cost, quality)
    assert found.at(2) == 0.5 and found.at(9) == 1.0
    # nothing below cost 1, then a ramp, then 1 up to 5
    assert found.area(0, 5) == pytest.approx((0 + 1 + 2) / 5)
    assert found.area(0.5, 0.5) == 0 and found.area(2, 2) == 0.5
    with pytest.raises(ValueError, match="buys nothing"):
        found.at(0.5)


def test_a_mean_that_is_rounded_still_buys_the_cheapest_policy():
    # 0.1 * 3 is a hair above 0.3, and 0.3 in fp32 more than a hair
    for cost in (0.1 * 3, torch.tensor(0.3).item()):
        found = pareto.hull(
            torch.tensor([cost], dtype=torch.float64), torch.ones(1)
        )
        assert found.cost[0] > 0.3
        assert found.at(0.3) == found.area(0.3, 0.3) == 1


@pytest.mark.parametrize(
    ("text", "number"),
    [("3*(4+5)", 27), ("$1,200/4", 300), ("50%", 0.5), ("007-7", 0),
     ("1/0", None), ("x", None), ("2**9**9", None)],
)  # fmt: skip
def test_a_sum_is_worked_out_or_declined(text, number):
    assert judging.value(text) == number


def test_wrong_steps_are_those_that_do_not_add_up():
    answer = (
        "so <<9*2=18>> and <<2+2=5>>,\nthen <<a=b>> and <<5-2=3>>\n#### 1,200"
    )
    assert judging.wrong_steps(answer) == 1
    row = judging.answer_features(["2 and 9 of 40"], [answer])[0].tolist()
    assert dict(zip(judging.FEATURES, row, strict=True)) == {
        "characters": math.log(1 + len(answer)),
        "lines": 3,
        "numbers in the answer": 10,
        "calculator steps": 4,
        "wrong calculator steps": 1,
        "steps nobody can read": 1,
        "share of wrong steps": 1 / 4,
        "has a final ####": 1,
        "final number is the last step's": 0,
        "digits of the final number": 4,
        "final number is whole": 1,
        "numbers of the prompt used": pytest.approx(2 / 3),
    }


def test_a_final_number_may_be_missing_or_broken():
    answers = ["<<1+1=2>>\n#### 2", "#### 2.5", "I do not know"]
    rows = judging.answer_features([""] * 3, answers)
    same, digits, whole = rows[:, 8], rows[:, 9], rows[:, 10]
    assert same.tolist() == [1, 0, 0]
    assert digits[2] == 0 and whole.tolist() == [1, 0, 0]


def test_the_recorded_data_are_what_the_readme_says():
    nine, mmlu = recorded.load("nine"), recorded.load("mmlu")
    assert nine.scores.shape == (4997, 9) and len(nine.groups) == 12
    assert mmlu.scores.shape == (3990, 2) and len(mmlu.groups) == 57
    broken = mmlu.group == mmlu.groups.index(recorded.BROKEN_SUBJECT)
    assert mmlu.scores[broken, 1].mean() < 0.1
    assert (nine.embeddings.norm(dim=1) - 1).abs().max() < 1e-5


def test_a_split_has_no_row_twice_and_drops_what_is_broken():
    train, test = families.split("mmlu", True, 0)
    assert len(set(train.tolist()) | set(test.tolist())) == 3990
    train, test = families.split("mmlu", False, 0)
    assert len(train) + len(test) == 3920


def test_no_label_of_a_test_prompt_is_looked_at(monkeypatch):
    known = recorded.load("gsm8k")
    _, test = families.split("gsm8k", True, 0)
    other = known.scores.clone()
    other[test] = 1 - other[test]
    changed = known._replace(scores=other)
    monkeypatch.setattr(recorded, "load", lambda name: changed)
    inner = families.predicted.__wrapped__
    for name in ("classifier", "cascade", "similarity", "bandit"):
        before = families.predicted(name, "gsm8k", 40, True, 0)
        assert torch.equal(inner(name, "gsm8k", 40, True, 0), before)


def test_a_cascade_pays_for_both_calls():
    costs = llm_routing.guess("cascade", "gsm8k", ratio=40).costs
    assert costs.tolist() == [1 / 40, 1 + 1 / 40]


@pytest.mark.parametrize("name", ["gsm8k", "nine", "mmlu"])
def test_the_oracle_is_the_best_of_all(name):
    areas = {
        s: llm_routing.experiment(0, s, name).area
        for s in families.available(name)
    }
    assert max(areas, key=areas.get) == "oracle"


@pytest.mark.parametrize("name", ["gsm8k", "nine", "mmlu"])
def test_every_hull_begins_with_the_cheapest_model(name):
    pool = families.prices(name)
    for strategy in families.available(name):
        found = llm_routing.experiment(0, strategy, name)
        truth = llm_routing.guess(strategy, name).truth
        assert found.hull.cost[0] == pool.min()
        least = truth[:, pool.argmin()].mean().item()
        assert found.hull.quality[0].item() == pytest.approx(least, abs=1e-12)


def test_the_half_with_the_smaller_foreseen_lead_is_measured():
    options = dict(strategy="table", data="mmlu", broken=False)
    found = llm_routing.experiment(0, **options)
    seen = llm_routing.guess(**options)
    order = sorted(
        range(len(seen.truth)),
        key=lambda n: (seen.predicted[n, 1] - seen.predicted[n, 0]).item(),
    )
    half = order[: len(order) // 2]
    lead = (seen.truth[half, 1] - seen.truth[half, 0]).mean().item()
    assert found.easy_gain == pytest.approx(lead)


def test_the_answer_tells_more_than_the_question_until_it_costs_too_much():
    def score(strategy, ratio):
        found = llm_routing.experiment(0, strategy, "gsm8k", ratio=ratio)
        return found.hull.at(0.8)

    assert score("cascade", 40) > score("classifier", 40)
    assert score("cascade", 2) < score("classifier", 2)


def test_wrong_sums_are_a_small_part_of_what_an_answer_gives_away():
    known = recorded.load("gsm8k")
    features = judging.answer_features(known.prompts, known.answers)
    slips = judging.FEATURES.index("wrong calculator steps")
    right = known.scores[:, 0]
    assert round(pareto.auc(-features[:, slips], right), 2) == 0.56
    found = llm_routing.experiment(0, "cascade", "gsm8k")
    assert round(found.cheap_auc, 2) == 0.77


def test_one_seed_means_the_same_bits():
    again = families.predicted.__wrapped__
    for strategy in ("classifier", "bandit", "similarity"):
        first = families.predicted(strategy, "nine", 40, True, 1)
        assert torch.equal(again(strategy, "nine", 40, True, 1), first)


def test_every_claim_can_be_measured():
    for claim in llm_routing.CLAIMS:
        if claim.experiment:
            assert math.isfinite(claim.experiment(0, **claim.reduced))


def test_seed_0_measures_what_the_record_says():
    # another processor may send a prompt or two elsewhere
    expected = pytest.approx(in_the_ledger(llm_routing), rel=0.01)
    assert measured(llm_routing) == expected


def test_the_picture_answers_the_knobs():
    def here(penalty, ratio=40):
        knobs = ("gsm8k", penalty, ratio, 40, True)
        return llm_routing.picture("cascade", *knobs)

    assert here(0.0).here[0] > here(0.5).here[0] > here(2.0).here[0]
    assert sum(here(0.3).load.values()) == pytest.approx(100)
    assert here(2.0, ratio=2).here[0] >= 50
    # by lot: from Mixtral, at a fortieth of the price, to GPT-4
    cost, quality = here(0.3).mixing
    assert cost == pytest.approx([2.5, 100])
    small, large = (score for _, score in here(0.3).models.values())
    assert quality == pytest.approx([small, large])


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: recorded.load("x"), "'x' is not one of"),
        (lambda: llm_routing.guess("cascade", "nine"), "cascade is not"),
        (lambda: llm_routing.guess("table", "gsm8k"), "table is not"),
        (lambda: families.prices("gsm8k", 0.5), "ratio=0.5"),
        (lambda: routers.nearest(*data(), 41), "k=41"),
        (lambda: pareto.auc(torch.ones(3), torch.ones(3)), "both"),
    ],
)
def test_wrong_arguments_are_refused_in_a_sentence(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()


def _pairs(guess, right):
    good = [g for g, r in zip(guess, right, strict=True) if r]
    bad = [g for g, r in zip(guess, right, strict=True) if not r]
    wins = sum((g > b) + (g == b) / 2 for g in good for b in bad)
    return float(wins / (len(good) * len(bad)))


RIGHT = {
    "exercise-1": (13.0, 0.975),
    "exercise-2": (1 / 6, 1.0),
    "exercise-3": _pairs,
}
WRONG = {
    "exercise-1": (13.0, 0.3),
    "exercise-2": (1.0, 1 / 6),
    "exercise-3": lambda guess, right: float((guess > 0).float().mean()),
}


def test_an_area_that_leaves_ties_in_their_order_is_wrong():
    def sorted_only(guess, right):
        right = right[guess.argsort(descending=True, stable=True)].double()
        above = torch.cat([right.new_zeros(1), right.cumsum(0)[:-1]])
        return (above * (1 - right)).sum() / right.sum() / (1 - right).sum()

    assert "expected 0.5" in judge(EXERCISES["exercise-3"], sorted_only)


@pytest.mark.parametrize("slug", RIGHT)
def test_the_checker_knows_right_from_wrong(slug):
    assert judge(EXERCISES[slug], RIGHT[slug]) == "correct"
    assert judge(EXERCISES[slug], WRONG[slug]) != "correct"
