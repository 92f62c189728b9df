"""A cache of experts: which one leaves when another must come in.

A device holds C of N experts. Each token asks for one; if it is not there,
it is loaded and another expert leaves. The policies differ in what they know:

    random   nothing
    LRU      when each expert was last used; the one unused longest leaves
    LFU      how often each was used; the one used least leaves
    Belady   when each will be used next; the one needed last leaves
    window   the same, but only for the next W requests

Belady's rule is optimal (Belady 1966). A router that decides before the
layers run knows the experts of all waiting tokens, so it can apply that rule.
"""

import math
import random
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

POLICIES = ("random", "LRU", "LFU", "window", "Belady")


class CacheRun(NamedTuple):
    """What happened to every request."""

    hits: list[bool]
    content: list[tuple[int, ...]]  # of the cache after each request, sorted

    @property
    def ratio(self) -> float:
        """Share of the requests that found their expert loaded."""
        return sum(self.hits) / max(1, len(self.hits))


def simulate(
    trace: Sequence[int],
    capacity: int,
    policy: str,
    window: float = math.inf,
    seed: int = 0,
) -> CacheRun:
    """Serve the requests of ``trace``, a list of expert numbers, in order.

    The cache starts empty. Ties, such as those between experts that the
    window does not show, are broken by LRU. O(n C).
    """
    if capacity < 1:
        raise ValueError(f"capacity={capacity} holds no expert; use 1 or more")
    if policy not in POLICIES:
        raise ValueError(f"policy={policy!r} is not one of {POLICIES}")
    if window < 0:
        raise ValueError(f"window={window} looks back; use 0 or more")
    ahead = math.inf if policy == "Belady" else window
    upcoming, draw = next_uses(trace), random.Random(seed)
    last, needed, uses = {}, {}, Counter()  # the first two: loaded experts
    hits, content = [], []
    for now, expert in enumerate(trace):
        uses[expert] += 1
        hit = expert in last
        hits.append(hit)
        if not hit and len(last) == capacity:
            if policy == "random":
                leaves = draw.choice(sorted(last))
            elif policy == "LRU":
                leaves = min(last, key=last.get)
            elif policy == "LFU":
                leaves = min(last, key=lambda e: (uses[e], last[e]))
            else:
                seen = needed
                if ahead < math.inf:
                    # what lies past the window might as well never come
                    seen = {
                        e: at if at <= now + ahead else math.inf
                        for e, at in needed.items()
                    }
                leaves = max(last, key=lambda e: (seen[e], -last[e]))
            del last[leaves], needed[leaves]
        last[expert], needed[expert] = now, upcoming[now]
        # a hit leaves the cache as it is, and most requests are hits
        content.append(content[-1] if hit else tuple(sorted(last)))
    return CacheRun(hits, content)


def next_uses(trace: Sequence[int]) -> list[float]:
    """When the expert of each request is asked for again, inf if never."""
    found, after = [], {}
    for now in range(len(trace) - 1, -1, -1):
        found.append(after.get(trace[now], math.inf))
        after[trace[now]] = now
    return found[::-1]


def interleave(traces: Sequence[Sequence[int]]) -> list[int]:
    """The tokens of requests that are served together, turn by turn."""
    return [expert for turn in zip(*traces, strict=True) for expert in turn]


def sticky_traces(
    requests: int, length: int, experts: int, stickiness: float, seed: int = 0
) -> list[list[int]]:
    """Made traces: the expert stays the same with probability ``stickiness``.

    Otherwise it is one of the others, each with equal probability.
    """
    if experts < 2:
        raise ValueError(f"experts={experts} leaves no choice; use 2 or more")
    if not 0 <= stickiness <= 1:
        raise ValueError(f"stickiness={stickiness} is not within 0 to 1")
    draw, traces = random.Random(seed), []
    for _ in range(requests):
        trace = [draw.randrange(experts)]
        while len(trace) < length:
            stays = draw.random() < stickiness
            step = 0 if stays else draw.randrange(1, experts)
            trace.append((trace[-1] + step) % experts)
        traces.append(trace)
    return traces


def stickiness(trace: Sequence[int]) -> float:
    """Share of the tokens that keep the expert of the token before."""
    kept = sum(a == b for a, b in zip(trace, trace[1:], strict=False))
    return kept / max(1, len(trace) - 1)
