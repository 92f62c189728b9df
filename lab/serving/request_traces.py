"""Requests to two real services: how long the prompts and outputs are.

Tokens of prompt and output of every request, from Microsoft's Azure
(`data/azure_llm`): "chat", a conversation, and "code", a programming
assistant. As in DistServe, lengths are drawn from the recorded ones and
arrivals are a Poisson process. OPT reads 2048 tokens at most, so longer
requests are left out.
"""

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from lab.data import read_arrays

TRACES = {"chat": "conv", "code": "code"}  # and their names in the file
LONGEST = 2048  # tokens of prompt and output


class Stream(NamedTuple):
    """S streams of N requests, at one request per second."""

    arrivals: Tensor  # [S, N] fp32, seconds
    prompts: Tensor  # [S, N] int32
    outputs: Tensor  # [S, N] int32


@cache
def lengths(trace: str) -> Tensor:
    """Prompt and output of the requests that OPT could serve [n, 2]."""
    found = torch.from_numpy(read_arrays("azure_llm/requests.npz")[
        TRACES[trace]
    ]).int()  # fmt: skip
    return found[found.sum(1) <= LONGEST]


def drawn(trace: str, requests: int, seed: int, streams: int = 1) -> Stream:
    """Requests with lengths of a trace that arrive at random."""
    generator = torch.Generator().manual_seed(seed)
    shape = streams, requests
    gaps = torch.empty(shape).exponential_(generator=generator)
    known = lengths(trace)
    which = torch.randint(len(known), shape, generator=generator)
    prompts, outputs = known[which].unbind(2)
    return Stream(gaps.cumsum(1), prompts.contiguous(), outputs.contiguous())
