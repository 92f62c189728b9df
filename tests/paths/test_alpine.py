"""Chapter 49: paths, degrees and planners against networkx and plain loops."""

import math
from collections import Counter

import networkx as nx
import pytest
import torch
from scipy import stats
from seed_0 import in_the_ledger, measured

from lab.exercises import judge
from lab.kernels.two_table_loss import two_table_loss
from lab.paths import alpine, alpine_recorded, path_gpt, two_tables
from lab.paths.alpine import EXERCISES, Learned, Task, table_kinds, task
from lab.paths.path_data import (
    FAR,
    Paths,
    degrees,
    handmade,
    network,
    observed,
    reachability,
    training_pairs,
    training_paths,
    walk,
)
from lab.paths.path_gpt import PathGPT
from lab.paths.two_tables import arrival, planner, separation, written

V = 23


def small(fraction=0.1, walks=4, seed=0):
    return training_paths(network(V, 0.15, seed), fraction, walks, seed)


def as_networkx(edges):
    graph = nx.DiGraph()
    graph.add_nodes_from(range(len(edges)))
    graph.add_edges_from(edges.nonzero().tolist())
    return graph


def plain(paths):
    """The training paths as lists, header and all, without the padding."""
    return [[u for u in row if u >= 0] for row in paths.sequences.tolist()]


LINE = torch.ones(4, 4).triu(1).tril(1).bool()
# a to b to c with target c, and c to d with target d
CHAIN = handmade(LINE, [[0, 2, 0, 1, 2], [2, 3, 2, 3]])


@pytest.mark.parametrize("seed", range(3))
def test_reachability_is_the_transitive_closure(seed):
    edges = network(V, 0.15, seed)
    closure = nx.transitive_closure(as_networkx(edges))
    found = reachability(edges).T.nonzero().tolist()
    assert {tuple(pair) for pair in found} == set(closure.edges)


def test_a_long_line_is_followed_to_its_end():
    line = torch.ones(70, 70).triu(1).tril(1).bool()
    assert torch.equal(reachability(line).T, torch.ones(70, 70).triu(1).bool())


@pytest.mark.parametrize("seed", range(3))
def test_every_training_path_leads_to_its_target(seed):
    paths = small(seed=seed)
    number = Counter()
    for s, t, first, *rest in plain(paths):
        assert s == first and rest[-1] == t and t not in rest[:-1]
        assert paths.trained[t, s]
        assert all(paths.edges[i, k] for i, k in zip([s, *rest], rest))  # noqa: B905
        number[s, t] += 1
    assert set(number) == {(s, t) for t, s in paths.trained.nonzero().tolist()}
    for (s, t), n in number.items():
        # the direct path comes on top
        assert n == 4 + int(paths.edges[s, t])
        assert not paths.edges[s, t] or [s, t, s, t] in plain(paths)


def test_walks_choose_alike_among_the_nodes_that_lead_on():
    # 0 leads to 1, 2 and 3, but only 1 and 2 to the target 4
    edges = torch.zeros(5, 5, dtype=torch.bool)
    edges[0, 1:4] = edges[1, 4] = edges[2, 4] = True
    N = 4000
    draws = torch.rand(N, 5, generator=torch.Generator().manual_seed(0))
    source = torch.zeros(N).long()
    path = walk(edges, reachability(edges), source, source + 4, draws)
    assert path.shape == (N, 3) and (path[:, 2] == 4).all()
    share = (path[:, 1] == 1).double().mean().item()
    assert set(path[:, 1].tolist()) == {1, 2}
    # four standard errors
    assert abs(share - 0.5) < 4 * (0.25 / N) ** 0.5


def test_more_pairs_and_more_walks_keep_all_that_was_there():
    few, more = small(0.0), small(0.3)
    assert (more.trained | ~few.trained).all()
    assert more.trained.sum() > few.trained.sum()
    assert not Counter(map(tuple, plain(few))) - Counter(
        map(tuple, plain(more))
    )
    nearer = degrees(more.edges, observed(more)[1])
    assert (nearer <= degrees(few.edges, observed(few)[1])).all()
    longer = small(0.0, walks=6)
    assert not Counter(map(tuple, plain(few))) - Counter(
        map(tuple, plain(longer))
    )


