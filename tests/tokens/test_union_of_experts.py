"""Union of Experts against dense layers, PyTorch's attention and loops."""

import math

import pytest
import torch
from seed_0 import measured
from torch import nn

from lab.exercises import judge
from lab.tokens import union_of_experts as union
from lab.tokens import union_of_experts_recorded
from lab.tokens.digit_model import (
    DIM,
    HEADS,
    HIDDEN,
    PATCHES,
    DigitModel,
    digits,
    patches,
    train,
)
from lab.tokens.union_gate import UnionGate, demand, seated, select
from lab.tokens.union_layers import (
    UnionAttention,
    UnionMLP,
    decompose,
    selective_attention,
    union_mlp,
    untrained,
)
from lab.tokens.union_of_experts import EXERCISES
from lab.tokens.union_of_experts_recorded import CUTS, GATES, picture, recorded


def drawn(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def scores(B=5, S=12, n=4, seed=1):
    return drawn(B, S, n, seed=seed).softmax(2)


def by_hand(P, k, c):
    """The two selections with Python's own sort, one pair at a time."""
    B, S, n = P.shape
    M = torch.zeros_like(P)
    for b in range(B):
        for t in range(S):
            best = sorted(range(n), key=lambda i: (-P[b, t, i].item(), i))
            for i in best[:k]:
                M[b, t, i] = P[b, t, i]
    taken = torch.zeros(B, n, c, dtype=torch.int32)
    for b in range(B):
        for i in range(n):
            R = [
                (M[b, t, i] / (M[:, t, i].sum() + 1e-8)).item()
                for t in range(S)
            ]
            best = sorted(range(S), key=lambda t: (-R[t], t))
            taken[b, i] = torch.tensor(sorted(best[:c]))
    return taken


@pytest.mark.parametrize("k, c", [(2, 6), (1, 3), (4, 12), (3, 1), (2, 11)])
def test_the_selection_is_the_papers_four_steps(k, c):
    P = scores()
    assert torch.equal(select(P, k, c), by_hand(P, k, c))


def test_scores_compete_across_the_batch():
    P = scores(seed=4)
    alone = torch.cat([select(one[None], 2, 6) for one in P])
    assert not torch.equal(select(P, 2, 6), alone)


def test_the_capacity_factor_moves_nobody():
    P = scores()
    assert torch.equal(select(P, 2, 6), select(P, 2, 6, capacity=2.0))


def test_random_gates_throw_the_same_dice():
    # recorded so: the claim's limits and the chapter say it
    x = drawn(3, 7, 4).float()
    one, two = (gate(rule="random").train() for _ in range(2))
    first, second = one(x).chosen, one(x).chosen
    assert torch.equal(first, two(x).chosen)
    assert not torch.equal(first, second)
    assert torch.equal(one.eval()(x).chosen, two.eval()(x).chosen)


def test_every_slice_computes_exactly_c_tokens():
    # slice 0 is wanted by all, the others by few: seats left over are filled
    P = scores()
    P[..., 0] += 9
    chosen = seated(select(P / P.sum(2, keepdim=True), 1, 4), 12)
    assert (chosen.sum(1) == 4).all()
    filled = chosen[..., 1:] & (demand(P, 1)[..., 1:] == 0)
    assert filled.any()


@pytest.mark.parametrize("n", [1, 2, 4, 8, 64])
def test_all_slices_are_the_dense_mlp(n):
    up, bias = drawn(HIDDEN, DIM), drawn(HIDDEN, seed=1)
    down, x = drawn(DIM, HIDDEN, seed=2), drawn(3, 7, DIM, seed=3)
    ones = torch.ones(3, 7, n, dtype=torch.float64)
    got = union_mlp(x, ones, ones.bool(), decompose(up, bias, down, n))
    dense = nn.functional.gelu(x @ up.T + bias) @ down.T
    torch.testing.assert_close(got, dense, atol=1e-12, rtol=1e-12)


def test_a_union_is_the_weighted_sum_of_its_slices():
    up, bias = drawn(HIDDEN, DIM), drawn(HIDDEN, seed=1)
    down, x = drawn(DIM, HIDDEN, seed=2), drawn(3, 7, DIM, seed=3)
    s = decompose(up, bias, down, 4)
    chosen = drawn(3, 7, 4, seed=4) > 0
    weights = drawn(3, 7, 4, seed=5)
    got = union_mlp(x, weights, chosen, s)
    for b in range(3):
        for t in range(7):
            total = torch.zeros(DIM, dtype=torch.float64)
            for i in range(4):
                if chosen[b, t, i]:
                    h = nn.functional.gelu(x[b, t] @ s.up[i] + s.up_bias[i])
                    total += weights[b, t, i] * (h @ s.down[i])
            torch.testing.assert_close(got[b, t], total)


def test_all_heads_over_all_tokens_are_pytorchs_attention():
    layer = UnionAttention(DIM, HEADS, None).double()
    oracle = nn.MultiheadAttention(DIM, HEADS, batch_first=True).double()
    with torch.no_grad():
        oracle.in_proj_weight.copy_(layer.qkv.weight)
        oracle.in_proj_bias.zero_()
        oracle.out_proj.weight.copy_(layer.out.weight)
        oracle.out_proj.bias.copy_(layer.out.bias)
    x = drawn(3, PATCHES, DIM)
    expected, _ = oracle(x, x, x)
    torch.testing.assert_close(layer(x), expected, atol=1e-12, rtol=1e-12)


def test_a_head_sees_and_writes_only_its_tokens():
    x, weights = drawn(2, 9, 8), drawn(2, 9, 2, seed=1)
    qkv, out = drawn(3, 2, 8, 4, seed=2), drawn(2, 4, 8, seed=3)
    taken = select(scores(2, 9, 2), 1, 4)
    got = selective_attention(x, weights, taken, qkv, out)
    total = torch.zeros_like(x)
    for b in range(2):
        for i in range(2):
            mine = taken[b, i].tolist()
            q, k, v = (x[b, mine] @ qkv[p, i] for p in range(3))
            seen = (q @ k.T / 2).softmax(1) @ v @ out[i]
            for row, t in enumerate(mine):
                total[b, t] += weights[b, t, i] * seen[row]
    torch.testing.assert_close(got, total)


def test_slices_of_a_whole_layer_are_the_dense_model():
    image = digits("test").images[:5]
    dense = untrained("dense", seed=3)
    full = untrained("released", True, k=4, share=1.0, seed=3)
    for layer in full.layers:
        layer.attention.gate.k = HEADS
    torch.testing.assert_close(dense(image), full(image))


def test_the_released_gate_never_learns_and_the_weighted_one_does():
    for rule, moved in [("released", False), ("weighted", True)]:
        before = untrained(rule, True, seed=0)
        after = train(untrained(rule, True, seed=0), 2, 0)
        for old, new in zip(before.layers, after.layers, strict=True):
            for name in ("mlp", "attention"):
                one = getattr(old, name).gate.weight
                two = getattr(new, name).gate.weight
                assert torch.equal(one, two) != moved, (rule, name)


def test_half_of_the_pairs_are_active_in_every_arm_but_the_dense_one():
    arms = union.experiment(0, 1)
    assert arms.pop("dense").active == 1
    assert {name: one.active for name, one in arms.items()} == dict.fromkeys(
        arms, 0.5
    )


def test_training_repeats_bit_for_bit():
    weights = [
        train(untrained("random", seed=1), 3, 1).state_dict() for _ in range(2)
    ]
    assert all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0])


