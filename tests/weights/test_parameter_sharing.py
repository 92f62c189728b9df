"""Parameter sharing against loops, finite differences, and closed forms."""

import math
from collections import Counter

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from seed_0 import measured

from lab.exercises import judge
from lab.weights import (
    parameter_sharing,
    parameter_sharing_rates,
    pruned_at_start,
    shared_network,
    sharing_methods,
)
from lab.weights import parameter_sharing_recorded as recorded
from lab.weights.inner_products import products_after
from lab.weights.parameter_sharing import EXERCISES
from lab.weights.pruned_at_start import WAYS, keep, narrower, prune, rewind
from lab.weights.shared_array import (
    MAPPINGS,
    SCALERS,
    divisors,
    effective_rank,
    key_of,
    share,
    sharers,
    size,
)
from lab.weights.shared_network import Dense, Shared, learn, shapes_of, shown
from lab.weights.sharing_methods import ARMS, SHAPES, Arm, N

TINY = (6, 64), (6, 6), (10, 6)


def hashed(x, key):
    """The hash in Python's integers."""
    x ^= key
    for shift, factor in (16, 0x21F0AAAD), (15, 0x735A2D97):
        x = (x ^ (x >> shift)) * factor % 2**32
    return x ^ (x >> 15)


def place_by_hand(shapes, m, mapping, seed):
    """The cell of every weight, one after the other."""
    found, i, block, key = [], 0, 0, key_of(seed)
    for layer, (rows, columns) in enumerate(shapes):
        if mapping == "one hash per layer":
            key = key_of(seed, layer + 1)
        wide = math.ceil(columns / 8)
        for r in range(rows):
            for k in range(columns):
                if mapping == "HashedNet":
                    cell = hashed(i, key) % m
                elif mapping == "ROAST":
                    number = block + (r // 8) * wide + k // 8
                    cell = hashed(number, key) % (m - 64)
                    cell += 8 * (r % 8) + k % 8
                else:
                    c = i // m
                    cell = (hashed(c, key) % m + i - c * m) % m
                found.append(cell)
                i += 1
        block += math.ceil(rows / 8) * wide
    return found


@pytest.mark.parametrize("mapping", MAPPINGS)
@pytest.mark.parametrize("m", [70, 97, 480])
def test_every_mapping_is_what_a_loop_finds(mapping, m):
    found = share(TINY, m, mapping, 3)
    assert found.cells.tolist() == place_by_hand(TINY, m, mapping, 3)
    key = key_of(3)
    assert found.signs.tolist() == [
        -1 if hashed(i, key) >= 2**31 else 1 for i in range(480)
    ]
    count = Counter(found.cells.tolist())
    assert sharers(found).tolist() == [count[j] for j in range(m)]


@pytest.mark.parametrize("m", [1, 7, 100, 404, 1616, N])
def test_a_fold_fills_all_cells_alike(m):
    found = sharers(share(SHAPES, m, "RandomFold", 1))
    assert found.min() == N // m and found.max() == math.ceil(N / m)


def test_only_one_hash_for_all_layers_uses_every_cell_at_1x():
    used = {
        mapping: (sharers(share(SHAPES, N, mapping, 0)) > 0).double().mean()
        for mapping in MAPPINGS
    }
    assert used["RandomFold"] == 1
    assert 0.6 < used["one hash per layer"] < 0.97
    # with independent hashes a share of 1 / e of the cells stays empty
    assert used["HashedNet"] == pytest.approx(1 - 1 / math.e, abs=0.01)
    assert 0.5 < used["ROAST"] < 0.75


@pytest.mark.parametrize("scaler", SCALERS)
def test_a_divisor_sums_over_the_weights_of_a_cell(scaler):
    sharing = share(TINY, 100, "HashedNet", 2)
    generator = torch.Generator().manual_seed(0)
    scales = torch.rand(480, generator=generator) + 0.5
    found = divisors(sharing, scales, scaler)
    for j in range(100):
        mine = [
            s for s, cell in zip(scales.tolist(), sharing.cells.tolist(),
                                 strict=True) if cell == j
        ]  # fmt: skip
        expected = {
            "none": lambda ls: 1,
            "v1": lambda ls: sum(ls) ** 2 / len(ls),
            "v4": lambda ls: math.sqrt(sum(x * x for x in ls)),
        }[scaler](mine or [1])
        assert found[j].item() == pytest.approx(expected, rel=1e-5)
    assert (sharers(sharing) == 0).any()


def moved(start, scaler, steps=1, rate=0.3):
    sharing = share(shapes_of(16), 100, "RandomFold", 5)
    network = Shared(sharing, 16, start, scaler, 5)
    before = torch.cat([w.flatten() for w in network.recovered()]).detach()
    for _ in learn(network, rate, 5, steps):
        pass
    after = torch.cat([w.flatten() for w in network.recovered()]).detach()
    return before, after - before


def test_with_the_scaler_weights_move_alike_for_every_initial_scale():
    first, expected = moved(0.04, "v1", steps=6)
    for start in (0.001, 10.0):
        before, found = moved(start, "v1", steps=6)
        torch.testing.assert_close(before, first)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("scaler", "power"), [("none", 2), ("v4", 1)])
