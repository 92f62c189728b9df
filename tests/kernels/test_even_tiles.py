"""Loads without masks are only used where whole tiles make up the sizes.

Elsewhere they would read past the end of a tensor. No result shows that,
because what is computed from those reads is not stored.
"""

import pytest
import torch

from lab.kernels import _expert_mlp_backward_triton as backward
from lab.kernels import _expert_mlp_triton as forward

TILES = forward.Tiles(16, 32, 16, 4, 2)
OFFSETS = torch.tensor([0, 5], dtype=torch.int32)
PAIRS = torch.arange(5, dtype=torch.int32)


class Recorder:
    """Takes the place of a kernel and remembers the switches of its launch."""

    def __getitem__(self, grid):
        def launch(*arguments, **switches):
            self.switches = switches

        return launch


def up(H, F):
    rows = PAIRS[:, None]
    forward.up(
        torch.ones(5, H), PAIRS, rows, OFFSETS, torch.ones(1, H, 2 * F),
        "swiglu", True, TILES,
    )  # fmt: skip


def product(K, N):
    forward.product(torch.ones(5, K), torch.ones(1, K, N), OFFSETS, TILES)


def hidden(H, F):
    backward.hidden_backward(
        torch.ones(5, H), torch.ones(1, F, H), torch.ones(5, 2 * F),
        OFFSETS, "swiglu", TILES,
    )  # fmt: skip


def weight(M, N):
    backward.weight_backward(
        torch.ones(5, M), torch.ones(5, N), PAIRS, OFFSETS, 1, TILES
    )


@pytest.mark.parametrize(
    "module, kernel, launch, first, second",
    [
        # the first product's tile of 32 columns has 16 gates and 16 partners
        (forward, "expert_up_kernel", up, 16, 16),
        (forward, "expert_product_kernel", product, 16, 32),
        (backward, "expert_hidden_backward_kernel", hidden, 16, 32),
        (backward, "expert_weight_backward_kernel", weight, 16, 32),
    ],
)
def test_no_mask_only_where_tiles_cover_both_sizes(
    monkeypatch, module, kernel, launch, first, second
):
    recorder = Recorder()
    monkeypatch.setattr(module, kernel, recorder)
    for a in (first, 3 * first, first + 8):
        for b in (second, 2 * second, second - 8):
            launch(a, b)
            even = a % first == 0 and b % second == 0
            assert recorder.switches["EVEN"] == even, (a, b)
