"""What is measured: the layer beside its peers, and every declared kernel.

    lab bench                   all cases for this machine, as a table
    lab bench --quick           the small ones, under a minute
    lab bench --record          write data/bench/<machine>.csv as well
    lab bench --minutes 3       begin nothing after three minutes
    lab bench --only moe_layer  one operation
    lab bench --limits          the least times, from the GPUs' data sheets
    lab bench --tiles           tiles that the experts' kernels do not choose

Nothing is timed before its result agrees with the reference. What matters
most comes first: the layer in bf16, then the kernels, then the layer in fp16
and fp32. A row that had no turn says "no time left". A run that is stopped
keeps its rows, and `lab bench --record` continues after them.
"""

import argparse
import time
from collections.abc import Callable, Iterator

import torch

from lab.bench import kernels, layers, limits, tiles, work
from lab.bench.agreement import TOLERANCE
from lab.bench.record import Record
from lab.bench.sizes import ON_CPU, ON_GPU
from lab.bench.table import circumstances
from lab.bench.timing import SECONDS, measure_roofs
from lab.kernels.declaration import all_declarations

MINUTES = 7.0
# samples, and seconds for each provider: little where it matters less
QUICK = {"samples": 5, "seconds": 0.2}
FIRST = {"samples": 30, "seconds": 0.2}
LATER = {"samples": 10, "seconds": 0.1}


def run(
    quick: bool = False,
    only: str = "",
    progress: Callable[[str], None] = lambda text: None,
    minutes: float = MINUTES,
    record: Record | None = None,
) -> list[dict]:
    """Measure on this machine; one dictionary per row of the table.

    ``quick`` keeps the first case of the layer and takes fewer samples,
    ``only`` names one operation. ``progress`` is told what is done. After
    ``minutes`` no further piece is begun. ``record`` keeps each row. If the
    GPU no longer answers, `work.Lost` is raised and holds the rows.
    """
    known = [d.name for d in all_declarations()] + ["moe_layer"]
    if only and only not in known:
        raise ValueError(f"there is no {only}; use one of {', '.join(known)}")
    end = time.monotonic() + 60 * minutes
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtypes = dtypes_of(device)
    shared = circumstances()
    progress("roofs: copy and matrix product")
    roofs = measure_roofs(device, dtypes)
    rows = []
    try:
        for row in work.done(
            in_order(device, dtypes, roofs, quick, only),
            lambda: time.monotonic() < end,
            record.kept if record else [],
            record.lost if record else [],
            device,
            begin=lambda keys: record and record.begin(keys),
        ):
            new = "machine" not in row  # a kept one has all columns
            row = shared | row
            rows.append(row)
            if record and new and row["note"] != work.NO_TIME:
                record.add(row)
            label = "{operation} {case} {dtype} {mode} {provider}"
            label = label.format(**row)
            progress(label if new else f"{label}: kept")
    except work.Lost as problem:
        problem.rows = rows
        raise
    return rows


def dtypes_of(device: str) -> list[torch.dtype]:
    """What the device is measured in, what matters most first."""
    if device == "cpu":
        return [torch.float32]
    # below 8.0 (a T4) bf16 is only emulated
    new = torch.version.hip or torch.cuda.get_device_capability() >= (8, 0)
    return [d for d in TOLERANCE if new or d != torch.bfloat16]


def in_order(device, dtypes, roofs, quick, only) -> Iterator[work.Piece]:
    """Every piece of work, what matters most first."""
    first, *others = dtypes
    sizes = [
        (case, T)
        for case in (ON_CPU if device == "cpu" else ON_GPU)
        for T in case.tokens
    ][: 1 if quick else None]
    # the few tokens first: in fp32 the many take longest and say least
    by_tokens = sorted(sizes, key=lambda size: size[1])

    def of_layer(dtype, effort, sizes):
        for case, T in sizes:
            yield layers.piece(case, T, dtype, device, roofs, effort)

    effort = QUICK if quick else FIRST
    if device == "cpu" and not quick:
        effort = FIRST | {"seconds": SECONDS}
    if only in ("", "moe_layer"):
        yield from of_layer(first, effort, sizes)
    if only != "moe_layer":
        yield from kernels.pieces(device, dtypes, roofs, effort, quick, only)
    if only in ("", "moe_layer"):
        for dtype in others:
            effort = QUICK if quick else LATER
            yield from of_layer(dtype, effort, by_tokens)


