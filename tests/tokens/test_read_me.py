"""Read-ME: experts by masks, the pre-gating router, cache and batches."""

import math

import pytest
import torch
from seed_0 import measured

from lab.exercises import CORRECT, judge
from lab.tokens import choosing_experts, dense_lm, pre_gating, read_me
from lab.tokens.domain_experts import bits, carve, code_overlap, overlaps, read
from lab.tokens.domains import DOMAINS, passage, split
from lab.tokens.expert_batching import serve
from lab.tokens.expert_cache import (
    POLICIES,
    interleave,
    simulate,
    stickiness,
    sticky_traces,
)
from lab.tokens.read_me_recorded import picture, recorded

N = len(DOMAINS)


@pytest.fixture(scope="module")
def model():
    return dense_lm.recorded()


@pytest.fixture(scope="module")
def learnt(model):
    return read(model, "train", 256)[0]


def test_domains_are_long_and_an_unknown_one_is_refused():
    for domain in DOMAINS:
        assert len(split(domain).train) > 130_000
        assert len(split(domain).test) > 14_000
    with pytest.raises(ValueError, match="'latin' is not one of"):
        split("latin")


def test_a_mask_of_ones_is_the_dense_model_and_zeros_cut_the_columns(model):
    context, target = passage("prose", 40)
    ones = [torch.ones(192)] * 3
    dense = model(context)
    torch.testing.assert_close(model(context, ones).logits, dense.logits)
    mask = (torch.arange(192) % 3 > 0).float()
    cut = dense_lm.DenseLM()
    cut.load_state_dict(model.state_dict())
    for layer in cut.layers:
        layer.w_down.data[mask == 0] = 0
    torch.testing.assert_close(
        model(context, [mask] * 3).logits, cut(context).logits
    )


def test_a_flat_guess_costs_the_bits_of_the_alphabet():
    flat = dense_lm.DenseLM()
    torch.nn.init.zeros_(flat.leave.weight)
    torch.nn.init.zeros_(flat.leave.bias)
    context, target = passage("prose", 5)
    alphabet = len(flat(context).logits[0])
    found = bits(flat, context, target)
    torch.testing.assert_close(found, torch.full((5,), math.log2(alphabet)))


def test_experts_are_the_most_used_half_of_every_domain(learnt):
    experts = carve(learnt)
    for u, masks in zip(learnt, experts.masks, strict=True):
        for domain, mask in enumerate(masks):
            mean = u[domain].abs().mean(0)
            assert mask.sum() == 96
            assert mean[mask].min() >= mean[~mask].max()
    assert torch.equal(experts.resident, experts.masks.all(dim=1))
    with pytest.raises(ValueError, match="two domains or more"):
        carve([learnt[0][:1]])


def test_overlaps_count_units_that_are_active(learnt):
    experts = carve(learnt)
    counts = overlaps(learnt, experts)
    u, masks = learnt[1].flatten(0, 1), experts.masks[1]
    few = (u > 0).sum(1) <= 96
    active = (u > 0).float() @ masks.float().T
    assert few.sum() > 1000
    assert torch.equal(counts[1][few], active[few])
    assert code_overlap(learnt, experts).mean(2).abs().max() < 1e-4


def test_the_codes_overlap_counts_how_many_of_five_levels_are_passed(learnt):
    experts = carve(learnt)
    found = code_overlap(learnt, experts)
    own = experts.masks[1] & ~experts.resident[1]
    n = int(own[0].sum())
    for token in (0, 100, 700):
        u = learnt[1].flatten(0, 1)[token].tolist()
        falling = sorted(u, reverse=True)
        # places from 0, so r units pass a level (`loss_func` of the authors)
        places = n - 1, *(int(n / 5 * f) for f in (4, 3, 2, 1))
        levels = [falling[r] for r in places]
        passed = torch.tensor([sum(x > level for level in levels) for x in u])
        shared = 10 * (passed * own).sum(1) / (3 * n)
        torch.testing.assert_close(
            found[1, token], shared - shared.mean(), atol=1e-5, rtol=0
        )


def test_a_choice_for_all_layers_uses_that_experts_masks(model, learnt):
    masks = carve(learnt).masks.float()
    context, target = passage("stubs", 50)
    choice = torch.arange(50) % N
    seen = bits(model, context, target, masks, choice)
    for expert in range(N):
        alone = bits(model, context, target, masks[:, expert])
        mine = choice == expert
        torch.testing.assert_close(seen[mine], alone[mine])
    by_layer = bits(model, context, target, masks, choice.expand(3, -1))
    torch.testing.assert_close(seen, by_layer)


