"""The record of a run, kept row by row, so that a stopped run loses nothing.

Each row is written at once to a part file beside the table,
`<machine>.csv.part`. The table itself is replaced at the end, in one step. A
part that is there at the start was left by a run that stopped: its rows of
the same commit and packages are kept, and only the others are measured. So
the same command, given again, continues.

The rows of a piece are noted in the part as lost before the piece begins. If
the process ends within it (a compiler aborts, a kernel hangs until somebody
kills it), the next run finds that note and tries the piece last.
"""

import os
from pathlib import Path

from lab.bench.table import path_of, read, write, write_lines
from lab.bench.work import ENDED, NO_TIME, identity, is_lost
from lab.data import must_keep

# what may differ between the rows of one table: a run can pass midnight
VARIES = ("date",)


class Record:
    """The rows of one machine: ``kept`` are those of a run that stopped, and
    ``lost`` those that have no time because the GPU or the process went down.

    ``shared`` are the columns that all rows of a run share. With ``anew``
    nothing of an earlier run is kept. The same holds if the lab has no known
    commit, or files that differ from it: they may have changed since. A part
    of which nothing is kept is renamed, not deleted: ``<machine>.csv.old``.
    """

    def __init__(self, shared: dict[str, str], anew: bool = False):
        self.shared = shared
        self.goes_on = _is_known(shared["commit"])
        self.table = path_of(shared["machine"])
        must_keep(self.table.parent)
        self.part = self.table.with_name(self.table.name + ".part")
        same = []
        if self.part.exists():
            left = read(self.part)
            if not anew:
                # the last line on a row counts: its time, if it has one
                same = [line for line in left if _same(line, shared)]
                same = list({identity(line): line for line in same}.values())
            if left and not same:
                self.part.replace(self.part.with_suffix(".old"))
        self.kept = [line for line in same if not is_lost(line)]
        self.lost = [line for line in same if is_lost(line)]
        write(same, self.part)

    def begin(self, keys: list[dict]) -> None:
        """Note that these rows are lost if the process ends before they are
        added."""
        self._append([self.shared | key | {"note": ENDED} for key in keys])

    def add(self, row: dict) -> None:
        """One more row, on the disk when this returns."""
        self._append([row])

    def _append(self, rows):
        with open(self.part, "a", newline="") as file:
            write_lines(rows, file)
            file.flush()
            os.fsync(file.fileno())

    def finish(self, rows: list[dict]) -> Path:
        """Write the table; remove the part if no row is left to measure."""
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
