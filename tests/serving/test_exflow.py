"""ExFlow on recorded and made traces, and in real processes."""

import math

import pytest
import torch
from seed_0 import in_the_ledger, measured

from lab.exercises import judge
from lab.kernels.transition_counts import transition_counts
from lab.serving import exflow, expert_parallel, placement, routing_traces
from lab.serving.exflow import EXERCISES
from lab.serving.exflow_view import picture
from lab.serving.expert_parallel import ROW, homes, traffic


def counts(experts=8):
    return transition_counts(routing_traces.recorded(experts).train, experts)


@pytest.mark.parametrize(
    ("experts", "seed"),
    [(e, s) for e, n in routing_traces.RECORDED.items() for s in range(n)],
)
def test_the_recorded_traces_are_whole(experts, seed):
    trace = routing_traces.recorded(experts, seed)
    for half in (trace.train, trace.test):
        assert half.shape == (routing_traces.TOKENS, routing_traces.LAYERS)
        assert half.min() >= 0 and half.max() < experts
    assert (trace.early.sum((2, 3)) == routing_traces.TOKENS).all()
    last = transition_counts(trace.test, experts)
    assert torch.equal(trace.early[-1].int(), last)


def test_the_recorded_model_chooses_what_its_trace_says():
    lm, trace = routing_traces.model(), routing_traces.recorded(8)
    found = routing_traces.route(lm, "test")
    # another processor may round a close choice the other way
    assert (found == trace.test).float().mean() > 0.999


def test_dice_have_no_affinity_and_a_chain_has_all():
    dice = picture("0").crossings
    assert dice["placed, planning tokens"] < 74
    assert dice["placed, new tokens"] == pytest.approx(75, abs=0.5)
    chain = picture("1").crossings
    assert chain["placed, new tokens"] == 0


def test_the_real_trace_beats_its_control():
    result = exflow.experiment(0, tokens=3000)
    assert result.test < result.control - 0.1
    assert result.test < 0.8 * result.random
    assert result.load < 2


