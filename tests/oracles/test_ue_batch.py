"""Equilibria against closed forms, networkx, and a convex solver on routes."""

from functools import partial

import networkx as nx
import numpy as np
import pytest
import torch
from on_device import on_device
from scipy.optimize import minimize

from lab.kernels.ue_batch import ue_batch, ue_batch_triton

KERNEL = on_device(ue_batch_triton)
OPERATIONS = [ue_batch, KERNEL]


def ready(capacity, demand, links, free, rise, dtype=torch.float32):
    """Lists as the operation's arguments, one network or several."""
    numbers = [
        torch.tensor(x, dtype=dtype) for x in (capacity, demand, free, rise)
    ]
    ends = torch.tensor(links, dtype=torch.int32).T.contiguous()
    return numbers[0], numbers[1], ends, numbers[2], numbers[3]


def trips(N, **pairs):
    """Demand [1, N, N] from names such as ``from_0_to_3``."""
    table = np.zeros((1, N, N))
    for name, number in pairs.items():
        _, i, _, s = name.split("_")
        table[0, int(i), int(s)] = number
    return table


# by hand: 10 (2 + x) = 15 (2 + 8 - x) has the solution x = 5.2; and 8 trips
# on the first road take 30 + 8 minutes less than 40 for the first one on the
# second road, so nobody takes that
TWO_ROADS = [
    ([20.0, 0, 30], [10.0, 0, 15], [5.2, 2.8, 2.8], 72.0 * 8),
    ([30.0, 0, 40], [1.0, 0, 5], [8.0, 0, 0], 38.0 * 8),
]


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("free, rise, flows, total", TWO_ROADS)
def test_two_roads_share_as_the_closed_form_says(
    operation, free, rise, flows, total
):
    # the second road is two links, because a pair of nodes has one at most
    links = [(0, 2), (0, 1), (1, 2)]
    demand = trips(3, from_0_to_2=8)
    given = ready([[1, 1, 1]], demand, links, free, rise)
    found = operation(*given, 12, 1)
    assert found.flows[0].tolist() == pytest.approx(flows, abs=1e-3)
    assert found.total.item() == pytest.approx(total, rel=1e-4)
    assert found.gap.item() == pytest.approx(0, abs=1e-4)


BRAESS = [(0, 1), (0, 2), (1, 2), (1, 3), (2, 3)]


@pytest.mark.parametrize("operation", OPERATIONS)
def test_braess_bridge_makes_everybody_later(operation):
    # 6 trips: two on each of three routes, 92 minutes; without it 83
    with_it = ready(
        [[1.0] * 5], trips(4, from_0_to_3=6), BRAESS,
        [0, 50, 10, 50, 0], [10, 1, 1, 1, 10],
    )  # fmt: skip
    found = operation(*with_it, 24, 1)
    assert found.flows[0].tolist() == pytest.approx([4, 2, 2, 2, 4], abs=0.02)
    assert found.total.item() == pytest.approx(6 * 92, rel=1e-3)
    without = ready(
        [[1.0] * 4], trips(4, from_0_to_3=6),
        [road for road in BRAESS if road != (1, 2)],
        [0, 50, 50, 0], [10, 1, 1, 10],
    )  # fmt: skip
    found = operation(*without, 6, 1)
    assert found.flows[0].tolist() == pytest.approx([3] * 4, abs=1e-3)
    assert found.total.item() == pytest.approx(6 * 83, rel=1e-5)


def random_network(seed, N, chords, B=1):
    random = np.random.default_rng(seed)
    links = {(n, (n + 1) % N) for n in range(N)}
    while len(links) < N + chords:
        i, j = random.choice(N, 2, replace=False).tolist()
        links.add((i, j))
    links = sorted(links)
    E = len(links)
    free = random.uniform(1, 3, E)
    # more than the links hold: many routes are used
    demand = random.uniform(0, 4, (B, N, N))
    capacity = random.uniform(2, 6, (B, E))
    return capacity, demand, links, free, free