def test_training_lowers_what_the_layers_ask_for():
    class Asks(nn.Module):
        def __init__(self):
            super().__init__()
            self.loss = nn.Parameter(torch.ones(()))

    model = union.untrained(*union.ARMS["dense"], seed=0)
    model.layers[0].asks = Asks()
    train(model, 2, 0)
    assert model.layers[0].asks.loss < 1


def test_patches_are_cut_row_by_row():
    image = torch.arange(64.0).reshape(1, 8, 8)
    assert patches(image)[0, 1].tolist() == [2, 3, 10, 11]
    assert patches(image)[0, 4].tolist() == [16, 17, 24, 25]


def test_the_digits_are_split_as_said():
    assert [len(digits(part).labels) for part in ("train", "test")] == [
        1000,
        797,
    ]
    assert digits("test").images.max() == 1


def test_every_claim_runs_on_a_short_training():
    for claim in union.CLAIMS:
        if claim.experiment:
            short = {"steps": 1} if claim.parameters else {}
            assert math.isfinite(claim.experiment(0, **short))


def test_an_effect_is_what_its_claim_says(monkeypatch):
    accuracy = {
        "weighted": 90.0,
        "top-k": 88.0,
        "dense": 95.0,
        "random": 89.0,
        "released": 86.0,
        "weighted, selective": 90.5,
    }
    monkeypatch.setattr(
        union, "arm", lambda name, *_: union.Arm(accuracy[name], 0.0, 0.5)
    )
    effects = measured(union)
    # a few roundings of fp64, in 1e-15 of the largest output
    assert 0 < effects.pop("slices-are-the-layer") < 5
    assert effects == pytest.approx(
        {
            "better-than-a-mixture": 2.0,
            "as-good-as-dense": -5.0,
            "better-than-random-slices": 1.0,
            "a-trained-gate-pays": 4.0,
            "selective-attention-costs-nothing": 0.5,
        }
    )


