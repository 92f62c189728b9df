"""The record of a run, kept row by row, so that a stopped run loses nothing.

Rows go at once into a part beside the table, `<machine>.csv.part`. The table
itself is replaced at the end, in one step. A part that is there at the start
is what a stopped run left: rows of the same commit and packages are kept, and
only the others are measured. So the same command, given again, goes on.
"""

import os
from pathlib import Path

from lab.bench.table import path_of, read, write, write_lines
from lab.bench.work import NO_TIME, is_lost
from lab.data import must_keep

# what may differ between the rows of one table: a run can pass midnight
VARIES = ("date",)


class Record:
    """The rows of one machine; ``kept`` are those of a run that stopped, and
    ``lost`` those that have no time as the GPU fell.

    ``shared`` are the columns that all rows of a run share. ``anew`` leaves
    nothing of an earlier run. Nor does a lab without a commit, or with files
    that differ from it: they may have changed since. A part of which nothing
    is kept is not lost: it lies beside the table as ``<machine>.csv.old``.
    """

    def __init__(self, shared: dict[str, str], anew: bool = False):
        self.goes_on = _is_known(shared["commit"])
        self.table = path_of(shared["machine"])
        must_keep(self.table.parent)
        self.part = self.table.with_name(self.table.name + ".part")
        same = []
        if self.part.exists():
            left = read(self.part)
            if not anew:
                same = [line for line in left if _same(line, shared)]
            if left and not same:
                self.part.replace(self.part.with_suffix(".old"))
        self.kept = [line for line in same if not is_lost(line)]
        self.lost = [line for line in same if is_lost(line)]
        write(same, self.part)

    def add(self, row: dict) -> None:
        """One more row, on the disk when this returns."""
        with open(self.part, "a", newline="") as file:
            write_lines([row], file)
            file.flush()
            os.fsync(file.fileno())

    def finish(self, rows: list[dict]) -> Path:
        """The table from all rows; the part goes if none of them is owed."""
        write(rows, self.table)
        if not any(row["note"] == NO_TIME or is_lost(row) for row in rows):
            self.part.unlink()
        return self.table


def _same(line: dict, shared: dict[str, str]) -> bool:
    """Whether a row was measured under the circumstances of this run."""
    if not _is_known(shared["commit"]):
        return False
    columns = [column for column in shared if column not in VARIES]
    return all(line[c] == shared[c] for c in columns)


def _is_known(commit: str) -> bool:
    return bool(commit) and not commit.endswith("-dirty")
