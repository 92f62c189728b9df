"""Chapter 37: horizons and responsibility against networkx and plain loops."""

import csv
import random
from statistics import mean

import networkx as nx
import numpy as np
import pytest
import torch
from seed_0 import in_the_ledger, measured

from lab.data import data_path
from lab.exercises import judge
from lab.models import accountability as ac
from lab.models import accountability_view as view
from lab.models import responsibility, supply_chain, visibility
from lab.models.responsibility import SPLITS
from lab.models.supply_chain import CHANCE, LEVELS, blind, chain, named


def as_networkx(whole):
    graph = nx.DiGraph()
    graph.add_nodes_from(range(whole.size))
    for i, row in enumerate(whole.lists):
        graph.add_edges_from((i, j) for j in row)
    return graph


def random_chain(seed, n=24, p=0.09):
    """A chain with cycles."""
    graph = nx.gnp_random_graph(n, p, seed=seed, directed=True)
    name = "abcdefghijklmnopqrstuvwxyz".__getitem__
    return chain({name(v): [name(w) for w in graph[v]] for v in graph})


# the products of a small chain without a cycle, told by hand
SMALL = chain(
    {"p": "abc", "a": "d", "b": "d", "c": "efg", "d": "h"}
    | dict.fromkeys("efgh", "")
)


def test_the_packages_are_those_of_the_file():
    with data_path(supply_chain.RECORDED).open() as file:
        rows = list(csv.DictReader(file))
    real = supply_chain.packages()
    assert len(rows) == real.size == 233
    assert sum(map(len, real.lists)) == 489
    assert len(set(real.owners)) == 148
    for row in rows:
        i = real.number(row["package"])
        asked = sorted(row["requires"].split())
        assert [real.names[j] for j in real.lists[i]] == asked
        assert real.owners[i] == row["owner"]
    assert nx.is_directed_acyclic_graph(as_networkx(real))


def test_owners_build_on_whom_their_packages_build_on():
    real, whole = supply_chain.packages(), supply_chain.owners()
    direct = {
        (real.owners[i], real.owners[j])
        for i, row in enumerate(real.lists)
        for j in row
        if real.owners[i] != real.owners[j]
    }
    found = {
        (whole.names[i], whole.names[j])
        for i, row in enumerate(whole.lists)
        for j in row
    }
    assert found == direct
    # some owners build on one another
    assert not nx.is_directed_acyclic_graph(as_networkx(whole))


@pytest.mark.parametrize("level", LEVELS)
def test_steps_are_shortest_paths(level):
    whole = named(level)
    graph, far = as_networkx(whole), ac.distances(level)
    for i, near in nx.all_pairs_shortest_path_length(graph):
        row = [near.get(j, -1) for j in range(whole.size)]
        assert far[i].tolist() == row
    above = [len(nx.descendants(graph, i)) for i in graph]
    below = [len(nx.ancestors(graph, i)) for i in graph]
    assert visibility.upstream(far).tolist() == above
    assert visibility.dependents(far).tolist() == below
    large = [i for i in graph if above[i] >= 10]
    assert visibility.products(far) == large
    assert len(large) == {"packages": 41, "owners": 20}[level]


def test_the_visible_share_leaves_the_actor_itself_out():
    far = visibility.steps(SMALL)
    p, h = SMALL.number("p"), SMALL.number("h")
    shares = [visibility.visible(far, k)[p].item() for k in range(4)]
    assert shares == [0, 3 / 8, 7 / 8, 1]
    # who has no supplier sees all there is
    assert visibility.visible(far, 1)[h] == 1
    ring = chain({"a": "b", "b": "c", "c": "a"})
    assert visibility.visible(visibility.steps(ring), 1).tolist() == [0.5] * 3


