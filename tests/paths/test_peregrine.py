"""Chapter 53: patterns, plans and counts against networkx and plain loops."""

import math
from itertools import combinations, permutations

import networkx as nx
import pytest
import torch
from networkx.algorithms.isomorphism import GraphMatcher
from seed_0 import in_the_ledger, measured

from lab.exercises import judge
from lab.paths import graphs, peregrine, peregrine_view
from lab.paths.graphs import IDS, NAMES, from_edges, named, power_law
from lab.paths.guided_match import count, exists, grow, matched
from lab.paths.match_plan import ORDERS, Step, plan
from lab.paths.patterns import (
    PATTERNS,
    Pattern,
    automorphisms,
    conditions,
    core,
    induced,
    pattern,
)
from lab.paths.peregrine import EXERCISES, SIX
from lab.paths.unaware_match import copies, counted, explore_all

ATLAS = [
    g
    for g in nx.graph_atlas_g()
    if 2 <= len(g) <= 5 and g.number_of_edges() and nx.is_connected(g)
]
REAL = {
    "les miserables": nx.les_miserables_graph,
    "karate": nx.karate_club_graph,
    "florentine": nx.florentine_families_graph,
    "davis": nx.davis_southern_women_graph,
}


def as_pattern(graph):
    return Pattern(
        len(graph), frozenset(tuple(sorted(e)) for e in graph.edges)
    )


def as_networkx(one):
    graph = nx.Graph(list(one.edges))
    graph.add_nodes_from(range(one.size))
    return graph


def clique(k):
    return as_pattern(nx.complete_graph(k))


def by_brute_force(graph, one):
    """Matches of a pattern, all ways to choose and to arrange vertices."""
    found = 0
    for m in permutations(graph, one.size):
        found += (
            all(graph.has_edge(m[u], m[v]) for u, v in one.edges)
            and not any(graph.has_edge(m[u], m[v]) for u, v in one.anti)
            and not any(
                all(graph.has_edge(m[v], w) for v in group)
                for group in one.absent
                for w in set(graph) - set(m)
            )
        )
    return found / len(automorphisms(one))


@pytest.mark.parametrize("shape", ATLAS, ids=lambda g: g.name)
def test_symmetries_are_those_of_networkx(shape):
    one = as_pattern(shape)
    right = list(GraphMatcher(shape, shape).isomorphisms_iter())
    found = automorphisms(one)
    assert sorted(found) == sorted(
        tuple(m[v] for v in range(len(shape))) for m in right
    )
    assert sorted(automorphisms(induced(one))) == sorted(found)


@pytest.mark.parametrize("shape", ATLAS, ids=lambda g: g.name)
def test_of_the_copies_of_a_match_exactly_one_satisfies_all_conditions(shape):
    one = as_pattern(shape)
    rules = conditions(one)
    for m in permutations(range(one.size)):
        kept = sum(
            all(m[p[u]] < m[p[v]] for u, v in rules)
            for p in automorphisms(one)
        )
        assert kept == 1


def test_an_anti_edge_and_an_anti_vertex_take_symmetries_away():
    assert len(automorphisms(pattern("01 12 23 03"))) == 8
    assert len(automorphisms(pattern("01 12 23 03", anti="02"))) == 4
    assert len(automorphisms(pattern("01 12 23 03", absent="01"))) == 2


@pytest.mark.parametrize("shape", ATLAS, ids=lambda g: g.name)
@pytest.mark.parametrize("how", [lambda one: one, induced])
def test_the_core_is_a_smallest_connected_cover(shape, how):
    one = how(as_pattern(shape))
    found = core(one, conditions(one))

    def covers(some):
        pairs = one.edges | one.anti
        meets = all(set(pair) & set(some) for pair in pairs)
        return meets and nx.is_connected(shape.subgraph(some))

    assert covers(found)
    for fewer in combinations(range(one.size), len(found) - 1):
        assert not fewer or not covers(fewer)


def test_of_equal_covers_the_one_with_more_conditions_is_the_core():
    ring = PATTERNS["4-cycle"]
    assert core(ring, ((0, 3), (2, 3))) == (0, 2, 3)
    # then the one with more edges: both triangles of this pattern's middle
    assert core(PATTERNS["house"]) == (0, 1, 2)
    assert core(PATTERNS["3-star"]) == (0,)
    assert core(clique(5)) == (0, 1, 2, 3)


