"""Max-min fair rates on shared links, and when the last flow ends.

Every subflow gets the largest rate that takes nothing from a poorer one
(Bertsekas and Gallager, "Data Networks", section 6.5). Its level is its rate
over its weight. A link is a bottleneck when its spare capacity, shared by
weight, is the lowest level on the path of each of its subflows:

    level_l = (capacity_l - rates already fixed) / sum of the open weights
    l is a bottleneck if level_l = min over l' on the path of f, for all f

All bottlenecks of a round are fixed together, so a few rounds are enough. When
a subflow ends, the rates are computed again.
"""

from typing import NamedTuple

import numpy as np

CLOSE = 1e-9  # levels this close, relatively, count as the same


class Fluid(NamedTuple):
    """The moments at which rates change, and what had arrived by then."""

    time: np.ndarray  # [E + 1], from 0 to the last end
    delivered: np.ndarray  # [E + 1], amount of data
    end: np.ndarray  # [G], when each subflow ended


def fair_rates(
    links: np.ndarray, capacity: np.ndarray, weight: np.ndarray
) -> np.ndarray:
    """Weighted max-min rates [G] of subflows over ``links`` [H, G].

    ``links`` are indices into ``capacity`` [M], H of them per subflow; a
    shorter path names a link of infinite capacity. O(H G) per round.
    """
    H, G = links.shape
    M = len(capacity)
    rate, spare = np.zeros(G), capacity.astype(float)
    open_, path, share = np.arange(G), links, weight
    while len(open_):
        total = _sum(path, share, M)
        level = np.full(M, np.inf)
        np.divide(spare, total, out=level, where=total > 0)
        at = level[path]  # [H, open]
        lowest = at.min(0)
        # a link is no bottleneck if one of its subflows is held to a lower
        # level elsewhere
        held = at > lowest * (1 + CLOSE)
        blocked = np.zeros(M, dtype=bool)
        blocked[path[held]] = True
        fixed = (~blocked[path] & ~held).any(0)
        rate[open_[fixed]] = lowest[fixed] * share[fixed]
        spare -= _sum(path[:, fixed], rate[open_[fixed]], M)
        np.maximum(spare, 0, out=spare)
        rest = ~fixed
        open_, path, share = open_[rest], path[:, rest], share[rest]
    return rate


def _sum(path: np.ndarray, amount: np.ndarray, links: int) -> np.ndarray:
    """The load of each link if every subflow puts its amount on its path."""
    amounts = np.broadcast_to(amount, path.shape).ravel()
    return np.bincount(path.ravel(), amounts, links)


def drain(
    links: np.ndarray,
    capacity: np.ndarray,
    size: np.ndarray,
    weight: np.ndarray,
    pause: float = 0.0,
) -> Fluid:
    """Send ``size`` [G] over ``links`` [H, G] until all has arrived.

    Exact, with rates computed again whenever a subflow ends. With a ``pause``
    they are kept for at least that long. This runs faster where all sizes
    differ; the data arrive at most that much later for each subflow that ends
    in between.
    """
    left, end = size.astype(float), np.zeros(len(size))
    now, arrived = 0.0, 0.0
    times, delivered = [0.0], [0.0]
    open_ = np.flatnonzero(left > 0)
    while len(open_):
        rate = fair_rates(links[:, open_], capacity, weight[open_])
        wait = left[open_] / rate
        # no longer than until the last subflow has ended
        step = min(max(wait.min(), pause), wait.max())
        sent = np.minimum(rate * step, left[open_])
        done = wait <= step * (1 + CLOSE)
        left[open_] -= sent
        end[open_[done]] = now + wait[done]
        now += step
        arrived += sent.sum()
        open_ = open_[~done]
        times.append(now)
        delivered.append(arrived)
    return Fluid(np.array(times), np.array(delivered), end)
