"""Files written whole or not at all: no reader ever meets half of one."""

from __future__ import annotations

import io
import json
import os
import tempfile
from pathlib import Path

import numpy as np

PART = ".part-"  # how the name of an unfinished file begins


def write_bytes(path: Path, content: bytes) -> None:
    """Puts `content` at `path` in one step, by renaming a finished file."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=PART)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def write_json(path: Path, value: object) -> None:
    """Writes `value` as the JSON file `path`, with sorted keys."""
    text = json.dumps(value, indent=1, sort_keys=True) + "\n"
    write_bytes(path, text.encode("utf-8"))


def write_arrays(path: Path, /, **arrays: np.ndarray | str) -> None:
    """Writes these `arrays` as the .npz file `path`.

    Missing folders above it are made. O(bytes).
    """
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, content.getvalue())
