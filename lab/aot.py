"""Compiles every kernel for GPUs that are not here, and reads the result.

Triton needs no GPU to compile for one. So every declared kernel is compiled
for each GPU that it is meant for, and its registers, the bytes it spills to
the stack, its shared memory and the instructions that matter are kept in
``data/aot.csv``. A change that costs registers, or loses the matrix units, is
then seen in a test and not on somebody's GPU.

Interpreted kernels cannot be compiled, so the work runs in separate
processes. Triton's cache makes a second run of the same kernels quick.

Each version of Triton compiles to different code, so each has its own rows
and is compared with those. To record a version that is not the installed one,
unpack it:

    pip install --no-deps --target triton-3.9.0 triton==3.9.0
    PYTHONPATH=triton-3.9.0 python -m lab.aot --update
"""

import argparse
import csv
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

from lab.atomic import write_bytes
from lab.binaries import compiled, usage
from lab.data import DATA

LEDGER = DATA / "aot.csv"
KEY = ("kernel", "configuration", "target", "triton")
COLUMNS = (
    *KEY, "registers", "scalar_registers", "stack", "shared", "instructions",
    "hmma", "hgmma", "utchmma", "mfma", "ffma", "ldg", "ldgsts", "ldl", "stl",
)  # fmt: skip
MATRIX = ("hmma", "hgmma", "utchmma", "mfma")
WORKERS = 2
# bytes of shared memory for a block, on the GPU that has least among those
# that run a target's code: a T4; an RTX 30 or 40 (an A100 has more); an H100
# or H200; a B200; an MI300X
SHARED = {
    "sm_75": 65536,
    "sm_80": 101376,
    "sm_86": 101376,
    "sm_90": 232448,
    "sm_100": 232448,
    "gfx942": 65536,
}
# a kernel that does anything has more; fewer are a fault of the compiler
LEAST_INSTRUCTIONS = 20
UNRECORDED = "Triton {} has no rows in data/aot.csv: nothing to compare"

# the assembler seems to stay below the number of registers that lets one more
# block run at a time (80 with 8 warps, say), and to move a few values to the
# stack
ONE_MORE_BLOCK = "at most 5 loads and 6 stores, for one more block at a time"
# on an A100 the bf16 parts of fp32 numbers are operands in registers, and
# Triton 3.8 rearranges them in shared memory first; other tiles would take
# more instructions or leave more of their rows empty
PARTS_TURNED = "fp32 in bf16 parts, more in flight than in other versions"
# (kernel, configuration, target, triton): why it may spill to the stack
MAY_SPILL: dict[tuple[str, str, str, str], str] = dict.fromkeys(
    (
        ("multi_lora_expand", "8 of r16 fp32", "sm_100", "3.9.0"),
        ("multi_lora_shrink", "8 of r16 fp16", "sm_100", "3.7.1"),
        ("gru_router_step", "P128 E64 bf16 fp32 64x32", "sm_100", "3.6.0"),
        ("gru_router_step", "P128 E64 bf16 fp32 64x32", "sm_100", "3.9.0"),
        ("gru_router_step", "P37 E5 fp32 fp32 32x16", "sm_100", "3.6.0"),
        ("gru_router_step", "P37 E5 fp32 fp32 32x16", "sm_90", "3.8.0"),
        ("gru_router_step", "P128 E256 fp32 fp32 16x16", "sm_80", "3.8.0"),
        ("expert_product", "W fp32 16x128x32", "sm_90", "3.9.0"),
        ("expert_weight_backward", "down fp32 64x128x16", "sm_80", "3.7.1"),
        ("expert_weight_backward", "down, 4 rows fp32 64x128x16", "sm_80",
         "3.7.1"),
        ("ue_batch", "N24 power 4 fresh", "sm_80", "3.6.0"),
        ("ue_batch", "N24 power 4 fresh", "sm_90", "3.6.0"),
        ("ue_batch", "N24 power 4 warm", "sm_80", "3.6.0"),
        ("ue_batch", "N24 power 4 warm", "sm_90", "3.6.0"),
    ),
    ONE_MORE_BLOCK,
) | dict.fromkeys(
    (
        ("duo_ffn", "fp32 D128 gelu 32 rows split", "sm_80", "3.8.0"),
        ("expert_product", "W fp32 64x128x16", "sm_80", "3.8.0"),
        ("expert_product", "W^T fp32 64x128x16", "sm_80", "3.8.0"),
        ("multi_lora_expand", "8 of r16 fp32", "sm_80", "3.8.0"),
    ),
    PARTS_TURNED,
)  # fmt: skip


