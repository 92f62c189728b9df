"""The line between top-1 and top-2, point by point."""

import pytest

from lab.tokens.mixing import bits_above_mixing


@pytest.mark.parametrize(
    ("bits", "experts", "lost"),
    [(2.4, 1, 0), (2.2, 2, 0), (2.3, 1.5, 0), (2.3, 1.25, -0.05)],
)
def test_only_points_above_the_line_have_lost(bits, experts, lost):
    assert bits_above_mixing(bits, experts, 2.4, 2.2) == pytest.approx(lost)