def other_tiles() -> Iterator[str]:
    """Lines of `lab bench --tiles`: the layer's sizes in bf16.

    The largest come first, and of those the one that others publish.
    """
    sizes = [
        (case, T)
        for case in ON_GPU
        for T in case.tokens
        if case.gate == "top-k"
    ]
    for case, T in sorted(sizes, key=lambda s: (-s[1], s[0].E != 128)):
        yield f"{case.name} T{T}"
        inputs, pull = layers.layer_inputs(case, T, torch.bfloat16, "cuda")
        for tried in tiles.sweep(*inputs, pull, **LATER):
            yield tiles.line(tried)


def main(arguments: list[str] | None = None) -> int:
    """Measure, show the table, and record it if asked."""
    parser = argparse.ArgumentParser(
        prog="lab bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="small cases")
    parser.add_argument(
        "--record",
        action="store_true",
        help="write the table; continues a run that stopped",
    )
    parser.add_argument(
        "--anew", action="store_true", help="keep nothing of a stopped run"
    )
    parser.add_argument(
        "--minutes",
        type=float,
        default=MINUTES,
        help=f"{MINUTES:g} if left out",
    )
    parser.add_argument("--only", default="", help="one operation, by name")
    parser.add_argument(
        "--limits", action="store_true", help="by data sheet, needs no GPU"
    )
    parser.add_argument(
        "--tiles", action="store_true", help="other tiles, on a GPU"
    )
    options = parser.parse_args(arguments)
    if options.tiles:
        if not torch.cuda.is_available():
            parser.error(
                "--tiles needs a GPU: an interpreter's time says nothing;"
                " leave it out to measure the references"
            )
        for text in other_tiles():
            print(text, flush=True)
        return 0
    if options.limits:
        print(limits.shown())
        return 0
    if options.record and (options.quick or options.only):
        parser.error("record a whole run: no --quick, no --only")
    return measure(options)


def measure(options: argparse.Namespace) -> int:
    """Run, show and record; a run that stops says what it keeps."""
    if not torch.cuda.is_available():
        torch.set_num_threads(1)

    def progress(text):
        print(f"... {text}", flush=True)

    record, onward = None, "the same command continues"
    if options.record:
        record = Record(circumstances(), options.anew)
        if not record.goes_on:
            onward = "but the same command starts over"
            progress(
                "these files belong to no known commit, so a run that stops"
                " cannot be continued; commit them, or name a copy's commit"
                " in LAB_COMMIT"
            )

    fallen = None
    try:
        rows = run(
            options.quick, options.only, progress, options.minutes, record
        )
    except KeyboardInterrupt:
        print("stopped")
        if record:
            print(f"{record.part} keeps what was measured; {onward}")
        raise SystemExit(130) from None
    except work.Lost as problem:
        fallen, rows = problem, problem.rows
    print(shown(rows))
    if record:
        print(f"recorded in {record.finish(rows)}")
        if record.part.exists():
            print(f"some rows had no time left; {onward}")
    if fallen:
        print(f"{fallen}; that comes last in the next run")
    return int(bool(fallen))


def shown(rows: list[dict]) -> str:
    """The rows as lines for a terminal."""
    if not rows:
        return "nothing was measured"
    lines = ["{machine}, {date}, torch {torch}, {clock}".format(**rows[0])]
    roofs = [r["roof_bytes_per_s"] for r in rows if r.get("roof_bytes_per_s")]
    if roofs:
        lines.append(f"copy {roofs[0] / 1e9:.3g} GB/s")
    for r in rows:
        label = "{operation} {case} {dtype} {mode}".format(**r)
        time = r["note"] or "-"
        if r.get("ms"):
            time = (
                f"{r['ms']:9.3f} ms ({r['ms20']:.3f} to {r['ms80']:.3f}),"
                f" {r['floor_ms'] / r['ms']:5.1%} of the roof"
            )
            if r.get("host_us"):
                time += f", host {r['host_us']:.0f} us"
        lines.append(f"{label:48} {r['provider']:24} {time}")
    return "\n".join(lines)
