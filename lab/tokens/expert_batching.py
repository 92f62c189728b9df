"""Batches of tokens that want the same experts (Read-ME, Algorithm 1).

Every request offers its next token, whose expert is known before the layers
run. A batch takes B of the waiting tokens. Its cost is the number of
different experts in it, because each must be loaded. By order of arrival, a
batch takes the tokens that have waited longest. By expert, it takes the
longest queue, whole if it fits and otherwise its first tokens, then the next
longest queue, until the batch is full.

As printed, Algorithm 1 never ends when fewer tokens wait than the batch
holds (an empty queue always fits), and reads a stale index. Here it stops
when all queues are empty. Serving the longest queue starves rare experts, so
tokens that have waited for more than ``age_limit`` batches go first.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

ORDERS = ("arrival", "expert")


class Token(NamedTuple):
    """A token that waits."""

    request: int
    expert: int
    since: int  # the number of the first batch that could take it


class Served(NamedTuple):
    """What the batches were, and how long tokens waited."""

    batches: list[list[int]]  # the experts of the tokens of each batch
    waits: list[int]  # batches that left each token waiting

    @property
    def experts(self) -> float:
        """Mean number of different experts in a batch."""
        distinct = [len(set(batch)) for batch in self.batches]
        return sum(distinct) / max(1, len(distinct))


def serve(
    traces: Sequence[Sequence[int]],
    size: int,
    order: str = "expert",
    age_limit: int | None = None,
) -> Served:
    """Serve requests, each a list of its tokens' experts, in batches.

    A request's next token joins the queue once the one before is served.
    """
    if size < 1:
        raise ValueError(f"size={size} leaves batches empty; use 1 or more")
    if order not in ORDERS:
        raise ValueError(f"order={order!r} is not one of {ORDERS}")
    done = [0] * len(traces)
    waiting = [Token(r, t[0], 0) for r, t in enumerate(traces) if len(t)]
    batches, waits = [], []
    while waiting:
        now = len(batches)
        take = waiting[:size]
        if order == "expert":
            take = longest_queues(waiting, size, now, age_limit)
        batches.append([token.expert for token in take])
        waits += [now - token.since for token in take]
        gone = {token.request for token in take}
        waiting = [t for t in waiting if t.request not in gone]
        for token in take:
            done[token.request] += 1
            trace, at = traces[token.request], done[token.request]
            if at < len(trace):
                waiting.append(Token(token.request, trace[at], now + 1))
    return Served(batches, waits)


def longest_queues(
    waiting: Sequence[Token], size: int, now: int, age_limit: int | None = None
) -> list[Token]:
    """One batch of Algorithm 1 from the waiting tokens, oldest first.

    Ties between queues go to the one whose first token has waited longest.
    """
    old, queues = [], defaultdict(list)
    for token in waiting:
        if age_limit is not None and now - token.since > age_limit:
            old.append(token)
        else:
            queues[token.expert].append(token)
    batch = old[:size]
    while len(batch) < size and queues:
        longest = max(queues, key=lambda expert: len(queues[expert]))
        batch += queues.pop(longest)[: size - len(batch)]
    return batch
