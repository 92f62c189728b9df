"""What must hold for the gates' kernels on any input, tried on hundreds.

Hypothesis draws the inputs, the same ones at each run (derandomized), and
favours the corners: zeros, ties, one token, one expert.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from lab.kernels import runtime
from lab.kernels.topk_gate import (
    topk_gate,
    topk_gate_reference,
    topk_gate_triton,
)
from lab.kernels.topp_gate import (
    near_threshold,
    topp_gate,
    topp_gate_reference,
    topp_gate_triton,
)

DEVICE = "cpu" if runtime.INTERPRETED else "cuda"
# on a GPU each k and each size of block is compiled, so fewer there
CASES = settings(
    derandomize=True,
    deadline=None,
    database=None,
    max_examples=100 if DEVICE == "cpu" else 30,
)
TOLERANCE = 1e-5  # of fp32 softmax and sums over at most 20 experts


@st.composite
def logits(draw, tokens=(0, 12), experts=(1, 20)):
    """[T, E] of fp16 numbers, many of them equal."""
    shape = draw(st.tuples(st.integers(*tokens), st.integers(*experts)))
    entry = st.one_of(
        st.sampled_from([0.0, -0.0, 1.0, -1.0]),
        st.floats(-30, 30, width=16),
    )
    fill = st.just(0.0) if draw(st.booleans()) else st.nothing()
    drawn = draw(arrays.arrays("float32", shape, elements=entry, fill=fill))
    return torch.from_numpy(drawn).to(DEVICE)


@st.composite
def distinct_logits(draw):
    """[T, E] with the entries of a row so far apart that there are no ties."""
    T, E = draw(st.integers(1, 12)), draw(st.integers(2, 20))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    rows = [torch.randperm(E, generator=generator) for _ in range(T)]
    step = draw(st.sampled_from([0.03, 0.3, 2.0]))
    return (torch.stack(rows) * step).to(DEVICE)


def masses():
    return st.one_of(
        st.sampled_from([1e-6, 0.25, 0.4, 0.5, 0.999999, 1.0]),
        st.floats(0.001, 1.0),
    )


def assert_gate_is_well_formed(gate, E):
    experts, weights = gate
    T, S = experts.shape
    assert experts.dtype == torch.int32 and weights.dtype == torch.float32
    assert ((experts >= -1) & (experts < E)).all()
    assert torch.equal(
        weights[experts < 0], torch.zeros_like(weights)[experts < 0]
    )
    assert (weights >= 0).all() and (weights.sum(1) <= 1 + TOLERANCE).all()
    for row in experts.tolist():
        real = [expert for expert in row if expert >= 0]
        assert len(set(real)) == len(real), "an expert was chosen twice"


# 16-bit logits are compared together with their columns
@CASES
@given(st.data(), logits(), st.booleans(), st.booleans())
def test_topk_kernel_equals_its_reference(data, z, renormalize, narrow):
    T, E = z.shape
    z = z.half() if narrow else z
    k = data.draw(st.integers(1, E), label="k")
    null_experts = data.draw(st.integers(0, E - 1), label="null_experts")
    found = topk_gate_triton(z, k, null_experts, renormalize)
    right = topk_gate_reference(z.double(), k, null_experts, renormalize)
    assert_gate_is_well_formed(found, E)
    assert torch.equal(found.experts, right.experts)
    error = (found.weights - right.weights).abs()
    assert not error.numel() or error.max() <= TOLERANCE
    # as many best first: the logits of the slots never rise
    true = found.experts >= 0
    assert (true.sum(1) <= min(k, E - null_experts)).all()
    assert (true.sum(1) >= k - null_experts).all()


@CASES
@given(logits(tokens=(1, 12)))
def test_topk_of_all_experts_sorts_them(z):
    _, E = z.shape
    experts, weights = topk_gate_triton(z, E)
    everyone = torch.arange(E, dtype=torch.int32, device=DEVICE)
    assert torch.equal(experts.sort(dim=1)[0], everyone.expand_as(experts))
    assert (weights.sum(1) - 1).abs().max() <= TOLERANCE
    assert (z.gather(1, experts.long()).diff(dim=1) <= 0).all()


@CASES
@given(logits(), masses(), st.booleans(), st.booleans())
def test_topp_kernel_equals_its_reference(z, p, renormalize, narrow):
    _, E = z.shape
    z = z.half() if narrow else z
    found = topp_gate_triton(z, p, renormalize)
    right = topp_gate_reference(z.double(), p, renormalize)
    assert_gate_is_well_formed(found, E)
    clear = ~near_threshold(z, p, TOLERANCE)
    assert torch.equal(found.experts[clear], right.experts[clear])
    error = (found.weights - right.weights)[clear].abs()
    assert not error.numel() or error.max() <= TOLERANCE


@CASES
@given(logits(tokens=(1, 12)), masses())
def test_topp_takes_the_smallest_set_that_reaches_p(z, p):
    experts, weights = topp_gate_triton(z, p)
    count = (experts >= 0).sum(dim=1, keepdim=True)
    assert (count >= 1).all()
    # the kept experts fill the first slots
    slots = torch.arange(z.shape[1], device=DEVICE)
    assert torch.equal(experts >= 0, slots < count)
    mass = weights.sum(1)
    assert (mass >= p - TOLERANCE).all()
    last = weights.gather(1, count - 1).squeeze(1)
    several = count.squeeze(1) > 1
    if p < 1:
        assert ((mass - last)[several] < p + TOLERANCE).all()


@CASES
@given(logits(tokens=(1, 12)))
def test_topp_with_p_one_keeps_every_expert(z):
    experts, weights = topp_gate_triton(z, 1.0)
    everyone = torch.arange(z.shape[1], dtype=torch.int32, device=DEVICE)
    assert torch.equal(experts.sort(dim=1)[0], everyone.expand_as(experts))
    assert (weights.sum(1) - 1).abs().max() <= TOLERANCE


@CASES
@given(logits(tokens=(1, 12)), st.data(), st.floats(0.001, 0.999))
def test_all_mass_on_one_expert_takes_it_alone(z, data, p):
    T, E = z.shape
    favourite = data.draw(st.integers(0, E - 1), label="favourite")
    z[:, favourite] = 1000.0
    experts, weights = topp_gate_triton(z, p)
    assert (experts[:, 0] == favourite).all() and (experts[:, 1:] == -1).all()
    assert (weights[:, 0] == 1).all()


@CASES
@given(distinct_logits(), st.data(), masses())
def test_renaming_the_experts_renames_the_choice(z, data, p):
    _, E = z.shape
    order = data.draw(st.permutations(range(E)), label="order")
    order = torch.tensor(order, device=DEVICE)
    k = data.draw(st.integers(1, E), label="k")
    clear = ~near_threshold(z, p, TOLERANCE)
    for gate, argument, rows in (
        (topk_gate_triton, k, slice(None)),
        (topp_gate_triton, p, clear),
    ):
        plain = gate(z, argument).experts[rows]
        renamed = gate(z[:, order].contiguous(), argument).experts[rows]
        # column i of the renamed logits is expert order[i]
        back = torch.where(renamed >= 0, order[renamed.long()], -1)
        assert torch.equal(back.to(torch.int32), plain)


@CASES
@given(distinct_logits(), st.data())
def test_shuffling_the_tokens_shuffles_the_rows(z, data):
    T, E = z.shape
    order = data.draw(st.permutations(range(T)), label="order")
    order = torch.tensor(order, device=DEVICE)
    for gate, argument in ((topk_gate_triton, 1), (topp_gate_triton, 0.4)):
        plain, shuffled = gate(z, argument), gate(z[order], argument)
        assert torch.equal(shuffled.experts, plain.experts[order])
        assert torch.equal(shuffled.weights, plain.weights[order])


@CASES
@given(logits(tokens=(1, 12)), st.data())
def test_a_nan_anywhere_is_refused_on_a_cpu(z, data):
    T, E = z.shape
    z = z.cpu()
    t = data.draw(st.integers(0, T - 1), label="token")
    z[t, data.draw(st.integers(0, E - 1), label="expert")] = float("nan")
    for gate, argument in ((topk_gate, 1), (topp_gate, 0.4)):
        with pytest.raises(ValueError, match="1 NaN or infinite"):
            gate(z, argument)


@CASES
@given(logits(tokens=(1, 12), experts=(2, 20)), st.data(), st.booleans())
def test_kernels_take_what_is_no_number_for_the_lowest(z, data, negative):
    # a GPU cannot look for NaN without stalling, so the kernels define what
    # it means
    T, E = z.shape
    bad = data.draw(st.integers(0, E - 1), label="expert")
    z[:, bad] = -float("inf") if negative else float("nan")
    for gate in (topk_gate_triton(z, E), topp_gate_triton(z, 1.0)):
        assert_gate_is_well_formed(gate, E)
        assert (gate.experts[:, -1] == bad).all()
        assert (gate.weights[:, -1] == 0).all()