@pytest.mark.parametrize("fraction", [0.0, 0.4, 1.0])
def test_every_target_that_can_has_a_pair_without_an_edge(fraction):
    edges = network(V, 0.15, 1)
    trained, reach = training_pairs(edges, fraction, 1), reachability(edges)
    joined = reach & ~edges.T
    assert (trained | ~edges.T).all() and not (trained & ~reach).any()
    extra = (trained & joined).sum(1)
    assert (extra >= joined.any(1)).all()
    if fraction == 0:
        assert (extra <= 1).all()
    if fraction == 1:
        assert torch.equal(trained, reach)


def test_counts_are_those_of_a_loop_past_the_header():
    paths = small()
    wanted = Counter(
        (i, t, k)
        for _, t, *path in plain(paths)
        for i, k in zip(path, path[1:])  # noqa: B905
    )
    found = zip(*paths.triples.tolist(), strict=True)
    assert dict(zip(found, paths.counts.tolist(), strict=True)) == wanted
    edges, seen = observed(paths)
    assert torch.equal(edges, paths.edges)
    assert {tuple(x) for x in seen.nonzero().tolist()} == {
        (t, k) for _, t, k in wanted
    }


def test_a_source_was_shown_only_if_it_follows_elsewhere():
    _, seen = observed(CHAIN)
    # under target c: b and c; under target d: d alone
    assert seen.nonzero().tolist() == [[2, 1], [2, 2], [3, 3]]


@pytest.mark.parametrize("seed", range(3))
def test_a_degree_is_a_distance_to_what_was_shown(seed):
    paths = small(0.0, 2, seed)
    _, seen = observed(paths)
    found = degrees(paths.edges, seen)
    graph = as_networkx(paths.edges)
    for t in range(V):
        goals = {t, *seen[t].nonzero()[:, 0].tolist()}
        far = nx.multi_source_dijkstra_path_length(graph.reverse(), goals)
        for s in range(V):
            assert found[t, s] == far.get(s, FAR)


def test_the_planner_that_knows_all_arrives_always():
    for seed in range(3):
        paths = small(seed=seed)
        chance = arrival(planner(paths.edges, paths.reach), paths.edges)
        assert chance[paths.reach].tolist() == pytest.approx(
            [1.0] * int(paths.reach.sum())
        )
        lost = ~paths.reach & ~torch.eye(V, dtype=torch.bool)
        assert not chance[lost].any()


def test_two_tables_of_truths_find_every_path():
    paths = small()
    tables = paths.edges.float(), paths.reach.float() + torch.eye(V)
    chance = arrival(written(*tables, greedy=True), paths.edges)
    assert (chance[paths.reach] == 1).all()


def walked(steps, edges, s, t):
    """The chance to arrive, by following every path there is."""
    if s == t:
        return 1.0
    return sum(
        steps[t][s][k] * walked(steps, edges, k, t)
        for k in range(len(edges))
        if edges[s][k]
    )


@pytest.mark.parametrize("who", ["walk", "shown", "tables", "greedy"])
def test_arrival_is_the_sum_over_all_paths(who):
    paths = small()
    _, seen = observed(paths)
    tables = two_tables.learn(paths, 30)
    steps = {
        "walk": planner(paths.edges, torch.ones_like(seen)),
        "shown": planner(paths.edges, seen),
        "tables": written(*tables, greedy=False),
        "greedy": written(*tables, greedy=True),
    }[who]
    found = arrival(steps, paths.edges)
    edges, steps = paths.edges.tolist(), steps.tolist()
    for t in range(0, V, 3):
        for s in range(V):
            right = walked(steps, edges, s, t)
            assert found[t, s].item() == pytest.approx(right, abs=1e-6)


def test_a_planner_that_knows_of_nothing_takes_any_edge():
    edges = torch.tensor([[0, 1, 1, 0], [0, 0, 0, 1], [0] * 4, [0] * 4]).bool()
    nothing = torch.zeros(4, 4, dtype=torch.bool)
    steps = planner(edges, nothing)
    assert steps[3, 0].tolist() == [0, 0.5, 0.5, 0]
    # but it sees the target if it is next
    assert steps[2, 0].tolist() == [0, 0, 1, 0]
    assert not steps[0, 3].any()


def test_learning_raises_what_was_shown_and_lowers_the_rest():
    by_current, by_target = two_tables.learn(CHAIN, 200)
    assert by_current[0].argmax() == 1 and by_current[1].argmax() == 2
    assert by_target[2, 1:3].min() > by_target[2, [0, 3]].max()
    # a row that never came is never moved
    assert not by_current[3].any() and not by_target[:2].any()


