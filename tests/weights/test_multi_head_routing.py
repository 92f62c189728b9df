"""Multi-head routing against einsums, closed forms and plain loops."""

import math

import pytest
import torch
import torch.nn.functional as F
from seed_0 import measured

from lab.exercises import judge
from lab.kernels.runtime import device
from lab.tokens.digit_model import digits
from lab.weights import (
    digit_questions,
    multi_head_routing,
    multi_head_routing_rates,
)
from lab.weights.digit_questions import (
    LAYERS,
    QUESTIONS,
    SYMMETRIES,
    WIDTHS,
    Tasks,
    draw_examples,
    draw_shots,
    split_tasks,
    train_base,
)
from lab.weights.inventory import (
    Inventory,
    adapter,
    alignment,
    apart,
    copies,
    learn,
    loss,
    route,
    start,
    uniform,
)
from lab.weights.multi_head_routing import (
    EXERCISES,
    METHODS,
    Adapted,
    adapt,
    averaged,
    pretrain,
)
from lab.weights.multi_head_routing_recorded import (
    BLOCKS,
    LOGIT_RATES,
    picture,
    shares,
    spread,
)

FEW = {"base_steps": 3, "steps": 5, "shot_steps": 2, "extra_steps": 2}
FEW |= {"shots": 2}


@pytest.fixture(scope="module")
def base():
    """A hardly trained network."""
    return train_base(0, 20)


def drawn(J=3, h=4, S=3, r=2, seed=0):
    """An inventory that is not at its beginning."""
    generator = torch.Generator().manual_seed(seed)

    def like(x):
        return torch.randn(x.shape, generator=generator).to(device())

    return Inventory(
        *(tuple(map(like, part)) for part in start(J, h, S, r, 0))
    )


def authors(x, task, logits, down, up):
    """The update of x [B, L, n] as in `SkilledLoRA`, without 1 / r: mix an
    adapter for every example, then two batched products."""
    weights = torch.sigmoid(logits[task])
    weights = weights / (weights.sum(dim=-1, keepdim=True) + 1e-12)
    B, (n, m) = len(x), (x.shape[2], up.shape[0] * up.shape[3])
    a = torch.einsum("bqs,qsdr->bqdr", weights, down).reshape(B, n, -1)
    b = torch.einsum("bqs,qsrd->bqrd", weights, up)
    return x.bmm(a).bmm(b.transpose(1, 2).reshape(B, -1, m))


@pytest.mark.parametrize("h", BLOCKS)
def test_the_update_is_the_authors(h):
    mine, tokens = drawn(h=h), 5
    add = adapter(mine, tokens, route)
    for layer, (n, m) in enumerate(zip(WIDTHS, WIDTHS[1:], strict=False)):
        x = torch.randn(3, tokens, n).to(device())
        parts = (part[layer] for part in (mine.logits, mine.down, mine.up))
        expected = authors(x, torch.arange(3), *parts).view(-1, m)
        found = add(layer, x.flatten(0, 1))
        torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)


def test_weights_are_sigmoids_over_their_sum_and_not_a_softmax():
    logits = torch.tensor([[[0.0, math.log(3), -50.0]]])
    found = route(logits)[0, 0]
    torch.testing.assert_close(found, torch.tensor([0.4, 0.6, 0.0]))
    # a softmax would not notice a constant; sigmoids may all be open
    assert (route(logits + 5)[0, 0, 1] - 0.5).abs() < 0.01
    open_ = route(torch.full((1, 1, 3), 20.0))
    torch.testing.assert_close(open_, torch.full((1, 1, 3), 1 / 3))


def test_an_inventory_of_one_is_an_adapter_by_itself():
    mine = drawn(h=1, S=1, r=3)
    x = torch.randn(6, WIDTHS[0]).to(device())
    expected = x @ mine.down[0][0, 0] @ mine.up[0][0, 0]
    torch.testing.assert_close(adapter(mine, 2, route)(0, x), expected)


def test_equal_logits_are_the_average_of_mu():
    mine = drawn()
    mine = mine._replace(logits=tuple(0 * z + 0.7 for z in mine.logits))
    x = torch.randn(6, WIDTHS[0]).to(device())
    one, other = (adapter(mine, 2, weigh)(0, x) for weigh in (route, uniform))
    torch.testing.assert_close(one, other)