@pytest.mark.parametrize("shape", ATLAS, ids=lambda g: g.name)
def test_counts_are_those_of_networkx(shape):
    data = nx.gnp_random_graph(13, 0.45, seed=len(shape))
    graph = from_edges(data.edges)
    one = as_pattern(shape)
    matcher = GraphMatcher(data, shape)
    group = len(automorphisms(one))
    any_ = sum(1 for _ in matcher.subgraph_monomorphisms_iter())
    only = sum(1 for _ in matcher.subgraph_isomorphisms_iter())
    for found, right in ((one, any_), (induced(one), only)):
        for symmetry in (True, False):
            for order in ORDERS:
                steps = plan(found, symmetry, order)
                # without conditions every match comes once per symmetry
                assert count(graph, steps).matches == (
                    right / group * steps.copies
                )
                assert steps.copies == (1 if symmetry else group)


@pytest.mark.parametrize(
    "one",
    [
        pattern("01 12 23 03", anti="02"),
        pattern("01 02 03", anti="12"),
        pattern("01 12 23", anti="03"),
        pattern("01", absent="01"),
        pattern("01 02 12", absent="012"),
        pattern("01 02 12 03", absent="01 12"),
        pattern("01 12", anti="02", absent="02"),
        # what one end is joined to, the other must avoid
        pattern("01 12 23", anti="02"),
        pattern("01 12 23", anti="02 13"),
    ],
)
@pytest.mark.parametrize("order", ORDERS)
def test_anti_edges_and_anti_vertices_are_those_of_brute_force(one, order):
    data = nx.gnp_random_graph(11, 0.4, seed=5)
    graph = from_edges(data.edges)
    data.remove_nodes_from(list(nx.isolates(data)))
    right = by_brute_force(data, one)
    assert right > 0
    assert count(graph, plan(one, True, order)).matches == right


def test_a_matched_vertex_is_no_anti_vertex():
    # of the three in a triangle, the third is joined to both others
    triangle = from_edges([(0, 1), (0, 2), (1, 2)])
    one = pattern("01 12", absent="02")
    assert count(triangle, plan(one)).matches == 3


@pytest.mark.parametrize("n", [4, 9])
def test_complete_graphs_have_binomially_many(n):
    whole = from_edges(combinations(range(n), 2))
    for name, one in PATTERNS.items():
        if one.size <= n:
            ways = math.perm(n, one.size) / len(automorphisms(one))
            assert count(whole, plan(one)).matches == ways, name
            only = count(whole, plan(induced(one))).matches
            is_clique = name == "triangle" or "clique" in name
            assert only == (ways if is_clique else 0), name


def test_bipartite_graphs_have_rings_and_stars_and_no_triangle():
    a, b = 5, 7
    graph = from_edges((u, a + v) for u in range(a) for v in range(b))
    found = {
        name: count(graph, plan(one)).matches for name, one in PATTERNS.items()
    }
    assert found["triangle"] == found["diamond"] == found["house"] == 0
    assert found["4-cycle"] == math.comb(a, 2) * math.comb(b, 2)
    assert found["3-star"] == a * math.comb(b, 3) + b * math.comb(a, 3)


def test_the_real_graphs_are_those_of_networkx():
    for name, make in REAL.items():
        data = nx.convert_node_labels_to_integers(
            nx.Graph(sorted(tuple(sorted(e)) for e in make().edges))
        )
        graph = named(name)
        assert graph.size == len(data)
        found = nx.Graph(graph.pairs)
        assert nx.is_isomorphic(found, data)
        triangles = sum(nx.triangles(data).values()) / 3
        assert count(graph, plan(PATTERNS["triangle"])).matches == triangles
        cliques = sum(len(c) == 4 for c in nx.enumerate_all_cliques(data))
        assert count(graph, plan(clique(4))).matches == cliques
        assert len(graphs.drawing(name, graph)) == graph.size


@pytest.mark.parametrize(
    ("name", "right"),
    [("les miserables", [467, 15177, 2672, 4544, 639, 64807]),
     ("karate", [45, 1764, 154, 151, 11, 781])],
)  # fmt: skip
def test_counts_of_real_graphs_are_the_known_ones(name, right):
    names = ("triangle", "3-star", "4-cycle", "diamond", "4-clique", "house")
    graph = named(name)
    found = [count(graph, plan(PATTERNS[n])).matches for n in names]
    assert found == right
    only = {n: count(graph, plan(induced(PATTERNS[n]))).matches for n in names}
    # every way to have more edges than the pattern is taken off
    assert right[3] == only["diamond"] + 6 * right[4]
    assert right[2] == only["4-cycle"] + only["diamond"] + 3 * right[4]


