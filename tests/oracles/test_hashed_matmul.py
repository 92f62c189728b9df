"""The hashed product against loops over plain Python numbers."""

import numpy as np
import pytest
import torch
from on_device import on_device

from lab.kernels.hashed_matmul import (
    DECLARATION,
    cells,
    gradients,
    gradients_triton,
    hashed_matmul,
    hashed_matmul_triton,
    signs,
)


def sign_by_hand(position, key):
    """The highest bit of the hash, in Python's integers of any size."""
    x = position ^ key
    for shift, factor in (16, 0x21F0AAAD), (15, 0x735A2D97):
        x ^= x >> shift
        x = x * factor % 2**32
    x ^= x >> 15
    return -1 if x >= 2**31 else 1


def weights_by_hand(table, turns, rows, columns, offset, key, scale):
    """W, one weight after the other."""
    m, found = len(table), []
    for r in range(rows):
        for k in range(columns):
            i = offset + r * columns + k
            piece, place = divmod(i, m)
            cell = (turns[piece] + place) % m
            found.append(scale * sign_by_hand(i, key) * table[cell])
    return np.array(found).reshape(rows, columns)


SMALL = [example for example in DECLARATION.examples if not example.large]


@pytest.mark.parametrize("example", SMALL, ids=lambda example: example.name)
def test_the_product_and_its_gradients_are_what_loops_make(example):
    inputs = DECLARATION.inputs(3, "cpu", torch.float64, **example.options)
    x, table = (inputs[name].requires_grad_() for name in ("x", "table"))
    turns, rows, offset, key, scale = [*inputs.values()][2:]
    w = weights_by_hand(
        table.tolist(), turns.tolist(), rows, x.shape[1], offset, key, scale
    )
    found = hashed_matmul(**inputs)
    expected = x.detach().numpy() @ w.T
    np.testing.assert_allclose(found.detach().numpy(), expected, atol=1e-12)
    grad = torch.randn_like(found)
    of_x, of_table = torch.autograd.grad(found, (x, table), grad)
    np.testing.assert_allclose(of_x.numpy(), grad.numpy() @ w, atol=1e-12)
    # cell by cell: which weights stand there, and with which sign
    of_w = (grad.numpy().T @ x.detach().numpy()).ravel()
    sums, m = [0.0] * len(table), len(table)
    for place, value in enumerate(of_w):
        i = offset + place
        cell = (turns.tolist()[i // m] + i % m) % m
        sums[cell] += scale * sign_by_hand(i, key) * value
    np.testing.assert_allclose(of_table.numpy(), sums, atol=1e-11)


@pytest.mark.parametrize("example", SMALL, ids=lambda example: example.name)
@pytest.mark.parametrize("dtype", DECLARATION.tolerance, ids=str)
def test_the_kernels_fold_the_gradient_as_the_reference(example, dtype):
    inputs = DECLARATION.inputs(4, "cpu", dtype, **example.options)
    grad = torch.randn(len(inputs["x"]), inputs["rows"]).to(dtype)
    values = [*inputs.values(), grad]
    tolerance = DECLARATION.tolerance[dtype]
    found, expected = on_gradients(*values), gradients(*values)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype and one.shape == other.shape
        most = other.abs().max() if other.numel() else 1.0
        assert one.isfinite().all()
        torch.testing.assert_close(one, other, rtol=0, atol=tolerance * most)


def on_gradients(*values):
    run = on_device(lambda *v: list_of(gradients_triton(*v)))
    return run(*values)


class list_of(tuple):
    """A tuple that takes its items one by one, as named tuples do."""

    def __new__(cls, *items):
        items = items[0] if len(items) == 1 else items
        return super().__new__(cls, items)


def test_the_pencil_example():
    # n = 10, m = 4: position 6 is the third of piece 1, which is turned by 3
    turns = torch.tensor([1, 3, 0]).int()
    assert cells(turns, 4, 0, 10).tolist() == [
        1, 2, 3, 0, 3, 0, 1, 2, 0, 1,
    ]  # fmt: skip
    assert cells(turns, 4, 6, 3).tolist() == [1, 2, 0]


def test_with_one_cell_each_the_product_is_a_plain_one():
    generator = torch.Generator().manual_seed(5)
    x, w = (torch.randn(7, 12, generator=generator) for _ in range(2))
    # every weight times its sign, at its own cell of a table turned by 3
    table = (signs(0, 84, 9) * w.flatten()).roll(3)
    turns = torch.tensor([3]).int()
    found = on_device(hashed_matmul_triton)(x, table, turns, 7, 0, 9)
    torch.testing.assert_close(found, x @ w.T)


def test_layers_of_one_model_share_the_table():
    inputs = DECLARATION.inputs(
        1, "cpu", torch.float32, M=5, N=8, K=6, m=20, offset=0
    )
    whole = hashed_matmul(**inputs)
    for rows in (3, 5):
        part = hashed_matmul(
            **inputs | {"rows": rows, "offset": 6 * (8 - rows)}
        )
        torch.testing.assert_close(part, whole[:, 8 - rows :])


def test_signs_are_even_and_neighbours_independent():
    s = signs(0, 1 << 16, 12345).float()
    for lag in (1, 2, 64, 101):
        assert abs((s[lag:] * s[:-lag]).mean()) < 4 / 2**8
    assert abs(s.mean()) < 4 / 2**8
    other = signs(0, 1 << 16, 12346 << 8).float()
    assert abs((s * other).mean()) < 4 / 2**8


def inputs(**changed):
    sizes = {"M": 9, "N": 6, "K": 8, "m": 10, "offset": 3}
    return DECLARATION.inputs(0, "cpu", torch.float32, **sizes) | changed


@pytest.mark.filterwarnings("ignore:invalid value encountered")
def test_a_bad_row_spoils_its_own_result_alone():
    x = inputs()
    expected = on_device(hashed_matmul_triton)(**x)
    x["x"][4, 3] = float("nan")
    found = on_device(hashed_matmul_triton)(**x)
    assert found[4].isnan().all()
    others = torch.arange(9) != 4
    assert torch.equal(found[others], expected[others])
    torch.testing.assert_close(found, hashed_matmul(**x), equal_nan=True)


@pytest.mark.filterwarnings("ignore:invalid value encountered")
def test_a_bad_cell_spoils_the_rows_of_weights_that_share_it():
    x = inputs()
    x["table"][2] = float("inf")
    found = on_device(hashed_matmul_triton)(**x)
    bad = cells(x["turns"], 10, 3, 48).view(6, 8).eq(2).any(dim=1)
    assert bad.any() and torch.equal(~found.isfinite().all(dim=0), bad)


def test_a_turn_outside_the_table_gives_no_weight_on_a_gpu():
    x = inputs()
    x["turns"] = torch.full_like(x["turns"], 1000)
    found = on_device(hashed_matmul_triton)(**x)
    assert torch.equal(found, torch.zeros(9, 6))
    x["turns"] = torch.full_like(x["turns"], -1000)
    assert not on_device(hashed_matmul_triton)(**x).any()


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"x": torch.ones(8)}, r"use \[M, K\] and \[m\]"),
        ({"x": torch.ones(3, 0)}, "with K and m from 1"),
        ({"table": torch.ones(0)}, "with K and m from 1"),
        ({"table": torch.ones(1).expand(2**30 + 1)}, "1 to 2\\^30"),
        ({"rows": 0}, "rows=0 of 8"),
        ({"offset": -1}, "offset=-1"),
        ({"offset": 2**31 - 48}, "fewer than 2\\^31 positions"),
        ({"key": -1}, "key=-1 is not within"),
        ({"key": 2**31}, "key=2147483648"),
        ({"turns": torch.zeros(5).int()}, r"51 positions on 10 cells need"),
        ({"turns": torch.zeros(6)}, r"need int32 \[6\]"),
        ({"turns": torch.full((6,), 10).int()}, "turns run from 10 to 10"),
        ({"turns": torch.full((6,), -1).int()}, "use 0 to 9 on a table"),
    ],
)
def test_wrong_arguments_are_refused_in_a_sentence(changed, sentence):
    with pytest.raises(ValueError, match=sentence):
        hashed_matmul(**inputs(**changed))


def test_mixed_types_are_refused_in_a_sentence():
    with pytest.raises(TypeError, match="use one floating dtype"):
        hashed_matmul(**inputs(x=torch.ones(9, 8).double()))
