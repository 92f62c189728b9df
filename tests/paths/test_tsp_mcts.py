"""Chapter 48: the search against brute force, and what its knobs mean."""

import math
from itertools import permutations

import pytest
import torch
from seed_0 import measured

from lab import ledger
from lab.exercises import judge
from lab.paths import tour_heatmaps, tsp_mcts
from lab.paths.tour_heatmaps import (
    KINDS,
    NEIGHBOURS,
    PRIOR,
    TRAINED_ON,
    edge_features,
    heatmap,
    optimal_edges,
    shares_by_rank,
)
from lab.paths.tour_search import Arm, Settings, _State, candidates, search
from lab.paths.tours import (
    gap,
    instance,
    lengths,
    random_tours,
    tsplib,
    two_opt,
    whole,
)
from lab.paths.tsp_mcts import EXERCISES

QUICK = Settings(0.0, candidates=5, depth=10)
# the published list of optimal lengths
OPTIMA = {
    "eil51": 426, "berlin52": 7542, "st70": 675, "eil76": 538,
    "pr76": 108159, "rd100": 7910, "kroA100": 21282, "kroC100": 20749,
    "kroD100": 21294, "eil101": 629, "lin105": 14379, "ch130": 6110,
    "ch150": 6528, "tsp225": 3916, "a280": 2579,
}  # fmt: skip


def small(n, seed=0):
    """Random cities with their best tour, by dynamic programming."""
    generator = torch.Generator().manual_seed(seed)
    points = (1000 * torch.rand(n, 2, generator=generator)).round().double()
    start = instance("small", points, torch.arange(n))
    return instance("small", points, torch.tensor(held_karp(start.distances)))


def held_karp(distances):
    """The best tour, exactly; O(2^n n^2)."""
    d = distances.tolist()
    n = len(d)
    best = {(1 << k, k): (d[0][k], (0, k)) for k in range(1, n)}
    for size in range(2, n):
        for (visited, last), (cost, path) in list(best.items()):
            if visited.bit_count() != size - 1:
                continue
            for k in range(1, n):
                if visited >> k & 1:
                    continue
                key = visited | 1 << k, k
                new = cost + d[last][k], (*path, k)
                best[key] = min(best.get(key, new), new)
    full = (1 << n) - 2
    return list(min((best[full, k][0] + d[k][0], best[full, k][1])
                    for k in range(1, n))[1])  # fmt: skip


@pytest.mark.parametrize("name", OPTIMA)
def test_the_tours_in_the_files_have_the_published_length(name):
    one = tsplib(name)
    n = len(one.points)
    assert one.optimum == OPTIMA[name]
    assert sorted(one.best_tour.tolist()) == list(range(n))
    assert torch.equal(one.distances, one.distances.T)


def test_instances_for_learning_and_tuning_are_not_the_tested_ones():
    tested = {*tsp_mcts.TESTED, *tsp_mcts.SHOWN, *tsp_mcts.MAPS}
    assert not tested & {*TRAINED_ON, *tsp_mcts.TUNED_ON}
    # the learned heatmap is tuned on maps it has seen, and its text says so
    both = {*TRAINED_ON} & {*tsp_mcts.TUNED_ON}
    assert both == {"rd100", "kroC100"}
    assert all(name in tour_heatmaps.__doc__ for name in both)


def test_dynamic_programming_is_right_on_six_cities():
    one = small(6)
    d = one.distances.tolist()
    best = min(
        sum(d[a][b] for a, b in zip((0, *p), (*p, 0), strict=True))
        for p in permutations(range(1, 6))
    )
    assert one.optimum == best


@pytest.mark.parametrize("seed", range(3))
def test_the_search_finds_the_best_tour_of_eleven_cities(seed):
    one = small(11, seed)
    arms = [
        Arm(heatmap(kind, one), Settings(candidates=8, depth=5), seed)
        for kind in ("zero", "flat", "prior")
    ]
    found = search(one, arms, budget=20_000)
    assert (found.curves[:, -1] == one.optimum).all()
    assert (found.curves[:, 1:] <= found.curves[:, :-1]).all()