def test_the_learned_tables_do_not_depend_on_the_numbers_of_the_nodes():
    paths = small()
    new = torch.randperm(V, generator=torch.Generator().manual_seed(0))
    triples = new[paths.triples.long()].int()
    other = paths._replace(triples=triples)
    for one, two in zip(
        two_tables.learn(paths, 20), two_tables.learn(other, 20), strict=True
    ):
        torch.testing.assert_close(one, two[new][:, new], rtol=0, atol=1e-3)


def test_learning_ends_at_a_low_loss():
    paths = small()
    share = paths.counts / paths.counts.sum()
    found = two_table_loss(*two_tables.learn(paths), *paths.triples) * share
    # the entropy of the next node, if each pair (i, t) had its own row
    current, target, _ = paths.triples.tolist()
    total = Counter()
    for i, t, n in zip(current, target, paths.counts.tolist(), strict=True):
        total[i, t] += n
    best = -sum(
        n * math.log(n / total[i, t])
        for i, t, n in zip(current, target, paths.counts.tolist(), strict=True)
    ) / sum(total.values())
    assert best <= found.sum().item() < best + 0.05


def test_separation_is_that_of_mann_and_whitney():
    generator = torch.Generator().manual_seed(0)
    weights = torch.randint(6, (9, 20), generator=generator).float()
    kind = torch.randint(3, (9, 20), generator=generator)
    won = pairs = 0
    for row, k in zip(weights, kind, strict=True):
        high, low = row[k == 0], row[k == 1]
        won += stats.mannwhitneyu(high, low).statistic
        pairs += len(high) * len(low)
    found = separation(weights, kind == 0, kind == 1)
    assert found == pytest.approx(won / pairs)


def test_a_constant_on_a_row_separates_nothing():
    weights = torch.tensor([[1.0, 2.0], [101.0, 100.0]])
    high = torch.tensor([[True, False], [True, False]])
    assert separation(weights, high, ~high) == 0.5


def tiny_gpt(seed=0):
    paths = small()
    return path_gpt.train(paths, seed, 3), paths


def test_lines_end_with_a_token_of_their_own():
    paths = small()
    for line, path in zip(path_gpt.lines(paths), plain(paths), strict=True):
        assert line[line >= 0].tolist() == [*path, V]


def test_a_gpt_sees_nothing_that_comes_later():
    model, _ = tiny_gpt()
    lines = torch.randint(
        V, (5, 9), generator=torch.Generator().manual_seed(0)
    )
    other = lines.clone()
    other[:, 6:] = (other[:, 6:] + 1) % V
    one, two = model(lines).scores, model(other).scores
    assert torch.equal(one[:, :6], two[:, :6])
    assert not torch.equal(one[:, 6:], two[:, 6:])
    near = model(lines).attention
    assert near.sum(2).allclose(torch.ones(5, 9))
    assert not near.triu(1).any()


@pytest.mark.parametrize("steps", [3, 250])
def test_right_paths_are_those_of_one_line_at_a_time(steps):
    paths = small()
    model = path_gpt.train(paths, 0, steps)
    target, source = paths.reach.nonzero(as_tuple=True)
    found = path_gpt.right_paths(model, paths.edges, source, target).tolist()
    wanted = []
    for s, t in zip(source.tolist(), target.tolist(), strict=True):
        line = [s, t, s]
        while len(line) < model.length:
            scores = model(torch.tensor([line])).scores[0, -1]
            line.append(int(scores.argmax()))
            if line[-1] == V:
                break
        *path, last = line[2:]
        steps_are_edges = all(
            i != V and k != V and bool(paths.edges[i, k])
            for i, k in zip(path, path[1:])  # noqa: B905
        )
        wanted.append(last == V and path[-1] == t and steps_are_edges)
    assert found == wanted
    assert steps < 100 or sum(found) > len(found) / 3


def test_drawn_paths_follow_the_probabilities():
    edges = torch.zeros(4, 4, dtype=torch.bool)
    edges[0, 1] = True
    model = PathGPT(4, 8)
    line = torch.tensor([[0, 1, 0]])
    step = model(line).scores[0, -1].softmax(0)[1]
    done = model(torch.tensor([[0, 1, 0, 1]])).scores[0, -1].softmax(0)[4]
    N = 20_000
    source = torch.zeros(N).long()
    dice = torch.Generator().manual_seed(0)
    right = path_gpt.right_paths(model, edges, source, source + 1, dice)
    p = (step * done).item()
    assert abs(right.double().mean() - p) < 4 * (p * (1 - p) / N) ** 0.5