@pytest.mark.parametrize("seed", range(4))
def test_disclosure_makes_the_way_through_an_actor_free(seed):
    whole = random_chain(seed)
    who = random.Random(seed).sample(range(whole.size), 6)
    found = visibility.steps(visibility.disclosed(whole, who))
    assert torch.equal(
        found, visibility.steps(visibility.disclosed(whole, who[::-1]))
    )
    graph = as_networkx(whole)
    for i in graph:
        # the first step is never free
        cost = {(u, v): int(u == i or u not in who) for u, v in graph.edges}
        near = nx.single_source_dijkstra_path_length(
            graph, i, weight=lambda u, v, _, cost=cost: cost[u, v]
        )
        row = [near.get(j, -1) for j in graph]
        assert found[i].tolist() == row


def test_if_all_disclose_one_step_shows_everything():
    whole = random_chain(9)
    far = visibility.steps(visibility.disclosed(whole, range(whole.size)))
    assert far.max() == 1
    before = visibility.upstream(visibility.steps(whole))
    assert torch.equal(visibility.upstream(far), before)


@pytest.mark.parametrize("seed", range(3))
def test_disclosers_are_chosen_as_by_brute_force(seed):
    whole = random_chain(seed, p=0.12)
    rows, chosen = [1, 5, 8, 13], []
    for _ in range(4):
        gain = []
        for d in range(whole.size):
            far = visibility.steps(visibility.disclosed(whole, [*chosen, d]))
            gain.append(round(ac.seen(far, 1, rows), 6))
        chosen.append(gain.index(max(gain)))
    assert visibility.best_disclosers(whole, rows, 4) == chosen


def test_the_most_depended_on_have_something_to_disclose():
    real = supply_chain.packages()
    graph = as_networkx(real)
    some = [i for i in graph if graph.out_degree(i)]
    some.sort(key=lambda i: -len(nx.ancestors(graph, i)))
    assert visibility.most_depended_on(real, 10) == some[:10]
    # of all five most depended on, four have no supplier
    top = sorted(graph, key=lambda i: -len(nx.ancestors(graph, i)))[:5]
    assert sum(graph.out_degree(i) == 0 for i in top) == 4


def by_walking(whole, start, passed, known=None):
    """Responsibility without a matrix: every path is walked."""
    kept = [0.0] * whole.size
    todo = [(start, 1.0)]
    while todo:
        i, part = todo.pop()
        row = whole.lists[i] if known is None or i in known else []
        kept[i] += part * (1 - passed if row else 1)
        todo += [(j, part * passed / len(row)) for j in row]
    return kept


@pytest.mark.parametrize("passed", [0.0, 0.4, 0.9])
def test_responsibility_is_the_sum_over_all_paths(passed):
    real = supply_chain.packages()
    parts = responsibility.shares(real)
    for name in ("streamlit", "fastapi", "idna"):
        i = real.number(name)
        found = responsibility.flow(parts, i, passed)
        assert found.sum() == pytest.approx(1, abs=1e-12)
        right = by_walking(real, i, passed)
        assert found.tolist() == pytest.approx(right, abs=1e-12)


@pytest.mark.parametrize("split", SPLITS)
def test_on_cycles_it_is_the_limit_of_the_series(split):
    whole = random_chain(3)
    A = np.array(
        [[j in row for j in range(whole.size)] for row in whole.lists]
    )
    weight = A * A.sum(axis=0) if split != SPLITS[0] else A * 1.0
    every = weight.sum(axis=1, keepdims=True)
    P = np.divide(weight, every, where=every > 0, out=np.zeros(A.shape))
    parts = responsibility.shares(whole, split)
    assert parts.numpy() == pytest.approx(P)
    x, reached = np.eye(whole.size)[0], np.zeros(whole.size)
    for _ in range(300):
        reached, x = reached + x, 0.8 * x @ P
    right = np.where(every[:, 0] > 0, 0.2 * reached, reached)
    found = responsibility.flow(parts, 0, 0.8)
    assert found.numpy() == pytest.approx(right, abs=1e-12)


@pytest.mark.parametrize("h", [1, 2, 4])
def test_beyond_h_on_a_line_lies_a_power(h):
    line = chain({c: n for c, n in zip("abcdef", "bcdef ", strict=True)}
                 | {"f": ""})  # fmt: skip
    found = responsibility.flow(responsibility.shares(line), 0, 0.8)
    assert found[h + 1 :].sum() == pytest.approx(0.8 ** (h + 1))