def test_nodes_are_served_first():
    W = counts()
    one = picture(gpus=4, nodes=1)
    two = picture(gpus=4, nodes=2)
    assert two.node_crossing < 50 < 75 and one.node_crossing is None
    assert "change the node" not in one.note
    # that no token leaves its node is worth saying, too
    assert "0.0 % change the node" in picture("1", nodes=2).note
    best = placement.crossing(placement.exact(W, 2), W)
    placed = placement.staged(W, 4, 2, placement.exact)
    assert placement.crossing(placed // 2, W) == pytest.approx(best)
    assert (placed.long().sort(1).values == torch.arange(8) // 2).all()


def test_sixteen_experts_fall_back_to_the_descent_and_say_so():
    assert picture(experts=16, gpus=4).solver == "descent"
    assert picture(experts=8, gpus=8).solver == "exact"


def test_more_planning_tokens_close_the_gap():
    def gap(tokens):
        seen = picture(tokens=tokens).crossings
        return seen["placed, new tokens"] - seen["placed, planning tokens"]

    assert gap(100) > 2 > abs(gap(24576)) + 0.5


def by_hand(routes, placed, gpus, flow, context):
    """Bytes between GPUs, one token after the other."""
    N, L = routes.shape
    total = 0
    for n, route in enumerate(routes.tolist()):
        at = home = int(homes(N, gpus)[n])
        for layer, expert in enumerate(route):
            goal = int(placed[layer][expert])
            if flow == "two" and goal != home:
                total += ROW["dispatch"] + ROW["combine"]
            if flow == "one" and goal != at:
                total += ROW["move"]
                at = goal
        if flow == "one":
            kind = "symbol" if context == "symbol" else "hidden"
            times = L if context == "layers" else 1
            total += (gpus - 1) * times * ROW[kind]
    return total


@pytest.mark.parametrize("gpus", [2, 4, 8])
@pytest.mark.parametrize(
    ("flow", "context"),
    [
        ("two", "hidden"),
        ("one", "symbol"),
        ("one", "hidden"),
        ("one", "layers"),
    ],
)
def test_traffic_follows_every_token(gpus, flow, context):
    routes = routing_traces.recorded(8).test[:50]
    placed = placement.random(counts(), gpus)
    found = traffic(routes, placed, gpus, flow, context)
    expected = by_hand(routes, placed, gpus, flow, context)
    assert sum(found.values()) == expected


@pytest.mark.parametrize(
    ("flow", "context"),
    [("two", "hidden"), ("one", "symbol"), ("one", "layers")],
)
def test_processes_predict_the_same_and_send_what_the_trace_says(
    flow, context
):
    lm, contexts = routing_traces.model(), routing_traces.contexts(37)
    with torch.no_grad():
        alone = lm(contexts)
    routes = [routing.gate.experts for routing in alone.routings]
    routes = torch.cat(routes, dim=1).to(torch.int8).cpu()
    placed = placement.exact(counts(), 2)
    ran = expert_parallel.run(lm, contexts, placed, 2, flow, context)
    torch.testing.assert_close(
        ran.logits, alone.logits.cpu(), atol=1e-4, rtol=0
    )
    assert ran.bytes == traffic(routes, placed, 2, flow, context)
    assert ran.header_bytes == 2 * 8 * (6 + (flow == "one"))


def test_the_formula_gives_the_papers_ratio():
    ratio = exflow.moves(4, 24, 0.45) / exflow.moves(4, 24, 0.75, "two")
    assert ratio == pytest.approx(0.411, abs=5e-4)


def test_every_claim_runs():
    for claim in exflow.CLAIMS:
        if claim.experiment:
            assert math.isfinite(claim.experiment(0, **claim.reduced))


def test_the_fullest_gpu_is_counted_by_hand():
    routes = torch.tensor([[0, 0], [0, 1], [1, 2], [2, 3]])
    placed = torch.tensor([[0, 0, 1, 1], [0, 1, 0, 1]])
    # three of four tokens in the first layer, two in the second
    assert exflow.largest_load(routes, placed, 2) == (1.5 + 1.0) / 2


def test_seed_0_measures_what_the_record_says():
    expected = pytest.approx(in_the_ledger(exflow), rel=1e-6)
    assert measured(exflow) == expected


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: placement.vanilla(counts(), 3), "gpus=3"),
        (lambda: placement.exact(counts(16), 4), "too many to try"),
        (lambda: placement.staged(counts(), 4, 3, placement.exact), "nodes=3"),
        (lambda: routing_traces.made(8, 1.5), "affinity=1.5"),
        (lambda: traffic(torch.zeros(1, 6), None, 2, "three"), "flow='three'"),
        (
            lambda: expert_parallel.run(
                routing_traces.model(), None, torch.zeros(6, 4), 2, "two"
            ),
            "does not fit 6 layers of 8",
        ),
    ],
)
def test_wrong_arguments_are_refused_in_a_sentence(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()


def _by_table(routes, placed):
    steps = [
        placed[layer][one] != placed[layer + 1][two]
        for route in routes
        for layer, (one, two) in enumerate(zip(route, route[1:], strict=False))
    ]
    return sum(steps) / len(steps)


RIGHT = {
    "exercise-1": (2520, 105),
    "exercise-2": 0.411,
    "exercise-3": _by_table,
}
WRONG = {
    "exercise-1": (2520, 630),
    "exercise-2": 0.744,
    "exercise-3": lambda routes, placed: 1 - _by_table(routes, placed),
}


@pytest.mark.parametrize("slug", RIGHT)
def test_the_checker_knows_right_from_wrong(slug):
    assert judge(EXERCISES[slug], RIGHT[slug]) == "correct"
    assert judge(EXERCISES[slug], WRONG[slug]) != "correct"