def test_a_search_depends_on_its_seed_alone():
    one = tsplib("eil51")
    heat = heatmap("prior", one)
    arms = [Arm(heat, QUICK, seed) for seed in (0, 1)]
    many = [Arm(heatmap("flat", one), QUICK, 0), *arms, *arms]
    alone = search(one, arms, 3000)
    among = search(one, many, 3000)
    for part in ("curves", "tours", "starts"):
        one_, all_ = getattr(alone, part), getattr(among, part)
        assert torch.equal(one_, all_[1:3])
        assert torch.equal(one_, all_[3:5])
    assert not torch.equal(alone.curves[0], alone.curves[1])


def test_curves_and_tours_tell_the_same_length():
    # every search starts anew, some of them just before the last pool
    one = tsplib("eil51")
    restless = Settings(1.0, patience=1)
    heats = [heatmap(kind, one) for kind in KINDS if kind != "oracle"]
    arms = [Arm(heat, restless, seed) for heat in heats for seed in range(4)]
    found = search(one, arms, 3000)
    d = one.distances.expand(len(arms), -1, -1)
    assert torch.equal(lengths(found.tours, d), found.curves[:, -1])
    assert (found.curves >= one.optimum).all()
    assert (found.tours.sort(1)[0] == torch.arange(51)).all()
    assert (found.starts > 1).all()


# the last pool, or a new start just before it, finds the best tour
LATE = [
    ("kroA100", "prior", Settings(1.0, candidates=5, depth=20), 0, 30_000),
    ("kroA100", "learned", Settings(1.0, candidates=5, depth=20), 0, 30_000),
    ("berlin52", "prior", Settings(0.0, candidates=1000, depth=20), 0, 15_600),
    ("eil51", "zero", Settings(1.0, patience=1), 3, 3000),
]


@pytest.mark.parametrize(
    ("name", "kind", "chosen", "seed", "budget"),
    LATE,
    ids=[f"{name}-{kind}" for name, kind, *_ in LATE],
)
def test_what_is_found_in_time_and_no_more_enters_curve_and_tour(
    name, kind, chosen, seed, budget, monkeypatch
):
    seen, spent = [], 0
    start, simulate = _State.start, _State.simulate

    def noted_start(self, rows):
        start(self, rows)
        seen.append(int(self.length))

    def noted_simulate(self, rows, draws):
        nonlocal spent
        cost = simulate(self, rows, draws)
        spent += int(cost)
        if spent <= budget:
            seen.append(int(self.length))
        return cost

    monkeypatch.setattr(_State, "start", noted_start)
    monkeypatch.setattr(_State, "simulate", noted_simulate)
    one = tsplib(name)
    found = search(one, [Arm(heatmap(kind, one), chosen, seed)], budget)
    assert spent > budget
    assert found.curves[0, -1] == min(seen)
    assert lengths(found.tours, one.distances[None]) == min(seen)


def test_a_perfect_heatmap_leaves_nothing_to_search():
    one = tsplib("kroA100")
    found = search(one, [Arm(heatmap("oracle", one), QUICK, 0)], 500)
    assert gap(found.curves[0, 0].item(), one.optimum) == 0


def test_two_opt_leaves_no_crossing_of_two_edges():
    one = small(11, 5)
    n = 11
    every = candidates(one, heatmap("zero", one), Settings())[None]
    start = random_tours(
        torch.zeros(1, n, n), torch.Generator().manual_seed(2)
    )
    d = one.distances[None]
    found = two_opt(start, every, d)
    tour = found.tours[0].tolist()
    best = lengths(found.tours, d).item()
    assert best < lengths(start, d).item()
    for i in range(n):
        for j in range(i + 1, n):
            other = tour[:i] + tour[i : j + 1][::-1] + tour[j + 1 :]
            assert lengths(torch.tensor([other]), d).item() >= best


def test_random_tours_follow_e_to_the_weights():
    weights = torch.zeros(2000, 4, 4)
    weights[:, 0, 2] = math.log(3)
    tours = random_tours(weights, torch.Generator().manual_seed(0))
    assert (tours.sort(1)[0] == torch.arange(4)).all()
    share = (tours[:, 1] == 2).double().mean().item()
    assert abs(share - 3 / 5) < 4 * (0.24 / 2000) ** 0.5