@pytest.mark.parametrize("h", [1, 2])
def test_what_is_told_stops_where_no_list_is_known(h):
    real = supply_chain.packages()
    parts = responsibility.shares(real)
    for name in ("llama-index", "typer"):
        i = real.number(name)
        far = ac.distances("packages")[i]
        known = responsibility.known_lists(far, h)
        asked = {j for j in range(real.size) if 0 <= far[j] < h}
        assert set(known.nonzero()[:, 0].tolist()) == asked
        told = responsibility.as_told(parts, known, i, 0.7)
        right = by_walking(real, i, 0.7, asked)
        assert told.tolist() == pytest.approx(right, abs=1e-12)
        true = responsibility.flow(parts, i, 0.7)
        # all that lies beyond is misplaced, and may be not all
        beyond = true[(far > h) | (far < 0)].sum().item()
        wrong = responsibility.misplaced(true, told)
        assert wrong >= beyond - 1e-12
        assert wrong == pytest.approx(
            sum(max(0, t - s) for t, s in zip(true, told, strict=True)).item()
        )


def test_in_a_tree_the_square_of_what_is_passed_on_is_misplaced():
    tree = chain({"p": "ab", "a": "cd", "b": "e"} | dict.fromkeys("cde", ""))
    parts, far = responsibility.shares(tree), visibility.steps(tree)
    p = tree.number("p")
    known = responsibility.known_lists(far[p], 1)
    true, told = (
        responsibility.flow(parts, p, 0.6),
        responsibility.as_told(parts, known, p, 0.6),
    )
    assert responsibility.misplaced(true, told) == pytest.approx(0.36)


def test_who_discloses_is_asked_even_at_the_horizon():
    whole = visibility.disclosed(SMALL, [SMALL.number("c")])
    far = visibility.steps(whole)[SMALL.number("p")]
    known = responsibility.known_lists(far, 1, [SMALL.number("c")])
    assert {SMALL.names[i] for i in known.nonzero()[:, 0]} == {"p", "c"}
    # not if it is out of view
    known = responsibility.known_lists(far, 1, [SMALL.number("d")])
    assert {SMALL.names[i] for i in known.nonzero()[:, 0]} == {"p"}


@pytest.mark.parametrize("how", CHANCE)
def test_blind_chains_keep_the_lengths_of_lists_and_have_no_cycle(how):
    real = supply_chain.packages()
    depth = supply_chain.depths(real)
    for step, some in enumerate(nx.topological_generations(as_networkx(real))):
        assert {depth[i] for i in some} == {step}
    drawn = [blind(real, seed, how) for seed in (0, 0, 1)]
    assert torch.equal(drawn[0].col, drawn[1].col)
    assert not torch.equal(drawn[0].col, drawn[2].col)
    for one in drawn[1:]:
        assert torch.equal(one.rowptr, real.rowptr)
        assert all(len(set(row)) == len(row) for row in one.lists)
        graph = as_networkx(one)
        assert nx.is_directed_acyclic_graph(graph)
        if how == CHANCE[1]:
            assert all(depth[i] < depth[j] for i, j in graph.edges)


def test_chance_in_any_order_chooses_each_alike():
    whole = chain({"a": "cd", "b": "cd", "c": "", "d": "", "e": "", "f": ""})
    count = torch.zeros(6)
    for seed in range(300):
        count += torch.bincount(blind(whole, seed).col, minlength=6).cpu()
    # a and b can only be chosen by one another
    assert count[2:].min() > 220 and count[2:].max() < 320
    assert 30 < count[0] < 90 and 30 < count[1] < 90


