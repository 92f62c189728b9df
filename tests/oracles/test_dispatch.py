"""Dispatch against numpy: a stable argsort and a bincount."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from on_device import on_device

from lab.kernels.dispatch import (
    dispatch,
    dispatch_scan_kernel,
    dispatch_triton,
)
from lab.kernels.runtime import device

KERNEL = on_device(dispatch_triton)


def by_numpy(experts, num_experts):
    chosen = experts.flatten()
    kept = np.flatnonzero(chosen >= 0)
    order = kept[np.argsort(chosen[kept], kind="stable")]
    load = np.bincount(chosen[kept], minlength=num_experts)
    pairs = np.full(chosen.size, -1)
    pairs[: order.size] = order
    rows = np.full(chosen.size, -1)
    rows[order] = np.arange(order.size)
    offsets = np.concatenate(([0], load.cumsum()))
    return load, offsets, pairs, rows.reshape(experts.shape)


@st.composite
def choices(draw):
    """Any slots at all, a token choosing one expert twice included."""
    num_experts = draw(st.sampled_from((1, 2, 3, 16, 17, 256)))
    # few pairs meet each other in one step or two, many in blocks
    T = draw(st.integers(0, 60) | st.integers(0, 200) | st.just(4100))
    S = draw(st.integers(1, 5))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    # a range that may leave most experts without a token
    high = draw(st.integers(0, num_experts))
    experts = generator.integers(-1, high, (T, S)).clip(max=num_experts - 1)
    return experts.astype(np.int32), num_experts


@pytest.mark.parametrize("function", [dispatch, KERNEL])
def test_dispatch_is_a_stable_sort_of_the_kept_slots(function):
    @given(choices())
    @settings(max_examples=15, deadline=None)
    def agrees(choice):
        experts, num_experts = choice
        found = function(torch.from_numpy(experts), num_experts)
        expected = by_numpy(experts, num_experts)
        for name, left, right in zip(
            found._fields, found, expected, strict=True
        ):
            assert left.dtype == torch.int32, name
            np.testing.assert_array_equal(left.numpy(), right, name)

    agrees()


# (number of experts, pairs): the most for one launch and one more; the last
# block full, and one past it; a number of blocks that fills whole rows
@pytest.mark.parametrize(
    "num_experts, P", [
        (1024, 1024), (1024, 1025), (300, 2049), (300, 31 * 128),
        (300, 31 * 128 + 1), (300, 32 * 128), (5, 4097), (1, 4097),
    ],
)  # fmt: skip
def test_nothing_is_lost_between_blocks(num_experts, P):
    generator = np.random.default_rng(P)
    experts = generator.integers(-1, num_experts, (P, 1), dtype=np.int32)
    found = KERNEL(torch.from_numpy(experts), num_experts)
    for name, left, right in zip(
        found._fields, found, by_numpy(experts, num_experts), strict=True
    ):
        np.testing.assert_array_equal(left.numpy(), right, name)


def test_the_scan_carries_its_total_from_step_to_step():
    generator = torch.Generator().manual_seed(0)
    counts = torch.randint(9, (3, 48), generator=generator).int().to(device())
    before, load = torch.empty_like(counts), counts.new_empty(3)
    dispatch_scan_kernel[(3,)](counts, before, load, 48, BLOCK=32)
    assert before.equal((counts.cumsum(1) - counts).int())
    assert load.equal(counts.sum(1).int())


def test_slots_of_no_known_expert_count_as_empty_on_a_gpu():
    experts = torch.tensor([[0, 9], [2, -5], [7, 1]], dtype=torch.int32)
    found = KERNEL(experts, 3)
    assert found.rows.tolist() == [[0, -1], [2, -1], [-1, 1]]
    assert found.load.tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    "experts, num_experts, sentence",
    [
        ([[0, 3]], 3, "experts run from 0 to 3; use 0 to 2"),
        ([[-2, 0]], 3, "experts run from -2 to 0"),
        ([[0]], 0, "num_experts=0 is not within 1 to 32767"),
        ([0, 1], 3, r"shape \(2,\); dispatch needs int32"),
    ],
)
def test_wrong_slots_are_refused(experts, num_experts, sentence):
    with pytest.raises(ValueError, match=sentence):
        dispatch(torch.tensor(experts, dtype=torch.int32), num_experts)
