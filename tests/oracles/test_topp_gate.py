"""The top-p gate against loops, NumPy and the authors' own rule."""

import math

import numpy as np
import pytest
import scipy.special
import torch
from on_device import on_device

from lab.kernels.topp_gate import topp_gate, topp_gate_triton

GATES = [topp_gate, on_device(topp_gate_triton)]
P = [0.1, 0.4, 0.77, 0.95]
MARGIN = 1e-5  # of a mass to p, within which fp32 sums may fall either way


def sample(T, E, p, seed=0):
    """Logits of which no token's cumulative mass lies on p."""
    logits = torch.randn(
        2 * T, E, generator=torch.Generator().manual_seed(seed)
    )
    sums = np.cumsum(-np.sort(-softmax(logits), axis=1), axis=1)
    clear = (np.abs(sums - p) > MARGIN).all(axis=1)
    return logits[torch.from_numpy(clear)][:T]


def softmax(logits):
    return scipy.special.softmax(logits.double().numpy(), axis=1)


def by_loops(z, p):
    """One token: take the best expert left until the mass reaches p."""
    total = sum(map(math.exp, z))
    left = list(range(len(z)))
    experts, weights = [], []
    while left and (not experts or sum(weights) < p):
        best = max(left, key=lambda i: (z[i], -i))
        left.remove(best)
        experts.append(best)
        weights.append(math.exp(z[best]) / total)
    return experts, weights


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("E", [1, 2, 7, 16, 33])
@pytest.mark.parametrize("p", P)
@pytest.mark.parametrize("renormalize", [False, True])
def test_agrees_with_loops(gate, E, p, renormalize):
    logits = sample(40, E, p)
    experts, weights = gate(logits, p, renormalize)
    for t, z in enumerate(logits.double().tolist()):
        chosen, share = by_loops(z, p)
        if renormalize:
            share = [w / sum(share) for w in share]
        empty = E - len(chosen)
        assert experts[t].tolist() == chosen + [-1] * empty
        # fp32 softmax against Python's doubles
        assert weights[t].tolist() == pytest.approx(
            share + [0] * empty, abs=1e-6
        )


def authors(scores, p):
    """Their rule: drop where the sum exceeds p, but the first that does."""
    order = np.argsort(-scores, kind="stable")
    dropped = np.cumsum(scores[order]) > p
    dropped[np.argmax(dropped)] = False
    return set(order[~dropped].tolist())


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("p", P)
def test_agrees_with_the_authors_where_no_sum_equals_p(gate, p):
    logits = sample(200, 16, p, seed=1)
    experts, _ = gate(logits, p)
    for t, scores in enumerate(softmax(logits)):
        assert set(experts[t].tolist()) - {-1} == authors(scores, p)


@pytest.mark.parametrize("gate", GATES)
def test_a_sum_equal_to_p_is_enough_as_the_paper_says(gate):
    # 16 equal experts and p = 0.25: four in the paper, five in its code
    experts, weights = gate(torch.zeros(1, 16), 0.25)
    assert experts[0, :5].tolist() == [0, 1, 2, 3, -1]
    assert weights.sum() == 0.25
    assert len(authors(np.full(16, 1 / 16), 0.25)) == 5


@pytest.mark.parametrize("gate", GATES)
def test_a_token_with_enough_waits_for_its_neighbour(gate):
    # half the mass: one of two equal experts, eight of sixteen
    logits = torch.zeros(2, 16)
    logits[0, 2:] = -1e4
    experts, _ = gate(logits, 0.5)
    assert experts.tolist() == [[0, *[-1] * 15], [*range(8), *[-1] * 8]]


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("E, p", [(16, 0.4), (8, 0.5), (4, 0.01), (32, 0.97)])
def test_equal_logits_keep_the_first_ceil_p_n(gate, E, p):
    experts, _ = gate(torch.zeros(2, E), p)
    count = math.ceil(p * E)
    assert experts.tolist() == [[*range(count), *[-1] * (E - count)]] * 2


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize(
    "p, chosen, mass",
    [
        (0.3, [0], 0.35),
        (0.3499, [0], 0.35),
        (0.6, [0, 2], 0.65),
        (0.9, [0, 2, 3, 4], 0.95),
    ],
)
def test_a_token_worked_out_by_hand(gate, p, chosen, mass):
    logits = torch.tensor([[0.35, 0.05, 0.3, 0.2, 0.1]]).log()
    experts, weights = gate(logits, p)
    assert experts[0, : len(chosen)].tolist() == chosen
    assert (experts[0, len(chosen) :] == -1).all()
    assert weights.sum().item() == pytest.approx(mass, abs=1e-6)


@pytest.mark.parametrize("gate", GATES)
def test_a_token_torn_between_two_experts_takes_one(gate):
    experts, weights = gate(torch.tensor([[3.0, 3.0, -60.0]]), 0.4)
    assert experts.tolist() == [[0, -1, -1]]
    assert weights.tolist() == [[0.5, 0.0, 0.0]]


@pytest.mark.parametrize("gate", GATES)
def test_p_of_one_keeps_experts_without_any_mass(gate):
    experts, weights = gate(torch.tensor([[0.0, 900.0, -900.0]]), 1.0)
    assert experts.tolist() == [[1, 0, 2]]
    assert weights.tolist() == [[1.0, 0.0, 0.0]]


@pytest.mark.parametrize("renormalize", [False, True])
def test_gradient_is_the_formula(renormalize):
    # dz_j = P_j (m_j g_j - sum m P g), even where expert j was not chosen
    logits = sample(50, 9, 0.6, seed=2).double().requires_grad_()
    experts, weights = topp_gate(logits, 0.6, renormalize)
    pull = torch.randn(weights.shape, dtype=torch.float64)
    (grad,) = torch.autograd.grad((weights * pull).sum(), logits)
    scores = softmax(logits.detach())
    for t in range(50):
        g = {e: pull[t, s].item() for s, e in enumerate(experts[t].tolist())}
        g.pop(-1, None)
        kept = sum(scores[t, e] for e in g) if renormalize else 1.0
        w = {e: scores[t, e] / kept for e in g}
        c = sum(w[e] * g[e] for e in g)
        for j in range(9):
            if renormalize:
                right = w[j] * (g[j] - c) if j in g else 0.0
            else:
                right = scores[t, j] * (g.get(j, 0.0) - c)
            assert grad[t, j].item() == pytest.approx(right, abs=1e-12)


@pytest.mark.parametrize("p", [0.0, -0.1, 1.0001, 4, float("nan")])
def test_p_outside_zero_to_one_is_refused(p):
    with pytest.raises(ValueError, match=r"is not within \(0, 1\]"):
        topp_gate(torch.zeros(3, 8), p)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_logits_that_are_no_numbers_are_refused(bad):
    logits = torch.zeros(3, 8)
    logits[1, 2] = bad
    with pytest.raises(ValueError, match="1 NaN or infinite"):
        topp_gate(logits, 0.4)


@pytest.mark.parametrize("renormalize", [False, True])
def test_the_least_p_keeps_the_best_expert(renormalize):
    logits = torch.tensor([[0.0, 1.0, 0.5]])
    found = topp_gate(logits, 1e-50, renormalize)
    assert found.experts.tolist() == [[1, -1, -1]]
    assert found.weights.isfinite().all()