@pytest.mark.parametrize("slices", CUTS)
def test_a_picture_of_all_slices_has_no_error(slices):
    whole = picture(8, 1.0, slices, "as drawn", "empty", 3)
    assert whole.error < 1e-10
    assert whole.counts == [[slices] * 4] * 4
    falling = whole.errors
    assert falling == sorted(falling, reverse=True) and falling[1] > 20
    half = picture(slices // 2, 0.5, slices, "as drawn", "filled", 3)
    assert half.error > 20
    taken = torch.tensor(half.taken).sum(0)
    assert taken.tolist() == half.counts
    assert taken.sum() == slices * PATCHES // 2


def test_where_seats_are_filled_k_moves_no_patch_out():
    for k in (1, 2, 4):
        assert picture(k, 1.0, 4, "as drawn", "filled", 3).error < 1e-10
    few = picture(1, 0.5, 4, "as drawn", "empty", 3)
    assert torch.tensor(few.taken).sum() < 2 * PATCHES


def test_the_weighted_union_never_is_the_dense_layer():
    assert picture(4, 1.0, 4, "trained", "empty", 3).error > 1


def test_the_recorded_models_read_digits():
    for gate in GATES:
        model = recorded(4, gate)
        for layer in model.layers:
            layer.mlp.gate.k, layer.mlp.gate.share = 2, 0.5
            layer.mlp.gate.fill = True
        images, labels = digits("test")
        assert (model(images).argmax(1) == labels).double().mean() > 0.88


@pytest.mark.parametrize("gate", GATES)
def test_a_picture_shows_what_the_whole_model_does(gate):
    # another setting in between must leave nothing behind
    for k, share in ((1, 0.5), (2, 1.0), (1, 0.5)):
        seen = picture(k, share, 4, gate, "empty", 3)
        model = recorded(4, gate)
        images, labels = (part[:128] for part in digits("test"))
        right = (model(images).argmax(1) == labels).double().mean()
        assert seen.accuracy == 100 * right.item()
        chosen = model.layers[0].mlp.choice.chosen
        which = int((labels == 3).nonzero()[0])
        assert seen.counts == chosen[which].sum(1).reshape(4, 4).tolist()


def test_the_slices_of_a_picture_add_up_to_the_mlp():
    parts, _ = union_of_experts_recorded._slice_outputs(4, "as drawn")
    model, images = recorded(4, "as drawn"), digits("test").images
    mlp, seen = model.layers[0].mlp, []
    mlp.register_forward_pre_hook(lambda _, x: seen.append(x[0].double()))
    model(images[: len(parts)])
    up, bias, down = (
        w.double() for w in (mlp.up.weight, mlp.up.bias, mlp.down.weight)
    )
    dense = nn.functional.gelu(seen[0] @ up.T + bias) @ down.T
    torch.testing.assert_close(parts.sum(2), dense, atol=1e-5, rtol=1e-5)


def gate(**more):
    options = dict(dim=4, slices=4, k=2, share=0.5, rule="weighted")
    return UnionGate(**options | more)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: decompose(drawn(64, 4), drawn(64), drawn(4, 64), 3), "=3"),
        (lambda: select(scores(), 2, 13), "c=13"),
        (lambda: select(scores(), 5, 2), "k=5"),
        (lambda: select(scores(B=5), 2, 6, 0.1), "capacity=0.1"),
        (lambda: gate(rule="topk"), "rule='topk'"),
        (lambda: gate(k=5), "k=5"),
        (lambda: gate(share=0.0), "share=0.0"),
        (lambda: digits("all"), "part='all'"),
        (lambda: train(untrained("dense"), 0, 0), "steps=0"),
        (lambda: picture(2, 0.5, 4, "trained", "all", 0), "seats='all'"),
    ],
)
def test_wrong_arguments_are_refused_in_a_sentence(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()


def test_a_model_takes_any_layers():
    model = DigitModel(
        lambda: UnionAttention(DIM, HEADS, None),
        lambda: UnionMLP(DIM, 8, gate(dim=DIM, slices=8)),
    )
    assert model(digits("test").images[:2]).shape == (2, 10)


RIGHT = {
    "exercise-1": (0.5, 0.25),
    "exercise-2": by_hand,
    "exercise-3": {"relu", "gelu", "swiglu"},
}
WRONG = {
    "exercise-1": (0.5, 0.5),
    # without the competition across the batch
    "exercise-2": lambda P, k, c: torch.cat(
        [by_hand(one[None], k, c) for one in P]
    ),
    "exercise-3": {"relu", "gelu"},
}


@pytest.mark.parametrize("slug", RIGHT)
def test_the_checker_knows_right_from_wrong(slug):
    assert judge(EXERCISES[slug], RIGHT[slug]) == "correct"
    assert judge(EXERCISES[slug], WRONG[slug]) != "correct"