@pytest.mark.parametrize("operation", OPERATIONS)
def test_the_first_step_takes_the_routes_that_networkx_takes(operation):
    B, N = 2, 9
    capacity, demand, links, free, rise = random_network(3, N, 14, B)
    given = ready(capacity, demand, links, free, rise)
    found = operation(*given, 1)
    graph = nx.DiGraph()
    for (i, j), minutes in zip(links, free, strict=True):
        graph.add_edge(i, j, minutes=minutes)
    for b in range(B):
        carried = dict.fromkeys(links, 0.0)
        for i in range(N):
            for s in range(N):
                path = nx.shortest_path(graph, i, s, "minutes")
                for road in zip(path, path[1:], strict=False):
                    carried[road] += demand[b, i, s]
        expected = [carried[road] for road in links]
        assert found.flows[b].tolist() == pytest.approx(expected, rel=1e-5)
        # the gap, from the times at these flows
        times = free + rise * (np.array(expected) / capacity[b]) ** 4
        for (i, j), minutes in zip(links, times, strict=True):
            graph[i][j]["later"] = minutes
        rest = dict(nx.all_pairs_dijkstra_path_length(graph, weight="later"))
        best = sum(
            demand[b, i, s] * rest[i][s] for i in range(N) for s in range(N)
        )
        total = times @ expected
        assert found.total[b].item() == pytest.approx(total, rel=1e-5)
        assert found.gap[b].item() == pytest.approx(1 - best / total, abs=1e-5)


def by_routes(capacity, demand, links, free, rise):
    """Flows that minimise Beckmann's integral over all simple routes."""
    graph = nx.DiGraph(links)
    uses, groups = [], []
    pairs = [tuple(x) for x in np.argwhere(demand > 0) if x[0] != x[1]]
    for pair, (i, s) in enumerate(pairs):
        for path in nx.all_simple_paths(graph, i, s):
            roads = set(zip(path, path[1:], strict=False))
            uses.append([road in roads for road in links])
            groups.append(pair)
    uses, groups = np.array(uses, float), np.array(groups)
    serves = (np.arange(len(pairs))[:, None] == groups).astype(float)
    wanted = np.array([demand[pair] for pair in pairs])

    even = (wanted / serves.sum(1)) @ serves
    scale = 1e-2 / (even @ uses).sum()

    def integral(h):
        x = h @ uses
        late = rise * (x / capacity) ** 4
        return scale * (x @ (free + late / 5)), scale * (uses @ (free + late))

    solved = minimize(
        integral, even, jac=True, method="SLSQP",
        bounds=[(0, None)] * len(even),
        constraints={
            "type": "eq", "fun": lambda h: serves @ h - wanted,
            "jac": lambda h: serves,
        },
        options={"maxiter": 500, "ftol": 1e-13},
    )  # fmt: skip
    assert solved.success
    return solved.x @ uses


@pytest.mark.parametrize("seed", range(4))
def test_equilibrium_is_what_a_convex_solver_finds(seed):
    capacity, demand, links, free, rise = random_network(seed, 5, 5)
    expected = by_routes(capacity[0], demand[0], links, free, rise)
    given = ready(capacity, demand, links, free, rise, torch.float64)
    found = ue_batch(*given, 300)
    assert found.gap.item() < 1e-4
    # of flows up to 18
    assert found.flows[0].tolist() == pytest.approx(expected, abs=0.2)