def test_the_router_is_causal():
    router = pre_gating.PreGate(N)
    ids = torch.arange(60)[None] % 97
    changed = ids.clone()
    changed[0, 40] = 5
    before, after = router(ids), router(changed)
    assert torch.equal(before[0, :40], after[0, :40])
    assert not torch.equal(before[0, 40:], after[0, 40:])


@pytest.mark.parametrize("loss", pre_gating.LOSSES)
def test_distillation_is_least_where_router_and_overlap_agree(loss):
    overlap = torch.tensor([[[4.0, 1.0, 0.0]]])
    agree = pre_gating.distillation(overlap[0], overlap, loss)
    other = pre_gating.distillation(overlap[0].flip(1), overlap, loss)
    assert agree < other
    if loss == "paper":
        assert agree.abs() < 1e-6
    with pytest.raises(ValueError, match="not one of"):
        pre_gating.distillation(overlap[0], overlap, "other")


def test_the_codes_loss_asks_every_layer_and_adds_up():
    dice = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 3, generator=dice)
    overlap = torch.randn(2, 5, 3, generator=dice)
    by_hand = 0.0
    for layer in overlap.tolist():
        for token, said in zip(layer, logits.tolist(), strict=True):
            total = sum(map(math.exp, said))
            logs = [s - math.log(total) for s in said]
            # half of the label's weight is spread evenly
            label = [1 / 6 + (s == max(token)) / 2 for s in token]
            shares = [math.exp(s) / sum(map(math.exp, token)) for s in token]
            wanted = [3 * a + b for a, b in zip(label, shares, strict=True)]
            pairs = zip(wanted, logs, strict=True)
            by_hand -= sum(w * log for w, log in pairs) / 4 / 5
    found = pre_gating.distillation(logits, overlap, "code").item()
    assert found == pytest.approx(by_hand, rel=1e-5)


def test_an_experiment_repeats_bit_for_bit():
    sizes = {"router_steps": 3, "characters": 128, "test": 64}
    first = choosing_experts.measure(dense_lm.recorded(), 1, **sizes)
    again = choosing_experts.measure(dense_lm.recorded(), 1, **sizes)
    assert first == again
    assert len(first.trace) == N and len(first.trace[0]) == 64
    own = [row[domain] for domain, row in enumerate(first.matrix)]
    assert first.label == pytest.approx(sum(own) / N)
    assert max(first.overlap, first.layerwise) < first.random


@pytest.mark.parametrize("loss", pre_gating.LOSSES)
def test_the_router_learns_the_overlaps_of_its_loss(loss, monkeypatch):
    seen = []

    def untrained(router, wanted, *_):
        seen.append(wanted)
        return router

    monkeypatch.setattr(pre_gating, "train", untrained)
    choosing_experts.measure(dense_lm.recorded(), 0, 1, 128, 16, loss)
    # the paper counts units, the code takes the mean of all experts off
    mean = seen[0].mean(3)
    assert seen[0].shape == (3, N, 128, N)
    if loss == "paper":
        assert mean.mean(0).min() > 1
    else:
        assert mean.abs().max() < 1e-4


