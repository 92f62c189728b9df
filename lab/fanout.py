"""Runs one function over many jobs on Dask, locally or on any scheduler.

It knows nothing of notebooks. A worker that is killed is restarted, and so is
its job; a job that kills its worker each time is given up.
"""

from __future__ import annotations

import itertools
import logging
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from queue import SimpleQueue

KILLED = (
    "its worker process died again and again, perhaps for lack of memory; "
    "try fewer workers"
)

START_SECONDS = 30  # a worker on a busy machine may take that long to start

CTRL_C = object()  # stands among the jobs that have ended

# Ctrl-C reaches every process of a terminal; only ours should answer it
IGNORE = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)"


def fan_out(
    function: Callable[[dict], dict],
    jobs: list[dict],
    scheduler: str | None = None,
    workers: int = 2,
    title: str = "",
) -> Iterator[tuple[dict, dict]]:
    """Yields each of `jobs` with its answer, `function(job)`, as it finishes.

    An exception becomes the answer {"error": one sentence}. `scheduler` is
    the address of a running Dask scheduler; a `title` adds a progress bar.
    """
    if not jobs:
        return
    ended = SimpleQueue()
    with (
        _client(scheduler, min(workers, len(jobs))) as client,
        _bar(len(jobs), title) as advance,
        _ctrl_c_into(ended),
    ):
        waiting, running = iter(jobs), {}

        def submit(count: int) -> None:
            for job in itertools.islice(waiting, count):
                future = client.submit(function, job, pure=False)
                running[future] = job
                future.add_done_callback(ended.put)

        # one job for each thread, so that a stop has little to cancel
        submit(sum(client.nthreads().values()) or workers)
        suspects = []
        while running:
            future = _next(ended)
            job, answer = running.pop(future), _answer(future)
            submit(1)
            if answer == {"error": KILLED}:
                suspects.append(job)
                continue
            advance("error" in answer)
            yield job, answer
        # a job that shared a worker with a deadly one is blamed with it, so
        # each suspect gets a second chance, alone
        for job in suspects:
            # held in a variable, or Dask would cancel it
            future = client.submit(function, job, pure=False)
            future.add_done_callback(ended.put)
            answer = _answer(_next(ended))
            advance("error" in answer)
            yield job, answer


def _next(ended: SimpleQueue):
    """Waits until a job has ended and returns its future."""
    future = ended.get()
    if future is CTRL_C:
        raise KeyboardInterrupt
    return future


def _answer(future) -> dict[str, object]:
    try:
        return future.result()
    except CancelledError:
        raise ConnectionError(
            "the Dask scheduler went away; what has finished is kept, so "
            "restart the scheduler and repeat the command"
        ) from None
    except Exception as error:
        # whatever a job raises is its answer, so that the others continue
        if type(error).__name__ == "KilledWorker":
            return {"error": KILLED}
        return {"error": f"{type(error).__name__}: {error}".split("\n")[0]}


@contextmanager
def _ctrl_c_into(ended: SimpleQueue):
    """Puts Ctrl-C into this queue, behind the jobs that ended before it.

    The exception that Python raises would be lost if it came during a
    destructor, and Dask's futures have some. Only the main thread may ask
    for signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, lambda *_: ended.put(CTRL_C))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _client(scheduler: str | None, workers: int):
    """A Dask client of the scheduler at this address, or of a local one."""
    from distributed import Client, LocalCluster

    if scheduler:
        try:
            client = Client(scheduler, timeout="5s")
        except (OSError, ValueError) as error:
            raise ValueError(
                f"no Dask scheduler answers at {scheduler}; start one with "
                "`dask scheduler` or leave --scheduler out"
            ) from error
        with client:
            yield client
        return
    # Dask's own complaints about dying workers would cover the progress bar
    quiet = logging.CRITICAL
    with (
        LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            processes=True,
            dashboard_address=":0",
            silence_logs=quiet,
            preload=[IGNORE],
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client
        # a worker that is just being restarted cannot be closed
        with suppress(TimeoutError):
            client.wait_for_workers(workers, timeout=START_SECONDS)


@contextmanager
def _bar(total: int, title: str):
    """A bar that counts jobs and failures; none without a title."""
    if not title:
        yield lambda failed: None
        return
    from rich import progress as parts

    columns = (
        parts.TextColumn("{task.description}", markup=False),
        parts.BarColumn(),
        parts.MofNCompleteColumn(),
        parts.TimeRemainingColumn(),
    )
    with parts.Progress(*columns) as bar:
        task, failures = bar.add_task(title, total=total), 0

        def advance(failed: bool) -> None:
            nonlocal failures
            failures += failed
            text = f"{title}, {failures} failed" if failures else title
            bar.update(task, advance=1, description=text)

        yield advance