def test_what_makes_no_chain_is_refused():
    with pytest.raises(ValueError, match="a builds on x, which has no list"):
        chain({"a": ["x"]})
    with pytest.raises(ValueError, match="a builds on itself"):
        chain({"a": ["a"]})
    with pytest.raises(ValueError, match="cycle has no depths"):
        blind(chain({"a": "b", "b": "a"}), 0, CHANCE[1])
    with pytest.raises(ValueError, match="how='so' is not one of in any"):
        blind(SMALL, 0, "so")
    with pytest.raises(ValueError, match="level='firms' is not one of"):
        named("firms")
    with pytest.raises(ValueError, match="'x' is not an actor"):
        SMALL.number("x")
    with pytest.raises(ValueError, match="h=-1 is less than 0"):
        visibility.visible(visibility.steps(SMALL), -1)
    with pytest.raises(ValueError, match="h=0 is less than 1"):
        responsibility.known_lists(torch.zeros(3), 0)
    parts = responsibility.shares(SMALL)
    for passed in (1.0, -0.1):
        with pytest.raises(ValueError, match="without 1"):
            responsibility.flow(parts, 0, passed)
    with pytest.raises(ValueError, match="split='half' is not one of"):
        responsibility.shares(SMALL, "half")
    with pytest.raises(ValueError, match="seed 41 stands for no product"):
        ac.product(41)


def test_an_empty_chain_and_one_without_suppliers_are_no_trouble():
    assert visibility.steps(chain({})).shape == (0, 0)
    alone = chain({"a": "", "b": ""})
    far = visibility.steps(alone)
    assert far.tolist() == [[0, -1], [-1, 0]]
    assert visibility.visible(far, 1).tolist() == [1, 1]
    found = responsibility.flow(responsibility.shares(alone), 1, 0.7)
    assert found.tolist() == [0, 1]


def test_what_is_installed_here_is_a_chain():
    here = supply_chain.installed()
    papermill = here.lists[here.number("papermill")]
    assert {"nbclient", "pyyaml"} <= {here.names[j] for j in papermill}


def test_claims_measure_what_the_ledger_says():
    found = measured(ac)
    assert found == pytest.approx(in_the_ledger(ac), abs=1e-6)
    assert len(found) == 7


def test_seeds_of_products_are_all_products():
    every = visibility.products(ac.distances("packages"))
    assert sorted(ac.product(seed) for seed in range(41)) == every
    for claim in ac.CLAIMS[:3]:
        assert claim.seeds == 41
    learn, judge = ac.halves(5)
    assert sorted(learn + judge) == every
    assert (len(learn), len(judge)) == (20, 21)
    # another limit than ten would turn the verdict, as its limits say
    far = ac.distances("packages")
    some = (visibility.upstream(far) > 0).nonzero()[:, 0].tolist()
    assert len(some) == 116
    assert ac.seen(far, 1, some) == pytest.approx(64, abs=0.5)


def test_the_weight_of_a_few_is_that_of_networkx():
    graph = as_networkx(supply_chain.packages())
    many = sorted((len(nx.ancestors(graph, i)) for i in graph), reverse=True)
    assert many[:5] == [69, 43, 35, 34, 30]
    found = ac.weight_of_few(ac.distances("packages"))
    assert found == pytest.approx(100 * sum(many[:5]) / sum(many))


def test_effects_are_what_they_are_called():
    real = supply_chain.packages()
    graph = as_networkx(real)
    i = ac.product(7)
    near = nx.single_source_shortest_path_length(graph, i)
    share = 100 * sum(d == 1 for d in near.values()) / (len(near) - 1)
    assert ac._seen(7, 1) == pytest.approx(share)
    drawn = as_networkx(blind(real, 3))
    large = [v for v in drawn if len(nx.descendants(drawn, v)) >= 10]
    shares = [
        100 * drawn.out_degree(v) / len(nx.descendants(drawn, v))
        for v in large
    ]
    right = mean(shares) - ac.seen(ac.distances("packages"), 1)
    assert ac._blind_shows(3, 1) == pytest.approx(right, abs=1e-4)
    both = [ac.wrong(i, 1, 0.7, split) for split in SPLITS]
    assert ac._wrong(7, 1, 0.7) == min(both) < max(both)