def lists_of(graph):
    return [
        graph.col[a:b].tolist()
        for a, b in zip(graph.rowptr, graph.rowptr[1:])  # noqa: B905
    ]


def shortest_list(lists, match, step):
    """Of the lists that a step allows, the shortest within the bounds."""
    low = max([match[p] for p in step.above], default=-1)
    high = min([match[p] for p in step.below], default=len(lists))
    pieces = [
        [w for w in lists[match[p]] if low < w < high] for p in step.near
    ]
    return min(pieces, key=len)


def those_that_fit(lists, match, step):
    return [
        w
        for w in shortest_list(lists, match, step)
        if all(w in lists[match[p]] for p in step.near)
        and not any(w in lists[match[p]] for p in step.far)
        and w not in match
    ]


def looked_at(graph, steps):
    """Candidates of each matched vertex, depth-first and with plain lists."""
    lists, levels = lists_of(graph), [0] * (len(steps) + 1)

    def go(match):
        if len(match) > len(steps):
            return
        step = steps[len(match) - 1]
        levels[len(match)] += len(shortest_list(lists, match, step))
        for w in those_that_fit(lists, match, step):
            go([*match, w])

    for v in range(len(lists)):
        levels[0] += 1
        go([v])
    return tuple(levels)


@pytest.mark.parametrize("name", SIX)
@pytest.mark.parametrize("how", [lambda one: one, induced])
def test_the_work_is_that_of_a_depth_first_loop(name, how):
    for symmetry, order in ((True, ORDERS[1]), (False, ORDERS[2])):
        one = plan(how(PATTERNS[name]), symmetry, order)
        found = count(named("karate"), one)
        assert found.levels == looked_at(named("karate"), one.steps)
        assert found.candidates == sum(found.levels) == found.starts.sum()


def tail_looked_at(graph, one):
    """Candidates of the counted vertices, with plain lists."""
    lists, looked, shared, read = lists_of(graph), 0, 0, {}
    for match in matched(graph, one)[0].tolist():
        for step in one.tail[:2]:
            if len(step.near) == 1 and not step.far:
                # a length; the others of the match may lie in this list
                looked += len(match) - 1
            else:
                looked += len(shortest_list(lists, match, step))
                found = len(those_that_fit(lists, match, step))
                read[step] = read.get(step, 0) + found
        for step in one.tail[2:]:
            shared += len(shortest_list(lists, match, step))
    if len(one.tail) == 3:
        # what was read is gone through, or else the shorter of both lists
        looked += min(read.values(), default=shared)
    return looked


@pytest.mark.parametrize(
    ("one", "lengths"),
    [
        (PATTERNS["3-star"], 1),
        (PATTERNS["diamond"], 0),
        (PATTERNS["tailed triangle"], 1),
        (pattern("01 12 23"), 2),
        # both sets are read
        (pattern("01 02 12 03 13 14 24"), 0),
        # one list less another
        (pattern("01 12 23", anti="02"), 1),
    ],
)
def test_counted_work_is_that_of_a_loop(one, lengths):
    graph = named("karate")
    for symmetry in (True, False):
        steps = plan(one, symmetry)
        known = [len(s.near) == 1 and not s.far for s in steps.tail[:2]]
        assert sum(known) == lengths
        found = count(graph, steps)
        assert found.tail == tail_looked_at(graph, steps)
        assert found.levels == looked_at(graph, steps.steps)
        assert found.starts.sum() == found.candidates


def test_a_star_is_counted_from_lengths_alone():
    star = count(named("karate"), plan(PATTERNS["3-star"]))
    assert (star.levels, star.tail) == ((34,), 0)


def test_siblings_are_counted_in_the_order_of_the_conditions_or_in_any():
    star = from_edges((0, v) for v in range(1, 8))
    for leaves in (2, 3, 4, 5):
        one = as_pattern(nx.star_graph(leaves))
        kept, all_of_them = plan(one), plan(one, symmetry=False)
        assert kept.siblings == all_of_them.siblings == leaves
        assert count(star, kept).matches == math.comb(7, leaves)
        assert count(star, all_of_them).matches == math.perm(7, leaves)


