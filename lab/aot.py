"""Compiles every kernel for GPUs that are not here, and reads the result.

Triton needs no GPU to compile for one. From the declarations of the kernels
follow, for each GPU a kernel is meant for: the registers, the bytes spilled
to the stack, the shared memory and the instructions that matter. They are
kept in ``data/aot.csv``, so that a change which costs registers, or loses the
matrix units, is seen in a test and not on somebody's GPU.

Interpreted kernels cannot be compiled, so the work runs in processes of its
own; Triton's cache makes a second run of the same kernels quick.

Each version of Triton compiles to other code, so each has rows of its own and
is compared with those. To record another than the one installed, unpack it:

    pip install --no-deps --target triton-3.9.0 triton==3.9.0
    PYTHONPATH=triton-3.9.0 python -m lab.aot --update
"""

import argparse
import csv
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from importlib.metadata import version
from pathlib import Path

from lab.data import DATA

LEDGER = DATA / "aot.csv"
KEY = ("kernel", "configuration", "target", "triton")
COLUMNS = (
    *KEY, "registers", "scalar_registers", "stack", "shared", "instructions",
    "hmma", "hgmma", "utchmma", "mfma", "ffma", "ldg", "ldgsts", "ldl", "stl",
)  # fmt: skip
MATRIX = ("hmma", "hgmma", "utchmma", "mfma")
WORKERS = 2

# (kernel, configuration, target, triton): why it may spill to the stack
MAY_SPILL: dict[tuple[str, str, str, str], str] = {}


def compiled(entry, target: str):
    """Compile one `Compile` entry for ``target``, such as sm_90 or gfx942."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    if target.startswith("sm_"):
        gpu = GPUTarget("cuda", int(target[3:]), 32)
    else:
        gpu = GPUTarget("hip", target, 64)
    signature, constants, divisible = {}, {}, {}
    for position, name in enumerate(entry.kernel.arg_names):
        if name in entry.constants:
            signature[name] = "constexpr"
            constants[position,] = entry.constants[name]
            continue
        kind, _, multiple = entry.signature[name].partition(":")
        signature[name] = kind
        # PyTorch aligns its tensors; an integer says so itself: "i32:16"
        if kind.startswith("*") or multiple:
            divisible[position,] = [["tt.divisibility", 16]]
    source = ASTSource(entry.kernel, signature, constants, divisible)
    options = {
        "num_warps": entry.num_warps,
        "num_stages": entry.num_stages,
        "enable_fp_fusion": True,
    }
    return triton.compile(source, target=gpu, options=options)


def row(declaration, entry, target: str) -> dict:
    """What one compiled kernel uses, as a row of the ledger."""
    binary = compiled(entry, target)
    read = read_nvidia if target.startswith("sm_") else read_amd
    figures = read(binary)
    figures["shared"] = max(binary.metadata.shared, figures.get("shared", 0))
    name = entry.kernel.__name__.removesuffix("_kernel")
    key = (name, entry.name, target, version("triton"))
    return dict(zip(KEY, key, strict=True)) | figures


def read_nvidia(binary) -> dict:
    """Registers and instruction counts, by NVIDIA's tools in Triton."""
    import triton

    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary.asm["cubin"])
        file.flush()

        def dump(option):
            command = [tools / "cuobjdump", option, file.name]
            return subprocess.run(
                command, capture_output=True, text=True, check=True
            ).stdout

        usage = dict(re.findall(r"\b(REG|STACK):(\d+)", dump("-res-usage")))
        code = dump("-sass")
    # /*0010*/  @!P0 LDG.E.128 R4, [R2.64] ;  with or without a predicate
    opcodes = Counter(
        re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@\S+\s+)?([A-Z][A-Z0-9_]+)", code)
    )
    opcodes.pop("NOP", None)
    counted = ("HMMA", "HGMMA", "UTCHMMA", "FFMA", "LDG", "LDGSTS")
    return {
        "registers": int(usage["REG"]),
        "stack": int(usage["STACK"]),
        "instructions": opcodes.total(),
        **{name.lower(): opcodes[name] for name in (*counted, "LDL", "STL")},
    }


