"""Routed LoRA against four loops over plain Python numbers."""

import pytest
import torch
from on_device import on_device

from lab.kernels import runtime
from lab.kernels._multi_lora_tiles import blocks, turned
from lab.kernels._multi_lora_triton import for_lanes
from lab.kernels.multi_lora import DECLARATION, multi_lora
from lab.kernels.multi_lora_backward import multi_lora_backward_triton


def by_hand(tokens, experts, weights, down, up):
    """y[t][j] = sum of w * B[j][a] * A[a][i] * u[i], one number at a time."""
    rank, m = len(down[0]), len(up[0])
    result = [[0.0] * m for _ in tokens]
    for t, u in enumerate(tokens):
        for e, w in zip(experts[t], weights[t], strict=True):
            if e < 0:
                continue
            hidden = [
                sum(a * x for a, x in zip(down[e][i], u, strict=True))
                for i in range(rank)
            ]
            for j in range(m):
                pairs = zip(up[e][j], hidden, strict=True)
                result[t][j] += w * sum(b * h for b, h in pairs)
    return torch.tensor(result, dtype=torch.float64).view(len(tokens), m)


# four loops of Python over the large example would take hours
SMALL = [example for example in DECLARATION.examples if not example.large]


@pytest.mark.parametrize("example", SMALL, ids=lambda example: example.name)
def test_the_update_is_what_four_loops_make(example):
    inputs = DECLARATION.inputs(3, "cpu", torch.float64, **example.options)
    found = multi_lora(**inputs)
    few = {
        name: (
            value[:20] if name in ("tokens", "experts", "weights") else value
        )
        for name, value in inputs.items()
    }
    expected = by_hand(**{name: value.tolist() for name, value in few.items()})
    torch.testing.assert_close(found[:20], expected, atol=1e-12, rtol=1e-12)


def inputs(**changed):
    sizes = {"T": 4, "N": 3, "S": 2, "n": 6, "m": 5, "r": 2}
    found = DECLARATION.inputs(0, "cpu", torch.float32, **sizes)
    return found | changed


def test_gating_the_input_or_the_output_is_the_same():
    x = inputs()
    gate = torch.rand(4, 1)
    ones = torch.ones(4, 1)
    slots = x["experts"][:, :1].contiguous()
    matrices = x["down"], x["up"]
    before = multi_lora(gate * x["tokens"], slots, ones, *matrices)
    after = multi_lora(x["tokens"], slots, gate, *matrices)
    torch.testing.assert_close(before, after)


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"down": torch.ones(3, 2, 7)}, r"\[tokens, 7\]"),
        ({"up": torch.ones(3, 5, 3)}, "do not fit; adapters"),
        ({"up": torch.ones(2, 5, 2)}, "do not fit; adapters"),
        ({"down": torch.ones(0, 2, 6), "up": torch.ones(0, 5, 2)}, "from 1"),
        ({"down": torch.ones(3, 65, 6), "up": torch.ones(3, 5, 65)}, "rank"),
        ({"weights": torch.ones(4, 3)}, "must both be"),
        ({"experts": torch.full((4, 2), 3).int()}, "run from 3 to 3"),
        ({"tokens": torch.full((4, 6), float("nan"))}, "NaN"),
    ],
)
def test_wrong_arguments_are_refused_in_a_sentence(changed, sentence):
    with pytest.raises(ValueError, match=sentence):
        multi_lora(**inputs(**changed))


def test_wrong_types_are_refused_in_a_sentence():
    with pytest.raises(TypeError, match="int64"):
        multi_lora(**inputs(experts=torch.zeros(4, 2).long()))
    with pytest.raises(TypeError, match="one dtype"):
        multi_lora(**inputs(tokens=torch.ones(4, 6).double()))


@pytest.mark.filterwarnings("ignore:invalid value encountered")
def test_a_token_without_an_adapter_may_be_no_number():
    backward = on_device(multi_lora_backward_triton)
    x = inputs()
    x["experts"][2] = -1
    grad = torch.ones(4, 5)
    expected = backward(**x, grad=grad)
    x["tokens"][2] = float("nan")
    grad[2] = float("inf")
    found = backward(**x, grad=grad)
    for left, right in zip(found, expected, strict=True):
        assert torch.equal(left, right)


@pytest.mark.parametrize(
    "dtype, target, stride",
    [
        (torch.float32, "sm_86", 1),
        (torch.float32, "sm_90", 7),
        (torch.bfloat16, "sm_86", 7),
    ],
)
def test_adapters_in_whole_fp32_are_turned_around(
    monkeypatch, dtype, target, stride
):
    monkeypatch.setattr(runtime, "target", lambda tensor: target)
    adapters = torch.rand(3, 5, 7).to(dtype)
    turned = for_lanes(adapters)
    assert torch.equal(turned, adapters)
    assert turned.stride(1) == stride


@pytest.mark.parametrize(
    "dtype, split",
    [(torch.float32, True), (torch.float32, False), (torch.bfloat16, False)],
)
@pytest.mark.parametrize("rank", [1, 16, 64])
def test_a_sum_over_tokens_stays_within_the_tiles_that_were_written(
    dtype, split, rank
):
    many = blocks(200, rank, dtype, split)
    assert many.BLOCK_E < 200
    assert many.BLOCK_T % turned(many).BLOCK_T == 0
