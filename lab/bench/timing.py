"""A clock, providers in turn, and the machine's own limits.

On a GPU an event before and after, with the cache emptied in between; on a
CPU the time the process spent computing, which other processes on the same
machine do not change much. Providers alternate within one process, so that a
slow minute hits all of them.
"""

import time
from collections.abc import Callable
from statistics import median, quantiles
from typing import NamedTuple

import torch

SAMPLES = 30
SECONDS = 1.0  # per provider, whichever comes first; at least 5 samples


class Timing(NamedTuple):
    ms: float  # median
    ms20: float  # a fifth of the samples are faster
    ms80: float  # a fifth are slower
    samples: int


class Roofs(NamedTuple):
    """What this machine reaches on the simplest work there is."""

    bytes_per_s: float  # copying, read and written
    flops_per_s: dict[str, float]  # a square matrix product, by dtype


def clock(device: str) -> Callable[[Callable], float]:
    """A function that runs its argument and returns milliseconds."""
    if device == "cpu":

        def on_cpu(call):
            start = time.process_time_ns()
            call()
            return (time.process_time_ns() - start) / 1e6

        return on_cpu
    # larger than the cache of any GPU: what was read before is gone
    spill = torch.empty(256 * 2**20, dtype=torch.int8, device=device)

    def on_gpu(call):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        spill.zero_()
        begin.record()
        call()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end)

    return on_gpu


def in_turn(
    providers: dict[str, Callable[[], Callable]],
    device: str,
    samples: int = SAMPLES,
    seconds: float = SECONDS,
) -> dict[str, Timing]:
    """Time each provider, one sample after the other, round by round.

    A provider prepares, untimed, and returns the call that is timed. Two
    rounds to warm up; then ``samples`` rounds, or as many as ``seconds``
    per provider allow, at least 5.
    """
    measure = clock(device)
    for _ in range(2):
        for prepare in providers.values():
            measure(prepare())
    taken = {name: [] for name in providers}
    start = time.monotonic()
    for done in range(samples):
        spent = time.monotonic() - start
        if done >= 5 and spent > seconds * len(providers):
            break
        for name, prepare in providers.items():
            taken[name].append(measure(prepare()))
    return {name: summary(values) for name, values in taken.items()}


def summary(values: list[float]) -> Timing:
    """Median and the 20 % and 80 % quantiles of the samples."""
    fifths = quantiles(values, n=5, method="inclusive")
    return Timing(median(values), fifths[0], fifths[-1], len(values))


def measure_roofs(device: str, dtypes: list[torch.dtype]) -> Roofs:
    """Copy and multiply, the best median of what the machine can do."""
    large = device != "cpu"
    size = 2**28 if large else 2**25  # numbers of 4 bytes
    source = torch.ones(size, device=device)
    target = torch.empty_like(source)
    calls = {"copy": lambda: lambda: target.copy_(source)}
    side = 8192 if large else 768
    for dtype in dtypes:
        a, b = (torch.randn(side, side, device=device) for _ in range(2))
        a, b = a.to(dtype), b.to(dtype)
        calls[name(dtype)] = lambda a=a, b=b: lambda: a @ b
    times = in_turn(calls, device, samples=10)
    copied = 8 * size / times["copy"].ms * 1e3
    flops = {
        name(dtype): 2 * side**3 / times[name(dtype)].ms * 1e3
        for dtype in dtypes
    }
    return Roofs(copied, flops)


def name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
