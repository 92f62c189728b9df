"""Draws the times of one operation beside its floor, for a notebook.

On a GPU the operation is measured on the spot. Elsewhere recorded rows are
shown, those of a GPU if `data/bench/` has any, else those of a CPU, with
machine and date in the title.
"""

import plotly.graph_objects as go
import torch

from lab import figures
from lab.bench.suite import run
from lab.bench.table import recorded


def roofline(operation: str) -> go.Figure:
    """Microseconds of each implementation of ``operation``, and the floor.

    The case shown is the one that moves most bytes, forward, whatever its
    dtype. An operation of which no time is known is refused.
    """
    here = torch.cuda.is_available()
    rows = run(quick=True, only=operation) if here else recorded()
    rows = [
        row
        for row in rows
        if row["operation"] == operation and row["mode"] == "forward"
    ]
    # a provider that failed has no time
    measured = [row for row in rows if row.get("ms")]
    if not measured:
        raise ValueError(
            f"no time of {operation} was recorded on any machine;"
            " `lab bench --record` measures this machine"
        )
    on_gpu = [row for row in measured if row["clock"] == "GPU events"]
    largest = max(on_gpu or measured, key=lambda row: row["bytes"])
    same = ("machine", "case", "dtype")
    shown = [
        row for row in measured if all(row[c] == largest[c] for c in same)
    ]
    memory_ms = 1e3 * largest["bytes"] / largest["roof_bytes_per_s"]
    return figures.roofline(
        {row["provider"]: 1e3 * row["ms"] for row in shown},
        1e3 * largest["floor_ms"],
        operation,
        largest["machine"],
        "" if here else largest["date"],
        f"{largest['case']}, {largest['dtype']}",
        "memory" if largest["floor_ms"] <= 1.01 * memory_ms else "compute",
    )