def test_without_it_a_step_grows_with_the_inverse_of_the_scale(scaler, power):
    _, expected = moved(0.04, scaler)
    _, found = moved(0.01, scaler)
    torch.testing.assert_close(
        found, 4**power * expected, rtol=2e-3, atol=1e-6
    )


def test_adams_steps_also_grow_with_the_inverse_of_the_scale():
    def step(start):
        sharing = share(shapes_of(16), 100, "RandomFold", 5)
        network = Shared(sharing, 16, start, "none", 5)
        before = network.recovered()[0].detach().clone()
        list(learn(network, 0.001, 5, 1, "Adam"))
        return network.recovered()[0].detach() - before

    torch.testing.assert_close(
        step(0.01), 4 * step(0.04), rtol=0.02, atol=1e-4
    )


def test_without_sharing_it_is_plain_sgd():
    shapes = shapes_of(16)
    dense = Dense(16, 4)
    sharing = share(shapes, size(shapes), "RandomFold", 4)
    network = Shared(sharing, 16, 0.04, "v1", 4)
    with torch.no_grad():
        flat = torch.cat([w.flatten() for w in dense.weights])
        network.table[network.cells] = flat / network.factors
    for losses in zip(
        learn(dense, 0.1, 4, 20), learn(network, 0.1, 4, 20), strict=True
    ):
        assert losses[0] == pytest.approx(losses[1], abs=1e-4)
    for one, other in zip(dense.weights, network.recovered(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-4)


def test_the_kernel_multiplies_with_the_recovered_weights():
    sharing = share(SHAPES, 404, "RandomFold", 6)
    network = Shared(sharing, 128, 0.04, "v1", 6)
    for layer, w in enumerate(network.recovered()):
        x = torch.randn(9, w.shape[1], device=w.device)
        torch.testing.assert_close(
            network.looked_up(x, layer), F.linear(x, w), atol=1e-5, rtol=1e-4
        )
        results = network.looked_up(x, layer), F.linear(x, w)
        one, other = (
            torch.autograd.grad(
                y.sin().sum(), network.table, retain_graph=True
            )
            for y in results
        )
        torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-3)


def loss_of(weights, biases):
    x, labels = shown("train", slice(200))
    x = x.double()
    for layer, (w, b) in enumerate(zip(weights, biases, strict=True)):
        x = x @ w.T + b
        x = x.relu() if layer < 2 else x
    return x, labels


def tiny(seed=1):
    network = Dense(6, seed)
    weights = [w.detach().double() for w in network.weights]
    return network, weights, [b.detach().double() for b in network.biases]


def test_snips_score_is_the_slope_of_the_loss_along_a_weights_mask():
    network, weights, biases = tiny()
    found = pruned_at_start.scores(network, "SNIP", 200)
    for layer, place in ((0, (2, 29)), (1, (3, 4)), (2, (7, 1))):
        ends = []
        for mask in (1 + 1e-4, 1 - 1e-4):
            changed = [w.clone() for w in weights]
            changed[layer][place] *= mask
            ends.append(F.cross_entropy(*loss_of(changed, biases)).item())
        slope = (ends[0] - ends[1]) / 2e-4
        assert found[layer][place].item() == pytest.approx(
            abs(slope), rel=1e-2, abs=1e-6
        )