def test_random_tours_survive_huge_weights():
    weights = torch.full((1, 5, 5), 1e4)
    tours = random_tours(weights, torch.Generator().manual_seed(0))
    assert sorted(tours[0].tolist()) == list(range(5))


def test_potentials_are_the_papers_formula():
    one = tsplib("eil51")
    n, alpha = 51, 2.0
    heat = heatmap("prior", one)
    state = _State(one, [Arm(heat, Settings(alpha, candidates=5), 0)])
    state.start(torch.tensor([0]))
    found = state.potentials(torch.tensor([0]))[0]
    W, Q, M = state.weights[0], state.visits[0], int(state.total)
    for b in range(0, n, 7):
        mean = sum(W[b, j].item() for j in range(n) if j != b) / (n - 1)
        for c in range(5):
            a = int(state.candidates[0, b, c])
            z = W[b, a].item() / mean
            z += alpha * (math.log(M + 1) / (int(Q[b, a]) + 1)) ** 0.5
            expected = z if z >= 1 else 0
            assert found[b, c] / 1024 == pytest.approx(expected, abs=1e-2)


def test_without_heat_only_curiosity_counts():
    one = tsplib("eil51")
    chosen = Settings(1.0, candidates=5)
    state = _State(one, [Arm(heatmap("zero", one), chosen, 0)])
    state.total += 1000
    z = state.potentials(torch.tensor([0])).unique() / 1024
    assert z.tolist() == pytest.approx([math.log(1001) ** 0.5], abs=1e-3)


def test_success_raises_the_weights_of_both_directions():
    one = tsplib("eil51")
    state = _State(one, [Arm(heatmap("flat", one), QUICK, 0)])
    before = state.weights.clone()
    one_, two = torch.tensor([3]), torch.tensor([8])
    state.learn(torch.tensor([0]), one_, two, torch.tensor([0.01]).double())
    more = 10 * (math.e**0.01 - 1)
    change = state.weights - before
    assert change[0, 3, 8].item() == pytest.approx(more, rel=1e-3)
    assert torch.equal(change[0], change[0].T)
    assert change.count_nonzero() == 2
    assert torch.allclose(state.sums, state.weights.sum(2))


def test_the_prior_is_by_rank_and_symmetric():
    one = tsplib("kroA100")
    heat = heatmap("prior", one)
    assert torch.equal(heat, heat.T)
    assert heat.sum().item() == pytest.approx(100 * sum(PRIOR), rel=1e-5)
    d = one.distances.double().fill_diagonal_(math.inf)
    nearest = d.argmin(1)
    mutual = nearest[nearest] == torch.arange(100)
    at = torch.arange(100)[mutual], nearest[mutual]
    assert torch.allclose(heat[at], torch.tensor(PRIOR[0]))


@pytest.mark.parametrize("n", [6, 13])
def test_softdist_is_finite_where_every_city_has_a_twin(n):
    points = small(n).points.repeat(2, 1)
    heat = heatmap("softdist", instance("twins", points, torch.arange(2 * n)))
    assert heat.sum().item() == pytest.approx(2 * n, rel=1e-5)
    # nothing is nearer than the twin, and other cities are not out of reach
    assert (heat[:n, n:].diagonal() == heat[:n].amax(1)).all()
    assert 0 < heat[:n, n:].triu(1).max() < 1


def test_the_learned_heatmap_knows_the_edges_of_unseen_maps():
    for name in tsp_mcts.TESTED:
        heat = heatmap("learned", tsplib(name))
        edges = optimal_edges(tsplib(name))
        flat = heatmap("flat", tsplib(name))
        assert heat[edges].mean() > 0.5
        assert heat[edges].mean() > 2 * flat[edges].mean()


def test_shares_add_up_to_all_edges():
    assert shares_by_rank(tsplib("ch130"), 129).sum().item() == pytest.approx(
        1
    )
    assert sum(PRIOR) == pytest.approx(1, abs=1e-3)


