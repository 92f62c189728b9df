"""The minimal splitting rule against the theorem, an LP and Koenig."""

import math
from collections import Counter
from fractions import Fraction

import networkx as nx
import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from seed_0 import in_the_ledger, measured

from lab.exercises import judge
from lab.networks import packet_spraying as spraying
from lab.networks.collective_time import least_time, transfer
from lab.networks.leaf_spine import (
    WORKLOADS,
    Fabric,
    Flows,
    Subflows,
    collective,
    ends,
    flows,
    ideal_congestion,
    loads,
)
from lab.networks.packet_spraying_view import picture
from lab.networks.spraying_rivals import ecmp, greedy, lottery, spray

FABRICS = [Fabric(8, 8, 8), Fabric(8, 8, 6), Fabric(5, 3, 7), Fabric(3, 4, 1)]


def pair(count: int) -> Flows:
    """``count`` flows of size 1 from the hosts of leaf 0 to those of leaf 1.

    The fabric is ``Fabric(2, 16, S)``.
    """
    hosts = np.arange(count) % 16
    return flows(hosts, 16 + hosts, np.ones(count))


def by_spine(cut: Subflows) -> dict[int, Fraction]:
    total = Counter()
    for spine, size in zip(cut.spine.tolist(), cut.size.tolist(), strict=True):
        total[spine] += Fraction(size).limit_denominator(1000)
    return dict(total)


@pytest.mark.parametrize("count", [1, 4, 8, 12, 13, 64])
@pytest.mark.parametrize("spines", [1, 3, 6, 8])
def test_every_spine_gets_exactly_its_share_of_a_leaf_pair(count, spines):
    cut = spraying.split(pair(count), Fabric(2, 16, spines))
    share = Fraction(count, spines)
    assert by_spine(cut) == dict.fromkeys(range(spines), share)
    assert len(cut.flow) == spraying.pieces(count, spines)
    # every flow is sent, whole or in equal parts
    for flow in range(count):
        parts = cut.size[cut.flow == flow]
        assert parts.sum().item() == pytest.approx(1)
        assert parts.unique().numel() == 1


def test_twelve_flows_over_eight_spines_make_sixteen_subflows():
    cut = spraying.split(pair(12), Fabric(2, 16, 8))
    assert len(cut.flow) == 16
    assert cut.flow.bincount().tolist() == [1] * 8 + [2] * 4


@pytest.mark.parametrize("count", range(1, 13))
@pytest.mark.parametrize("spines", [4, 6])
def test_fewer_equal_parts_cannot_be_shared_out(count, spines):
    # r flows in p equal parts each: r p parts must be a multiple of S
    r = count % spines
    fewest = next(p for p in range(1, spines + 1) if r * p % spines == 0)
    assert spraying.pieces(count, spines) == count - r + r * fewest


@pytest.mark.parametrize("workload", WORKLOADS)
@pytest.mark.parametrize("fabric", FABRICS, ids=str)
@pytest.mark.parametrize("group", ["leaf", "nic"])
def test_the_fullest_link_carries_what_ideal_spraying_puts_on_it(
    workload, fabric, group
):
    sent = collective(workload, fabric, seed=3)
    cut = spraying.split(sent, fabric, group)
    found = loads([cut, spray(sent, fabric)], sent, fabric)
    torch.testing.assert_close(found.up[0], found.up[1], rtol=1e-12, atol=0)
    torch.testing.assert_close(
        found.down[0], found.down[1], rtol=1e-12, atol=0
    )
    ideal = ideal_congestion(sent, fabric)
    assert found.peak[0].item() == pytest.approx(ideal, rel=1e-12)


