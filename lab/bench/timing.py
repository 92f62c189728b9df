"""A clock, providers in turn, and the machine's own limits.

On a GPU an event before and after, with the cache emptied in between; on a
CPU the time the process spent computing, which other processes on the same
machine do not change much. Providers alternate within one process, so that a
slow minute hits all of them.
"""

import math
import random
import time
from collections.abc import Callable
from statistics import median, quantiles
from typing import NamedTuple

import torch

from lab.kernels import runtime
from lab.kernels._three_parts import PRODUCTS, splits

SAMPLES = 30
LEAST = 3  # samples, however long one takes
SECONDS = 1.0  # per provider, whichever comes first
AHEAD_MS = 0.5  # more than Python needs for nearly any call


class Sample(NamedTuple):
    ms: float
    host_us: float | None = None  # until the call returned; GPU only


class Timing(NamedTuple):
    ms: float  # median
    ms20: float  # a fifth of the samples are faster
    ms80: float  # a fifth are slower
    samples: int
    host_us: float | None = None  # median until the call returned; GPU only


class Roofs(NamedTuple):
    """What this machine reaches on the simplest work there is."""

    bytes_per_s: float  # copying, read and written
    # a square matrix product, by dtype; in fp32 that of parts in bf16, if
    # it is faster (`lab.kernels._three_parts`)
    flops_per_s: dict[str, float]


def clock(device: str, ahead: bool = False) -> Callable[[Callable], Sample]:
    """A function that runs its argument and returns how long that took.

    On a GPU nothing waits for the result, so the time until the call returns
    is the host's, unless the call itself waits. With the host ``ahead`` the
    GPU is first busy for half a millisecond and then finds the whole call
    waiting for it, so the time is the GPU's own.
    """
    if device == "cpu":

        def on_cpu(call):
            start = time.process_time_ns()
            call()
            return Sample((time.process_time_ns() - start) / 1e6)

        return on_cpu
    # larger than the cache of any GPU: what was read before is gone
    spill = torch.empty(256 * 2**20, dtype=torch.int8, device=device)
    times = math.ceil(AHEAD_MS / _milliseconds(spill.zero_)) if ahead else 1

    def on_gpu(call):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        for _ in range(times):
            spill.zero_()
        begin.record()
        start = time.perf_counter_ns()
        call()
        host_us = (time.perf_counter_ns() - start) / 1e3
        end.record()
        end.synchronize()
        return Sample(begin.elapsed_time(end), host_us)

    return on_gpu


def _milliseconds(call: Callable) -> float:
    """The GPU's time for a call that it has done before."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    call()
    begin.record()
    call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end)


def in_turn(
    providers: dict[str, Callable[[], Callable]],
    device: str,
    samples: int = SAMPLES,
    seconds: float = SECONDS,
    ahead: bool = False,
    failed: Callable[[str, Exception], None] | None = None,
) -> dict[str, Timing]:
    """Time each provider, one sample after the other, round by round.

    A provider prepares, untimed, and returns the call that is timed. There
    are two rounds to warm up, one for a slow provider, and then ``samples``
    rounds. Each round has an order of its own, drawn with a fixed seed, so
    that no provider always follows the same one, whose heat it would inherit.
    A provider that has used up ``seconds`` and has 3 samples drops out, and
    so does one that raises, if ``failed(name, problem)`` is given. ``ahead``:
    see `clock`.
    """
    measure = clock(device, ahead)
    dice = random.Random(0)
    spent = dict.fromkeys(providers, 0.0)
    taken = {name: [] for name in providers}

    def sample(name):
        start = time.monotonic()
        try:
            taken[name].append(measure(providers[name]()))
        except Exception as problem:
            if failed is None:
                raise
            del taken[name]
            failed(name, problem)
        spent[name] += time.monotonic() - start

    for _ in range(2):
        for name in list(taken):
            if spent[name] <= seconds / LEAST:
                sample(name)
    spent = dict.fromkeys(providers, 0.0)
    taken |= {name: [] for name in taken}
    for done in range(samples):
        for name in dice.sample(list(taken), len(taken)):
            if done < LEAST or spent[name] <= seconds:
                sample(name)
    return {name: summary(found) for name, found in taken.items()}


def summary(samples: list[Sample]) -> Timing:
    """Medians, and the 20 % and 80 % quantiles of the time."""
    values = [sample.ms for sample in samples]
    hosts = [s.host_us for s in samples if s.host_us is not None]
    fifths = quantiles(values, n=5, method="inclusive")
    return Timing(
        median(values),
        fifths[0],
        fifths[-1],
        len(values),
        median(hosts) if hosts else None,
    )


def measure_roofs(device: str, dtypes: list[torch.dtype]) -> Roofs:
    """Copy and multiply: what the machine can do.

    Each by itself, so that it does not depend on what ran just before.
    """
    large = device != "cpu"
    size = 2**28 if large else 2**25  # numbers of 4 bytes
    source = torch.ones(size, device=device)
    target = torch.empty_like(source)
    calls = {"copy": lambda: lambda: target.copy_(source)}
    side = 8192 if large else 768
    split = large and splits(torch.float32, runtime.target(source))
    also = [torch.bfloat16] if split else []
    for dtype in dict.fromkeys([*dtypes, *also]):
        a, b = (torch.randn(side, side, device=device) for _ in range(2))
        a, b = a.to(dtype), b.to(dtype)
        calls[name(dtype)] = lambda a=a, b=b: lambda: a @ b
    times = {}
    for what, call in calls.items():
        times |= in_turn({what: call}, device, samples=10)
    copied = 8 * size / times["copy"].ms * 1e3
    flops = {
        what: 2 * side**3 / timing.ms * 1e3
        for what, timing in times.items()
        if what != "copy"
    }
    if split and "float32" in flops:
        # this many products in bf16 are as exact as one in fp32
        in_parts = flops["bfloat16"] / PRODUCTS
        flops["float32"] = max(flops["float32"], in_parts)
    return Roofs(copied, flops)


def name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