def test_attention_is_counted_where_nodes_are_written():
    model, paths = tiny_gpt()
    total = number = 0
    for path in plain(paths):
        near = model(torch.tensor([[*path, V]])).attention[0]
        for place in range(2, len(path) - 1):
            total += near[place, 1].item()
            number += 1
    found = path_gpt.attention_on_target(model, paths)
    assert found == pytest.approx(total / number, rel=1e-4)


def test_weights_are_read_as_the_paper_says():
    model, _ = tiny_gpt()
    by_current, by_target = model.weight_tables()

    def fed(x):
        hidden = torch.nn.functional.gelu(model.norms[1](x) @ model.up)
        return hidden @ model.down

    e = model.token[3]
    brought = model.norms[0](e + model.place[1]) @ model.value @ model.out
    for k in (0, 7):
        assert by_current[3, k].item() == pytest.approx(
            ((e + fed(e)) @ model.token[k]).item(), abs=1e-5
        )
        assert by_target[3, k].item() == pytest.approx(
            ((brought + fed(brought)) @ model.token[k]).item(), abs=1e-5
        )


def test_effects_are_those_of_an_analysis_of_variance():
    model, _ = tiny_gpt()
    lines = [[[i, j, i] for j in range(V)] for i in range(V)]
    scores = torch.stack(
        [model(torch.tensor(some)).scores[:, -1, :V] for some in lines]
    ).detach()
    scores -= scores.mean(2, keepdim=True)
    by_current, by_target, share = model.effect_tables()
    mean = scores.mean((0, 1))
    assert by_current.allclose(scores.mean(1), atol=1e-5)
    assert by_target.allclose(scores.mean(0) - mean, atol=1e-5)
    # the parts are orthogonal, so their sums of squares add up
    parts = V * (by_current - mean).square().sum()
    parts += V * by_target.square().sum()
    assert share == pytest.approx(
        (parts / (scores - mean).square().sum()).item(), abs=1e-4
    )


def test_training_depends_on_its_seed_alone():
    (one, _), (same, _), (other, _) = tiny_gpt(), tiny_gpt(), tiny_gpt(1)
    line = torch.tensor([[0, 5, 0]])
    assert torch.equal(one(line).scores, same(line).scores)
    assert not torch.equal(one(line).scores, other(line).scores)


def toy_task(seed, fraction=0.0):
    """Pairs of every degree; with the higher fraction one comes nearer."""
    none = torch.zeros(4, 4, dtype=torch.bool)
    edges, reach, seen, tested = (none.clone() for _ in range(4))
    edges[0, 1] = edges[1, 2] = edges[2, 3] = True
    reach = reachability(edges)
    seen[3, 2] = True
    degree = torch.full((4, 4), FAR)
    degree[2, 0], degree[3, 0], degree[3, 1] = 0, 2, 3 if not fraction else 2
    degree[1, 0] = 2 if not fraction else 1
    tested[2, 0] = tested[3, 0] = tested[3, 1] = tested[1, 0] = True
    paths = Paths(edges, reach, none, None, None, None)
    return Task(paths, seen, degree, tested)


def toy_learned(kind, seed, fraction=0.0):
    chances = torch.zeros(4, 4).double()
    chances[2, 0], chances[3, 0], chances[3, 1] = 1.0, 0.25, 0.5
    chances[1, 0] = 0.0
    table = torch.arange(16.0).view(4, 4)
    if fraction:
        chances[3, 0] = 0.75
    return Learned(
        table, -table, (table - 6).abs(), table, chances / 2, chances, 1.0, 1.0
    )


def test_an_effect_is_what_its_claim_says(monkeypatch):
    monkeypatch.setattr(alpine, "task", toy_task)
    monkeypatch.setattr(alpine, "learned", toy_learned)
    # no node has two edges, so every planner always arrives
    assert measured(alpine) == pytest.approx(
        {
            "joining-is-hard": 75,
            "no-better-than-a-walk": -75,
            "no-better-than-what-was-shown": -75,
            "nor-if-greedy": -87.5,
            "only-by-changing-degree": 25,
            # 5 against 4, 3; 0 against 2, 1; 5 against 2, 3
            "edges-are-learned": 4 / 6,
            "shown-reachability-in-the-weights": 1.0,
            "shown-reachability-in-the-scores": 0.0,
            "not-shown-not-learned": 1.0,
        }
    )


