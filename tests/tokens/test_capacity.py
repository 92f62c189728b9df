"""Capacity against a loop that seats one token after the other."""

import pytest
import torch

from lab.kernels.topk_gate import Gate, topk_gate
from lab.tokens.capacity import place, within_capacity


def seated_by_hand(gate, num_experts, capacity):
    experts, weights = gate.experts.clone(), gate.weights.clone()
    taken = [0] * num_experts
    for t in range(len(experts)):
        for s in range(experts.shape[1]):
            e = int(experts[t, s])
            if e < 0:
                continue
            if taken[e] == capacity:
                experts[t, s], weights[t, s] = -1, 0
            else:
                taken[e] += 1
    return Gate(experts, weights)


@pytest.mark.parametrize("capacity", [0, 1, 5, 63])
@pytest.mark.parametrize("k", [1, 3])
def test_seats_go_in_order_of_arrival(k, capacity):
    generator = torch.Generator().manual_seed(k)
    logits = torch.randn(63, 5, generator=generator)
    gate = topk_gate(logits, k, null_experts=1)
    ours, loop = (f(gate, 5, capacity) for f in (
        within_capacity, seated_by_hand,
    ))  # fmt: skip
    assert ours.experts.equal(loop.experts)
    assert ours.weights.equal(loop.weights)


def test_the_first_in_line_has_place_0_and_an_empty_slot_none():
    experts = torch.tensor([[1, 0], [1, -1], [0, 1]], dtype=torch.int32)
    assert place(experts, 2).tolist() == [[0, 0], [1, -1], [1, 2]]


def test_weights_that_stay_are_not_scaled_up():
    gate = topk_gate(torch.zeros(3, 2), 2)
    kept = within_capacity(gate, 2, 1)
    assert kept.weights.sum(dim=1).tolist() == [1, 0, 0]


def test_a_negative_capacity_is_refused():
    with pytest.raises(ValueError, match="capacity=-1 is below 0"):
        within_capacity(topk_gate(torch.zeros(3, 2), 1), 2, -1)
