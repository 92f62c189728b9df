"""PHATGOOSE against the authors' order of steps, loops and closed forms."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from seed_0 import measured

from lab.exercises import judge
from lab.tokens.char_lm import CONTEXT
from lab.tokens.routers import weight_table
from lab.weights import contributors, names, phatgoose, rivals
from lab.weights.adapters import (
    DIM,
    MODULES,
    RANK,
    Experts,
    bits,
    descend,
    everywhere,
    train_base,
    train_experts,
)
from lab.weights.phatgoose import EXERCISES, KINDS, route
from lab.weights.phatgoose_recorded import WIDTH, picture, recorded

FEW = {"base_steps": 3, "expert_steps": 3, "gate_steps": 3, "characters": 80}


def tokens_and_gates(T=200, N=6, n=64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(T, n, generator=generator) * 3 + 1,
        torch.randn(N, n, generator=generator) + 0.5,
    )


@pytest.fixture(scope="module")
def small():
    """A hardly trained base with hardly trained experts."""
    model = train_base(0, names.BASE, 5)
    return model, train_experts(model, names.EXPERTS, 0, 8)


def authors(tokens, gates, k):
    """`Router._forward`: softmax over all, top-k, divide by what is kept."""
    u = F.layer_norm(tokens, tokens.shape[1:])
    v = F.layer_norm(gates, gates.shape[1:])
    probabilities = (u @ v.T / math.sqrt(u.shape[1])).softmax(dim=1)
    values, indices = probabilities.topk(k)
    return values / (values.sum(dim=1, keepdim=True) + 1e-6), indices


@pytest.mark.parametrize("k", [1, 2, 5, 6])
def test_the_router_is_the_authors(k):
    tokens, gates = tokens_and_gates()
    weights, experts = authors(tokens, gates, k)
    found = route(tokens, gates, k)
    assert torch.equal(found.experts.long(), experts)
    # their 1e-6 beside a kept sum of at least 1 / 6
    torch.testing.assert_close(found.weights, weights, atol=6e-6, rtol=0)


def test_one_expert_has_the_whole_weight():
    tokens, gates = tokens_and_gates(N=1)
    assert (route(tokens, gates, 1).weights == 1).all()


def test_equal_gates_share_alike_and_the_lowest_come_first():
    tokens, gates = tokens_and_gates()
    same = gates[:1].expand(6, -1)
    found = route(tokens, same, 3)
    torch.testing.assert_close(found.weights, torch.full((200, 3), 1 / 3))
    # some CPUs multiply the last columns in another order, so that equal
    # gates may differ in the last bit: then whoever is ahead comes first
    value = phatgoose.scores(tokens, same)
    torch.testing.assert_close(value, value[:, :1].expand(-1, 6))
    first = [sorted(range(6), key=lambda e: (-v[e], e))[:3] for v in value]
    assert found.experts.tolist() == first
    # whole numbers are exact in any order
    whole = route(tokens.round(), same.round(), 3, "raw product")
    assert (whole.experts == torch.arange(3)).all()


def test_loudness_changes_nothing_but_for_the_raw_product():
    tokens, gates = tokens_and_gates()
    loud = route(5 * tokens + 2, gates, 2)
    plain = route(tokens, gates, 2)
    assert (loud.experts == plain.experts).all(dim=1).float().mean() > 0.99
    torch.testing.assert_close(loud.weights, plain.weights, atol=1e-3, rtol=0)
    raw = route(5 * tokens + 2, gates, 2, "raw product").experts
    assert (raw != plain.experts).any()


def test_a_cold_router_takes_only_the_best():
    tokens, gates = tokens_and_gates()
    assert route(tokens, gates, 2, temperature=1e-3).weights[:, 0].min() > 0.5
    warm = route(tokens, gates, 2, temperature=1e4).weights
    torch.testing.assert_close(
        warm, torch.full((200, 2), 0.5), atol=1e-3, rtol=0
    )


def test_a_gate_is_trained_alone_or_beside_others_alike(small):
    model, experts = small
    together = contributors.train_gates(model, experts, names.EXPERTS, 0, 4)
    for e in (0, 4):
        alone = Experts(*(x[:, e : e + 1] for x in experts))
        mine = contributors.train_gates(
            model, alone, names.EXPERTS[e : e + 1], 0, 4
        )
        torch.testing.assert_close(mine[:, 0], together[:, e])
    assert together.abs().min(dim=2).values.max() > 0


def test_no_expert_notices_its_neighbour(small):
    model, _ = small
    one = train_experts(model, ("pl", "es"), 0, 6)
    other = train_experts(model, ("pl", "fr"), 0, 6)
    torch.testing.assert_close(one.up[:, 0], other.up[:, 0])
    torch.testing.assert_close(one.down[:, 0], other.down[:, 0])
    assert (one.up[:, 1] - other.up[:, 1]).abs().max() > 1e-3


def test_training_gates_touches_nothing_else(small):
    model, experts = small
    before = [x.clone() for x in (*model.state_dict().values(), *experts)]
    contributors.train_gates(model, experts, names.EXPERTS, 0, 2)
    after = (*model.state_dict().values(), *experts)
    assert all(map(torch.equal, before, after))


def test_an_expert_learns_its_own_language():
    trained = recorded()
    for e, language in enumerate(names.EXPERTS):
        ids = names.split(language).test[:600]
        costs = [
            bits(trained.model, ids, everywhere(trained.experts, i))
            for i in range(len(names.EXPERTS))
        ]
        assert min(costs) == costs[e]
        assert costs[e] < bits(trained.model, ids) - 0.3


def test_an_expert_before_training_changes_nothing(small):
    model, _ = small
    shape = (len(MODULES), 2, RANK, DIM)
    fresh = Experts(torch.randn(shape), torch.zeros(shape).transpose(2, 3))
    ids = names.split("pt").test[:100]
    assert bits(model, ids, rivals.merged(fresh)) == bits(model, ids)


def test_merging_averages_the_products(small):
    _, experts = small
    u = torch.randn(30, DIM)
    for module in range(len(MODULES)):
        matrix = (experts.up[module] @ experts.down[module]).mean(dim=0)
        found = rivals.merged(experts)(module, u)
        torch.testing.assert_close(found, u @ matrix.T, atol=1e-6, rtol=1e-4)


def test_the_rate_of_learning_rises_over_the_first_six_percent():
    # a slope of 1 moves AdamW by its rate
    leaf, seen = torch.zeros(1), [0.0]
    for _ in descend([leaf], leaf.sum, 50, 0.1):
        seen.append(-leaf.item())
    moved = np.diff(seen)
    np.testing.assert_allclose(moved[:3], [0.1 / 3, 0.2 / 3, 0.1], rtol=1e-4)
    np.testing.assert_allclose(moved[3:], 0.1, rtol=1e-4)
    assert not leaf.requires_grad


def test_arrow_is_the_direction_that_is_amplified_most(small):
    _, experts = small
    arrows = rivals.arrows(experts)
    matrix = (experts.up[2, 3] @ experts.down[2, 3]).double().numpy()
    longest = np.linalg.norm(matrix, 2)
    found = np.linalg.norm(matrix @ arrows[2, 3].double().numpy())
    assert found == pytest.approx(longest, rel=1e-3)


def test_arrow_has_a_direction_and_no_sign():
    tokens, rows = tokens_and_gates()
    one, other = (phatgoose.scores(tokens, r, "Arrow") for r in (rows, -rows))
    assert torch.equal(one, other) and one.min() >= 0


def test_average_activation_is_the_mean_input(small):
    model, experts = small
    means = rivals.average_activations(model, experts, names.EXPERTS, 100)
    ids = names.split("it").train[: 100 + CONTEXT]
    context = torch.stack([ids[i : i + CONTEXT] for i in range(100)])
    x = model.norms[0](model.enter(model.embedding(context).flatten(1)))
    torch.testing.assert_close(means[0, 2], x.mean(0), atol=1e-5, rtol=1e-4)


def test_retrieval_knows_its_own_training_text(small):
    _, experts = small
    ids = names.split("de").train[:640]
    stored = [rivals.fingerprints(names.split(e).train) for e in names.EXPERTS]
    near = torch.stack(
        [(rivals.fingerprints(ids) @ s.T).amax(1) for s in stored]
    )
    assert (near.argmax(0) == names.EXPERTS.index("de")).all()


def test_no_test_key_was_seen_in_any_language():
    keys = names._names()
    everything = (names.BASE, names.EXPERTS, names.HELD_OUT)
    assert len({x for group in everything for x in group}) == 20
    assert set(keys) == {x for group in everything for x in group}
    sides = {}
    for language, table in keys.items():
        train, test = (
            set(names.decode(part).splitlines())
            for part in names.split(language)
        )
        # a sixth of the keys
        assert len(test) / len(train | test) == pytest.approx(1 / 6, abs=0.03)
        for key, name in table.items():
            if name not in train & test:
                sides.setdefault(key, set()).add(name in test)
        # in no order of the alphabet
        first = names.decode(names.split(language).train).splitlines()[:100]
        assert len({name[0] for name in first}) > 8
    assert len(sides) > 1000
    assert all(len(side) == 1 for side in sides.values())


def test_some_spellings_were_seen_under_another_key():
    learned = set()
    for language in names.EXPERTS:
        learned |= set(names.decode(names.split(language).train).split("\n"))
    lines = names.decode(names.mixed().ids).splitlines()
    assert len(lines) == 1044 and sum(x in learned for x in lines) == 10
    assert "palau" in learned & set(lines)


def test_what_is_left_over_goes_with_the_last_whole_passage(small):
    _, experts = small
    parts = [names.split(e).test[:64] for e in ("es", "de", "pl", "fr")]
    ids = torch.cat([*parts, names.split("it").test[:40]])
    u = torch.randn(len(ids) - CONTEXT, DIM)
    found = rivals.retrieved(experts, names.EXPERTS, ids)(0, u)
    # after "pl", the 64 characters before the last whole passage
    by_pl = everywhere(experts, names.EXPERTS.index("pl"))(0, u)
    assert torch.equal(found[-40 - 64 :], by_pl[-40 - 64 :])


def test_the_mixed_text_changes_language_with_every_line():
    ids, language = names.mixed()
    ends = (ids == 0).nonzero().flatten().tolist()
    start = 0
    for line, end in enumerate(ends[:40]):
        assert (language[start : end + 1] == line % 6).all()
        start = end + 1


def test_one_seed_means_the_same_bits():
    again = phatgoose.experiment.__wrapped__
    assert again(1, **FEW) == again(1, **FEW)


def test_all_that_is_routed_takes_as_many_experts():
    one, two = (phatgoose.experiment(0, **FEW, k=k).bits for k in (1, 2))
    for way in ("PHATGOOSE", *KINDS[2:]):
        assert one[way] != two[way]
    assert one["merged"] == two["merged"]


def test_every_claim_can_be_measured():
    for claim in phatgoose.CLAIMS:
        if claim.experiment:
            assert math.isfinite(claim.experiment(0, **FEW))


def test_an_effect_is_what_its_claim_says(monkeypatch):
    mean = {
        "PHATGOOSE": 2.0,
        "retrieval": 2.1,
        "merged": 1.9,
        "average activation": 2.4,
        "best single": 2.6,
        "multitask": 1.5,
    }
    # six languages around the mean, and the mixed text, which is not in it
    around = dict(zip(names.HELD_OUT, range(-3, 3), strict=True))
    bits = {
        way: {text: m + 0.5 + off for text, off in around.items()}
        | {"mixed": 10 * m}
        for way, m in mean.items()
    }
    monkeypatch.setattr(
        phatgoose, "experiment", lambda *_, **__: phatgoose.Result(bits, 0.3)
    )
    effects = measured(phatgoose)
    assert effects == pytest.approx(
        {
            "beats-retrieval": -0.1,
            "beats-merging": 0.1,
            "beats-average-activation": -0.4,
            "beats-best-single": -0.6,
            "mixed-beats-retrieval": -1.0,
            "mixed-beats-merging": 1.0,
            "beats-multitask": 0.5,
            "unlike-the-oracle": 70,
        }
    )


def test_the_picture_answers_the_knobs():
    two, six = picture(k=2), picture(k=6)
    assert six.bits["PHATGOOSE"] < two.bits["PHATGOOSE"]
    assert len(two.choices) == 6 and len(two.letters) == WIDTH
    assert picture(text="pt").language is None
    other = picture(start=40)
    assert other.letters[:16] == two.letters[40:]
    for kind in KINDS:
        assert kind in picture(kind=kind).bits


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda t, g: route(t, 0 * g, 2), "gate of expert 0 is all 0"),
        (lambda t, g: route(t, g, 7), "k=7"),
        (lambda t, g: route(t, g, 0), "k=0"),
        (lambda t, g: route(t * math.nan, g, 2), "NaN"),
        (lambda t, g: phatgoose.scores(t, g, "x"), "kind='x'"),
        (lambda t, g: names.split("xx"), "language='xx'"),
        (lambda t, g: train_base(0, ("en",), 0), "steps=0"),
        (lambda t, g: picture(gate_steps=60), "gate_steps=60; use a multiple"),
        (lambda t, g: picture(gate_steps=425), "from 25 to 400"),
    ],
)
def test_wrong_arguments_are_refused_in_a_sentence(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call(*tokens_and_gates())


def _slow_table(tokens, gates, k):
    def standard(row):
        return (row - row.mean()) / (row.var(unbiased=False) + 1e-5).sqrt()

    table = torch.zeros(len(tokens), len(gates))
    for t, u in enumerate(tokens):
        s = [(standard(u) @ standard(v) / len(u) ** 0.5).item() for v in gates]
        best = sorted(range(len(s)), key=lambda i: -s[i])[:k]
        total = sum(math.exp(s[i]) for i in best)
        for i in best:
            table[t, i] = math.exp(s[i]) / total
    return table


RIGHT = {
    "exercise-1": (0.98201, 0.01799),
    "exercise-2": _slow_table,
    "exercise-3": 3.125,
}
WRONG = {
    "exercise-1": (0.5, 0.5),
    "exercise-2": lambda t, g, k: (t @ g.T).softmax(1),
    "exercise-3": 1.5625,
}


@pytest.mark.parametrize("slug", RIGHT)
def test_the_checker_knows_right_from_wrong(slug):
    assert judge(EXERCISES[slug], RIGHT[slug]) == "correct"
    assert judge(EXERCISES[slug], WRONG[slug]) != "correct"


def test_the_table_is_the_gate():
    tokens, gates = tokens_and_gates(T=9)
    table = weight_table(route(tokens, gates, 2), len(gates))
    assert ((table > 0).sum(1) == 2).all()
    torch.testing.assert_close(table, _slow_table(tokens, gates, 2))