def test_grasps_score_is_a_weight_times_the_curvature_along_the_gradient():
    network, weights, biases = tiny()
    found = pruned_at_start.scores(network, "GraSP", 200)

    def gradient(step, along):
        leaves = [
            (w + step * g).requires_grad_()
            for w, g in zip(weights, along, strict=True)
        ]
        scores, labels = loss_of(leaves, biases)
        return torch.autograd.grad(
            F.cross_entropy(scores / pruned_at_start.TEMPERATURE, labels),
            leaves,
        )

    g = gradient(0.0, [torch.zeros_like(w) for w in weights])
    pairs = zip(gradient(1e-2, g), gradient(-1e-2, g), strict=True)
    curved = [(a - b) / 2e-2 for a, b in pairs]
    for score, w, h in zip(found, weights, curved, strict=True):
        most = (w * h).abs().max()
        torch.testing.assert_close(
            score.double(), w * h, rtol=0.02, atol=0.02 * most.item()
        )


def test_synflows_score_is_the_sum_of_all_paths_through_a_weight():
    network, weights, _ = tiny()
    w1, w2, w3 = (w.abs().numpy() for w in weights)
    found = pruned_at_start.scores(network, "SynFlow", 200)[1]
    for j in range(6):
        for k in range(6):
            into = sum(w1[k, p] for p in range(64))
            out = sum(w3[o, j] for o in range(10))
            assert found[j, k].item() == pytest.approx(
                into * w2[j, k] * out, rel=1e-9
            )


def test_the_first_of_equal_scores_stay():
    masks = keep([torch.ones(2, 2), torch.tensor([[3.0, 1.0]])], 3)
    assert [m.tolist() for m in masks] == [
        [[1, 1], [0, 0]], [[1, 0]],
    ]  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_pruning_leaves_exactly_so_many_weights(way, monkeypatch):
    monkeypatch.setattr(pruned_at_start, "ROUNDS", 10)
    masks = prune(Dense(32, 0), way, 200, 100).masks
    assert sum(m.sum().item() for m in masks) == 200
    kept = prune(Dense(32, 0), way, 200, 100)
    for layer, mask in enumerate(masks):
        assert torch.equal(mask, kept.masks[layer])
    if way == "SynFlow":
        assert all(m.any() for m in masks)