def row(declaration, entry, target: str) -> dict:
    """What one compiled kernel uses, as a row of the ledger."""
    figures = usage(compiled(entry, target), target)
    key = (kernel_name(entry), entry.name, target, version("triton"))
    return dict(zip(KEY, key, strict=True)) | figures


def kernel_name(entry) -> str:
    """The kernel's name in data/aot.csv; it wraps `fn`, interpreted or not."""
    return entry.kernel.fn.__name__.removesuffix("_kernel")


def faults(found: dict, recorded: dict | None, matrix_units: bool) -> list:
    """What is wrong with a row, in sentences; none if all is well."""
    where = "{kernel} {configuration} on {target}".format(**found)
    wrong = []
    known = tuple(found[name] for name in KEY) in MAY_SPILL
    # a known spill is allowed, but not a larger one
    allowed = recorded["stack"] if known and recorded else 0
    if found["stack"] > allowed:
        wrong.append(
            f"{where} spills {found['stack']} bytes; {allowed} are allowed"
        )
    if found["shared"] > SHARED[found["target"]]:
        wrong.append(
            f"{where} needs {found['shared']} bytes of shared memory;"
            f" there are {SHARED[found['target']]}"
        )
    if found["instructions"] < LEAST_INSTRUCTIONS:
        wrong.append(
            f"{where} has {found['instructions']} instructions: it was"
            " compiled to nothing"
        )
    if matrix_units and not any(found.get(name) for name in MATRIX):
        wrong.append(f"{where} has no matrix instruction")
    if recorded is None:
        return wrong
    if found["registers"] > recorded["registers"] + 8:
        wrong.append(
            f"{where} takes {found['registers']} registers, but"
            f" {recorded['registers']} are recorded; 8 more are allowed"
        )
    if found["instructions"] > 1.1 * recorded["instructions"]:
        wrong.append(
            f"{where} has {found['instructions']} instructions, but"
            f" {recorded['instructions']} are recorded; a tenth more is"
            " allowed"
        )
    return wrong


def read_ledger(path: Path = LEDGER) -> dict[tuple, dict]:
    """The recorded rows, by kernel, configuration, target and Triton."""
    if not path.exists():
        return {}
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    return {
        tuple(row[name] for name in KEY): row
        | {name: int(row[name] or 0) for name in COLUMNS[len(KEY) :]}
        for row in rows
    }


def write_ledger(rows: dict[tuple, dict], path: Path = LEDGER) -> None:
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, COLUMNS, restval=0, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows[key] for key in sorted(rows))
    write_bytes(path, file.getvalue().encode())


def jobs(only: str) -> list[tuple]:
    """Declaration, entry and target of each compile, of ``only`` or of all."""
    from lab.kernels.declaration import all_declarations

    return [
        (declaration, entry, target)
        for declaration in all_declarations()
        if only in ("", declaration.name)
        for entry in declaration.compiles
        for target in entry.targets
    ]


def work(share: int, only: str) -> None:
    """Compile every ``WORKERS``-th entry and print its row as JSON."""
    for declaration, entry, target in jobs(only)[share::WORKERS]:
        found = row(declaration, entry, target)
        print(json.dumps([found, entry.matrix_units]), flush=True)


