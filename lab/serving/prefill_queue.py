"""Prefill as a queue: mean TTFT by the formulas of DistServe, section 3.1.

Requests of equal length arrive at random, R a second, and are served one by
one, each in D seconds: an M/D/1 queue. Two GPUs can share the work in two
ways. Inter-op: each does half of the layers, so two requests are under way.
Intra-op: both work on the same layer, and a prefill takes D / K, with K
between 1 and 2, since they must talk. All times are in seconds.
"""

import math


def one_gpu(rate: float, time: float) -> float:
    """Mean TTFT on one GPU; infinite from ``rate`` 1 / ``time`` on."""
    if rate * time >= 1:
        return math.inf
    # (1): D + R D^2 / (2 (1 - R D))
    return time + rate * time**2 / (2 * (1 - rate * time))


def inter_op(rate: float, time: float) -> float:
    """Mean TTFT with half of the layers on each of two GPUs."""
    if rate * time >= 2:
        return math.inf
    # (2): D + R D^2 / (4 (2 - R D))
    return time + rate * time**2 / (4 * (2 - rate * time))


def intra_op(rate: float, time: float, speedup: float) -> float:
    """Mean TTFT if two GPUs share every layer and are K times as fast."""
    # (3): D / K + R D^2 / (2 K (K - R D)), which is (1) with D / K
    return one_gpu(rate, time / speedup)


def crossing(speedup: float) -> float:
    """The load R D up to which intra-op is the better way, from (2) and (3).

    With x = R D both sides times 4 K (K - x) (2 - x) give
    4 (1 - K) (K - x) (2 - x) + 2 x (2 - x) - K x (K - x) = 0.
    """
    K = speedup
    if not 1 < K < 2:
        raise ValueError(f"K={K} is not between 1 and 2")
    # a x^2 + b x + c
    a = 4 * (1 - K) - 2 + K
    b = -4 * (1 - K) * (K + 2) + 4 - K * K
    c = 8 * (1 - K) * K
    root = math.sqrt(b * b - 4 * a * c)
    roots = sorted(((-b + root) / (2 * a), (-b - root) / (2 * a)))
    return next(x for x in roots if 0 < x < K)