def test_a_walk_and_a_planner_are_different_baselines(monkeypatch):
    monkeypatch.setattr(alpine, "learned", toy_learned)
    monkeypatch.setattr(alpine, "task", lambda *_: detour())
    walked = alpine._joins(0, "GPT", "drawn", "walk")
    planned = alpine._joins(0, "GPT", "drawn", "seen")
    assert planned == pytest.approx(walked - 50)


def detour():
    """From 0 to 3 over 1; the edge to 2 leads nowhere."""
    one = toy_task(0)
    edges = torch.zeros(4, 4, dtype=torch.bool)
    edges[0, 1] = edges[0, 2] = edges[1, 3] = True
    seen = torch.zeros(4, 4, dtype=torch.bool)
    seen[3, 1] = True
    tested = torch.zeros(4, 4, dtype=torch.bool)
    tested[3, 0] = True
    paths = one.paths._replace(edges=edges, reach=reachability(edges))
    return one._replace(paths=paths, seen=seen, tested=tested)


def test_no_node_is_compared_with_itself():
    one = task(0)
    assert one.seen.diagonal().any()
    for high, low in table_kinds(one).values():
        assert not (high & low).any()
        assert not (high | low).diagonal().any()
    # and what was shown is neither hidden nor false
    assert not ((high | low) & one.seen).any()


def test_the_cheap_claims_measure_what_the_ledger_says():
    cheap = {"nor-if-greedy", "only-by-changing-degree"}
    others = [c.slug for c in alpine.CLAIMS if c.slug not in cheap]
    found, kept = measured(alpine, but=others), in_the_ledger(alpine)
    assert found == pytest.approx({s: kept[s] for s in cheap}, abs=0.5)


def test_a_quickly_trained_gpt_answers_every_claim(monkeypatch):
    quick = path_gpt.train
    monkeypatch.setattr(
        path_gpt, "train", lambda paths, seed: quick(paths, seed, 20)
    )
    found = alpine.learned.__wrapped__("GPT", 0)
    monkeypatch.setattr(alpine, "learned", lambda *_: found)
    assert all(math.isfinite(effect) for effect in measured(alpine).values())
    assert ((0 <= found.drawn) & (found.drawn <= 1)).all()
    assert set(found.greedy.unique().tolist()) <= {0.0, 1.0}


def test_the_recorded_pictures_are_those_of_the_task():
    for seed in alpine_recorded.SEEDS:
        for fraction in alpine_recorded.FRACTIONS:
            one, kept = task(seed, fraction), alpine_recorded.shown(
                seed, fraction
            )  # fmt: skip
            assert torch.equal(kept.edges, one.paths.edges)
            assert torch.equal(kept.seen, one.seen)
            assert torch.equal(kept.tested, one.tested)


def test_the_recorded_tables_are_learned_again():
    kept = alpine_recorded.picture(0.1, "two tables", "reachability")
    found = alpine.learned("two tables", 0, 0.1)
    rows = torch.from_numpy(alpine_recorded.in_steps(found.by_target))
    rows = (rows / alpine_recorded.STEPS).fill_diagonal_(0)
    assert (kept.weights - rows).abs().mean() < 0.02
    one = task(0, 0.1)
    far = one.tested & (one.degree >= 2)
    assert kept.far == far.sum()
    assert kept.far_right == pytest.approx(
        100 * found.drawn[far].mean().item(), abs=1.0
    )
    kinds = table_kinds(one)
    for area, kind in ((kept.shown, "seen"), (kept.hidden, "unseen")):
        right = separation(found.by_target, *kinds[kind])
        assert area == pytest.approx(right, abs=0.005)
    area = alpine_recorded.picture(0.1, table="edges").shown
    right = separation(found.by_current, *kinds["edges"])
    assert area == pytest.approx(right, abs=0.005)
    joined = one.paths.reach & ~one.paths.edges.T
    assert sum(kept.pairs.values()) == joined.sum()
    assert kept.all_right == pytest.approx(
        100 * found.drawn[joined].mean().item(), abs=1.0
    )
    for degree, right in zip(
        kept.degrees, kept.right["two tables"], strict=True
    ):
        group = one.tested & (one.degree.clamp_max(3) == degree)
        assert kept.pairs[alpine_recorded.NAMES[degree]] == group.sum()
        assert right == pytest.approx(
            100 * found.drawn[group].mean().item(), abs=1.0
        )


