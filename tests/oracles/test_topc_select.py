"""Top-c selection against torch.topk and against counting."""

import pytest
import torch

from lab.kernels import runtime
from lab.kernels.topc_select import topc_select, topc_select_triton

DEVICE = runtime.device()


def drawn(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(DEVICE)


# of 65 and all, the last of four words has no token
@pytest.mark.parametrize(
    "S, c", [(1, 1), (63, 20), (65, 65), (100, 99), (1000, 500)]
)
@pytest.mark.parametrize("select", [topc_select, topc_select_triton])
def test_it_takes_what_topk_takes(select, S, c):
    scores = drawn(2, 3, S)
    best = scores.topk(c, dim=2).indices.sort(dim=2).values
    assert torch.equal(select(scores, c), best.int())


@pytest.mark.parametrize("select", [topc_select, topc_select_triton])
def test_ties_go_to_the_lowest_token(select):
    # by counting: a token is taken if fewer than c come before it
    scores = (2 * drawn(2, 2, 50)).round() / 2
    scores[:, :, ::7] *= -0.0  # 0 and -0 tie
    for c in (1, 13, 49):
        taken = select(scores, c).tolist()
        for b in range(2):
            for e in range(2):
                z = scores[b, e].tolist()
                before = [
                    sum(y > x or (y == x and j < i) for j, y in enumerate(z))
                    for i, x in enumerate(z)
                ]
                wanted = [i for i, m in enumerate(before) if m < c]
                assert taken[b][e] == wanted


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16, torch.bfloat16]
)
@pytest.mark.parametrize("sign", [1, -1])
def test_the_last_bit_of_a_score_counts(dtype, sign):
    steps = torch.arange(40).roll(13)
    scores = sign * (1 + steps * torch.finfo(dtype).eps).to(dtype)
    best = (sign * steps).topk(19).indices.sort().values
    taken = topc_select_triton(scores.to(DEVICE)[None, None], 19)
    assert taken[0, 0].tolist() == best.tolist()


def test_the_column_may_lie_across_the_memory():
    scores = drawn(2, 40, 3).transpose(1, 2)
    expected = topc_select_triton(scores.contiguous(), 9)
    assert torch.equal(topc_select_triton(scores, 9), expected)


@pytest.mark.parametrize("low", [float("nan"), float("-inf")])
def test_the_kernel_takes_nan_as_the_lowest(low):
    scores = drawn(1, 1, 20)
    scores[0, 0, 3] = low
    assert 3 not in topc_select_triton(scores, 19).tolist()[0][0]
    assert 3 in topc_select_triton(scores, 20).tolist()[0][0]


@pytest.mark.parametrize(
    ("scores", "c", "sentence"),
    [
        (torch.zeros(1, 2, 3), 4, "c=4 is not within 1 to 3"),
        (torch.zeros(1, 2, 3), 0, "c=0"),
        (torch.zeros(1, 2, 0), 1, "at least one token"),
        (torch.zeros(2, 3), 1, "shape"),
        (torch.full((1, 1, 2), float("nan")), 1, "2 NaN"),
        (torch.zeros(1, 1, 8193), 1, "8192"),
    ],
)
def test_wrong_scores_are_refused_in_a_sentence(scores, c, sentence):
    with pytest.raises(ValueError, match=sentence):
        topc_select(scores, c)


def test_whole_numbers_are_no_scores():
    with pytest.raises(TypeError, match="floating"):
        topc_select(torch.zeros(1, 1, 2, dtype=torch.int32), 1)