def test_a_large_star_overflows_no_count():
    star = from_edges((0, v) for v in range(1, 3001))
    one = plan(as_pattern(nx.star_graph(4)))
    assert count(star, one).matches == math.comb(3000, 4) > 2**31


@pytest.mark.parametrize("k", [3, 4, 5, 6])
def test_existence_is_told_at_the_first_match(k):
    graph = named("karate")
    one = plan(clique(k), True, ORDERS[1])
    there, looked = exists(graph, one)
    every = count(graph, one)
    assert there == (k < 6) == (every.matches > 0)
    if there:
        assert looked < every.candidates / 3
    else:
        assert looked == every.candidates


@pytest.mark.parametrize(
    ("pairs", "there"),
    [([(0, 1), (1, 2), (0, 2)], False), ([(0, 1), (1, 2)], True), ([], False)],
)
def test_existence_asks_for_anti_vertices_too(pairs, there):
    one = plan(pattern("01", absent="01"))
    graph = from_edges(pairs)
    assert exists(graph, one)[0] == there == (count(graph, one).matches > 0)


def test_bounds_that_cross_leave_no_candidate():
    graph = from_edges(combinations(range(6), 2))
    matches = torch.tensor([[4, 1], [1, 4]]).int()
    grown = grow(graph, matches, Step((0, 1), (), above=(0,), below=(1,)))
    assert grown.candidates.tolist() == [0, 2]
    assert grown.vertex.tolist() == [2, 3]
    assert grown.match.tolist() == [1, 1]


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_the_unaware_search_makes_every_connected_set_once(k):
    data = nx.gnp_random_graph(12, 0.25, seed=2)
    data.remove_nodes_from(list(nx.isolates(data)))
    graph = from_edges(data.edges)
    found = explore_all(graph, k)
    for size in range(1, k + 1):
        right = sum(
            nx.is_connected(data.subgraph(some))
            for some in combinations(data, size)
        )
        assert found.made[size - 1] == right
    assert found.checks == found.kinds.sum() == found.made[-1]


def test_unaware_candidates_are_those_of_a_loop():
    graph = named("florentine")
    lists = lists_of(graph)
    sets, levels = [[v] for v in range(graph.size)], [graph.size]
    for _ in range(3):
        longer, looked = [], 0
        for some in sets:
            for p, u in enumerate(some):
                low = max(some[0], *some[p + 1 :], -1)
                bounded = [w for w in lists[u] if w > low]
                looked += len(bounded)
                longer += [
                    [*some, w]
                    for w in bounded
                    if w not in some
                    and not any(w in lists[v] for v in some[:p])
                ]
        sets = longer
        levels.append(looked)
    assert explore_all(graph, 4).levels == tuple(levels)


@pytest.mark.parametrize("name", [*SIX, "house"])
def test_both_searches_count_the_same(name):
    for graph in (named("karate"), peregrine.hubs(7, 60)):
        for one in (PATTERNS[name], induced(PATTERNS[name])):
            known = explore_all(graph, one.size)
            assert counted(known, one) == count(graph, plan(one)).matches


def test_kinds_hold_each_pattern_as_often_as_brute_force_finds():
    one = PATTERNS["diamond"]
    table = copies(one).tolist()
    pairs = [(0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3)]
    for kind in range(64):
        data = nx.empty_graph(4)
        data.add_edges_from(p for b, p in enumerate(pairs) if kind >> b & 1)
        assert table[kind] == by_brute_force(data, one)


@pytest.mark.parametrize("ids", IDS)
def test_numbers_follow_the_degree_and_lists_are_sorted(ids):
    pairs = [(7, 9), (9, 7), (3, 3), (9, 2), (2, 7), (9, 4), (5, 9), (5, 7)]
    graph = from_edges(pairs, ids)
    data = nx.Graph(p for p in pairs if p[0] != p[1])
    assert sorted(graph.names.tolist()) == sorted(data)
    names = graph.names.tolist()
    lists = lists_of(graph)
    for v, near in enumerate(lists):
        assert near == sorted(near)
        assert {names[w] for w in near} == set(data[names[v]])
    degrees = [len(near) for near in lists]
    if ids != "shuffled":
        assert degrees == sorted(degrees, reverse=ids == "largest first")
    # among equal degrees a lower number stays lower
    if ids == "largest first":
        assert names == [9, 7, 2, 5, 4]
    V = graph.size
    assert graph.edges.tolist() == sorted(
        u * V + w for u, near in enumerate(lists) for w in near
    )