@pytest.mark.parametrize("spread", [0.0, 0.7])
def test_no_routing_beats_the_formula(spread):
    # all fractions of all flows on all spines, as a linear programme
    fabric = Fabric(4, 3, 3)
    sent = collective("permutation", fabric, 1, spread)
    leaf, other = (x.numpy() for x in ends(sent, fabric))
    F, S, L = len(leaf), fabric.spines, fabric.leaves
    rows = np.zeros((2 * L * S, F * S + 1))
    whole = np.zeros((F, F * S + 1))
    for f, z in enumerate(sent.size.tolist()):
        for k in range(S):
            whole[f, f * S + k] = 1
            if leaf[f] != other[f]:
                rows[leaf[f] * S + k, f * S + k] += z
                rows[(L + other[f]) * S + k, f * S + k] += z
    rows[:, -1] = -1
    cost = np.r_[np.zeros(F * S), 1]
    best = linprog(cost, rows, np.zeros(2 * L * S), whole, np.ones(F))
    assert best.fun == pytest.approx(ideal_congestion(sent, fabric), abs=1e-9)


def coloured(sent: Flows, fabric: Fabric) -> tuple[Subflows, int]:
    """Whole flows by Koenig's theorem: no leaf has two of one colour.

    The flows between leaves are padded to a regular multigraph and taken
    apart by perfect matchings; colour c goes to spine c mod S.
    """
    leaf, other = (x.tolist() for x in ends(sent, fabric))
    crossing = [f for f in range(len(leaf)) if leaf[f] != other[f]]
    out, into = Counter(), Counter()
    between = {}
    for f in crossing:
        out[leaf[f]] += 1
        into[other[f]] += 1
        between.setdefault((leaf[f], other[f]), []).append(f)
    degree = max([*out.values(), *into.values()])
    tails = [i for i in range(fabric.leaves) for _ in range(degree - out[i])]
    heads = [j for j in range(fabric.leaves) for _ in range(degree - into[j])]
    for i, j in zip(tails, heads, strict=True):
        between.setdefault((i, j), []).append(None)
    spine = torch.full((len(leaf),), -1)
    for colour in range(degree):
        graph = nx.Graph(
            (("s", i), ("t", j)) for (i, j), f in between.items() if f
        )
        top = [("s", i) for i in range(fabric.leaves)]
        match = nx.bipartite.hopcroft_karp_matching(graph, top)
        for i in range(fabric.leaves):
            flow = between[i, match["s", i][1]].pop()
            if flow is not None:
                spine[flow] = colour % fabric.spines
    return Subflows(torch.arange(len(leaf)), spine, sent.size), degree


@pytest.mark.parametrize("workload", ["permutation", "expert groups"])
@pytest.mark.parametrize("fabric", [Fabric(8, 8, 8), Fabric(6, 5, 4)], ids=str)
def test_whole_flows_reach_the_next_whole_number_and_no_less(workload, fabric):
    sent = collective(workload, fabric, seed=2)
    best, degree = coloured(sent, fabric)
    bound = math.ceil(degree / fabric.spines)
    filled = greedy(sent, fabric, seed=0)
    chance = ecmp(sent, fabric, seed=0)
    peaks = loads([best, filled, chance], sent, fabric).peak.tolist()
    assert peaks[0] == bound
    assert peaks[0] <= peaks[1] <= peaks[2]


def test_each_nic_decides_alone():
    # what another host sends changes nothing for this one
    fabric = Fabric(4, 4, 6)
    sent = collective("all-to-all", fabric)
    mine = sent.source == 5
    alone = Flows(*(x[mine] for x in sent))
    cut = spraying.split(sent, fabric, "nic")
    of_mine = mine[cut.flow]
    apart = spraying.split(alone, fabric, "nic")
    assert torch.equal(cut.spine[of_mine], apart.spine)
    assert torch.equal(cut.size[of_mine], apart.size)


def test_flows_inside_a_leaf_stay_whole_and_meet_no_spine():
    fabric = Fabric(4, 4, 7)
    sent = collective("all-to-all", fabric)
    leaf, other = ends(sent, fabric)
    for rule in spraying.RULES:
        cut = spraying.assign(rule, sent, fabric, seed=0)
        inner = (leaf == other)[cut.flow]
        assert torch.equal(cut.spine < 0, inner), rule
        assert (cut.flow[inner].bincount() <= 1 + 3 * ("blind" in rule)).all()


