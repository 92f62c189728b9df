"""Requests, links and chains: against the authors' own simulator, cards that
are lists, density matrices and networkx."""

import csv
import itertools
import re

import networkx as nx
import numpy as np
import pytest
from seed_0 import in_the_ledger, measured

from lab.data import data_path
from lab.exercises import judge
from lab.networks import (
    entanglement,
    quantum_network,
    reservations,
    starlight,
)
from lab.networks import quantum_network_recorded as recorded
from lab.networks.starlight import (
    MEMORIES,
    NAMES,
    RAW,
    fibre_count,
    fibre_of,
    fibres,
    path_load,
    placement,
)

UNEQUAL = [24, 91, 67, 24, 67, 24, 105, 24, 24]


def graph():
    net = nx.Graph()
    for (u, v), km in zip(fibres().ends.tolist(), fibres().km, strict=True):
        net.add_edge(u, v, weight=km)
    return net


def test_paths_are_the_shortest_ones():
    net = graph()
    assert len(net) == 9 and net.number_of_edges() == 10
    for (u, v), way in fibres().path.items():
        assert list(way) == nx.dijkstra_path(net, u, v)
    assert len(fibres().path) == 72


def test_the_load_counts_two_memories_for_each_router_on_the_way():
    net, load = graph(), np.zeros(9)
    for u, v in itertools.permutations(net, 2):
        for router in nx.dijkstra_path(net, u, v):
            load[router] += 1 if router in (u, v) else 2
    assert path_load().tolist() == load.tolist()
    assert fibre_count().tolist() == [net.degree(v) for v in range(9)]


@pytest.mark.parametrize("blend", [0.0, 0.05, 0.5, 0.75, 1.0])
def test_a_placement_shares_out_all_memories(blend):
    for weight in (path_load(), fibre_count()):
        held = placement(blend, weight)
        assert sum(held) == MEMORIES
        exact = (1 - blend) * 50 + blend * 450 * weight / weight.sum()
        off = np.delete(held - exact, weight.argmax())
        assert np.abs(off).max() <= 0.5
    assert placement(0.0) == [50] * 9 and placement(1.0) == UNEQUAL


@pytest.mark.parametrize(
    ("name", "memories"), [("uniform", [50] * 9), ("unequal", UNEQUAL)]
)
def test_requests_are_accepted_as_by_the_authors_simulator(name, memories):
    with data_path("starlight/reservations.csv").open(newline="") as file:
        rows = [
            [int(x) for x in list(row.values())[1:]]
            for row in csv.DictReader(file)
            if row["placement"] == name
        ]
    draws = [np.random.default_rng(router) for router in range(9)]
    served = reservations.serve_draws(memories, 400, draws)
    mine = [
        [one.path[0], one.path[-1], 1e6 * one.start, 1e6 * one.end,
         one.memories, 1e6 * (one.start - one.asked)]
        for one in served.accepted
    ]  # fmt: skip
    mine.sort(key=lambda row: (int(row[2]), row[0]))
    assert len(mine) == len(rows) > 80
    # the recording cuts off below a microsecond
    assert np.abs(np.array(mine) - rows).max() <= 1.001


