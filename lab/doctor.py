"""Says what this machine will run, and why: `lab doctor`.

`look()` gathers the facts, `findings(facts)` judges them; the judgement is a
pure function, so a test can ask about machines it does not have.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
from importlib import metadata
from typing import NamedTuple

GIB = 2**30
TRIED = ("3.6", "3.7", "3.8", "3.9")  # versions in the tests and in aot.csv


class Facts(NamedTuple):
    """What there is to know about a machine."""

    python: tuple[int, int, int]
    system: str  # "Linux", "Darwin", "Windows"
    versions: dict[str, str]  # of the packages that are installed
    gpu: str  # its name, "" if there is none that torch can use
    capability: tuple[int, int]  # (0, 0) without an NVIDIA GPU
    gpu_gib: float
    rocm: bool
    driver: bool  # whether an NVIDIA driver is installed
    interpret: bool | None  # value of TRITON_INTERPRET; None if not set
    cores: int
    memory_gib: float
    disk_gib: float
    browser: str | None


class Finding(NamedTuple):
    """One line of the report."""

    level: str  # "ok", "note" or "problem"
    what: str
    way_out: str = ""


PACKAGES = (
    "torch",
    "triton",
    "plotly",
    "ipywidgets",
    "anywidget",
    "jupyterlab",
    "papermill",
    "distributed",
    "kaleido",
)


def look() -> Facts:
    """The facts of this machine; takes a second because it imports torch."""
    from lab.rendering import browser

    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    gpu, capability, gpu_gib, rocm = "", (0, 0), 0.0, False
    try:
        import torch
    except ModuleNotFoundError:
        torch = None
        versions.pop("torch", None)
    if torch and torch.cuda.is_available():
        rocm = torch.version.hip is not None
        properties = torch.cuda.get_device_properties(0)
        gpu, gpu_gib = properties.name, properties.total_memory / GIB
        capability = (0, 0) if rocm else torch.cuda.get_device_capability(0)
    return Facts(
        python=sys.version_info[:3],
        system=platform.system(),
        versions=versions,
        gpu=gpu,
        capability=capability,
        gpu_gib=gpu_gib,
        rocm=rocm,
        driver=shutil.which("nvidia-smi") is not None,
        interpret=_interpret(),
        cores=len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count() or 1,
        memory_gib=_memory() / GIB,
        disk_gib=shutil.disk_usage(".").free / GIB,
        browser=browser(),
    )


def _interpret() -> bool | None:
    if "TRITON_INTERPRET" not in os.environ:
        return None
    try:
        from triton import knobs
    except ModuleNotFoundError:
        return None
    return knobs.runtime.interpret


def _memory() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError):
        return 0


def findings(facts: Facts) -> list[Finding]:
    """The report, in reading order."""
    runs = {"torch", "triton"} <= facts.versions.keys()
    return [
        _python(facts),
        *_packages(facts),
        *([*_gpu(facts), _kernels(facts)] if runs else []),
        _pictures(facts),
        *_room(facts),
    ]


def _python(facts: Facts) -> Finding:
    version = ".".join(map(str, facts.python))
    if facts.python < (3, 11):
        return Finding(
            "problem",
            f"Python {version} is too old",
            "install Python 3.11 or newer, then `make lab`",
        )
    return Finding("ok", f"Python {version} on {facts.system}")


def _packages(facts: Facts) -> list[Finding]:
    missing = [name for name in PACKAGES if name not in facts.versions]
    there = [n for n in PACKAGES[:3] if n in facts.versions]
    versions = ", ".join(f"{name} {facts.versions[name]}" for name in there)
    found = [Finding("ok", versions)] if there else []
    if facts.system != "Linux" and "triton" in missing:
        missing.remove("triton")
        system = "macOS" if facts.system == "Darwin" else facts.system
        found.append(
            Finding(
                "problem",
                f"Triton has no build for {system}, and without it no "
                "chapter runs",
                "use Linux, WSL on Windows, or open a chapter on Colab or "
                "Binder",
            )
        )
    if missing:
        found.append(
            Finding(
                "problem",
                f"not installed: {', '.join(missing)}",
                "pip install -e '.[lab]' -c constraints.txt",
            )
        )
    triton = facts.versions.get("triton", TRIED[0])
    if ".".join(triton.split(".")[:2]) not in TRIED:
        found.append(
            Finding(
                "note",
                f"Triton {triton} is untried: the kernels are tested with "
                f"{TRIED[0]} to {TRIED[-1]}",
                "if one fails, run `pip install torch triton "
                "-c constraints.txt`",
            )
        )
    return found


def _gpu(facts: Facts) -> list[Finding]:
    if not facts.gpu and facts.driver:
        return [
            Finding(
                "problem",
                "an NVIDIA driver is installed, but this torch cannot use a "
                "GPU",
                "remove .venv and run `make lab`, which then installs the "
                "CUDA build",
            )
        ]
    if not facts.gpu:
        return [
            Finding(
                "note",
                "no GPU: every chapter runs, at its small sizes",
                "to use a GPU elsewhere, open a chapter on Colab",
            )
        ]
    kind = (
        "ROCm"
        if facts.rocm
        else "compute capability {}.{}".format(*facts.capability)
    )
    size = f"{facts.gpu_gib:.0f} GiB"
    found = [Finding("ok", f"{facts.gpu}, {kind}, {size}")]
    if not facts.rocm and facts.capability < (8, 0):
        found.append(
            Finding(
                "note",
                "below compute capability 8.0 Triton uses no tensor cores: "
                "matrix products go through torch, everything else through "
                "Triton",
                "times of matrix products here say nothing about the kernels",
            )
        )
    return found


def _kernels(facts: Facts) -> Finding:
    if facts.gpu and facts.interpret:
        return Finding(
            "note",
            "TRITON_INTERPRET is set: kernels are interpreted, slowly, "
            "though there is a GPU",
            "unset TRITON_INTERPRET",
        )
    if not facts.gpu and facts.interpret is False:
        return Finding(
            "problem",
            "TRITON_INTERPRET is off: the kernels cannot run, because there "
            "is no GPU either",
            "unset TRITON_INTERPRET",
        )
    if facts.gpu:
        return Finding("ok", "kernels are compiled by Triton for this GPU")
    return Finding(
        "ok",
        "the PyTorch references run; the Triton kernels are checked against "
        "them in Triton's interpreter",
    )


def _pictures(facts: Facts) -> Finding:
    if facts.browser:
        return Finding("ok", f"pictures are drawn by {facts.browser}")
    return Finding(
        "note",
        "no Chromium or Chrome: live figures work, `lab render` does not",
        "install chromium, or run `playwright install chromium`",
    )


def _room(facts: Facts) -> list[Finding]:
    cores = f"{facts.cores} core" + ("s" if facts.cores > 1 else "")
    memory = f"{facts.memory_gib:.0f} GiB of memory"
    found = [Finding("ok", f"{cores}, {memory}")]
    # a notebook's kernel with torch and a live figure needs 0.4 GiB of
    # memory, the server 0.1
    if 0 < facts.memory_gib < 3:
        found = [
            Finding(
                "note",
                f"{cores}, only {memory}: enough for three open chapters",
                "shut down kernels you have finished with",
            )
        ]
    disk = f"{facts.disk_gib:.0f} GiB free on this disk"
    if facts.disk_gib < 1:
        found.append(
            Finding(
                "problem", f"only {disk}", "free some space; runs leave files"
            )
        )
    else:
        found.append(Finding("ok", disk))
    return found