def compile_all(only: str = "") -> list[tuple[dict, bool]]:
    """A row for every kernel, configuration and target, sorted by key.

    ``only`` names one operation; if it is empty, all are compiled.
    """
    environment = os.environ | {"TRITON_INTERPRET": "0"}
    workers = [
        subprocess.Popen(
            [
                sys.executable, "-m", "lab.aot",
                "--only", only, "--share", str(share),
            ],
            env=environment, stdout=subprocess.PIPE, text=True,
        )
        for share in range(WORKERS)
    ]  # fmt: skip
    lines = []
    for worker in workers:
        lines += worker.communicate()[0].splitlines()
    if any(worker.returncode for worker in workers):
        raise RuntimeError("a kernel does not compile; see the error above")
    return sorted(
        map(json.loads, lines),
        key=lambda pair: [pair[0][name] for name in KEY],
    )


def foreign(keys: Iterable[tuple], only: str) -> set[tuple]:
    """The keys that compiling the operation ``only`` says nothing about.

    An operation may have several kernels, and a kernel may serve several
    operations.
    """
    if not only:
        return set()
    kernels, others = set(), set()
    for declaration, entry, _ in jobs(""):
        if declaration.name == only:
            kernels.add(kernel_name(entry))
        else:
            others.add((kernel_name(entry), entry.name))
    return {key for key in keys if key[0] not in kernels or key[:2] in others}


def report(found: list[tuple[dict, bool]]) -> str:
    """The rows as a table for a terminal."""
    shown = ("registers", "stack", "shared", "instructions")
    lines = [" ".join([f"{'kernel':44}", *(f"{s:>12}" for s in shown)])]
    for figures, _ in found:
        name = "{kernel} {configuration} {target}".format(**figures)
        matrix = [f"{m} {figures[m]}" for m in MATRIX if figures.get(m)]
        numbers = [f"{figures[s]:12}" for s in shown]
        lines.append(" ".join([f"{name:44}", *numbers, *matrix]))
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Compile all and compare with the ledger, which --update rewrites."""
    parser = argparse.ArgumentParser(
        prog="python -m lab.aot", description=main.__doc__
    )
    parser.add_argument(
        "--update", action="store_true", help=f"rewrite {LEDGER.name}"
    )
    parser.add_argument(
        "--only", default="", metavar="NAME", help="one operation, by name"
    )
    parser.add_argument("--share", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.share is not None:
        work(options.share, options.only)
        return 0
    if not jobs(options.only):
        known = sorted({declaration.name for declaration, *_ in jobs("")})
        parser.error(f"there is no {options.only}; use {', '.join(known)}")
    found = compile_all(options.only)
    print(report(found))
    ledger, here = read_ledger(), version("triton")
    rows = {tuple(row[name] for name in KEY): row for row, _ in found}
    compiles = {key[:-1] for key in rows}
    covered = ledger.keys() - foreign(ledger, options.only)
    known = {key for key in covered if key[-1] == here}
    if options.update:
        # a kernel that is gone is gone for every version of Triton
        gone = {key for key in covered if key[:-1] not in compiles}
        kept = ledger.keys() - known - gone
        write_ledger({key: ledger[key] for key in kept} | rows)
        for other in sorted({key[-1] for key in covered} - {here}):
            print(f"The rows of Triton {other} are left as they were")
        known, ledger = set(rows), rows
    wrong = []
    for figures, matrix_units in found:
        key = tuple(figures[name] for name in KEY)
        wrong += faults(figures, ledger.get(key), matrix_units)
    if known or options.only:
        unrecorded = sorted(rows.keys() - known)
        gone = sorted(known - rows.keys())
        wrong += [f"{' '.join(key)} is not recorded" for key in unrecorded]
        wrong += [f"{' '.join(key)} is recorded but gone" for key in gone]
    else:
        print(UNRECORDED.format(here))
    for sentence in wrong:
        print(f"fault: {sentence}")
    if wrong and not options.update:
        print("If this is intended: python -m lab.aot --update")
    return bool(wrong)


if __name__ == "__main__":
    raise SystemExit(main())