def test_an_edge_is_known_by_its_surroundings():
    n, K = 14, NEIGHBOURS
    generator = torch.Generator().manual_seed(0)
    points = 100 * torch.rand(n, 2, generator=generator, dtype=torch.double)
    near, features = edge_features(instance("small", points, torch.arange(n)))
    d = [[math.dist(a, b) for b in points.tolist()] for a in points.tolist()]
    around = [sorted(row)[1 : K + 1] for row in d]  # without the city itself
    for i in range(n):
        for j, found in zip(near[i].tolist(), features[i], strict=True):
            length = d[i][j]
            between = sum(max(d[i][k], d[j][k]) < length for k in range(n))
            wanted = [
                sorted(d[i]).index(length) / K,
                sorted(d[j]).index(length) / K,
                length / (sum(around[i]) / K),
                length / (sum(around[j]) / K),
                between / K,
                float(between == 0),
            ]
            assert found.tolist() == pytest.approx(wanted)


def test_candidates_go_by_heat_or_by_distance():
    one = tsplib("eil51")
    heat = heatmap("prior", one)
    by_heat = candidates(one, heat, Settings(candidates=4))
    kept = heat.gather(1, by_heat.long())
    assert (kept[:, 1:] <= kept[:, :-1]).all()
    by_map = candidates(one, heat, Settings(candidates=4, by_heatmap=False))
    d = one.distances.gather(1, by_map.long())
    assert (d[:, 1:] >= d[:, :-1]).all()
    assert candidates(one, heat * 0, Settings()).shape == (51, 50)


def test_duplicate_cities_are_searched_all_the_same():
    one = tsplib("a280")
    assert len(one.points.unique(dim=0)) < 280
    arms = [Arm(heatmap("prior", one), QUICK, 0)]
    found = search(one, arms, 3000)
    assert sorted(found.tours[0].tolist()) == list(range(280))


def test_coordinates_become_whole_numbers_that_fit():
    wide = whole(torch.tensor([[0.0, 0.0], [3e9, 1.0]]).double())
    assert wide.max() < 2**30
    fine = whole(torch.tensor([[0.0, 0.0], [1.00001, 1.0]]).double())
    assert fine.max() == 100001


def test_every_claim_runs_on_a_short_budget():
    for claim in tsp_mcts.CLAIMS:
        if claim.experiment and claim.reduced:
            short = claim.reduced | {"instances": "eil51", "budget": 5}
            assert math.isfinite(claim.experiment(0, **short))


def test_an_effect_is_what_its_claim_says(monkeypatch):
    gaps = {
        ("prior", "default"): 4.0,
        ("prior", "tuned"): 1.0,
        ("zero", "default"): 5.0,
        ("zero", "tuned"): 3.0,
        ("learned", "default"): 2.5,
        ("learned", "tuned"): 0.5,
        ("flat", "tuned"): 1.25,
        ("oracle", "tuned"): 0.25,
    }
    monkeypatch.setattr(
        tsp_mcts, "mean_gaps", lambda _, arms, **__: [gaps[a] for a in arms]
    )
    effects = measured(tsp_mcts, but=["five-neighbours-hold-the-tour"])
    assert effects == pytest.approx(
        {
            "tuning-halves-the-gap": 25,
            "tuning-helps-without-heatmap": 60,
            "settings-beat-the-heatmap": 1.5,
            "prior-rivals-learned": 0.5,
            "prior-beats-flat": -0.25,
            "prior-beats-none": -2.0,
            "no-heatmap-helps-much": 0.75,
        }
    )


def test_default_arms_search_by_default_and_tuned_ones_as_recorded():
    for kind in tsp_mcts.KINDS:
        assert tsp_mcts.settings(kind, "default") == tsp_mcts.DEFAULT
        tuned = tsp_mcts.settings(kind, "tuned")
        assert tuned in tsp_mcts.GRID and tuned != tsp_mcts.DEFAULT