def read_amd(binary) -> dict:
    """The same from AMD's assembly, with its vector registers first."""
    code = binary.asm["amdgcn"]

    def field(name):
        return int(re.search(rf"\.{name}:\s+(\d+)", code)[1])

    opcodes = Counter(re.findall(r"^\s+([a-z]+_\w+)", code, re.M))
    return {
        "registers": field("vgpr_count"),
        "scalar_registers": field("sgpr_count"),
        "stack": field("private_segment_fixed_size"),
        "shared": field("group_segment_fixed_size"),
        "instructions": opcodes.total(),
        "mfma": sum(n for op, n in opcodes.items() if op.startswith("v_mfma")),
    }


def faults(found: dict, recorded: dict | None, matrix_units: bool) -> list:
    """What is wrong with a row, in sentences; nothing if all is well."""
    where = "{kernel} {configuration} on {target}".format(**found)
    wrong = []
    if found["stack"] and tuple(found[name] for name in KEY) not in MAY_SPILL:
        wrong.append(f"{where} spills {found['stack']} bytes; 0 are allowed")
    if found["target"] == "sm_75" and found["shared"] > 65536:
        wrong.append(
            f"{where} needs {found['shared']} bytes of shared memory;"
            " a T4 has 65536"
        )
    if matrix_units and not any(found.get(name) for name in MATRIX):
        wrong.append(f"{where} has no matrix instruction")
    if recorded is None:
        return wrong
    if found["registers"] > recorded["registers"] + 8:
        wrong.append(
            f"{where} takes {found['registers']} registers, recorded are"
            f" {recorded['registers']}; 8 more are allowed"
        )
    if found["instructions"] > 1.1 * recorded["instructions"]:
        wrong.append(
            f"{where} has {found['instructions']} instructions, recorded are"
            f" {recorded['instructions']}; a tenth more is allowed"
        )
    return wrong


def read_ledger(path: Path = LEDGER) -> dict[tuple, dict]:
    """The recorded rows by kernel, configuration, target and Triton."""
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
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, restval=0, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows[key] for key in sorted(rows))


def jobs(only: str) -> list[tuple]:
    """Declaration, entry and target of all that one operation compiles."""
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

    ``only`` is the name of one operation, where one is enough.
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
    """Compile, compare with the ledger, or rewrite it with --update."""
    parser = argparse.ArgumentParser(prog="lab aot", description=main.__doc__)
    parser.add_argument(
        "--update", action="store_true", help=f"rewrite {LEDGER.name}"
    )
    parser.add_argument(
        "--only", default="", metavar="NAME", help="one operation, topk_gate"
    )
    parser.add_argument("--share", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.share is not None:
        work(options.share, options.only)
        return 0
    found = compile_all(options.only)
    print(report(found))
    ledger, here = read_ledger(), version("triton")
    rows = {tuple(row[name] for name in KEY): row for row, _ in found}
    known = {key for key in ledger if key[-1] == here}
    if options.only:
        # a launcher may own several kernels; leave the others' rows alone
        mine = {key[0] for key in rows}
        known = {key for key in known if key[0] in mine}
    if options.update:
        others = {key: ledger[key] for key in ledger.keys() - known}
        write_ledger(others | rows)
        known, ledger = set(rows), rows
    wrong = []
    for figures, matrix_units in found:
        key = tuple(figures[name] for name in KEY)
        wrong += faults(figures, ledger.get(key), matrix_units)
    if known or options.only:
        unrecorded = sorted(rows.keys() - known)
        gone = sorted(known - rows.keys())
        wrong += [f"{' '.join(key)} is not recorded" for key in unrecorded]
        wrong += [f"{' '.join(key)} is recorded and gone" for key in gone]
    else:
        print(
            f"Triton {here} has no rows in {LEDGER.name}: nothing to compare"
        )
    for sentence in wrong:
        print(f"fault: {sentence}")
    if wrong and not options.update:
        print("If that is meant: python -m lab.aot --update")
    return bool(wrong)


if __name__ == "__main__":
    raise SystemExit(main())