def test_blind_pieces_add_up_and_the_seed_decides():
    fabric, sent = Fabric(), collective("permutation", Fabric())
    one, same, other = (ecmp(sent, fabric, seed, 4) for seed in (0, 0, 1))
    assert torch.equal(one.spine, same.spine)
    assert not torch.equal(one.spine, other.spine)
    total = torch.zeros(len(sent.size)).double()
    assert (total.index_add(0, one.flow, one.size) == 1).all()


@pytest.mark.parametrize("workload", WORKLOADS)
def test_rates_by_size_end_with_the_fullest_link_or_nic(workload):
    fabric = Fabric(8, 8, 6)
    sent = collective(workload, fabric)
    for rule in ("leaf rule", "NIC rule", "spraying"):
        cut = spraying.assign(rule, sent, fabric, seed=0)
        fluid = transfer(rule, cut, sent, fabric, "by size")
        assert fluid.time[-1] == pytest.approx(
            least_time(sent, fabric), rel=1e-9
        )


@pytest.mark.parametrize("fairness", ["per subflow", "by size"])
def test_spraying_waits_for_slow_links_between_switches(fairness):
    # a leaf sends 4 x 12 flows over 4 links, a quarter of a NIC each
    fabric = Fabric(4, 4, 4, capacity=0.25)
    sent = collective("all-to-all", fabric)
    assert least_time(sent, fabric) == 4 * 12 / 4 / 0.25
    fluid = transfer("spraying", None, sent, fabric, fairness)
    assert fluid.time[-1] == pytest.approx(48, rel=1e-9)


def test_whole_flows_of_unequal_sizes_may_end_before_sprayed_ones():
    # sprayed flows share alike, and the largest one waits for the small ones
    fabric = Fabric(3, 4, 2)
    sent = collective("permutation", fabric, spread=0.5)
    cut = spraying.assign("leaf rule", sent, fabric, seed=0)
    whole = transfer("leaf rule", cut, sent, fabric, "per subflow")
    sprayed = transfer("spraying", None, sent, fabric, "per subflow")
    assert whole.time[-1] < 0.9 * sprayed.time[-1]


def test_a_sprayed_flow_as_one_fat_path_equals_its_pieces():
    # no flow stays in its leaf here, so all have equally many pieces
    fabric = Fabric(4, 1, 3)
    sent = collective("all-to-all", fabric)
    cut = spray(sent, fabric)
    fat = transfer("spraying", cut, sent, fabric, "per subflow")
    thin = transfer("pieces", cut, sent, fabric, "per subflow")
    assert fat.time[-1] == pytest.approx(thin.time[-1], rel=1e-9)


def test_equal_congestion_is_not_equal_time():
    # measured once by another program, mean of five seeds: 8.64 against 7
    arms = [spraying.experiment(s)["leaf rule"] for s in range(5)]
    assert {round(arm.congestion, 12) for arm in arms} == {1.0}
    mean = 7 * sum(arm.time for arm in arms) / 5
    assert 8.0 < mean < 9.2


def test_the_ring_is_slow_on_paper_and_fast_in_time():
    arms = spraying.experiment(0, "ring")
    assert arms["ECMP"].congestion == pytest.approx(8)
    assert {arm.time for arm in arms.values()} == {1.0}


def test_unequal_sizes_break_the_equivalence():
    congestion = spraying.congestion(0, "all-to-all", spread=1.0)
    assert congestion["leaf rule"] > 1.1
    assert congestion["spraying"] == pytest.approx(1, rel=1e-12)


def test_the_lottery_draws_what_ecmp_draws():
    fabric = Fabric()
    many = lottery("expert groups", fabric, draws=2000).double()
    assert torch.equal(many, many.round())
    sent = collective("expert groups", fabric)
    few = [ecmp(sent, fabric, seed) for seed in range(100)]
    few = loads(few, sent, fabric).peak
    # five standard errors of the smaller sample
    assert abs(many.mean() - few.mean()) < few.std() / 2
    assert many.min() > ideal_congestion(sent, fabric)