def test_copies_side_by_side_are_each_tasks_own():
    mine, J = drawn(), 3
    each = copies(mine, J)
    x = torch.randn(J * 2, WIDTHS[1]).to(device())
    same = adapter(each, 2, apart(route))(1, x)
    torch.testing.assert_close(same, adapter(mine, 2, route)(1, x))
    # changing the second task's copy moves its two tokens alone
    each.up[1][:, 3:6] += 1
    moved = adapter(each, 2, apart(route))(1, x) != same
    assert moved.any(dim=1).tolist() == [False, False, True, True] + 2 * [
        False
    ]


def test_before_training_nothing_changes(base):
    tasks, _ = split_tasks(0)
    x = tasks.inputs(
        "train", draw_examples(tasks.numbers, 2, torch.default_generator)
    )
    x = x.flatten(0, 1)
    for method in METHODS.values():
        fresh = start(36, *method[:3], seed=1)
        assert torch.equal(base(x, adapter(fresh, 2, route)), base(x))


def test_rivals_have_as_many_numbers_but_for_logits():
    numbers = {
        name: start(36, *method[:3], seed=0).adapters
        for name, method in METHODS.items()
    }
    assert numbers["LoRA"] == numbers["Poly"] == numbers["MHR"] == 5632


def test_the_tasks_are_what_they_say():
    images, labels = digits("test")
    every = Tasks(tuple(range(48)))
    first = torch.arange(9, device=device()).expand(48, -1)
    x = every.inputs("test", first).cpu()
    right = every.answers("test", first).cpu()
    for number, title in enumerate(every.titles):
        lying, asked = title.split(", ")
        assert lying == SYMMETRIES[number % 8]
        for i in range(9):
            image = (
                images[i].flip(1) if lying.startswith("mirr") else images[i]
            )
            turns = {"left": 1, "down": 2, "right": 3}.get(
                lying.split()[-1], 0
            )
            for _ in range(turns):  # a quarter to the left
                image = image.T.flip(0)
            assert torch.equal(x[number, i, :64], image.flatten())
            assert right[number, i] == (int(labels[i]) in QUESTIONS[asked])
        # two of the last sixteen numbers name the task
        named = x[number, 0, 64:].nonzero().flatten().tolist()
        assert named == [number % 8, 8 + number // 8]


def test_no_new_task_was_learned_but_all_of_its_parts():
    for seed in range(5):
        tasks, others = split_tasks(seed)
        assert len(tasks.numbers) == 36 and len(others.numbers) == 12
        assert sorted(tasks.numbers + others.numbers) == list(range(48))
        assert {n % 8 for n in tasks.numbers} == set(range(8))
        assert {n // 8 for n in tasks.numbers} == set(range(6))


def test_shots_are_balanced_and_fewer_are_the_first_of_more():
    _, others = split_tasks(0)
    many, few = (draw_shots(others, shots, 3) for shots in (16, 4))
    right = others.answers("train", many)
    assert right.sum(dim=1).tolist() == [16] * 12
    assert torch.equal(few, torch.cat([many[:, :4], many[:, 16:20]], dim=1))
    assert len(set(many[0].tolist())) == 32


def test_logits_learn_at_a_rate_of_their_own(base):
    tasks, _ = split_tasks(0)
    mine = start(36, 2, 3, 2, 0)
    before = [x.clone() for part in mine for x in part]
    # of one step AdamW makes the rate, whatever the gradient
    for _ in learn(base, tasks, mine, 1, 1e-3, 0, logit_rate=0.1):
        pass
    after = [x for part in mine for x in part]
    moved = [
        (a - b).abs().max().item() for a, b in zip(after, before, strict=True)
    ]
    # B begins at 0, so the first step reaches B alone
    assert moved[:LAYERS] == [0.0] * LAYERS
    assert moved[LAYERS : 2 * LAYERS] == pytest.approx(
        [1e-3] * LAYERS, rel=0.02
    )
    for _ in learn(base, tasks, mine, 1, 1e-3, 0, logit_rate=0.1):
        pass
    moved = [
        (z - b).abs().max()
        for z, b in zip(mine.logits, before[-3:], strict=True)
    ]
    assert all(0.05 < x < 0.11 for x in moved)


def test_z_trains_only_logits_and_mu_only_adapters(base):
    _, others = split_tasks(0)
    mine = drawn(36, h=2)
    before = [x.clone() for part in mine for x in part]

    def made(mode):
        return adapt(base, others, mine, mode, 1e-2, 2, 2, 0).inventory

    z, mu, full = made("z"), made("mu"), made("full")
    assert all(map(torch.equal, (x for part in mine for x in part), before))
    assert all(map(torch.equal, z.down + z.up, mine.down + mine.up))
    assert all(x.abs().max() > 0.01 for x in z.logits)
    assert all(x.abs().max() < 0.01 for x in mu.logits)
    assert all(x.shape == (12, 2, 3) for x in z.logits)
    for part in (mu, full):
        # twelve copies, and no two stay the same
        assert part.down[0].shape[1] == 12 * 3
        one, two = part.up[2][:, :3], part.up[2][:, 3:6]
        assert not torch.equal(one, two)
    assert all(x.abs().max() > 0.01 for x in full.logits)


def test_a_task_adapts_alone_or_beside_others_alike(base):
    _, others = split_tasks(0)
    mine = drawn(36, h=2)
    for mode in ("full", "mu"):
        all_ = adapt(base, others, mine, mode, 1e-2, 2, 3, 0)
        first = Tasks(others.numbers[:1])
        alone = adapt(base, first, mine, mode, 1e-2, 2, 3, 0)
        # the logits of several tasks are drawn together
        limit = {"full": 0.02, "mu": 1e-4}[mode]
        found = all_.inventory.up[0][:, :3] - alone.inventory.up[0]
        assert found.abs().max() < limit


def test_more_steps_train_a_copy_and_average_it(base):
    tasks, others = split_tasks(0)
    mine = drawn(36, h=2)
    before = mine.up[1].clone()
    found = averaged(base, tasks, mine, 1e-2, 2, 0, uniform, 12)
    assert torch.equal(mine.up[1], before)
    assert not torch.equal(found.inventory.up[1], before)
    weights = found.weigh(found.inventory.logits[0]).cpu()
    assert torch.equal(weights, torch.full((12, 2, 3), 1 / 3))
    assert 0 <= found.accuracy(base, others) <= 100


def test_alignment_is_the_mean_cosine_of_each_pair(base):
    tasks = Tasks((0, 13, 40))
    mine = drawn(3)
    examples = draw_examples(tasks.numbers, 6, torch.default_generator)
    found = alignment(base, tasks, examples, mine)
    rows = []
    for j, number in enumerate(tasks.numbers):
        leaves = [x.clone().requires_grad_() for x in mine.down + mine.up]
        one = Inventory(
            leaves[:LAYERS], leaves[LAYERS:],
            tuple(z[j : j + 1] for z in mine.logits),
        )  # fmt: skip
        cost = loss(base, Tasks((number,)), examples[j : j + 1], one, route)
        grads = torch.autograd.grad(cost, leaves)
        rows.append(torch.cat([g.flatten() for g in grads]))
    pairs = [
        F.cosine_similarity(rows[a], rows[b], dim=0)
        for a, b in ((0, 1), (0, 2), (1, 2))
    ]
    assert found == pytest.approx((sum(pairs) / 3).item(), abs=1e-5)


def test_the_base_reads_digits_and_knows_no_question():
    base = train_base(0)
    labels = digits("test").labels.to(device())
    pixels = digit_questions._pixels("test")[0]
    x = torch.cat([pixels, pixels.new_zeros(len(pixels), 16)], dim=1)
    right = base(x)[:, :10].argmax(dim=1) == labels
    assert right.float().mean() > 0.9
    tasks, _ = split_tasks(0)
    assert 35 < digit_questions.accuracy(base, tasks, None).mean() < 65


def test_rates_are_chosen_without_the_digits_that_judge_them(monkeypatch):
    seen = []

    def inputs(tasks, part, examples):
        seen.append((part, examples.min().item(), examples.max().item()))
        return original(tasks, part, examples)

    original = Tasks.inputs
    monkeypatch.setattr(Tasks, "inputs", inputs)
    few = {name: FEW[name] for name in FEW if name != "extra_steps"}
    found = multi_head_routing_rates.validate(100, **few)
    assert {part for part, _, _ in seen} == {"train"}
    assert all(high < 800 or low == 800 for _, low, high in seen)
    assert max(high for _, _, high in seen) == 999
    for name, method in METHODS.items():
        for mode, rate in method.shot_rates.items():
            tried = multi_head_routing_rates.grid(mode)
            assert len(found[f"{name} {mode}"]) == len(tried)
            assert rate in tried[1:-1]


def test_one_seed_means_the_same_numbers():
    again = multi_head_routing.experiment.__wrapped__
    assert again(1, **FEW) == multi_head_routing.experiment(1, **FEW)


def test_every_claim_can_be_measured():
    for claim in multi_head_routing.CLAIMS:
        if claim.experiment:
            assert math.isfinite(claim.experiment(1, **FEW))


def test_an_effect_is_what_its_claim_says(monkeypatch):
    result = multi_head_routing.Result(
        learned={"LoRA": 92.0, "Poly": 90.0, "MHR": 91.0},
        adapted={
            "LoRA": {"full": 85.0},
            "Poly": {"full": 83.0, "z": 70.0},
            "MHR": {"full": 87.0, "z": 81.0, "mu": 86.0},
        },
        unseen={"LoRA": 80.0, "Poly": 60.0, "MHR": 73.0},
        alignment={"LoRA": 0.25, "Poly": 0.125, "MHR": 0.5},
    )
    monkeypatch.setattr(
        multi_head_routing, "experiment", lambda *_, **__: result
    )
    assert measured(multi_head_routing) == {
        "beats-poly": 4.0,
        "finer-fits-better": 1.0,
        "better-optimisation": -1.0,
        "logits-suffice": -4.0,
        "blocks-help-z": 11.0,
        "average-suffices": -1.0,
        "gradients-align": 0.25,
        "unseen-tasks": -7.0,
    }


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda b: start(3, 3, 8, 2, 0), "blocks=3 do not divide"),
        (lambda b: start(3, 32, 8, 2, 0), "blocks=32 do not divide"),
        (lambda b: start(3, 0, 8, 2, 0), "blocks=0 do not divide"),
        (lambda b: start(3, 1, 0, 2, 0), "skills=0 is too few"),
        (lambda b: start(3, 1, 8, 0, 0), "rank=0 is too few"),
        (lambda b: start(0, 1, 8, 2, 0), "tasks=0 is too few"),
        (lambda b: route(torch.full((1, 1, 2), -math.inf)), "minus infinity"),
        (lambda b: route(torch.full((1, 1, 2), math.nan)), "logits hold NaN"),
        (
            lambda b: adapt(b, Tasks((1,)), drawn(), "x", 0.1, 2, 1, 0),
            "mode='x' is not one of full, z, mu",
        ),
        (lambda b: train_base(0, 0), "steps=0 trains nothing"),
        (lambda b: draw_shots(Tasks((1,)), 0, 0), "shots=0"),
        (lambda b: draw_shots(Tasks((44,)), 400, 0), "shots=400"),
        (lambda b: picture(blocks=3), "blocks=3 was not recorded"),
        (lambda b: picture(mode="x"), "mode='x' was not recorded"),
        (lambda b: picture(shots=5), "shots=5 was not recorded"),
        (lambda b: picture(logit_rate=1.0), "logit_rate=1.0 was not"),
        (lambda b: picture(layer=4), "layer=4 was not recorded"),
        (lambda b: picture(block=0), "block=0 was not recorded"),
    ],
)
def test_wrong_arguments_are_refused_in_a_sentence(base, call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call(base)


def slow_factor(logits, factors):
    h, S, width, r = factors.shape
    found = torch.zeros(h * width, r)
    for q in range(h):
        open_ = [1 / (1 + math.exp(-z)) for z in logits[q].tolist()]
        for s in range(S):
            share = open_[s] / sum(open_)
            found[q * width : (q + 1) * width] += share * factors[q, s]
    return found


RIGHT = {
    "exercise-1": 0.5,
    "exercise-2": slow_factor,
    "exercise-3": 12288,
}
WRONG = {
    "exercise-1": 0.25,
    # a softmax
    "exercise-2": lambda z, f: torch.einsum(
        "qs,qsdr->qdr", z.softmax(1), f
    ).flatten(0, 1),
    "exercise-3": 192,
}


@pytest.mark.parametrize("slug", RIGHT)
def test_the_checker_knows_right_from_wrong(slug):
    assert judge(EXERCISES[slug], RIGHT[slug]) == "correct"
    assert judge(EXERCISES[slug], WRONG[slug]) != "correct"


def test_the_recordings_are_what_a_training_gives():
    base, (tasks, others) = train_base(0), split_tasks(0)
    method = METHODS["MHR"]._replace(blocks=1)
    *_, mine = pretrain(base, tasks, method, 400, 0)
    # rounding differs between processors, and 400 steps make it grow
    close = {"abs": 3.0}
    p = picture(blocks=1)
    found = Adapted(mine, route).accuracy(base, tasks)
    assert p.curves["learned"][0] == pytest.approx(found, **close)
    now = adapt(base, others, mine, "z", 0.0, 16, 60, 0)
    assert p.accuracy == pytest.approx(now.accuracy(base, others), **close)


def test_the_picture_answers_the_knobs():
    p = picture(blocks=16, mode="z")
    held_out = split_tasks(0)[1].numbers
    for lying, row in enumerate(p.new):
        for asked, value in enumerate(row):
            assert (value is not None) == (8 * asked + lying in held_out)
    values = [x for row in p.new for x in row if x is not None]
    assert p.accuracy == pytest.approx(sum(values) / 12)
    assert p.curves["new, z"][-1] == pytest.approx(p.accuracy)
    assert picture(blocks=16, mode="mu").accuracy != p.accuracy
    assert picture(blocks=16, shots=64).accuracy > p.accuracy
    # a block that a coarser inventory does not have is its last one
    assert picture(blocks=2, block=9).block == 2
    assert picture(blocks=4, layer=3).weights != picture(blocks=4).weights
    for row in p.weights:
        assert sum(row) == pytest.approx(1, abs=1e-3)
    assert len(p.weights) == len(p.rows) == 48


def test_the_rows_of_the_weights_are_the_tasks_in_order():
    tasks, others = split_tasks(0)
    table = shares(2, 0.1)[1, :, 1]
    for at, number in enumerate(tasks.numbers):
        row = picture(blocks=2, layer=2, block=2).weights[number]
        assert row == pytest.approx(table[at].tolist())
    for at, number in enumerate(others.numbers):
        row = picture(blocks=2, layer=2, block=2).weights[number]
        assert row == pytest.approx(table[36 + at].tolist())


def test_finer_blocks_help_logits_alone_and_slow_logits_stay_even():
    for shots in (16, 64):
        z = picture(shots=shots).curves["new, z"]
        assert z == pytest.approx(sorted(z), abs=0.6) and z[3] > z[0] + 4
    flat = picture(shots=4).curves["new, z"]
    assert max(flat) - min(flat) < 1.5
    for shots in (4, 16, 64):
        even = picture(shots=shots, logit_rate=0.001).curves
        assert max(even["new, z"]) < 71
    for h in BLOCKS:
        rising = [spread(h, rate) for rate in LOGIT_RATES]
        assert rising == sorted(rising) and rising[0] < 20 < rising[-1]


def test_tasks_of_one_question_take_similar_weights():
    tasks, _ = split_tasks(0)
    asked = torch.tensor(tasks.numbers) // 8
    for h in BLOCKS:
        for weights in torch.from_numpy(shares(h, 0.1))[:, :36].flatten(2):
            centred = weights - weights.mean(dim=0)
            of_question = torch.stack(
                [centred[asked == q].mean(dim=0) for q in asked]
            )
            # six groups of 36 at random would explain 5 / 35
            share = of_question.square().sum() / centred.square().sum()
            assert share > 0.25