def test_requests_of_half_the_memories_are_as_many_as_in_the_papers_runs():
    # completed requests there, mean of ten seeds
    for memories, theirs in (([50] * 9, 227.1), (starlight.PAPER, 384.0)):
        mine = quantum_network.mean_accepted(memories, half=True)
        assert mine == pytest.approx(theirs, rel=0.05)
    most = [held // 2 for held in starlight.PAPER]
    served = reservations.serve(starlight.PAPER, 300, 0, most)
    for router, held in enumerate(starlight.PAPER):
        mine = [x.memories for x in served.accepted if x.path[0] == router]
        assert 10 <= min(mine) and max(mine) < held // 2


def test_masks_are_cards_with_lists_of_reservations():
    random = np.random.default_rng(5)
    mine = reservations.Cards(12)
    cards = [[] for _ in range(12)]
    for now in range(300):
        start = now + int(random.integers(1, 4))
        end = start + int(random.integers(0, 12))
        count = int(random.integers(1, 9))
        free = [
            card
            for card in cards
            if all(b < start or a > end for _, a, b in card)
        ][:count]
        fits = len(free) == count
        if fits:
            for card in free:
                card.append((now, start, end))
        assert mine.take(now, start, end, count, now) == fits
        if now % 3 == 0:
            # a rejection frees the cards again
            mine.release(now - 2)
            for card in cards:
                card[:] = [one for one in card if one[0] != now - 2]


def test_nobody_reserves_what_is_not_there():
    served = reservations.serve(UNEQUAL, 300, 3)
    assert len(served.accepted) > 60
    for moment in np.arange(0, 320, 0.5):
        taken = np.zeros(9)
        for one in served.accepted:
            if one.start <= moment <= one.end:
                taken[list(one.path)] += 2 * one.memories
                taken[[one.path[0], one.path[-1]]] -= one.memories
        assert (taken <= UNEQUAL).all()


def test_a_router_asks_again_when_its_request_ends():
    served = reservations.serve([50] * 9, 300, 4)
    for router in range(9):
        mine = [one for one in served.accepted if one.path[0] == router]
        for one, other in itertools.pairwise(mine):
            assert other.asked == pytest.approx(one.end)
        for one in mine:
            # lengths are drawn anew for every try, a second apart
            waited = one.start - one.asked
            assert one.tries <= waited + 1 <= 1.02 * one.tries + 2
            assert 10 <= one.end - one.start <= 20
            assert 10 <= one.memories <= 24
    open_ = {one.path[0] for one in served.waiting}
    assert len(served.waiting) == len(open_)


def test_the_chances_of_a_link_are_those_of_counted_photons():
    for km, efficiency in ((20, 0.75), (66, 0.75), (0, 1.0)):
        eta = efficiency * 0.8 * 10 ** (-0.02 * km / 2)
        assert entanglement.counted(km, efficiency) == pytest.approx(eta)
        first = both = 0.0
        # each memory emits in the first round or, after X, in the second
        for early in itertools.product([0, 1], repeat=2):
            one, two = sum(early), 2 - sum(early)
            click = 1 - (1 - eta) ** one
            first += click / 4
            both += click * (1 - (1 - eta) ** two) / 4
        found = entanglement.hop(km, 1.0, efficiency)
        assert found.p == pytest.approx(both)
        assert found.ms == pytest.approx((1 + first) * (3 + km / 200))


def rates(**setting):
    return np.mean(
        [entanglement.simulated_rate(s, **setting) for s in range(5)]
    )


@pytest.mark.parametrize("delay", [0.1, 0.5, 1.0, 2.0])
def test_a_link_makes_as_many_pairs_as_the_authors_simulator(delay):
    one = entanglement.hop(20, delay)
    assert 1000 * one.p / one.ms == pytest.approx(rates(delay=delay), rel=0.1)


def test_so_do_short_links_and_dim_memories():
    one = entanglement.hop(2, 0.5)
    assert 1000 * one.p / one.ms == pytest.approx(rates(km=2.0), rel=0.05)
    one = entanglement.hop(20, 0.5, 0.375)
    theirs = rates(efficiency=0.375)
    assert 1000 * one.p / one.ms == pytest.approx(theirs, rel=0.1)


def test_fidelities_are_those_of_the_authors_simulator():
    for run in entanglement.simulated():
        assert entanglement.swapped(run.hops) == pytest.approx(
            run.fidelity, abs=1e-9
        )
    assert {run.hops for run in entanglement.simulated()} == {1, 2, 3, 4}


def by_density_matrices(fidelity):
    """Two Werner pairs, a CNOT at both ends, the second pair measured."""
    bell = np.zeros((4, 4))
    bell[np.ix_([0, 3], [0, 3])] = 0.5
    pair = fidelity * bell + (1 - fidelity) / 3 * (np.eye(4) - bell)
    both = np.kron(pair, pair)  # qubits a1 b1 a2 b2
    moved = np.zeros((16, 16))
    for a1, b1, a2, b2 in itertools.product([0, 1], repeat=4):
        before = 8 * a1 + 4 * b1 + 2 * a2 + b2
        moved[8 * a1 + 4 * b1 + 2 * (a2 ^ a1) + (b2 ^ b1), before] = 1
    after = (moved @ both @ moved.T).reshape(4, 4, 4, 4)
    kept = after[:, 0, :, 0] + after[:, 3, :, 3]
    chance = np.trace(kept)
    return chance, np.trace(kept @ bell) / chance


@pytest.mark.parametrize("fidelity", [0.55, 0.8, RAW, 1.0])
def test_purifying_is_what_density_matrices_say(fidelity):
    found = entanglement.purified(fidelity)
    assert found == pytest.approx(by_density_matrices(fidelity))


@pytest.mark.parametrize("fidelity", [0.5, 1.1, float("nan")])
def test_what_cannot_be_purified_is_refused(fidelity):
    with pytest.raises(ValueError, match="use more than 0.5"):
        entanglement.purified(fidelity)


def test_a_run_that_was_not_recorded_is_refused():
    with pytest.raises(ValueError, match="seeds 0 to 4"):
        entanglement.simulated_rate(99)
    with pytest.raises(ValueError, match="no run"):
        entanglement.simulated_rate(0, km=21.0)


def test_a_path_is_slower_than_its_slowest_hop():
    rate = quantum_network.path_rates(trials=300)
    assert set(rate) == set(fibres().path.values())
    for way, pairs in rate.items():
        one = quantum_network.path_hops(way)
        assert len(one.p) == len(way) - 1
        slowest = (1000 * one.p / one.ms).min()
        assert 0.35 * slowest < pairs < 1.25 * slowest
        assert pairs == rate[way[::-1]]
    slow = quantum_network.path_rates(2.0, trials=300)
    assert all(slow[way] < rate[way] for way in rate)


def test_throughput_adds_up_what_every_request_gets():
    request = reservations.Request((0, 1), 10, 0.0, 2.0, 12.0, 1)
    late = request._replace(path=(0, 1, 2), start=90.0, end=105.0)
    never = request._replace(start=101.0, end=111.0)
    served = reservations.Served([request, late, never], [], 100.0)
    rate = {(0, 1): 2.0, (0, 1, 2): 0.5}
    # 10 * 10 * 2 and 10 * 10 * 0.5
    assert quantum_network.throughput(served, rate) == pytest.approx(2.5)
    assert quantum_network.accepted(served) == 2


PATH = (0, 1, 6)


def test_lanes_are_chains_as_the_kernel_runs_them():
    one = quantum_network.path_hops(PATH)
    seen = recorded.lanes(PATH, 12, 60_000.0, 3, 1.0, 0.75)
    assert seen.begins[0].tolist() == [0.0] * 12
    cycles = np.diff(seen.begins, axis=0)
    rate = quantum_network.path_rates()[PATH]
    assert 1000 / cycles.mean() == pytest.approx(rate, rel=0.06)
    waits = seen.falls - seen.rises
    assert waits.min() == 0 and waits.max() <= entanglement.COHERENCE
    # in each cycle one of the hops is the last, and waits for nobody
    assert (waits == 0).sum() == seen.begins.size
    for hop in range(2):
        tries = 1000 * seen.rises[seen.hops == hop] / one.ms[hop]
        assert len(tries) >= seen.begins.size


def test_dim_memories_lose_pairs_that_grow_old():
    seen = recorded.lanes((5, 4, 1), 4, 20_000.0, 0, 2.0, 0.4)
    dropped = len(seen.rises) - 2 * seen.begins.size
    assert dropped > 0
    waits = seen.falls - seen.rises
    assert (np.isclose(waits, entanglement.COHERENCE)).sum() == dropped


def test_a_memory_holds_one_pair_at_a_time():
    seen = recorded.lanes((5, 4, 1), 1, 60_000.0, 1, 2.0, 0.4)
    for hop in range(2):
        mine = seen.hops == hop
        order = seen.rises[mine].argsort()
        rises, falls = seen.rises[mine][order], seen.falls[mine][order]
        assert (rises[1:] >= falls[:-1] - 1e-6).all()


def test_pairs_rise_and_are_used_up():
    one = reservations.Request(PATH, 12, 0.0, 5.0, 20.0, 1)
    counts = np.array(
        [
            recorded.alive(one, 0, 10 + ms / 1000, 1.0, 0.75)
            for ms in range(0, 500, 2)
        ]
    )
    assert counts.max() <= 12 and counts.min() == 0
    change = np.diff(counts, axis=0)
    assert (change > 0).any() and (change < 0).any()
    # 20 km are quicker than 54
    assert counts[:, 0].mean() > 2 * counts[:, 1].mean()
    assert recorded.alive(one, 0, 5.0, 1.0, 0.75).tolist() == [0, 0]


def test_the_recorded_requests_are_those_of_the_simulation():
    assert sum(recorded.recorded()["count"].ravel()) == len(
        recorded.recorded()["rows"]
    )
    for blend, by in ((0, "load"), (75, "load"), (100, "fibres")):
        live = quantum_network.experiment(
            recorded.SEED, blend / 100, by, float(recorded.SECONDS)
        )
        kept = recorded.requests(blend, by)
        assert len(kept.accepted) == len(live.accepted)
        for one, other in zip(kept.accepted, live.accepted, strict=True):
            assert one.path == other.path and one.tries == other.tries
            assert one[1:5] == pytest.approx(other[1:5], abs=1e-4)
        assert [one.path for one in kept.waiting] == [
            one.path for one in live.waiting
        ]


def numbers(title):
    return [float(x) for x in re.findall(r"\d+(?:\.\d+)?", title)]


def test_the_picture_counts_what_the_requests_say():
    seen = recorded.picture(75, 60, 250)
    served = recorded.requests(75, "load")
    now = [one for one in served.accepted if one.start <= 60.25 < one.end]
    taken = sum(2 * (len(one.path) - 1) * one.memories for one in now)
    began, _, _, moment, running, waiting, held, all_ = numbers(seen.title)
    assert (running, held, all_) == (len(now), taken, MEMORIES)
    assert moment == 60.25 and waiting == len(seen.waiting)
    assert began == sum(one.start < 120 for one in served.accepted)
    # every router asks for something all the time
    assert running + waiting == 9
    shown = [int(name) for name in seen.names[9:]]
    assert sum(shown) == seen.alive > 0
    members = [v for _, some in seen.groups.values() for v in some]
    assert sorted(v for v in members if v < 9) == list(range(9))
    assert [v - 9 for v in members if v >= 9] == [
        e for e, count in enumerate(shown) if count
    ]
    for pair in seen.used:
        assert pair in fibre_of()
    assert len(seen.lanes) == len(NAMES)


def test_the_same_memories_serve_more_requests_where_the_load_is():
    one, two = (numbers(recorded.picture(b).title)[0] for b in (0, 75))
    assert two > 1.3 * one
    for line in recorded.picture().curves.values():
        assert line[15] > 1.3 * line[0] and line[15] > line[20]


@pytest.mark.parametrize("slower", recorded.SLOWER[::4])
@pytest.mark.parametrize("efficiency", recorded.EFFICIENCY[::4])
@pytest.mark.parametrize("second", [0, 119])
def test_every_corner_gives_a_picture(slower, efficiency, second):
    for blend, by in ((0, "load"), (100, "fibres")):
        seen = recorded.picture(blend, second, 999, by, slower, efficiency)
        assert np.isfinite(seen.sizes).all() and "nan" not in seen.title
        for lane in seen.lanes.values():
            assert all(start <= end <= 120 for _, start, end, _ in lane)


def test_longer_messages_bring_fewer_pairs():
    pairs = [
        numbers(recorded.picture(slower=slower).title)[2]
        for slower in recorded.SLOWER
    ]
    assert pairs == sorted(pairs, reverse=True) and pairs[0] > 3 * pairs[-1]


def test_claims_give_the_recorded_effects():
    found = measured(quantum_network)
    for slug, effect in in_the_ledger(quantum_network).items():
        assert found[slug] == pytest.approx(effect, rel=1e-6), slug


def test_exercises_accept_right_and_reject_wrong_answers():
    one, two, three = quantum_network.EXERCISES.values()
    assert judge(one, (0.125, 0.4375)) == "correct"
    assert judge(one, (0.25, 0.4375)) != "correct"
    assert judge(two, (0.769, 0.838)) == "correct"
    assert judge(two, (0.769, 0.8)) != "correct"

    def fits(memories, wanted, path, reserved):
        need = [
            wanted * (1 + (0 < i < len(path) - 1)) for i in range(len(path))
        ]
        free = [memories[v] - reserved[v] for v in path]
        return all(f >= n for f, n in zip(free, need, strict=True))

    def once(memories, wanted, path, reserved):
        return all(memories[v] - reserved[v] >= wanted for v in path)

    def more(memories, wanted, path, reserved):
        ends = path[0], path[-1]
        return all(
            memories[v] - reserved[v] > wanted * (1 + (v not in ends))
            for v in path
        )

    assert judge(three, fits) == "correct"
    assert judge(three, once) != "correct"
    assert judge(three, more) != "correct"
