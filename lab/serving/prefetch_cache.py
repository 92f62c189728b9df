"""A cache that a prediction fills: which expert is loaded next, which leaves.

A model visits its L layers again and again, once for each step of decoding. A
visit takes its time for attention and gate; then the needed experts are known
and run one after the other. C experts of all layers lie in GPU memory. All
others must cross a link that carries one expert at a time and does not stop
halfway. The rules of a visit:

1. During attention the link prefetches experts that are predicted for this
   visit and the next ones, ``window`` visits in all, or only as far as the end
   of the step. Earlier visits go first; within a visit, experts that more
   tokens want.
2. At the gate the truth is known. A needed expert is a hit if it has arrived.
   The hits run; the missing ones are loaded at once, before any further
   prefetch ("corrections first"), or after them ("in turn").
3. In a full cache the expert that is predicted furthest ahead leaves. Those
   predicted nowhere in the window leave earlier: first those that were
   predicted and not needed, then the one used longest ago. A prefetch never
   drives out what is predicted for the same visit or an earlier one, and
   nothing leaves that must still run in this visit.
4. The visit ends when all needed experts have run.

So slots go where the prediction wants them, to any layer, and are free again
as soon as their layer is done. The rules are ours, after the paper's words. In
the authors' code, too, prefetches go layer by layer and corrections come first
(on a stream of higher priority), but an expert takes the place of one of its
own layer, so no slot goes from layer to layer.
"""

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

QUEUES = ("corrections first", "in turn")
# when an expert is due that no one has predicted, and one nobody wanted
NEVER, UNWANTED = 1 << 40, 1 << 41


class Costs(NamedTuple):
    """Durations, in units of a layer's attention."""

    transfer: float = 1.0  # one expert over the link
    expert: float = 0.1  # one expert's work
    attention: float = 1.0  # attention and gate of a layer


UNIT = Costs()


class Job(NamedTuple):
    """Something that kept the link or the GPU busy."""

    # attention, expert, on demand, prefetch, or "prefetch, unused"
    kind: str
    start: float
    end: float
    expert: int  # l E + e; -1 for attention


class Served(NamedTuple):
    """What a cache did for all visits together."""

    visits: int
    needs: int
    hits: int
    loads: int
    time: float
    jobs: list[Job]  # those of the GPU as they began, then the link's

    @property
    def ratio(self) -> float:
        """Share of the needed experts that were there."""
        return self.hits / max(1, self.needs)

    @property
    def layer_time(self) -> float:
        """Mean time of a visit."""
        return self.time / max(1, self.visits)


def visits(paths: Tensor, experts: int) -> list[list[int]]:
    """The experts of every visit, from the paths [S, B, L] of B tokens.

    Visit s L + l lists those that some token takes in layer l, as numbers
    l E + e, and those of more tokens first; ties go to the lowest.
    """
    S, _, L = paths.shape
    votes = F.one_hot(paths.long(), experts).sum(1).view(S * L, experts)
    order = votes.argsort(dim=1, descending=True, stable=True)
    wanted = (votes > 0).sum(1).tolist()
    return [
        [v % L * experts + e for e in row[:count]]
        for v, (row, count) in enumerate(
            zip(order.tolist(), wanted, strict=True)
        )
    ]


def serve(
    needs: list[list[int]],
    wishes: list[list[int]],
    capacity: int,
    window: int,
    costs: Costs = UNIT,
    queue: str = QUEUES[0],
    step: int = 0,
) -> Served:
    """Serve the ``needs`` of every visit with the predicted ``wishes``.

    Both are lists of visits, as `visits` makes them. The cache starts empty.
    ``step`` is the number of layers if nothing beyond the present step is
    known, and 0 if the window may reach into the next one. O(visits C).
    """
    if len(wishes) != len(needs):
        raise ValueError(
            f"{len(wishes)} visits are predicted and {len(needs)} are made;"
            " use as many of both"
        )
    if capacity < 1 or window < 1:
        raise ValueError(
            f"capacity={capacity} and window={window} hold nothing; use 1 or"
            " more of both"
        )
    if queue not in QUEUES:
        raise ValueError(f"queue={queue!r} is not one of {QUEUES}")
    cache, now = PrefetchCache(wishes, capacity, window, costs, step), 0.0
    for visit, needed in enumerate(needs):
        now = cache.visit(visit, sorted(needed), now, queue)
    return cache.served(len(needs), now)