def test_a_random_graph_has_hubs_and_triangles():
    n, m = 400, 4
    flat = nx.Graph(power_law(n, m, 0.0, 0))
    data = nx.Graph(power_law(n, m, 0.9, 0))
    right = nx.powerlaw_cluster_graph(n, m, 0.9, seed=0)
    for graph in (flat, data):
        assert nx.is_connected(graph) and len(graph) == n
        assert graph.number_of_edges() == (n - m) * m
        assert max(d for _, d in graph.degree) > 8 * m
    assert nx.transitivity(data) > 3 * nx.transitivity(flat)
    assert nx.average_clustering(data) == pytest.approx(
        nx.average_clustering(right), abs=0.1
    )
    assert power_law(n, m, 0.9, 0) != power_law(n, m, 0.9, 1)


def test_claims_measure_what_the_ledger_says():
    # these need no search of all subgraphs of a graph with 1000 vertices
    slow = [
        "fewer-candidates",
        "fewer-for-every-pattern",
        "larger-graphs-gain-more",
    ]
    found = measured(peregrine, but=slow)
    right = in_the_ledger(peregrine)
    assert found == pytest.approx({name: right[name] for name in found})
    assert len(found) == 4


def test_effects_are_ratios_of_candidates():
    n, claims = 80, {claim.slug: claim for claim in peregrine.CLAIMS}
    graph = from_edges(power_law(n, 4, 0.3, 3))

    def work(name, symmetry=True, order=ORDERS[1]):
        return count(graph, plan(PATTERNS[name], symmetry, order)).candidates

    def of(slug):
        return claims[slug].experiment(3, n=n)

    whole = {k: explore_all(graph, k).candidates for k in (3, 4)}
    factors = {name: whole[PATTERNS[name].size] / work(name) for name in SIX}
    assert of("fewer-candidates") == factors["4-clique"]
    assert of("fewer-for-every-pattern") == min(factors.values())
    few = from_edges(power_law(n // 4, 4, 0.3, 3))
    small = (
        explore_all(few, 4).candidates
        / count(few, plan(clique(4), True, ORDERS[1])).candidates
    )
    assert of("larger-graphs-gain-more") == factors["4-clique"] / small
    assert of("symmetries-divide-the-work") == pytest.approx(
        100 * work("4-clique", symmetry=False) / work("4-clique") / 24
    )
    assert of("counting-is-faster") == min(
        work(name) / work(name, order=ORDERS[0])
        for name in ("3-star", "tailed triangle", "diamond")
    )


def merged(graph, plan):
    """Candidates if every list is read, within the bounds, and not one."""
    lists, looked = lists_of(graph), graph.size
    for size, step in enumerate(plan.steps):
        for match in matched(graph, plan._replace(steps=plan.steps[:size]))[0]:
            m = match.tolist()
            low = max([m[p] for p in step.above], default=-1)
            high = min([m[p] for p in step.below], default=graph.size)
            for p in step.near:
                looked += sum(low < w < high for w in lists[m[p]])
    return looked


def test_with_whole_lists_the_plan_saves_less_as_the_text_says():
    one = plan(clique(4), True, ORDERS[1])
    # 24 is the mean of ten graphs
    whole = peregrine.explored(0, 1000, 4).candidates
    found = whole / merged(peregrine.hubs(0, 1000), one)
    assert found == pytest.approx(24, abs=1)


def test_without_hubs_a_larger_graph_saves_no_more():
    def saved(n):
        graph = from_edges(nx.gnm_random_graph(n, 4 * n, seed=0).edges)
        one = plan(clique(4), True, ORDERS[1])
        return explore_all(graph, 4).candidates / count(graph, one).candidates

    assert saved(1000) == pytest.approx(saved(250), rel=0.1)


def test_partial_matches_that_lead_on_are_counted_once():
    n = 80
    data = nx.Graph(from_edges(power_law(n, 4, 0.3, 1)).pairs)
    whole = [sorted(c) for c in nx.enumerate_all_cliques(data) if len(c) == 4]
    # the plan begins with the third lowest, then takes the second, the lowest
    useful = {tuple(c[2:3]) for c in whole} | {(c[2], c[1]) for c in whole}
    useful |= {(c[2], c[1], c[0]) for c in whole}
    triangles = sum(nx.triangles(data).values()) // 3
    made = n + data.number_of_edges() + triangles
    claim = next(c for c in peregrine.CLAIMS if c.slug == "no-dead-ends")
    assert claim.experiment(1, n=n) == pytest.approx(100 * len(useful) / made)


def test_the_picture_shows_one_match_and_its_search():
    view = peregrine_view.picture("diamond", False, kind="induced")
    edges = nx.Graph(view.pairs)
    for u, v in view.matched_edges["its edges"][1]:
        assert edges.has_edge(u, v)
    for u, v in view.pattern.anti:
        assert not edges.has_edge(view.match[u], view.match[v])
    assert view.matches == 710 and view.repeats == 4
    assert view.made["found"] == 4 * 710
    assert view.title.startswith("710 matches, each found 4 times")
    assert "4 symmetries, 0 conditions" in view.note
    assert sorted(v for _, some in view.parts.values() for v in some) == [
        0, 1, 2, 3,
    ]  # fmt: skip


def test_a_picture_without_a_match_has_none():
    view = peregrine_view.picture("triangle", graph="davis")
    assert view.match == [] and view.matches == 0
    assert view.title == "No match in 242 candidates"
    assert view.matched_edges["its edges"][1] == []
    assert view.costs["these settings"] == view.costs["Peregrine"] > 0


def test_the_sentences_of_the_widget_are_true():
    def looked(name, **more):
        return peregrine_view.picture(name, **more).work.candidates

    unaware = peregrine_view.picture("4-clique").costs["pattern-unaware"]
    assert looked("4-clique", symmetry=False) > unaware > looked("4-clique")
    assert looked("3-star", symmetry=False) == looked("3-star")
    assert looked("3-star", symmetry=False, order=ORDERS[1]) > 5 * looked(
        "3-star", order=ORDERS[1]
    )
    for name in NAMES:
        fewer = looked("4-cycle", ids="smallest first", graph=name)
        assert fewer < looked("4-cycle", graph=name)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: pattern("01 23"), "not connected"),
        (lambda: pattern("00 01"), "two different vertices"),
        (lambda: pattern("01 12", anti="01"), "not both"),
        (lambda: pattern("01", absent="02"), "only vertices 0 to 1"),
        (lambda: pattern("01", absent="00"), "each neighbour once"),
        (lambda: pattern("0a"), "'a' is no vertex"),
        (
            lambda: exists(named("davis"), plan(PATTERNS["triangle"])),
            "use order='core first, matched'",
        ),
        (
            lambda: counted(
                explore_all(named("florentine"), 3), PATTERNS["4-clique"]
            ),
            "the subgraphs have 3 vertices, the pattern has 4",
        ),
        (lambda: from_edges([(0, 1, 0.5)]), "leave weights out"),
        (lambda: pattern(""), "1 vertices; use 2 to 7"),
        (lambda: pattern("01 12 23 34 45 56 67"), "8 vertices; use 2 to 7"),
        (lambda: plan(PATTERNS["triangle"], True, "any"), "order='any'"),
        (lambda: named("zoo"), "name='zoo'"),
        (lambda: from_edges([(0, 1)], "by name"), "ids='by name'"),
        (lambda: power_law(4, 4, 0.3, 0), "m=4 does not fit n=4"),
        (
            lambda: counted(
                explore_all(named("florentine"), 2), pattern("01", absent="01")
            ),
            "match the pattern by plan",
        ),
    ],
)
def test_wrong_arguments_are_refused_in_a_sentence(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()


def _one_step(lists, match, near, far, low):
    some = set.intersection(*(set(lists[match[p]]) for p in near))
    for p in far:
        some -= set(lists[match[p]])
    return sorted(w for w in some - set(match) if w > low)


RIGHT = {"exercise-1": (1, 3), "exercise-2": 710, "exercise-3": _one_step}
WRONG = {
    "exercise-1": (0, 2),
    "exercise-2": 4544 - 639,
    "exercise-3": lambda lists, match, near, far, low: _one_step(
        lists, match, near, [], low
    ),
}


@pytest.mark.parametrize("slug", RIGHT)
def test_the_checker_knows_right_from_wrong(slug):
    assert judge(EXERCISES[slug], RIGHT[slug]) == "correct"
    assert judge(EXERCISES[slug], WRONG[slug]) != "correct"
