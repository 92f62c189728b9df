"""Numbers rounded to what they are worth."""

import math


def rounded(mean, low, high):
    """The three as texts, to the first digit of the interval's half width.

    Further digits differ from one machine to the next and mean nothing.
    """
    half = (high - low) / 2
    size = half or abs(mean) / 100 or 1
    places = max(0, -math.floor(math.log10(size)))
    # adding 0 turns -0.0, which no reader expects, into 0.0
    return tuple(
        f"{round(v, places) + 0:.{places}f}" for v in (mean, low, high)
    )
