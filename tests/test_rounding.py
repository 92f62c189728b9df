"""An interval decides how many digits are worth printing."""

import pytest

from lab.rounding import rounded


@pytest.mark.parametrize(
    "values, texts",
    [
        ((14.21, 12.9, 15.5), ("14.2", "12.9", "15.5")),
        ((0.0153, 0.0111, 0.0195), ("0.015", "0.011", "0.019")),
        ((-0.0004, -0.05, 0.05), ("0.00", "-0.05", "0.05")),
        ((0.026, 0.0104, 0.0418), ("0.026", "0.010", "0.042")),
        ((1234.4, 1000.0, 1468.8), ("1234", "1000", "1469")),
        ((2.0, 2.0, 2.0), ("2.00", "2.00", "2.00")),
        ((0.0, 0.0, 0.0), ("0", "0", "0")),
    ],
)
def test_numbers_are_rounded_to_what_they_are_worth(values, texts):
    assert rounded(*values) == texts