def test_pairs_change_degree_but_stay_as_many():
    few = alpine_recorded.picture(0.0)
    many = alpine_recorded.picture(0.5)
    assert sum(few.pairs.values()) == sum(many.pairs.values())
    assert many.pairs["trained"] > few.pairs["trained"]
    assert many.far < few.far / 2
    assert many.all_right > few.all_right + 10


def test_only_a_gpt_looks_elsewhere_than_at_the_target():
    view = alpine_recorded.picture()
    assert view.share == view.attention == 1
    view = alpine_recorded.picture(kind="GPT")
    assert 0.5 < view.attention < 1 and 0.5 < view.share < 1
    assert f"target: {100 * view.attention:.0f} %" in view.note


def test_truth_is_one_if_shown_and_half_if_only_true():
    view = alpine_recorded.picture(table="reachability")
    one = task(0)
    at = one.seen & ~torch.eye(60, dtype=torch.bool)
    assert torch.equal(view.truth == 1, at)
    assert torch.equal(view.truth == 0.5, one.paths.reach & ~one.seen)
    edges = alpine_recorded.picture(table="edges")
    assert torch.equal(edges.truth == 1, one.paths.edges)
    assert edges.hidden is None


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: network(3, 0.1, 0), "nodes=3"),
        (lambda: network(9, 0.0, 0), "density=0.0"),
        (lambda: training_pairs(network(9, 0.5, 0), 1.5, 0), "fraction=1.5"),
        (lambda: training_paths(network(9, 0.5, 0), 0, 0, 0), "walks=0"),
        (
            lambda: training_paths(torch.zeros(5, 5).bool(), 0, 1, 0),
            "no edge",
        ),
        (
            lambda: reachability(torch.eye(4).roll(1, 1).bool()),
            "node 0 lies on a cycle",
        ),
        (lambda: two_tables.learn(CHAIN, 0), "steps=0"),
        (lambda: path_gpt.train(CHAIN, 0, 0), "steps=0"),
        (lambda: alpine.learned("three tables", 0), "kind='three tables'"),
        (
            lambda: separation(
                torch.ones(2, 2), torch.eye(2).bool(), torch.zeros(2, 2).bool()
            ),
            "nothing can be compared",
        ),
        (
            lambda: alpine.percent(torch.ones(2, 2), torch.zeros(2, 2).bool()),
            "no such pair",
        ),
    ],
)
def test_wrong_arguments_are_refused_in_a_sentence(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()


def _allowed(edges, seen, current, target):
    found = []
    for k, edge in enumerate(edges[current]):
        if edge and (k == target or seen[target][k]):
            found.append(k)
    return found


RIGHT = {"exercise-1": [0, 2, 3], "exercise-2": -2, "exercise-3": _allowed}
WRONG = {
    "exercise-1": [0, 1, 2],
    "exercise-2": 2,
    # the target itself is forgotten
    "exercise-3": lambda edges, seen, i, t: [
        k for k in range(len(edges)) if edges[i][k] and seen[t][k]
    ],
}


@pytest.mark.parametrize("slug", RIGHT)
def test_the_checker_knows_right_from_wrong(slug):
    assert judge(EXERCISES[slug], RIGHT[slug]) == "correct"
    assert judge(EXERCISES[slug], WRONG[slug]) != "correct"


def test_the_first_exercise_is_what_degrees_says():
    _, seen = observed(CHAIN)
    degree = degrees(CHAIN.edges, seen)
    pairs = [(1, 2), (1, 3), (0, 3)]
    assert [int(degree[t, s]) for s, t in pairs] == EXERCISES[
        "exercise-1"
    ].answer


def test_the_second_exercise_is_the_gradient():
    # four steps from i under j: three times to k = 0, u = 1/4 at zeros
    tables = [torch.zeros(1, 4, dtype=torch.double, requires_grad=True)] * 2
    zero = torch.zeros(4).int()
    following = torch.tensor([0, 0, 0, 1]).int()
    loss = two_table_loss(tables[0], tables[1].detach(), zero, zero, following)
    (grad,) = torch.autograd.grad(loss.sum(), tables[:1])
    assert grad[0, 0].item() == EXERCISES["exercise-2"].answer
