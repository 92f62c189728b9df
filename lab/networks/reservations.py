"""Requests for entanglement, and the time cards that accept or reject them.

A router has a time card for each memory. A request for k memories in a span
of time walks along its path. An end needs k cards that are free throughout
the span, a router on the way 2 k; the first free ones are taken. If one
router has too few, a rejection walks back and frees what was taken.

The workload is that of SeQUeNCe's own study: every router asks another one at
random, for 10 to 24 memories and 10 to 20 s, beginning in 1 to 2 s. A request
that was rejected asks again after 1 s, for another number of memories and
another span; one that was accepted makes room for the next when it ends. In
the version of the paper's runs a router asked for less than half as many
memories as it held, in place of less than 25: see ``most``.

Checked request by request against the authors' simulator (0.8.5), whose
random numbers are drawn in the same order. Nothing quantum happens here.
"""

import heapq
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from lab.networks.starlight import fibre_of, fibres

SECOND = 10**12  # the simulator's clock counts picoseconds
TENTH = SECOND // 10
MOST = 25  # a request is for fewer memories than that


class Request(NamedTuple):
    """One accepted request; times in seconds."""

    path: tuple[int, ...]  # routers
    memories: int  # at each end
    asked: float
    start: float
    end: float
    tries: int  # 1 if it was accepted at once


class Waiting(NamedTuple):
    """A request that was not accepted when the simulation ended."""

    path: tuple[int, ...]
    asked: float
    tries: int


class Served(NamedTuple):
    """What became of all requests within ``seconds``."""

    accepted: list[Request]
    waiting: list[Waiting]
    seconds: float


class Cards:
    """The time cards of one router; bit c of a mask stands for card c."""

    def __init__(self, memories: int):
        self.all = (1 << memories) - 1
        self.taken = {}  # of a request: its span and its cards

    def take(self, name, start, end, count, now) -> bool:
        """Reserve the first ``count`` cards that are free, or none."""
        busy = 0
        for other, (begins, ends, mask) in list(self.taken.items()):
            if ends < now:
                del self.taken[other]
            elif begins <= end and ends >= start:
                busy |= mask
        free = self.all & ~busy
        if free.bit_count() < count:
            return False
        rest = free
        for _ in range(count):
            # without its lowest bit
            rest &= rest - 1
        self.taken[name] = (start, end, free ^ rest)
        return True

    def release(self, name):
        self.taken.pop(name, None)


@dataclass
class Ask:
    """A request on its way; times in picoseconds."""

    path: tuple[int, ...]
    asked: int
    start: int = 0
    end: int = 0
    memories: int = 0
    tries: int = 0


class Simulation:
    """All routers, their time cards, and the messages under way."""

    def __init__(self, memories: list[int], draws: list, most=None):
        self.most = most or [MOST] * len(memories)
        self.cards = [Cards(count) for count in memories]
        self.draws = draws
        self.delays = [round(ms * 1e9) for ms in fibres().delay]
        self.events = []  # (time, order of scheduling, what to do)
        self.scheduled = 0
        self.open = {}  # what each router has asked for
        self.accepted = []

    def at(self, time: int, act: Callable):
        self.scheduled += 1
        heapq.heappush(self.events, (time, self.scheduled, act))

    def run(self, until: int):
        for router in range(len(self.cards)):
            self.ask(router, 0)
        while self.events and self.events[0][0] < until:
            now, _, act = heapq.heappop(self.events)
            act(now)

    def ask(self, router: int, now: int):
        """A new request to a random router."""
        other = int(self.draws[router].choice(len(self.cards) - 1))
        other += other >= router
        one = Ask(fibres().path[router, other], now)
        self.open[router] = one
        self.send(one, now, fresh=True)

    def send(self, one: Ask, now: int, fresh: bool = False):
        """Draw what to ask for, and start to walk."""
        draw = self.draws[one.path[0]]
        one.start = now + int(draw.integers(10, 20)) * TENTH
        one.end = one.start + int(draw.integers(10 * SECOND, 20 * SECOND))
        one.memories = int(draw.integers(10, self.most[one.path[0]]))
        if fresh:
            # the fidelity it wants; nothing here depends on it
            draw.uniform(0.8, 1.0)
        one.tries += 1
        self.reserve(one, 0, now)

    def reserve(self, one: Ask, place: int, now: int):
        """The request is at router ``place`` of its path."""
        last = len(one.path) - 1
        count = one.memories if place in (0, last) else 2 * one.memories
        router = one.path[place]
        span = one.start, one.end
        if not self.cards[router].take(one.path[0], *span, count, now):
            self.reject(one, place, now)
        elif place < last:
            self.at(
                now + self.delay(one, place),
                lambda now: self.reserve(one, place + 1, now),
            )
        else:
            self.at(now + self.back(one), lambda now: self.accept(one, now))

    def reject(self, one: Ask, place: int, now: int):
        """The rejection walks back from router ``place``."""
        if place == 0:
            self.at(now + SECOND, lambda now: self.send(one, now))
            return

        def free(now):
            self.cards[one.path[place - 1]].release(one.path[0])
            self.reject(one, place - 1, now)

        self.at(now + self.delay(one, place - 1), free)

    def accept(self, one: Ask, now: int):
        self.accepted.append(one)
        del self.open[one.path[0]]
        self.at(one.end + 1, lambda now: self.ask(one.path[0], now))

    def delay(self, one: Ask, place: int) -> int:
        """How long a message takes over the fibre after ``place``."""
        return self.delays[fibre_of()[one.path[place : place + 2]]]

    def back(self, one: Ask) -> int:
        return sum(self.delay(one, i) for i in range(len(one.path) - 1))


def serve(memories: list[int], seconds: float, seed: int, most=None) -> Served:
    """Simulate the nine routers, ``memories`` each, for ``seconds``.

    A router's requests are for 10 memories or more, but fewer than ``most``
    says for it, or than 25.
    """
    draws = [np.random.default_rng([seed, r]) for r in range(len(memories))]
    return serve_draws(memories, seconds, draws, most)


def serve_draws(
    memories: list[int], seconds: float, draws: list, most=None
) -> Served:
    """The same with a random generator for each router."""
    one = Simulation(memories, draws, most)
    one.run(round(seconds * SECOND))
    accepted = [
        Request(
            ask.path, ask.memories, ask.asked / SECOND, ask.start / SECOND,
            ask.end / SECOND, ask.tries,
        )
        for ask in one.accepted
    ]  # fmt: skip
    waiting = [
        Waiting(ask.path, ask.asked / SECOND, ask.tries)
        for ask in one.open.values()
    ]
    return Served(accepted, waiting, seconds)