@pytest.mark.parametrize("together", [True, False])
def test_a_seed_is_one_place_in_its_block_and_maps_are_averaged(
    together, monkeypatch
):
    def final_gaps(arms, name, block, budget):
        assert budget == 7 and (("zero", "tuned") in arms) == together
        start = {"near": 100, "far": 200}[name] + 10 * block
        return {
            arm: [
                start + place + (arm[1] == "tuned") / 2
                for place in range(tsp_mcts.BLOCK)
            ]
            for arm in arms
        }

    monkeypatch.setattr(tsp_mcts, "final_gaps", final_gaps)
    seed = tsp_mcts.BLOCK + 2
    arms = (("prior", "tuned"), ("flat", "default"))
    found = tsp_mcts.mean_gaps(seed, arms, "near far", 7, together)
    assert found == [162.5, 162]


def test_the_five_nearest_hold_as_many_edges_as_the_record_says():
    by_slug = {claim.slug: claim for claim in tsp_mcts.CLAIMS}
    claim = by_slug["five-neighbours-hold-the-tour"]
    expected = ledger.recorded(claim).effects[0]
    assert claim.experiment(0) == pytest.approx(expected, abs=1e-6)


def test_arms_searched_together_are_those_searched_alone():
    arms = (("prior", "tuned"), ("flat", "tuned"))
    budget = {"instances": "eil51 berlin52", "budget": 5}
    alone = tsp_mcts.mean_gaps(1, arms, together=False, **budget)
    among = tsp_mcts.mean_gaps(1, arms, together=True, **budget)
    assert alone == among


def test_the_recorded_searches_answer_the_knobs():
    few = tsp_mcts.picture("kroA100", "prior", 5)
    many = tsp_mcts.picture("kroA100", "prior", 1000)
    assert len(few.gaps) == tsp_mcts.SHOWN_SEEDS
    assert few.gaps != many.gaps
    last = lengths(few.tour[None], few.instance.distances[None])
    assert gap(last.item(), few.instance.optimum) == few.gaps[0][-1]


@pytest.mark.parametrize("name", tsp_mcts.SHOWN)
def test_every_recorded_tour_is_as_long_as_its_curve_says(name):
    curves, tours = map(torch.from_numpy, tsp_mcts.recorded(name))
    tours = tours.flatten(0, -2)
    d = tsplib(name).distances.expand(len(tours), -1, -1)
    assert lengths(tours, d).tolist() == curves[..., 0, -1].flatten().tolist()


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: heatmap("best", small(8)), "kind='best'"),
        (lambda: tsp_mcts.settings("flat", "mine"), "how='mine'"),
        (
            lambda: search(small(8), [Arm(-torch.ones(8, 8), QUICK, 0)], 9),
            "least entry -1",
        ),
        (
            lambda: search(small(8), [Arm(torch.ones(7, 7), QUICK, 0)], 9),
            r"shape \(7, 7\)",
        ),
        (
            lambda: search(
                small(8), [Arm(torch.ones(8, 8), Settings(depth=0), 0)], 9
            ),
            "depth and patience",
        ),
        (
            lambda: search(
                small(8), [Arm(torch.full((8, 8), 5e-5), QUICK, 0)], 9
            ),
            "no city has a candidate",
        ),
        (
            lambda: instance(
                "nan", torch.full((8, 2), math.nan).double(), torch.arange(8)
            ),
            "infinite or NaN",
        ),
        (
            lambda: instance(
                "one", torch.ones(8, 2).double(), torch.arange(8)
            ),
            "fewer than 5 different places",
        ),
    ],
)
def test_wrong_arguments_are_refused_in_a_sentence(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()


def _turned(path, prefixes):
    for p in prefixes:
        path = path[:p][::-1] + path[p:]
    return path


RIGHT = {"exercise-1": 4, "exercise-2": _turned, "exercise-3": 0.943}
WRONG = {
    "exercise-1": 1,
    "exercise-2": lambda path, prefixes: _turned(path, prefixes[::-1]),
    "exercise-3": 0.5,
}


@pytest.mark.parametrize("slug", RIGHT)
def test_the_checker_knows_right_from_wrong(slug):
    assert judge(EXERCISES[slug], RIGHT[slug]) == "correct"
    assert judge(EXERCISES[slug], WRONG[slug]) != "correct"