def test_the_kernel_goes_the_same_way_to_the_equilibrium():
    capacity, demand, links, free, rise = random_network(2, 5, 5)
    expected = by_routes(capacity[0], demand[0], links, free, rise)
    given = ready(capacity, demand, links, free, rise)
    gaps = []
    for iterations in (1, 4, 12):
        found = KERNEL(*given, iterations)
        gaps.append(found.gap.item())
    assert gaps[0] > 0.2 > gaps[1] > 0.02 > gaps[2] > 0
    # of flows up to 12
    assert found.flows[0].tolist() == pytest.approx(expected, abs=0.3)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_start_at_equilibrium_stays_there(operation):
    capacity, demand, links, free, rise = random_network(1, 5, 5)
    wide = ready(capacity, demand, links, free, rise, torch.float64)
    there = ue_batch(*wide, 300).flows
    given = ready(capacity, demand, links, free, rise)
    found = operation(*given, 2, 4, there.float())
    assert found.gap.item() < 1e-3
    assert found.flows[0].tolist() == pytest.approx(there[0].tolist(), abs=0.1)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_of_equal_routes_the_first_one_stays(operation):
    # 0-1-3 and 0-2-3 take 2 minutes each, and node 1 was tried first
    links = [(0, 2), (2, 3), (0, 1), (1, 3)]
    demand = trips(4, from_0_to_3=5)
    given = ready([[1.0] * 4], demand, links, [1.0] * 4, [0.0] * 4)
    assert operation(*given, 1).flows.tolist() == [[0, 0, 5, 5]]


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_network_does_not_feel_its_neighbours(operation):
    capacity, demand, links, free, rise = random_network(5, 5, 4, 2)
    given = ready(capacity, demand, links, free, rise)
    together = operation(*given, 2)
    for b in range(2):
        mine = [numbers[b : b + 1] for numbers in given[:2]]
        alone = operation(*mine, *given[2:], 2)
        for one, all_of_them in zip(alone, together, strict=True):
            assert torch.equal(one[0], all_of_them[b])


def test_32_nodes_are_the_most():
    links = [(n, (n + 1) % 32) for n in range(32)]
    demand = trips(32, from_0_to_31=1)
    given = ready([[1.0] * 32], demand, links, [1.0] * 32, [1.0] * 32)
    found = ue_batch(*given, 1)
    assert found.flows[0].tolist() == [1.0] * 31 + [0.0]
    assert found.total.item() == 31 * 2


def given(**changes):
    """A sound call with some arguments replaced."""
    arguments = dict(
        capacity=torch.ones(2, 3),
        demand=torch.ones(1, 3, 3),
        links=torch.tensor([[0, 1, 2], [1, 2, 0]], dtype=torch.int32),
        free=torch.ones(3),
        rise=torch.ones(3),
        iterations=2,
    )
    return arguments | changes


WRONG = [
    (dict(capacity=torch.ones(3)), "capacity has shape"),
    (dict(demand=torch.ones(3, 3, 3)), r"give \[1 or 2, nodes, nodes\]"),
    (dict(demand=torch.ones(1, 3, 4)), "3 by 4 nodes"),
    (dict(demand=torch.zeros(1, 33, 33)), "use 2 to 32"),
    (dict(free=torch.ones(2)), "free and rise have shapes"),
    (dict(power=3), "power=3 is not one of"),
    (dict(iterations=0), "iterations=0"),
    (dict(start=torch.ones(3, 3)), "start has shape"),
    (dict(links=given()["links"] + 1), "nodes outside 0 to 2"),
    (dict(links=given()["links"][:, [0, 1, 1]]), "two links join"),
    (dict(links=given()["links"][[0, 0]]), "to itself"),
    (dict(capacity=torch.zeros(2, 3)), "6 capacities are not above 0"),
    (dict(capacity=torch.full((2, 3), torch.nan)), "6 capacities"),
    (dict(demand=-torch.ones(1, 3, 3)), "demand holds 9 entries"),
    (dict(free=torch.tensor([1, torch.inf, 1])), "free holds 1 entries"),
    (dict(rise=torch.tensor([1, torch.nan, -1])), "rise holds 2 entries"),
    (dict(start=-torch.ones(2, 3)), "start holds 6 entries"),
    (
        dict(
            links=given()["links"][:, :2], free=torch.ones(2),
            rise=torch.ones(2), capacity=torch.ones(2, 2),
        ),
        "no route leads from node 1 to node 0",
    ),
]  # fmt: skip


@pytest.mark.parametrize("changes, sentence", WRONG)
def test_wrong_input_is_refused_in_a_sentence(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        ue_batch(**given(**changes))


def test_long_links_are_no_links():
    with pytest.raises(TypeError, match="use int32"):
        ue_batch(**given(links=given()["links"].long()))


def test_the_kernel_shows_demand_without_a_route():
    lost = given(
        links=given()["links"][:, :2], free=torch.ones(2),
        rise=torch.ones(2), capacity=torch.ones(2, 2),
    )  # fmt: skip
    found = partial(KERNEL, **lost)()
    assert (found.gap == -torch.inf).all()
