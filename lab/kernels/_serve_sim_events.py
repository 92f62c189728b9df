"""One simulation of `serve_sim`, event by event: its reference.

Written to be read, and fast enough for thousands of runs on a CPU: only what
an event touches is looked at.
"""

import math
from collections import deque
from heapq import heappop, heappush

from lab.kernels._serve_sim_triton import LARGE

ARRIVES, MOVED, DONE = range(3)  # at the same time in this order


class Instance:
    """A model on its GPUs: what it does, and who waits for it."""

    def __init__(self):
        self.load = 0  # requests that it has taken and not finished or moved
        self.queue = deque()  # for prefill
        self.waiting = deque()  # for room to decode
        self.batch = []  # in prefill now
        self.active = []  # in decode: a heap of (steps at the end, request)
        self.steps = 0  # decode steps done
        self.context = 0  # sum of p + tokens so far, over the active ones
        self.held = 0  # tokens of memory
        self.begun = 0.0
        self.run = 0  # decode steps until it looks up again; 0: none
        self.end = math.inf  # idle
        self.first = self.more = 0.0  # time of the run's first step; growth
        self.link = 0.0  # when its link is free


def serve(arrivals, prompts, outputs, pool, cost, jobs=None):
    """TTFT and TPOT of every request, two lists.

    ``pool`` and ``cost`` are one row of `serve_sim`. What the instances did
    is appended to ``jobs``: (instance, "prefill" or "decode", start, end,
    requests).
    """
    P, D, limit, memory, in_turn = pool
    rate, link, a, b, c = cost[:5]
    small, large = cost[5:8], cost[8:11]
    instances = [Instance() for _ in range(P + D)]
    decoders = range(P, P + D) if D else range(P)
    arrivals = [1000 * t / rate for t in arrivals]
    N = len(arrivals)
    first, tpot = [0.0] * N, [0.0] * N
    events = []  # of moves and instances: (time, kind, which)

    def least(among):
        return min(among, key=lambda j: instances[j].load)

    def note(j, kind, end, count):
        if jobs is not None:
            jobs.append((j, kind, instances[j].begun, end, count))

    def wake(j, now):
        """Somebody came: start, or look up after the present step."""
        one = instances[j]
        if one.end == math.inf:
            start(j, now, prefilled=False)
        elif one.run > 1:
            k = steps_until(now - one.begun, one.first, one.more)
            k = min(max(k, 1), one.run)
            if k > 1 and one.begun + lasts(k - 1, one.first, one.more) >= now:
                k -= 1
            if k < one.run and one.begun + lasts(k, one.first, one.more) < now:
                k += 1
            if k < one.run:
                one.run = k
                one.end = one.begun + lasts(k, one.first, one.more)
                heappush(events, (one.end, DONE, j))

    def start(j, now, prefilled):
        """The next prefill or the next decode steps, or nothing to do."""
        one = instances[j]
        one.begun, one.run, one.batch = now, 0, []
        while one.waiting and one.held + need(one.waiting[0]) <= memory:
            join(one, one.waiting.popleft())
        if one.queue and not (in_turn and prefilled and one.active):
            tokens = squares = 0
            while one.queue:
                r = one.queue[0]
                if one.batch and tokens + prompts[r] > limit:
                    break
                if not D and one.held + need(r) > memory:
                    break
                one.batch.append(one.queue.popleft())
                one.held += 0 if D else need(r)
                tokens += prompts[r]
                squares += prompts[r] ** 2
        if one.batch:
            # a + b sum p + c sum p^2
            one.end = now + (a + b * tokens + c * squares)
        elif one.active:
            n = len(one.active)
            a_n, b_n, c_n = small if n < LARGE else large
            one.first = a_n + b_n * one.context + c_n * n
            one.more = b_n * n
            one.run = one.active[0][0] - one.steps
            if in_turn and prefilled and one.queue:
                one.run = 1
            one.end = now + lasts(one.run, one.first, one.more)
        else:
            one.end = math.inf
            return
        heappush(events, (one.end, DONE, j))

    def need(r):
        return prompts[r] + outputs[r]

    def join(one, r):
        one.held += need(r) if D else 0
        one.context += prompts[r] + 1
        heappush(one.active, (one.steps + outputs[r] - 1, r))

    arrived = 0
    while arrived < N or events:
        if arrived < N and (not events or arrivals[arrived] <= events[0][0]):
            now, j = arrivals[arrived], least(range(P))
            instances[j].queue.append(arrived)
            instances[j].load += 1
            arrived += 1
            wake(j, now)
            continue
        now, kind, j = heappop(events)
        if kind == MOVED:
            r, j = j, least(decoders)
            instances[j].waiting.append(r)
            instances[j].load += 1
            wake(j, now)
            continue
        one = instances[j]
        if one.end != now:
            continue  # it looked up earlier
        prefilled = bool(one.batch)
        if prefilled:
            note(j, "prefill", now, len(one.batch))
            for r in one.batch:
                first[r] = now
                if D or outputs[r] == 1:
                    one.load -= 1
                if outputs[r] == 1:
                    one.held -= 0 if D else need(r)
                elif D:
                    one.link = max(one.link, now) + link * prompts[r]
                    heappush(events, (one.link, MOVED, r))
                else:
                    join(one, r)
        else:
            n = len(one.active)
            note(j, "decode", now, n)
            one.steps += one.run
            one.context += n * one.run
            while one.active and one.active[0][0] == one.steps:
                _, r = heappop(one.active)
                tpot[r] = (now - first[r]) / (outputs[r] - 1)
                one.context -= need(r)
                one.held -= need(r)
                one.load -= 1
        start(j, now, prefilled)
    ttft = [t - s for t, s in zip(first, arrivals, strict=True)]
    return ttft, tpot


def lasts(k, first, more):
    """How long k steps last: first, first + more, first + 2 more, ..."""
    return k * first + more * (k * (k - 1) / 2)


def steps_until(time, first, more):
    """The fewest steps that last ``time``, up to the last digit."""
    half = first - more / 2
    return math.ceil(
        2 * time / (half + math.sqrt(half * half + 2 * more * time))
    )
