"""Whole models as experts: which are in HBM, and what it costs to switch.

A node keeps all experts in a large memory and S of them in HBM, next to the
router. A request runs the router and one expert, which must be in HBM:

    T = T_execute + T_switch,    T_switch = 0 in HBM, else W / B

W bytes of one expert, B bytes a second of the link. T_execute grows with the
answer; a DGX takes longer than an SN40L, as the paper's table V has it.
Weights are read only, so the expert that leaves is not copied back. Which one
leaves is decided by LRU, or by Belady's rule, which knows all requests to
come.

LRU needs one pass for every S: a request is a hit if its expert stands among
the first S of a stack, all experts by their last use. Chapter 11's kernel
`stack_distance` counts these places for up to 128 experts of a layer. Here
each request keeps its own, because time depends on which one misses.

Software may help, too. "prefetch" is LRU where requests wait: their experts
are known, and the link works as many as `WAITING` requests ahead. Grouping
like requests among so few would save nothing: a cache of more slots finds
them all anyway. To keep the experts that wait would save a tenth of the
misses, and is left out.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lab.tokens.expert_cache import simulate

GB = 1e9
WEIGHTS = 13.48 * GB  # W, of Llama 2 with 6.74 billion parameters in bf16
WAITING = 16
FIRST = 1 << 30  # depth of an expert that was never used before
TOKENS = 20, 200  # of the answers in table V
# ms of router and expert on an SN40L for these. Ours: fitted, with the DGX
# below, to the overall speedups of table V in batches of eight prompts
RUNS = 72.0, 396.0
SOFTWARE = ("LRU", "prefetch", "Belady")


class Node(NamedTuple):
    """One machine: where experts lie, and how fast one of them runs."""

    name: str
    hbm: float  # bytes of all its chips together
    link: float  # B, bytes a second from where the other experts lie
    runs: tuple[float, float] = RUNS  # T_execute of both answers, ms

    @property
    def slots(self) -> int:
        """Experts that HBM holds beside the router, if nothing else is."""
        return int(self.hbm // WEIGHTS) - 1

    @property
    def switch(self) -> float:
        """Milliseconds to bring one expert."""
        return 1000 * WEIGHTS / self.link

    def execute(self, tokens: float) -> float:
        """Milliseconds of router and expert, on a line through ``runs``."""
        (few, many), (short, long) = TOKENS, self.runs
        return short + (long - short) * (tokens - few) / (many - few)


SN40L = Node("SN40L", 8 * 64 * 2**30, 1000 * GB)
# table V, "expert speedup": 1.5 and 2.3 over H100, 2.0 and 3.2 over A100
H100 = Node("DGX H100", 8 * 80 * GB, 64 * GB, (1.5 * RUNS[0], 2.3 * RUNS[1]))
A100 = Node("DGX A100", 8 * 80 * GB, 32 * GB, (2.0 * RUNS[0], 3.2 * RUNS[1]))


def depths(stream: Sequence[int]) -> list[int]:
    """Where each request's expert stood in the stack, the last used at 0.

    ``FIRST`` if it was never used before. O(n K).
    """
    stack, found = [], []
    for expert in stream:
        try:
            place = stack.index(expert)
            del stack[place]
        except ValueError:
            place = FIRST
        found.append(place)
        stack.insert(0, expert)
    return found


class Request(NamedTuple):
    """When a request's expert was brought and when it ran, in ms."""

    expert: int
    hit: bool
    load: float  # the link starts; of a hit, nothing is loaded
    come: float  # the expert is in HBM
    start: float  # the expert runs
    end: float


def serve(
    stream: Sequence[int],
    node: Node,
    execute: float | Sequence[float],
    software: str = SOFTWARE[0],
) -> list[Request]:
    """Serve requests in the order of arrival, one after the other.

    ``execute`` is the time of router and expert in ms, of all or of each one.
    The cache starts empty. O(n K).
    """
    if node.slots <= WAITING:
        raise ValueError(
            f"{node.slots} slots are too few; looking {WAITING} requests"
            f" ahead takes {WAITING + 1} or more"
        )
    if software not in SOFTWARE:
        raise ValueError(
            f"software={software!r} is not one of {', '.join(SOFTWARE)}"
        )
    if not isinstance(execute, Sequence):
        execute = [execute] * len(stream)
    if len(execute) != len(stream):
        raise ValueError(
            f"{len(execute)} times of execution do not fit {len(stream)}"
            " requests; give one for each, or one for all"
        )
    ahead = WAITING if software == "prefetch" else 0
    served, link, end = [], 0.0, 0.0
    for i, hit in enumerate(hits(stream, node.slots, software)):
        load = end
        if ahead:
            # a request waits, and is known, once so many are left before it
            known = served[i - ahead].start if i >= ahead else 0.0
            load = max(link, known)
        come = load if hit else load + node.switch
        link = link if hit else come
        start = max(end, come)
        end = start + execute[i]
        served.append(Request(stream[i], hit, load, come, start, end))
    return served


def hits(stream: Sequence[int], slots: int, software: str) -> list[bool]:
    """Whether each request finds its expert in HBM."""
    if software == "Belady":
        return simulate(stream, slots, "Belady").hits
    return [depth < slots for depth in depths(stream)]


class Mean(NamedTuple):
    """What a request costs on average, in ms."""

    time: float
    missing: float  # share of the requests

    @classmethod
    def of(cls, served: list[Request], skip: int) -> "Mean":
        """Of all requests but the first ``skip``, which fill the cache."""
        rest = served[skip:]
        before = served[skip - 1].end if skip else 0.0
        missed = sum(not one.hit for one in rest)
        return cls((rest[-1].end - before) / len(rest), missed / len(rest))


def formula(shares: Sequence[float], slots: Sequence[int]) -> list[float]:
    """LRU's share of misses for independent requests, by Che's formula.

    An expert stays for a time t, the same for all, with
    sum of 1 - exp(-p t) = S, and is then missed with probability exp(-p t).
    """
    p = np.asarray(shares)
    t = np.geomspace(0.01, 100 / p[p > 0].min(), 400)[:, None]
    stays = 1 - np.exp(-p * t)  # [400, K]
    held, missed = stays.sum(1), 1 - (p * stays).sum(1)
    room = min(len(p), held[-1])
    return [
        0.0 if s >= room - 1e-9 else float(np.interp(s, held, missed))
        for s in slots
    ]


def gain(node: Node, tokens: int = TOKENS[0]) -> float:
    """How many times as long as on an SN40L a request takes if both miss."""
    if tokens < 1:
        raise ValueError(f"tokens={tokens} is no answer; use 1 or more")
    here, there = (n.execute(tokens) + n.switch for n in (SN40L, node))
    return there / here
