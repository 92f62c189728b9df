"""Mixed-factor LoRA against loops over plain Python numbers."""

import pytest
import torch
from on_device import on_device

from lab.kernels.mixed_factor_lora import (
    DECLARATION,
    mixed_factor_lora,
    mixed_factor_lora_triton,
)
from lab.kernels.multi_lora import multi_lora


def by_hand(tokens, offsets, weights, down, up):
    """y[j] = sum over the rank of (sum of A[i] u[i]) B[j], where A[i] and
    B[j] are sums over the adapters, one number at a time."""
    h, S, r = len(down), len(down[0]), len(up[0][0])
    rows, columns = len(down[0][0]), len(up[0][0][0])
    result = []
    for t, u in enumerate(tokens):
        task = sum(end <= t for end in offsets[1:])
        share = weights[task]
        hidden = [
            sum(
                x * share[i // rows][s] * down[i // rows][s][i % rows][rank]
                for i, x in enumerate(u)
                for s in range(S)
            )
            for rank in range(r)
        ]
        result.append(
            [
                sum(
                    hidden[rank] * share[q][s] * up[q][s][rank][column]
                    for rank in range(r)
                    for s in range(S)
                )
                for q in range(h)
                for column in range(columns)
            ]
        )
    found = torch.tensor(result, dtype=torch.float64)
    return found.view(len(tokens), h * columns)


SMALL = [example for example in DECLARATION.examples if not example.large]


@pytest.mark.parametrize("example", SMALL, ids=lambda example: example.name)
def test_the_update_is_what_loops_make(example):
    inputs = DECLARATION.inputs(3, "cpu", torch.float64, **example.options)
    found = mixed_factor_lora(**inputs)[:12]
    few = inputs | {"tokens": inputs["tokens"][:12]}
    expected = by_hand(**{name: x.tolist() for name, x in few.items()})
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-12)


def inputs(**changed):
    sizes = {"T": 9, "J": 3, "h": 2, "S": 4, "n": 6, "m": 8, "r": 2}
    found = DECLARATION.inputs(0, "cpu", torch.float32, **sizes)
    return found | changed


def test_one_weight_of_1_picks_an_adapter():
    x = inputs()
    chosen = torch.tensor([2, 0, 3])
    x["weights"] = torch.zeros(3, 2, 4)
    x["weights"][torch.arange(3), :, chosen] = 1
    found = on_device(mixed_factor_lora_triton)(**x)
    # the same as routing by token to whole adapters
    down = x["down"].permute(1, 3, 0, 2).flatten(2)  # [S, r, n]
    up = x["up"].permute(1, 0, 3, 2).flatten(1, 2)  # [S, m, r]
    slots = chosen.repeat_interleave(x["offsets"].diff()).int()[:, None]
    ones = torch.ones(9, 1)
    expected = multi_lora(x["tokens"], slots, ones, down, up)
    torch.testing.assert_close(found, expected)


def test_blocks_with_equal_weights_are_one_block():
    x = inputs()
    x["weights"][:] = x["weights"][:, :1]
    whole = inputs(
        weights=x["weights"][:, :1],
        down=x["down"].transpose(0, 1).flatten(1, 2)[None],
        up=x["up"].permute(1, 2, 0, 3).flatten(2)[None],
    )
    torch.testing.assert_close(
        mixed_factor_lora(**x), mixed_factor_lora(**whole)
    )


def test_twice_the_weights_are_four_times_the_update():
    # both factors are mixed
    x = inputs()
    twice = mixed_factor_lora(**inputs(weights=2 * x["weights"]))
    torch.testing.assert_close(twice, 4 * mixed_factor_lora(**x))


def test_two_orthogonal_adapters_give_half_of_their_mix_to_cross_terms():
    down = torch.eye(2)[None, :, :, None]  # A_1 = e_1, A_2 = e_2
    up = torch.eye(2)[None, :, None, :]
    x = dict(offsets=torch.tensor([0, 2]).int(), down=down, up=up)
    mixed = mixed_factor_lora(
        torch.eye(2), weights=torch.full((1, 1, 2), 0.5), **x
    )
    assert torch.equal(mixed, torch.full((2, 2), 0.25))


@pytest.mark.filterwarnings("ignore:invalid value encountered")
def test_a_bad_token_spoils_its_own_update_alone():
    x = inputs()
    expected = on_device(mixed_factor_lora_triton)(**x)
    x["tokens"][4, 3] = float("nan")
    found = on_device(mixed_factor_lora_triton)(**x)
    assert found[4].isnan().all()
    others = torch.arange(9) != 4
    assert torch.equal(found[others], expected[others])


RISING = torch.tensor([0, 3, 6, 9]).int()


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"tokens": torch.ones(9, 7)}, r"2 blocks of 3 inputs need \[tokens,"),
        ({"down": torch.ones(2, 4, 3)}, "do not fit; adapters"),
        ({"up": torch.ones(2, 3, 2, 4)}, "do not fit; adapters"),
        ({"up": torch.ones(1, 4, 2, 8)}, "do not fit; adapters"),
        (
            {"down": torch.ones(2, 0, 3, 2), "up": torch.ones(2, 0, 2, 4)},
            "all from 1",
        ),
        (
            {"down": torch.ones(2, 4, 3, 65), "up": torch.ones(2, 4, 65, 4)},
            "rank 65 is too large",
        ),
        ({"weights": torch.ones(3, 2, 5)}, r"need \[tasks, 2, 4\]"),
        ({"weights": torch.ones(0, 2, 4)}, "with a task at least"),
        ({"weights": torch.ones(5000, 2, 4)}, "5000 tasks are too many"),
        ({"offsets": RISING.long()}, "3 tasks need int32"),
        ({"offsets": RISING[:3]}, "3 tasks need int32"),
        ({"offsets": RISING + 1}, "do not rise from 0 to the 9 tokens"),
        ({"offsets": RISING[[0, 2, 1, 3]]}, "do not rise"),
        ({"offsets": 0 * RISING}, "do not rise"),
        ({"tokens": torch.full((9, 6), float("nan"))}, "tokens hold NaN"),
        (
            {"weights": torch.full((3, 2, 4), float("inf"))},
            "weights hold NaN or infinity",
        ),
    ],
)
def test_wrong_arguments_are_refused_in_a_sentence(changed, sentence):
    with pytest.raises(ValueError, match=sentence):
        mixed_factor_lora(**inputs(**changed))


def test_mixed_types_are_refused_in_a_sentence():
    with pytest.raises(TypeError, match="use one dtype"):
        mixed_factor_lora(**inputs(tokens=torch.ones(9, 6).double()))
    # adapters cut to whole numbers would mostly be 0
    with pytest.raises(TypeError, match="weights are torch.int64; mixing"):
        mixed_factor_lora(**inputs(weights=torch.ones(3, 2, 4).long()))