def test_one_leaf_alone_has_no_link_to_fill():
    ratio = spraying.congestion(0, "ring", leaves=1)
    assert ratio == dict.fromkeys(spraying.RULES, 1)
    shown = picture(8, "ring", "ECMP", "by size", leaves=1)
    assert ratio == shown.congestion


@pytest.mark.parametrize("rule", spraying.RULES)
def test_the_picture_tells_what_the_experiment_measures(rule):
    shown = picture(7, "expert groups", rule, "per subflow")
    arm = spraying.experiment(0, "expert groups", 7, leaves=4)[rule]
    assert shown.congestion[rule] == pytest.approx(arm.congestion)
    assert shown.end / shown.sprayed == pytest.approx(arm.time)
    sent = collective("expert groups", Fabric(4, 8, 7))
    ideal = ideal_congestion(sent, Fabric(4, 8, 7))
    assert max(map(max, shown.up)) <= shown.congestion[rule] * ideal + 1e-9
    assert sum(map(sum, shown.up)) == pytest.approx(shown.crossing)
    # what the NICs send at these rates is all that there is
    step = shown.time[1] - shown.time[0]
    for curve in shown.used.values():
        sent_by_then = sum(curve) / 100 * 32 * step
        assert sent_by_then == pytest.approx(float(sent.size.sum()))
        assert max(curve) <= 100 and curve[-1] == 0


def test_a_picture_of_unequal_flows_is_a_few_percent_late_at_most():
    fabric, workload = Fabric(4, 8, 7), "expert groups"
    sent = collective(workload, fabric, 0, 0.7)
    cut = spraying.assign("ECMP", sent, fabric, 0)
    exact = transfer("ECMP", cut, sent, fabric, "per subflow").time[-1]
    shown = picture(7, workload, "ECMP", "per subflow", spread=0.7)
    assert exact <= shown.end < 1.03 * exact


def test_every_claim_can_be_measured():
    for claim in spraying.CLAIMS:
        if claim.experiment:
            small = {"spines": [3], "leaves": 3, "hosts": 4}
            assert math.isfinite(claim.experiment(0, **small))


def test_seed_0_measures_what_the_record_says():
    expected = pytest.approx(in_the_ledger(spraying), abs=1e-6)
    assert measured(spraying) == expected


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: collective("gossip", Fabric()), "workload='gossip'"),
        (lambda: collective("ring", Fabric(2, 2, 0)), "nothing to route over"),
        (lambda: flows([0, 1], [2, 1], [1.0] * 2), "host 1 sends to itself"),
        (lambda: flows([0], [1], [-1.0]), "negative"),
        (lambda: flows([0], [1], [math.inf]), "infinite"),
        (lambda: ends(pair(3), Fabric(1, 2, 1)), "use 0 to 1"),
        (lambda: spraying.split(pair(3), Fabric(), "rack"), "group='rack'"),
        (
            lambda: spraying.assign("hash", pair(3), Fabric(), 0),
            "rule='hash'",
        ),
        (
            lambda: transfer("ECMP", None, None, None, "none"),
            "fairness='none'",
        ),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def one_by_one(count, spines):
    """Deal the parts like cards, adding parts until the deal comes out."""
    left = count % spines
    parts = next(p for p in range(1, spines + 1) if left * p % spines == 0)
    return [1.0] * (count - left) + [1 / parts] * (left * parts)


RIGHT = {
    "exercise-1": 32,
    "exercise-2": {6, 12},
    "exercise-3": one_by_one,
}
WRONG = {
    "exercise-1": 80,
    "exercise-2": {6},
    "exercise-3": lambda count, spines: [1 / spines] * (count * spines),
}


@pytest.mark.parametrize("slug", RIGHT)
def test_the_checker_knows_right_from_wrong(slug):
    assert judge(spraying.EXERCISES[slug], RIGHT[slug]) == "correct"
    assert judge(spraying.EXERCISES[slug], WRONG[slug]) != "correct"
