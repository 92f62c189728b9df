"""The top-k gate against loops, SciPy and the formulas of AdaMoE's authors."""

import math

import numpy as np
import pytest
import scipy.special
import torch
from on_device import on_device

from lab.kernels.topk_gate import topk_gate, topk_gate_triton

GATES = [topk_gate, on_device(topk_gate_triton)]
SIZES = [(63, 8, 2, 0), (40, 12, 5, 0), (33, 16, 3, 8), (9, 5, 5, 3)]
SIZES += [(7, 1, 1, 0), (50, 24, 4, 16)]


def sample(T, E, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(T, E, generator=generator)


def by_loops(z, k, null_experts, renormalize):
    """One token: the chosen experts and their weights, nothing clever."""
    E = len(z)
    order = sorted(range(E), key=lambda i: (-z[i], i))[:k]
    experts = [i if i < E - null_experts else -1 for i in order]
    among = [i for i in experts if i >= 0] if renormalize else range(E)
    total = sum(math.exp(z[i]) for i in among)
    return experts, [math.exp(z[i]) / total if i >= 0 else 0 for i in experts]


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("T, E, k, null_experts", SIZES)
@pytest.mark.parametrize("renormalize", [True, False])
def test_agrees_with_loops(gate, T, E, k, null_experts, renormalize):
    logits = sample(T, E)
    experts, weights = gate(logits, k, null_experts, renormalize)
    for t, z in enumerate(logits.double().tolist()):
        chosen, share = by_loops(z, k, null_experts, renormalize)
        assert experts[t].tolist() == chosen
        # fp32 softmax against Python's doubles
        assert weights[t].tolist() == pytest.approx(share, abs=1e-6)


@pytest.mark.parametrize("gate", GATES)
def test_raw_weights_are_scipys_softmax(gate):
    logits = sample(100, 16, seed=1)
    experts, weights = gate(logits, 4, renormalize=False)
    scores = scipy.special.softmax(logits.double().numpy(), axis=1)
    best = np.argsort(-scores, axis=1, kind="stable")[:, :4]
    np.testing.assert_array_equal(experts, best)
    np.testing.assert_allclose(
        weights, np.take_along_axis(scores, best, 1), atol=1e-6
    )


def adamoe_authors(scores, k, true_experts):
    """Their forward pass: mask the null experts, divide by the rest's sum."""
    chosen = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    kept = np.take_along_axis(scores, chosen, 1) * (chosen < true_experts)
    total = kept.sum(1, keepdims=True)
    return chosen, kept / np.where(total == 0, 1, total)


@pytest.mark.parametrize("gate", GATES)
def test_null_experts_follow_the_authors(gate):
    logits = sample(200, 16, seed=2)
    experts, weights = gate(logits, 3, null_experts=8)
    scores = scipy.special.softmax(logits.double().numpy(), axis=1)
    chosen, share = adamoe_authors(scores, k=3, true_experts=8)
    np.testing.assert_array_equal(experts, np.where(chosen < 8, chosen, -1))
    np.testing.assert_allclose(weights, share, atol=1e-6)
    # some tokens must have drawn nulls only, or this tested less than it says
    assert ((experts == -1).all(dim=1)).any()


@pytest.mark.parametrize("gate", GATES)
def test_true_experts_far_below_the_nulls_keep_weights_that_sum_to_one(gate):
    # the authors' quotient of two underflowed numbers would be 0 / 0
    logits = torch.tensor([[0.0, -1.0, 500.0, 499.0]])
    experts, weights = gate(logits, 4, null_experts=2)
    assert experts.tolist() == [[-1, -1, 0, 1]]
    e = math.exp(-1)
    assert weights.tolist()[0] == pytest.approx(
        [0, 0, 1 / (1 + e), e / (1 + e)]
    )


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("copies, k", [(1, 3), (2, 4)])
def test_copied_rows_tie_and_the_lowest_index_wins(gate, copies, k):
    # AdaMoE starts its null columns as copies of the true ones; then a token
    # takes its best expert, that one's twins, and its second best: load 2.00
    logits = sample(500, 8, seed=3).repeat(1, 1 + copies)
    experts, _ = gate(logits, k, null_experts=8 * copies)
    load = (experts >= 0).sum(dim=1)
    assert load.double().mean() == 2.0


@pytest.mark.parametrize("gate", GATES)
def test_all_equal_logits_choose_the_first_experts(gate):
    experts, weights = gate(torch.zeros(3, 9), 4)
    assert experts.tolist() == [[0, 1, 2, 3]] * 3
    assert weights.tolist() == [[0.25] * 4] * 3


def test_expected_load_is_k_n_over_n_plus_m():
    # n = 8, m = 8, k = 3 without ties; the mean of 20000 tokens has a
    # standard error of 0.006
    experts, _ = topk_gate(sample(20000, 16, seed=4), 3, null_experts=8)
    load = (experts >= 0).sum(dim=1).double().mean().item()
    assert load == pytest.approx(3 * 8 / 16, abs=0.02)


def test_null_and_unselected_logits_get_no_gradient():
    logits = sample(300, 12, seed=5).double().requires_grad_()
    experts, weights = topk_gate(logits, 3, null_experts=6)
    pull = torch.randn(weights.shape, dtype=torch.float64)
    (grad,) = torch.autograd.grad((weights * pull).sum(), logits)
    load = (experts >= 0).sum(dim=1)
    assert (load == 1).any() and (load > 1).any()
    assert grad[:, 6:].abs().max() == 0
    assert grad[load <= 1].abs().max() < 1e-12
    for t in range(300):
        for e in set(range(6)) - set(experts[t].tolist()):
            assert grad[t, e] == 0


@pytest.mark.parametrize(
    "k, null_experts, words",
    [
        (9, 0, "k=9 is not within 1 to 8"),
        (0, 0, "k=0 is not within 1 to 8"),
        (2, 8, "must be a true expert"),
        (2, -1, "null_experts=-1"),
    ],
)
def test_impossible_sizes_are_refused(k, null_experts, words):
    with pytest.raises(ValueError, match=words):
        topk_gate(torch.zeros(3, 8), k, null_experts)


def test_integer_logits_are_refused():
    with pytest.raises(TypeError, match=r"torch\.int64"):
        topk_gate(torch.zeros(3, 8, dtype=torch.int64), 2)


@pytest.mark.parametrize("shape", [(8,), (2, 3, 8), (4, 0)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(ValueError, match="tokens, experts"):
        topk_gate(torch.zeros(shape), 1)


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16, torch.bfloat16]
)
@pytest.mark.parametrize("renormalize", [True, False])
def test_the_kernel_takes_nan_and_infinity_as_the_outermost_numbers(
    dtype, renormalize
):
    nan, inf = float("nan"), float("inf")
    logits = torch.tensor(
        [[nan, 1, -inf, 2, 0], [nan] * 5, [-inf, inf, 3, inf, nan]],
        dtype=dtype,
    )
    experts, weights = on_device(topk_gate_triton)(logits, 4, 0, renormalize)
    # those without a number are equals, and come in their order
    assert experts.tolist() == [[3, 1, 4, 0], [0, 1, 2, 3], [1, 3, 2, 0]]
    share = [1 / 4] * 4 if renormalize else [1 / 5] * 4
    assert weights[1].tolist() == pytest.approx(share, abs=1e-6)
    assert weights[2].tolist() == [0.5, 0.5, 0, 0]


# where a 16-bit logit leaves no room for so many columns, too
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_last_of_very_many_experts_is_found(dtype):
    logits = torch.zeros(2, 8200, dtype=dtype)
    logits[0, [8199, 8192, 5]] = torch.tensor([3.0, 2.0, 2.0], dtype=dtype)
    logits[1, :8195] = -1
    experts, _ = on_device(topk_gate_triton)(logits, 3)
    assert experts.tolist() == [[8199, 5, 8192], [8195, 8196, 8197]]


@pytest.mark.parametrize("gate", GATES)
def test_true_experts_that_are_ruled_out_share_no_weight_with_nulls(gate):
    lowest = torch.finfo(torch.float32).min
    logits = torch.tensor([[lowest, lowest, 0.0, 0.0]])
    _, weights = gate(logits, 4, 2)
    assert weights.sort().values.tolist() == [[0.0, 0.0, 0.5, 0.5]]
