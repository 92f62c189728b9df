"""The rows of `data/bench/`: one file per machine, one line per figure.

Long form: operation, case, dtype, mode and provider say what was measured.
``ms`` is the median, and ``ms20`` and ``ms80`` are its spread. ``floor_ms`` is
the least time the machine could take, from ``bytes`` and ``flops`` and the
limits measured in the same run. On a GPU ``host_us`` is the median time until
the call returned, without waiting for its result, and ``peak_mib`` the memory
of a layer's pass: forward without a gradient, or forward and backward. A
provider that failed, was wrong or had no time left has a ``note`` and no time.
"""

import csv
import datetime
import importlib.metadata
import io
import os
import platform
import re
import subprocess
from pathlib import Path

import torch

from lab.atomic import write_bytes
from lab.bench.timing import Roofs, Timing
from lab.data import DATA, ROOT

FOLDER = DATA / "bench"
NUMBERS = (
    "ms", "ms20", "ms80", "samples", "host_us", "peak_mib", "error", "bytes",
    "flops", "floor_ms", "roof_bytes_per_s", "roof_flops_per_s",
)  # fmt: skip
COUNTS = ("samples", "bytes", "flops")
COLUMNS = (
    "operation", "case", "dtype", "mode", "provider", "version", *NUMBERS,
    "note", "clock", "machine", "date", "commit", "torch", "triton", "python",
)  # fmt: skip


def machine() -> str:
    """The kind of machine this is, without its own name."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    kind = platform.machine().replace("_", "-")
    return f"{os.cpu_count()}-core {kind} CPU"


def version(package: str) -> str:
    """The installed version of a package, or an empty string."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def commit() -> str:
    """The commit of this clone, with "-dirty" if lab/ differs, or empty.

    A copy without its history takes the commit from LAB_COMMIT.
    """

    def git(*arguments):
        command = ["git", "-C", str(ROOT), *arguments]
        return subprocess.run(command, capture_output=True, text=True).stdout

    try:
        found = git("rev-parse", "--short", "HEAD").strip()
        if found:
            return found + "-dirty" * bool(git("status", "--porcelain", "lab"))
    except FileNotFoundError:  # no git here
        pass
    return os.environ.get("LAB_COMMIT", "")


def circumstances() -> dict[str, str]:
    """The columns that all rows of a run share."""
    return {
        "machine": machine(),
        "clock": "GPU events" if torch.cuda.is_available() else "CPU time",
        "date": datetime.date.today().isoformat(),
        "commit": commit(),
        "torch": torch.__version__,
        "triton": version("triton"),
        "python": platform.python_version(),
    }


def floor_ms(bytes_moved: int, flops: int, roofs: Roofs, dtype: str) -> float:
    """The least time: of moving the bytes or of the work, the longer one."""
    work = flops / roofs.flops_per_s.get(dtype, float("inf"))
    return 1e3 * max(bytes_moved / roofs.bytes_per_s, work)


def row(key: dict, cost, roofs: Roofs, timing: Timing | None, **rest) -> dict:
    """One line of the table, without the columns that all lines share."""
    limits = {
        "bytes": cost.bytes,
        "flops": cost.flops,
        "floor_ms": floor_ms(*cost, roofs, key["dtype"]),
        "roof_bytes_per_s": roofs.bytes_per_s,
        "roof_flops_per_s": roofs.flops_per_s.get(key["dtype"], ""),
    }
    return key | limits | (timing._asdict() if timing else {}) | rest


def path_of(machine_name: str) -> Path:
    slug = re.sub(r"[^a-z0-9]+", "-", machine_name.lower()).strip("-")
    return FOLDER / f"{slug}.csv"


def write(rows: list[dict], path: Path | None = None) -> Path:
    """Write the table of one machine, replacing the old one in one step."""
    path = path or path_of(rows[0]["machine"])
    path.parent.mkdir(exist_ok=True)
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerow(COLUMNS)
    write_lines(rows, file)
    write_bytes(path, file.getvalue().encode())
    return path


def write_lines(rows: list[dict], file) -> None:
    """Rows as lines of an open table."""
    writer = csv.writer(file, lineterminator="\n")
    for line in rows:
        writer.writerow(_written(c, line.get(c, "")) for c in COLUMNS)


def _written(column: str, value: object) -> object:
    """A value as written: four digits of a measurement, all of a count."""
    if not isinstance(value, float):
        return value
    return int(value) if column in COUNTS else f"{value:.4g}"


def read(path: Path) -> list[dict]:
    """The rows of a table, numbers as numbers and None where there is none.

    A column that an older table does not have is empty; a last line cut
    short, as a killed process leaves it, is left out.
    """
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    rows = [line for line in rows if None not in line.values()]
    for line in rows:
        for column in COLUMNS:
            line.setdefault(column, "")
        for column in NUMBERS:
            line[column] = float(line[column]) if line[column] else None
    return rows


def recorded(machine_name: str | None = None) -> list[dict]:
    """The recorded rows of one machine, or of all, numbers as numbers.

    Without a record the list is empty: no figure is made up.
    """
    if machine_name:
        paths = [path_of(machine_name)]
    else:
        paths = sorted(FOLDER.glob("*.csv"))
    return [line for path in paths if path.exists() for line in read(path)]
