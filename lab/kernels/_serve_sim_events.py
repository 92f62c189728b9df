"""One simulation of `serve_sim`, event by event: its reference.

Written to be read, and fast enough for thousands of runs on a CPU: only what
an event touches is looked at.
"""

import math
from collections import deque
from heapq import heappop, heappush

from lab.kernels._serve_sim_triton import LARGE

MOVED, DONE = range(2)  # events at the same time come in this order


class Instance:
    """A model on its GPUs: what it does, and who waits for it."""

    def __init__(self):
        self.load = 0  # requests that it has taken and not finished or moved
        self.queue = deque()  # for prefill
        self.waiting = []  # for room to decode: a heap of (since, request)
        self.batch = []  # in prefill now
        self.active = []  # in decode: a heap of (steps at the end, request)
        self.steps = 0  # decode steps done
        self.context = 0  # sum of p + tokens so far, over the active ones
        self.held = 0  # tokens of memory
        self.begun = 0.0
        self.end = math.inf  # idle
        self.run = 0  # decode steps until it looks up again; 0: none
        self.first = self.more = 0.0  # time of the run's first step; growth
        self.free = 0.0  # when its link is


class Simulation:
    """Requests on their way through the instances of one placement.

    ``pool`` and ``cost`` are a row of what `serve_sim` takes. ``jobs`` keeps
    what the instances did: (instance, "prefill" or "decode", start, end,
    requests).
    """

    def __init__(self, arrivals, prompts, outputs, pool, cost):
        self.prompts, self.outputs = prompts, outputs
        P, D, self.limit, self.memory, self.in_turn = pool
        rate, self.link = cost[:2]
        self.prefill_cost, self.small, self.large = (
            cost[k : k + 3] for k in (2, 5, 8)
        )
        self.colocated = not D
        self.instances = [Instance() for _ in range(P + D)]
        self.prefillers = self.instances[:P]
        self.decoders = self.instances[P:] if D else self.prefillers
        self.arrivals = [1000 * t / rate for t in arrivals]
        self.first = [0.0] * len(arrivals)  # time of the first token
        self.tpot = [0.0] * len(arrivals)
        self.events = []  # (time, kind, request or instance)
        self.jobs = []

    def serve(self):
        """TTFT and TPOT of every request, two lists."""
        arrivals, events, arrived = self.arrivals, self.events, 0
        while arrived < len(arrivals) or events:
            now = arrivals[arrived] if arrived < len(arrivals) else math.inf
            if not events or now <= events[0][0]:
                one = min(self.prefillers, key=_load)
                one.queue.append(arrived)
                arrived += 1
            else:
                now, kind, which = heappop(events)
                if kind == DONE:
                    one = self.instances[which]
                    # unless it looked up earlier
                    if one.end == now:
                        self.finish(one, now)
                    continue
                one = min(self.decoders, key=_load)
                heappush(one.waiting, (now, which))
            one.load += 1
            self.wake(one, now)
        pairs = zip(self.first, arrivals, strict=True)
        return [first - arrival for first, arrival in pairs], self.tpot

    def wake(self, one, now):
        """Somebody came: start, or look up after the present step."""
        if one.end == math.inf:
            self.start(one, now)
        elif one.run > 1:
            k = steps_until(now, one.begun, one.first, one.more, one.run)
            if k < one.run:
                one.run = k
                self.ends(one, one.begun + lasts(k, one.first, one.more))

    def start(self, one, now, prefilled=False):
        """The next prefill, or the next decode steps, or nothing to do."""
        one.begun, one.end, one.run = now, math.inf, 0
        while one.waiting and self.fits(one, one.waiting[0][1]):
            self.join(one, heappop(one.waiting)[1])
        one.batch = []
        if not (self.in_turn and prefilled and one.active):
            one.batch = self.next_batch(one)
        if one.batch:
            # a + b sum p + c sum p^2
            a, b, c = self.prefill_cost
            lengths = [self.prompts[r] for r in one.batch]
            squares = sum(p * p for p in lengths)
            self.ends(one, now + (a + b * sum(lengths) + c * squares))
        elif one.active:
            # a + b sum (p + tokens so far) + c n, and b n more a step
            n = len(one.active)
            a, b, c = self.small if n < LARGE else self.large
            one.first, one.more = a + b * one.context + c * n, b * n
            one.run = one.active[0][0] - one.steps
            if self.in_turn and prefilled and one.queue:
                one.run = 1
            self.ends(one, now + lasts(one.run, one.first, one.more))

    def next_batch(self, one):
        """As many of the queue as fit into a batch, or the first alone."""
        batch, tokens = [], 0
        while one.queue:
            r = one.queue[0]
            tokens += self.prompts[r]
            if batch and tokens > self.limit:
                break
            if self.colocated:
                if not self.fits(one, r):
                    break
                one.held += self.need(r)
            batch.append(one.queue.popleft())
        return batch

    def finish(self, one, now):
        """A prefill or a run of decode steps is over."""
        prefilled, n = bool(one.batch), len(one.batch or one.active)
        kind = "prefill" if prefilled else "decode"
        index = self.instances.index(one)
        self.jobs.append((index, kind, one.begun, now, n))
        for r in one.batch:
            self.first[r] = now
            if self.outputs[r] == 1:
                one.load -= 1
                one.held -= self.need(r) if self.colocated else 0
            elif self.colocated:
                one.held -= self.need(r)
                self.join(one, r)
            else:
                one.load -= 1
                # one after the other over the link
                one.free = max(one.free, now) + self.link * self.prompts[r]
                heappush(self.events, (one.free, MOVED, r))
        if not prefilled:
            one.steps += one.run
            one.context += n * one.run
            while one.active and one.active[0][0] == one.steps:
                _, r = heappop(one.active)
                further = self.outputs[r] - 1
                self.tpot[r] = (now - self.first[r]) / further
                one.context -= self.need(r)
                one.held -= self.need(r)
                one.load -= 1
        self.start(one, now, prefilled)

    def ends(self, one, time):
        one.end = time
        heappush(self.events, (time, DONE, self.instances.index(one)))

    def need(self, r):
        return self.prompts[r] + self.outputs[r]

    def fits(self, one, r):
        return one.held + self.need(r) <= self.memory

    def join(self, one, r):
        one.held += self.need(r)
        one.context += self.prompts[r] + 1
        heappush(one.active, (one.steps + self.outputs[r] - 1, r))


def _load(one):
    return one.load


def lasts(k, first, more):
    """How long k steps last: first, first + more, first + 2 more, ..."""
    return k * first + more * (k * (k - 1) / 2)


def steps_until(now, begun, first, more, most):
    """The fewest of ``most`` steps after which it is ``now`` or later."""
    half, time = first - more / 2, now - begun
    root = half + math.sqrt(half * half + 2 * more * time)
    k = min(max(math.ceil(2 * time / root), 1), most)
    # the root is right up to its last digit
    if k > 1 and begun + lasts(k - 1, first, more) >= now:
        k -= 1
    if k < most and begun + lasts(k, first, more) < now:
        k += 1
    return k
