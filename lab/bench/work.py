"""Pieces of work one after the other, as long as there is time.

A piece knows beforehand which rows it will give. So one that has no turn, or
fails, is still in the table, with the reason; and one whose rows an earlier
run kept need not be done again.
"""

import gc
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch

NO_TIME = "no time left"


class Piece(NamedTuple):
    keys: list[dict]  # what says which row it is, for each row
    measure: Callable[[], Iterator[dict]]  # the rows, in any order


def identity(row: dict) -> tuple:
    """What was measured, by whom: no two rows of a table share it."""
    columns = "operation", "case", "dtype", "mode", "provider"
    return tuple(row[column] for column in columns)


def done(
    pieces: Iterable[Piece],
    is_time_left: Callable[[], bool],
    kept: Iterable[dict] = (),
    lost: Iterable[dict] = (),
    device: str = "cpu",
    begin: Callable[[list[dict]], None] = lambda keys: None,
) -> Iterator[dict]:
    """The rows of all pieces: those ``kept`` as they are, the others new.

    A piece is begun while there is time, and then finished; ``begin`` gets
    its keys first. Once the GPU no longer answers, no further piece can be
    measured: the remaining rows are noted as if time were over, and `Lost` is
    raised after the last. Pieces with rows that an earlier run ``lost`` in
    this way come after all others.
    """
    kept = {identity(row): row for row in kept}
    lost = {identity(row) for row in lost}
    fallen = None
    for piece in sorted(
        pieces, key=lambda p: any(identity(key) in lost for key in p.keys)
    ):
        known = [kept.get(identity(key)) for key in piece.keys]
        # another version of a peer is another peer
        if all(
            row and row["version"] == key["version"]
            for row, key in zip(known, piece.keys, strict=True)
        ):
            yield from known
        elif not fallen and is_time_left():
            begin(piece.keys)
            try:
                yield from _measured(piece, device)
            except Lost as problem:
                fallen = problem
        else:
            yield from _noted(piece.keys, NO_TIME)
    if fallen:
        raise fallen


def _measured(piece, device):
    # a peer may leave tensors in a cycle, which hold their memory until the
    # collector comes by; on a GPU the next piece may need it before
    gc.collect()
    missing = {identity(key): key for key in piece.keys}
    try:
        for row in piece.measure():
            missing.pop(identity(row))
            yield row
        return
    except Lost as problem:
        yield from _noted(missing.values(), reason(problem))
        raise
    # whatever it fails with, the next piece may work
    except Exception as problem:
        failure = reason(problem)
    yield from _noted(missing.values(), failure)
    settle(device, failure)


def _noted(keys, note):
    return (key | {"note": note} for key in keys)


def reason(problem: BaseException) -> str:
    """What went wrong, in one short line."""
    text = " ".join(f"{type(problem).__name__}: {problem}".split())
    return text[:120]


class Lost(RuntimeError):
    """The GPU no longer answers in this process."""

    rows: list[dict] = []  # of the run, and what became of them


# the note of a piece that took the whole process down
ENDED = reason(Lost("the process ended here"))


def is_lost(row: dict) -> bool:
    """Whether a row has no time because the GPU or the process went down."""
    return row["note"].startswith(Lost.__name__)


def settle(device: str, after: str) -> None:
    """After a failure: free the memory, and see whether the GPU lives."""
    if device == "cpu":
        return
    try:
        torch.cuda.synchronize()
        gc.collect()
        torch.cuda.empty_cache()
    except RuntimeError:
        raise Lost(f"the GPU does not answer after {after}") from None
