"""Numbers rounded to the digits that mean something."""

import math


def rounded(mean, low, high):
    """The three as text, rounded at the first digit of the half width.

    If that digit is 1 or 2, a second one is kept, or rounding would move the
    interval's bounds visibly. Further digits mean nothing and differ between
    machines.
    """
    half = (high - low) / 2
    size = half or abs(mean) / 100 or 1
    power = math.floor(math.log10(size))
    places = max(0, -power + (0 < half / 10**power < 3))
    return tuple(fixed(v, places) for v in (mean, low, high))


def fixed(value, places):
    """`value` as text with that many `places`, and never as "-0.00"."""
    # adding 0 turns -0.0, which no reader expects, into 0.0
    return f"{round(value, places) + 0:.{places}f}"