def test_magnitudes_of_all_layers_together_cut_the_later_layers_off():
    masks = prune(Dense(128, 0), "MAG", N // 16, 1000).masks
    assert [m.any().item() for m in masks] == [True, False, False]


def test_a_pruned_weight_is_0_and_stays_so():
    network = prune(Dense(16, 0), "SNIP", 300, 200)
    before = [w.detach().clone() for w in network.weights]
    list(learn(network, 0.1, 0, 3))
    for w, then, mask in zip(
        network.weights, before, network.masks, strict=True
    ):
        assert torch.equal(w[mask == 0], then[mask == 0])
        assert not torch.equal(w, then)
    x = torch.rand(3, 64, device=w.device)
    network.masks = [0 * m for m in network.masks]
    assert torch.equal(network(x), network.biases[2].expand(3, 10))


def test_a_lottery_ticket_goes_back_and_keeps_the_largest(monkeypatch):
    starts, ends = [], []

    def watched(network, *arguments, **options):
        starts.append([w.detach().clone() for w in network.weights])
        for step, loss in enumerate(learn(network, *arguments, **options)):
            if not ends and step == 2:
                early = [w.detach().clone() for w in network.weights]
            yield loss
        masks = network.masks or [torch.ones_like(w) for w in network.weights]
        ends.append((masks, [w.detach().clone() for w in network.weights]))
        if len(ends) == 1:
            starts.append(early)

    monkeypatch.setattr(pruned_at_start, "learn", watched)
    monkeypatch.setattr(pruned_at_start, "REWOUND", 3)
    n = size(shapes_of(16))
    network = rewind(16, n // 10, 0.1, 2, 200, steps=6)
    counts = [int(sum(m.sum() for m in masks)) for masks, _ in ends]
    assert counts == [n, n // 4, n // 10]
    early = starts.pop(1)
    for later in starts[1:]:
        assert all(map(torch.equal, later, early))
    for (masks, weights), (left, _) in zip(ends, ends[1:], strict=False):
        sizes = torch.cat(
            [(w.abs() * m).flatten() for w, m in zip(weights, masks,
                                                     strict=True)]
        )  # fmt: skip
        kept = torch.cat([m.flatten() for m in left]).bool()
        assert sizes[kept].min() >= sizes[~kept].max()
    assert network.masks is not None


@pytest.mark.parametrize("biases", [False, True])
def test_a_narrower_network_fills_its_budget(biases):
    for budget in (100, 404, 670, 5000):
        first, second = narrower(budget, biases)
        assert first - second in (0, 1)
        larger = (first, first) if second < first else (first + 1, first)
        for (one, other), fits in (((first, second), True), (larger, False)):
            network = Dense(one, 0, other)
            numbers = [*network.weights] + biases * [*network.biases]
            assert (sum(w.numel() for w in numbers) <= budget) is fits


def test_effective_rank_counts_equal_directions():
    assert effective_rank(torch.eye(7)[:5]) == pytest.approx(5, rel=1e-4)
    assert effective_rank(torch.ones(4, 9)) == pytest.approx(1, abs=1e-3)
    p = np.array([3, 1]) / 4
    expected = np.exp(-(p * np.log(p)).sum())
    found = effective_rank(torch.diag(torch.tensor([3.0, 1.0])))
    assert found == pytest.approx(expected, rel=1e-4)
    assert effective_rank(torch.zeros(3, 3)) == 0


def test_sharing_wins_where_few_numbers_hold_a_product():
    even = torch.ones(1, 64) / 8
    lone = torch.zeros(1, 64)
    lone[0, 17] = 1.0
    errors = {}
    for name, x in (("even", even), ("lone", lone)):
        for way in ("sharing", "pruning"):
            found = torch.cat(
                [products_after(x, x, 8, way, key) for key in range(1200)]
            )
            if name == "even" or way == "sharing":
                assert found.mean() == pytest.approx(1.0, abs=0.06)
            errors[name, way] = (found - 1).square().mean().item()
    # positions of one piece never meet, so a little below (1 + 1 - 2/64) / 8
    assert errors["even", "sharing"] == pytest.approx(0.23, abs=0.03)
    # the products are all alike, so a fixed number of them is exact
    assert errors["even", "pruning"] < 1e-6
    assert errors["lone", "sharing"] < 1e-9
    assert errors["lone", "pruning"] == pytest.approx(7, rel=0.2)


def test_errors_of_inner_products_follow_their_formulas():
    generator = torch.Generator().manual_seed(3)
    x, y = torch.rand(2, 1, 64, generator=generator)
    p, exact = x * y, (x * y).sum()
    expected = {
        "sharing": (x.norm() ** 2 * y.norm() ** 2 + exact**2
                    - 2 * p.square().sum()) / 8,
        "pruning": 7 * (p.square().sum() - exact**2 / 64) * 64 / 63,
        "pruning by chance": 7 * p.square().sum(),
    }  # fmt: skip
    for way, error in expected.items():
        found = torch.cat(
            [products_after(x, y, 8, way, key) for key in range(1500)]
        )
        square = (found - exact).square().mean()
        assert square.item() == pytest.approx(error.item(), rel=0.15), way


def test_rates_are_chosen_without_the_digits_that_judge_them(monkeypatch):
    seen = []

    def watched(part, rows):
        seen.append((part, rows.start, rows.stop))
        return shown(part, rows)

    for module in (shared_network, pruned_at_start):
        monkeypatch.setattr(module, "shown", watched)
    for arm in (Arm("STABLE-RPS", 64), Arm("SNIP", 64)):
        found = parameter_sharing_rates.validate(arm, 100, steps=2)
        assert len(found) == 6
    assert set(seen) == {("train", None, 800), ("train", 800, None)}


def test_every_rate_lies_within_its_grid():
    for arm in ARMS:
        tried = parameter_sharing_rates.grid(arm)
        rate = sharing_methods.RATES[arm]
        # MAG is at chance at every rate
        inside = tried if arm.method == "MAG" else tried[1:-1]
        assert rate in inside, arm


def test_every_claim_can_be_measured():
    for claim in parameter_sharing.CLAIMS:
        if claim.experiment:
            few = claim.reduced | ({"steps": 2} if "steps" in claim.reduced
                                   else {"keys": 3})  # fmt: skip
            assert math.isfinite(claim.experiment(1, **few))


def test_an_effect_is_what_its_claim_says(monkeypatch):
    right = {
        ("STABLE-RPS", 16): 93.0,
        ("STABLE-RPS", 64): 90.0,
        ("original", 1): 95.0,
        ("ROAST", 1): 94.0,
        ("MAG", 16): 10.0, ("SNIP", 16): 91.0, ("GraSP", 16): 90.5,
        ("SynFlow", 16): 90.0,
        ("MAG", 64): 10.0, ("SNIP", 64): 60.0, ("GraSP", 64): 50.0,
        ("SynFlow", 64): 84.0,
        ("rewinding", 64): 91.5,
        ("smaller", 64): 70.0,
        ("smaller, all counted", 64): 80.0,
    }  # fmt: skip
    scale = {0.01: 10.0, 0.04: 92.0, 0.16: 60.0}

    def found(seed, method, compression=1, steps=300, start=0.04):
        if method == "ROAST, no scaler":
            return scale[start]
        return right[method, compression] + (start == 0.16) / 4

    monkeypatch.setattr(parameter_sharing, "experiment", found)
    monkeypatch.setattr(
        parameter_sharing,
        "products_after",
        lambda x, y, m, way, key: (x * y).sum(1) + (way == "sharing") + 1,
    )
    assert measured(parameter_sharing) == pytest.approx(
        {
            "stable": 0.25,
            "roast-unstable": 82.0,
            "roast-loses-at-1x": -1.0,
            "matches-pruning": 2.0,
            "grows-with-compression": 4.0,
            "beats-rewinding": -1.5,
            "matches-smaller": 10.0,
            "inner-products": 400.0,
        },
        rel=1e-4,
    )


@pytest.mark.parametrize("arm", ARMS, ids=str)
def test_a_method_is_what_its_name_says_and_keeps_no_more_numbers(arm):
    network = sharing_methods.trained(arm, 0, steps=1)
    m = N // arm.compression
    if isinstance(network, Shared):
        count = network.table.numel()
        mapping = "RandomFold" if arm.method == "STABLE-RPS" else "ROAST"
        expected = share(SHAPES, m, mapping, 0).cells
        assert torch.equal(network.cells.cpu(), expected)
        unscaled = (network.by == 1).all().item()
        assert unscaled is arm.method.endswith("no scaler")
    elif network.masks:
        count = sum(mask.sum().item() for mask in network.masks)
    else:
        count = sum(w.numel() for w in network.weights)
    biases = sum(b.numel() for b in network.biases)
    if arm.method == "smaller, all counted":
        count, m = count + biases, m + sharing_methods.BIASES
    assert 0.9 * m < count <= m
    assert biases <= sharing_methods.BIASES


def test_the_recording_is_what_a_training_gives():
    p = recorded.picture(0.01, "v4", "RandomFold", 64, 2)
    sharing = share(SHAPES, N // 64, "RandomFold", 0)
    rate = recorded.matched_rate(sharing, 1.0, "v4")
    network = Shared(sharing, 128, 0.01, "v4", 0)
    found = recorded.learned(network, rate)
    assert p.losses["this setting"] == pytest.approx(found, rel=0.2, abs=0.3)


def test_the_picture_shows_how_the_scale_explodes_and_the_cure():
    bad = recorded.picture(0.01, "none")
    assert max(bad.losses["this setting"]) == recorded.CEILING
    assert bad.accuracy < 20 < 80 < recorded.picture(0.04, "none").accuracy
    assert recorded.picture(1.0, "none").accuracy < 40
    for compression in recorded.COMPRESSIONS:
        for mapping in MAPPINGS:
            cured = recorded.picture(0.01, "v1", mapping, compression)
            right = cured.right["v1"]
            assert max(right) - min(right) < 1.5, (mapping, compression)
            lines = [*cured.losses.values()]
            assert lines[1] == pytest.approx(lines[2], abs=0.2)


def test_the_picture_answers_the_knobs():
    p = recorded.picture(compression=64)
    assert p.loads["this mapping"] == p.loads["the same for all"]
    assert p.cells == 404 and p.unused == 0
    cells = share(SHAPES, 404, "RandomFold", 0).cells[8192:].view(-1)
    assert p.window[1][:3] == cells[128:131].tolist()
    last = recorded.picture(layer=3)
    assert (len(last.window), len(last.window[0])) == (10, 32)
    assert last.full == 10 and 8 < last.rank <= 10
    uneven = recorded.picture(mapping="HashedNet", compression=1)
    assert uneven.unused == pytest.approx(36.8, abs=1)
    loads = uneven.loads["this mapping"]
    count = Counter(place_by_hand(SHAPES, N, "HashedNet", 0))
    assert loads[0] == max(count.values()) and loads[-1] == 0
    # the busiest tenth of the cells has so many weights or more
    tenth = sorted((count[j] for j in range(N)), reverse=True)[N // 10]
    assert loads[10] == tenth and set(uneven.loads["the same for all"]) == {1}
    assert uneven.title.startswith("s0 = 0.04, scaler none, HashedNet, 1x: ")


def test_404_numbers_read_digits():
    network = recorded.kept_network()
    assert network.table.numel() == 404
    assert shared_network.accuracy(network) > 85


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: share(TINY, 9, "x", 0), "mapping='x' is not one of"),
        (lambda: share(TINY, 0, "HashedNet", 0), "m=0 cells are not within"),
        (lambda: share(TINY, 481, "RandomFold", 0), "within 1 to 480"),
        (lambda: share(TINY, 64, "ROAST", 0), "within 65 to 480"),
        (
            lambda: divisors(share(TINY, 9, "HashedNet", 0), torch.ones(480),
                             "v9"),
            "scaler='v9' is not one of",
        ),
        (
            lambda: Shared(share(TINY, 9, "HashedNet", 0), 6, 0.0, "v1", 0),
            "start=0.0 is no scale",
        ),
        (
            lambda: Shared(share(TINY, 9, "HashedNet", 0), 6, math.inf, "v1",
                           0),
            "start=inf is no scale",
        ),
        (
            lambda: pruned_at_start.scores(Dense(6, 0), "x", 9),
            "way='x' is not one",
        ),
        (
            lambda: products_after(torch.ones(1, 4), torch.ones(1, 4), 2, "x",
                                   0),
            "way='x' is not one of sharing, pruning",
        ),
        (lambda: narrower(9, True), "budget=9 is too small"),
        (lambda: recorded.picture(0.05), "start=0.05 was not recorded"),
        (lambda: recorded.picture(scaler="x"), "scaler='x' was not"),
        (lambda: recorded.picture(mapping="x"), "mapping='x' was not"),
        (lambda: recorded.picture(compression=2), "compression=2 was not"),
        (lambda: recorded.picture(layer=0), "layer=0 was not"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_refused_in_a_sentence(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()


def slow_cells(turns, m, n):
    found = []
    for i in range(n):
        piece, place = divmod(i, m)
        cell = int(turns[piece]) + place
        found.append(cell - m if cell >= m else cell)
    return torch.tensor(found)


RIGHT = {
    "exercise-1": 1,
    "exercise-2": slow_cells,
    "exercise-3": 16,
}
WRONG = {
    "exercise-1": 2,
    # every piece turned the same way
    "exercise-2": lambda turns, m, n: (turns[0] + torch.arange(n)) % m,
    "exercise-3": 4,
}


@pytest.mark.parametrize("slug", RIGHT)
def test_the_checker_knows_right_from_wrong(slug):
    assert judge(EXERCISES[slug], RIGHT[slug]) == "correct"
    assert judge(EXERCISES[slug], WRONG[slug]) != "correct"