class PrefetchCache:
    """The cache at work; `serve` takes it through all visits."""

    def __init__(self, wishes, capacity, window, costs, step):
        self.wishes, self.capacity = wishes, capacity
        self.window, self.costs, self.step = window, costs, step
        self.arrived = {}  # expert: when; the one used longest ago first
        self.unwanted = set()
        self.link = self.gpu = 0.0  # when each of them is free
        self.done = {}  # needed expert: when it has run
        self.needs = self.hits = 0
        self.jobs, self.loads = [], []
        self.brought, self.used = {}, set()  # expert: its load; loads

    def visit(self, visit, needed, now, queue):
        """One layer from attention to its last expert; returns the end."""
        gate = now + self.costs.attention
        self.jobs.append(Job("attention", now, gate, -1))
        self.link = max(self.link, now)
        self._look_ahead(visit, visit)
        self._prefetch(gate)

        # the truth is known
        self.link = max(self.link, gate)
        self._judge(visit, needed)
        self._look_ahead(visit, visit + 1)
        here = [x for x in needed if x in self.arrived]
        self.needs += len(needed)
        self.hits += sum(self.arrived[x] <= gate for x in here)
        # one may still be on its way
        here.sort(key=lambda x: self.arrived[x] > gate)
        self.gpu = gate
        for x in here:
            self._run(x)
        if queue == "in turn" and len(here) < len(needed):
            self._prefetch(NEVER)
        for x in needed:
            # one may have come by now, as a prefetch for the next step
            if self.done[x] == NEVER:
                self._free_slot(-1, NEVER)
                self._load(x, "on demand")
        self._prefetch(self.gpu)
        # of one visit, the lower number counts as used later
        for x in reversed(needed):
            if x in self.arrived:
                self.arrived[x] = self.arrived.pop(x)
        return self.gpu

    def _look_ahead(self, visit, first):
        """The visits that are predicted now, and when each expert is due."""
        last = min(first + self.window, len(self.wishes))
        if self.step:
            last = min(last, (visit // self.step + 1) * self.step)
        self.ahead = range(first, last)
        self.due = dict.fromkeys(self.unwanted, UNWANTED)
        for later in reversed(self.ahead):
            for x in self.wishes[later]:
                self.due[x] = later

    def _prefetch(self, until):
        """Load what is predicted, while the link is free before ``until``."""
        for visit in self.ahead:
            for x in self.wishes[visit]:
                if self.link >= until:
                    return
                if x in self.arrived:
                    continue
                if not self._free_slot(visit, until):
                    return
                self._load(x, "prefetch")

    def _free_slot(self, visit, until):
        """Free a slot for an expert due at ``visit``, if that is possible.

        The expert predicted furthest ahead leaves, of equals the one used
        longest ago. While the slots hold nothing but what must still run and
        what is due no later, the link waits for the next one to have run.
        """
        while len(self.arrived) == self.capacity:
            done, link = self.done, self.link
            free = [x for x in self.arrived if done.get(x, link) <= link]
            leaves = max(free, key=self._when, default=None)
            if leaves is not None and self._when(leaves) > visit:
                del self.arrived[leaves]
                self.unwanted.discard(leaves)
                return True
            ends = [done[x] for x in self.arrived if x in done]
            ends = [end for end in ends if link < end < until]
            if not ends:
                return False
            self.link = min(ends)
        return True

    def _when(self, x):
        return self.due.get(x, NEVER)

    def _judge(self, visit, needed):
        """Mark what was predicted for this visit and is not needed."""
        self.done = dict.fromkeys(needed, NEVER)
        self.unwanted.update(
            x for x in self.wishes[visit] if x in self.arrived
        )
        self.unwanted.difference_update(needed)
        for x in needed:
            if x in self.arrived:
                # used now, so newer than the rest
                self.arrived[x] = self.arrived.pop(x)

    def _load(self, x, kind):
        self.unwanted.discard(x)
        self.brought[x] = len(self.loads)
        start, self.link = self.link, self.link + self.costs.transfer
        self.arrived[x] = self.link
        self.loads.append(Job(kind, start, self.link, x))
        # needed in this visit
        if self.done.get(x) == NEVER:
            self._run(x)

    def _run(self, x):
        """Run an expert when it has arrived and the GPU is free."""
        start = max(self.gpu, self.arrived[x])
        self.done[x] = self.gpu = start + self.costs.expert
        self.jobs.append(Job("expert", start, self.gpu, x))
        self.used.add(self.brought[x])

    def served(self, number, time):
        """The sums, and all jobs with what became of each prefetch."""
        loads = [
            job if i in self.used else job._replace(kind="prefetch, unused")
            for i, job in enumerate(self.loads)
        ]
        jobs = self.jobs + loads
        return Served(number, self.needs, self.hits, len(loads), time, jobs)