def test_an_effect_is_what_its_claim_says(monkeypatch):
    # the experts of domains 0 to 4 are their best, those of 5 and 6 are not
    matrix = [[2.0] * N for _ in range(N)]
    for domain in range(N):
        matrix[domain][domain] = 1.5 if domain < 5 else 2.25
    # half of the tokens of every domain keep the expert before
    trace = [[(i + 1) // 2 % 7 for i in range(65)] for _ in range(N)]
    made_up = choosing_experts.Result(
        dense=1.0,
        router=1.6,
        label=1.5,
        overlap=1.9,
        layerwise=1.7,
        random=2.0,
        matrix=matrix,
        half=[1.75] * N,
        dense_by_domain=[1.0] * N,
        agreement=(0.5, 0.5),
        resident=0.2,
        trace=trace,
    )
    monkeypatch.setattr(read_me, "experiment", lambda *_, **__: made_up)
    monkeypatch.setattr(
        read_me,
        "hit_ratios",
        lambda _: {
            "random": [10.0, 20.0, 30.0, 40.0],
            "LRU": [11.0, 22.0, 33.0, 42.0],
            "Belady": [15.0, 32.0, 38.0, 45.0],
        },
    )
    effects = measured(read_me)
    fewer = effects.pop("fewer-experts-per-batch")
    assert effects == pytest.approx(
        {
            "belady-leads-lru": 3.0,
            "lru-is-blind": 2.0,
            "neighbours-share-experts": 50,
            "own-expert-is-best": 5,
            "better-than-a-random-half": 0.5,
            "router-knows-the-domain": 0.1,
            "better-than-dice": 0.4,
            "one-decision-is-enough": 0.2,
        }
    )
    assert 0 < fewer < 100


def test_hits_are_counted_in_percent_for_every_policy_and_capacity():
    # seven requests that each ask for an expert of their own, in turns: LRU
    # never hits, Belady keeps all but one of its places
    ratios = read_me.hit_ratios([[d] * 100 for d in range(N)], N)
    assert ratios["LRU"] == [0] * 4
    assert ratios["Belady"] == pytest.approx(
        [100 * (c - 1) / 6 for c in read_me.CAPACITIES], abs=1
    )
    assert 0 < ratios["random"][0] < ratios["Belady"][0]


def test_a_token_is_routed_by_the_character_before_it():
    def by_letter(ids):  # expert i mod 7 after letter i
        return torch.nn.functional.one_hot(ids % N, N)

    ids = torch.stack([split(d).test[:111] for d in DOMAINS])
    assert torch.equal(pre_gating.route(by_letter, 100), ids[:, 11:] % N)


def test_a_stretch_is_routed_by_what_stands_before_in_it_alone():
    router = pre_gating.PreGate(N)
    ids = torch.arange(60).view(3, 20) % 97
    for row, scores in zip(ids, router(ids), strict=True):
        torch.testing.assert_close(router(row[None])[0], scores)


def test_recorded_result_is_what_the_text_says():
    seen = recorded()
    assert seen.dense < seen.overlap < seen.router < seen.random
    for row, half in zip(seen.matrix, seen.half, strict=True):
        assert len(row) == N and half > min(row)


def test_batches_serve_every_token_once_and_by_expert_they_hold_fewer():
    traces = sticky_traces(64, 50, 7, 0.7)
    by_arrival = serve(traces, 16, "arrival")
    by_expert = serve(traces, 16, "expert")
    wanted = sorted(expert for trace in traces for expert in trace)
    for served in (by_arrival, by_expert):
        assert sorted(e for b in served.batches for e in b) == wanted
        assert max(map(len, served.batches)) == 16
    assert by_expert.experts < 0.6 * by_arrival.experts


def test_algorithm_1_takes_the_longest_queue_and_cuts_the_last():
    traces = [[e] for e in (0, 1, 1, 1, 2, 2)]
    assert serve(traces, 4).batches == [[1, 1, 1, 2], [0, 2]]


def test_it_ends_when_fewer_tokens_wait_than_a_batch_holds():
    assert serve([[3], [4]], 100).batches == [[3, 4]]
    assert serve([[3], [4]], 100).experts == 2
    assert serve([], 4).batches == []


def test_an_age_limit_ends_the_wait_of_a_rare_expert():
    traces = [[0], *([1] * 30 for _ in range(8))]
    assert max(serve(traces, 4).waits) > 20
    assert max(serve(traces, 4, age_limit=5).waits) <= 7


def test_the_exercise_trace_hits_as_said():
    trace = [0, 1, 2, 0, 3, 1, 0, 2]
    hits = [
        sum(simulate(trace, capacity, policy).hits)
        for capacity in (2, 3)
        for policy in ("LRU", "Belady")
    ]
    assert hits == [0, 2, 2, 3]


@pytest.mark.parametrize("policy", POLICIES)
def test_the_content_is_that_after_each_request(policy):
    trace = [0, 1, 1, 2, 1, 3, 3, 0, 2, 2]
    run = simulate(trace, 2, policy, 3)
    before = ()
    for asked, hit, content in zip(trace, run.hits, run.content, strict=True):
        assert hit == (asked in before)
        # a hit moves nobody; else one comes, and one leaves if it was full
        assert content == before if hit else asked in content
        assert list(content) == sorted(set(content)) and len(content) <= 2
        assert len(set(before) - set(content)) == (not hit and len(before) > 1)
        before = content


def test_made_traces_are_as_sticky_as_asked():
    (trace,) = sticky_traces(1, 20_000, 7, 0.7)
    assert stickiness(trace) == pytest.approx(0.7, abs=0.02)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: simulate([0], 0, "LRU"), "capacity=0"),
        (lambda: simulate([0], 1, "FIFO"), "policy='FIFO'"),
        (lambda: simulate([0], 1, "window", -1), "window=-1"),
        (lambda: serve([[0]], 0), "size=0"),
        (lambda: serve([[0]], 1, "best"), "order='best'"),
        (lambda: sticky_traces(1, 2, 1, 0.5), "experts=1"),
        (lambda: sticky_traces(1, 2, 7, 1.5), "stickiness=1.5"),
    ],
)
def test_errors_say_what_is_wrong(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_many_requests_leave_lru_at_c_over_n_and_belady_above():
    few, many = (picture(n).hits for n in (1, 64))
    assert few["LRU"] > 70
    assert many["LRU"] < 300 / 7 + 3
    assert many["window"] > many["LRU"] + 10
    assert many["Belady"] >= many["window"]


def test_requests_share_the_trace_without_overlap():
    trace = [list(range(100 * d, 100 * d + 20)) for d in range(7)]
    cut = read_me.requests(trace, 14)
    assert cut[0] == list(range(10)) and cut[7] == list(range(10, 20))
    assert len(set(interleave(cut))) == 140
    assert read_me.requests([[0, 1], [2, 3]], 4) == [[0], [2], [1], [3]]
    with pytest.raises(ValueError, match="5 requests"):
        read_me.requests([[0, 1], [2, 3]], 5)


@pytest.mark.parametrize("number, batch", [(1, 4), (6, 16), (32, 5)])
def test_a_batch_has_at_most_one_token_of_a_request(number, batch):
    assert picture(number, batch=batch).batch == min(number, batch)


def evicting(rule):
    """The hits of a cache that drops the expert e of the largest rule."""

    def hits(trace, capacity):
        loaded, found = set(), 0
        for now, expert in enumerate(trace):
            before, after = trace[: now + 1], trace[now + 1 :]
            found += expert in loaded
            if expert not in loaded and len(loaded) == capacity:
                loaded.remove(
                    max(loaded, key=lambda e, b=before, a=after: rule(b, a, e))
                )
            loaded.add(expert)
        return found

    return hits


def upcoming(after, e):
    return after.index(e) if e in after else math.inf


@pytest.mark.parametrize("tie", [-1, 1], ids=["low", "high"])
@pytest.mark.parametrize(
    "rule",
    [
        lambda before, after, e: -after.count(e),
        lambda before, after, e: -(before + after).count(e),
        lambda before, after, e: upcoming(after[::-1], e),
        lambda before, after, e: upcoming(after[:3], e),
        lambda before, after, e: upcoming(after[:4], e),
    ],
    ids=["rare later", "rare", "last use first", "ahead 3", "ahead 4"],
)
def test_exercise_3_rejects_rules_that_see_part_of_the_future(rule, tie):
    exercise = read_me.EXERCISES["exercise-3"]
    mine = evicting(lambda b, a, e: (rule(b, a, e), tie * e))
    assert judge(exercise, mine) != CORRECT
    belady = evicting(lambda b, a, e: (upcoming(a, e), tie * e))
    assert judge(exercise, belady) == CORRECT


def test_exercises_accept_right_and_reject_wrong_answers():
    right = {"exercise-1": (0, 2), "exercise-2": 3 / 7}
    wrong = {"exercise-1": (2, 0), "exercise-2": 0.5}

    def belady(trace, capacity):
        loaded, hits = set(), 0
        for now, expert in enumerate(trace):
            hits += expert in loaded
            if expert not in loaded and len(loaded) == capacity:
                rest = trace[now + 1 :]
                next_use = {
                    e: rest.index(e) if e in rest else math.inf for e in loaded
                }
                loaded.remove(max(loaded, key=next_use.get))
            loaded.add(expert)
        return hits

    right["exercise-3"] = belady
    wrong["exercise-3"] = lambda t, c: sum(simulate(t, c, "LRU").hits)
    for name, exercise in read_me.EXERCISES.items():
        assert judge(exercise, right[name]) == CORRECT
        assert judge(exercise, wrong[name]) != CORRECT
    share = read_me.EXERCISES["exercise-2"]
    for places in (2, 3, 4):
        assert judge(share, round(3 / 7, places)) == CORRECT
    assert judge(share, 0.42) != CORRECT