def test_the_important_are_judged_on_products_that_chose_nobody():
    real, (learn, judge) = supply_chain.packages(), ac.halves(2)
    far = [
        visibility.steps(visibility.disclosed(real, who))
        for who in (
            visibility.most_depended_on(real, 5),
            visibility.best_disclosers(real, learn, 5),
        )
    ]
    every = visibility.upstream(far[0])
    points = [
        100 * mean(((one[i] == 1).sum() / every[i]).item() for i in judge)
        for one in far
    ]
    right = points[0] - points[1]
    assert ac._important_show(2, 5) == pytest.approx(right, abs=1e-4)


def test_the_picture_shows_the_chain_of_its_product():
    real = supply_chain.packages()
    seen = view.picture()
    graph = as_networkx(real)
    start = real.number("llama-index")
    near = nx.single_source_shortest_path_length(graph, start)
    for step, row in enumerate(seen.rows):
        assert set(row) == {v for v, d in near.items() if d == step}
    assert set(seen.edges) == set(graph.subgraph(near).edges)
    assert seen.seen == {v for v, d in near.items() if d <= 1}
    assert seen.known == {start}
    assert seen.title == (
        "llama-index sees 4 of 67 suppliers; 45 % of the responsibility lies"
        " beyond"
    )
    assert seen.share == pytest.approx(100 * 4 / 67)
    assert view.picture(2).share > 8 * seen.share
    assert "61 of 67 suppliers; under 1 % of" in view.picture(3).title
    assert "67 of 67 suppliers; nothing lies" in view.picture(6).title


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("h", [1, 6])
@pytest.mark.parametrize("who", view.WHO)
def test_every_setting_makes_a_picture(level, h, who):
    for product in ("aiohttp-retry", "jupyterlab", "langgraph-sdk"):
        for disclosing, passed in ((0, 0.0), (10, 0.95)):
            one = view.picture(h, product, disclosing, who, passed, level)
            assert sum(one.true.values()) == pytest.approx(100)
            assert sum(one.told.values()) == pytest.approx(100)
            assert list(one.true) == list(one.told)
            assert one.told[view.BEYOND] == pytest.approx(0, abs=1e-9)
            assert one.wrong >= one.beyond - 1e-9
            for line in one.curves.values():
                assert line == sorted(line) and len(line) == 7
            assert one.known <= one.seen == set(one.sizes) & one.seen
            if h == 6:
                assert one.share == 100 and one.beyond < 1e-9


def test_disclosure_in_the_picture_lights_more():
    shares = {
        who: [view.picture(1, "llama-index", k, who).share for k in range(11)]
        for who in view.WHO
    }
    for line in shares.values():
        assert line == sorted(line)
    assert shares[view.CHOSEN][5] > 40 > 10 > shares[view.POPULAR][5]


@pytest.mark.parametrize(
    ("name", "right", "wrong"),
    [
        ("exercise-1", 0.8**3, 0.8**2),
        ("exercise-2", ("c", 6 / 8), ("d", 3 / 8)),
    ],
)
def test_values_are_checked(name, right, wrong):
    for answer, said in ((right, "correct"), (wrong, "expected")):
        assert said in judge(ac.EXERCISES[name], answer)


def test_exercise_2_is_told_of_its_chain():
    p = SMALL.number("p")
    share = {}
    for name in "abcdefgh":
        shown = visibility.disclosed(SMALL, [SMALL.number(name)])
        far = visibility.steps(shown)
        share[name] = visibility.visible(far, 1)[p].item()
    best = max(share, key=share.get)
    assert (best, share[best]) == ac.EXERCISES["exercise-2"].answer


def test_one_hop_too_many_is_not_accepted():
    def right(lists, hops):
        found = []
        for start in range(len(lists)):
            near, edge = {start}, {start}
            for _ in range(hops):
                edge = {j for i in edge for j in lists[i]}
                near |= edge
            found.append(sum(1 << j for j in near))
        return found

    def in_place(lists, hops):
        seen = [1 << i for i in range(len(lists))]
        for _ in range(hops):
            for i in reversed(range(len(lists))):
                for j in lists[i]:
                    seen[i] |= seen[j]
        return seen

    for answer, said in ((right, "correct"), (in_place, "expected")):
        assert said in judge(ac.EXERCISES["exercise-3"], answer)
