"""Finds and loads what lies in `data/`: data sets, checkpoints, ledgers.

In a clone `data/` lies beside `lab/`; in a wheel, as on Colab, a copy of it
travels inside the package. Source and licence of each: `data/README.md`.
"""

from __future__ import annotations

import difflib
import json
import os
from pathlib import Path

import numpy as np

PACKAGE = Path(__file__).resolve().parent
# the repository when this is a clone; an installed wheel has no notebooks
ROOT = PACKAGE.parent
BESIDE, INSIDE = ROOT / "data", PACKAGE / "_data"
DATA = BESIDE if (BESIDE / "catalogue.toml").exists() else INSIDE


def data_path(name: str) -> Path:
    """The path of the file or folder `name`, such as "text/english.txt"."""
    path = DATA / name
    if path.exists():
        return path
    known = [str(p.relative_to(DATA)) for p in DATA.rglob("*")]
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean data/{near[0]}?" if near else "see data/README.md"
    raise FileNotFoundError(f"there is no data/{name}; {hint}")


def must_keep(folder: Path = DATA) -> None:
    """Refuses work, before it begins, if `folder` cannot keep its results."""
    if not os.access(folder, os.W_OK):
        raise ValueError(
            f"{folder} cannot be written to, so nothing would be kept; use a "
            "copy of the repository that is your own"
        )


def read_text(name: str) -> str:
    """The text file `data/<name>`, decoded as UTF-8."""
    return data_path(name).read_text(encoding="utf-8")


def read_json(name: str) -> object:
    """The JSON file `data/<name>`; the error names a broken file."""
    try:
        return json.loads(read_text(name))
    except json.JSONDecodeError as error:
        raise ValueError(f"data/{name} is not valid JSON: {error}") from None


def read_arrays(name: str) -> dict[str, np.ndarray]:
    """The arrays of `data/<name>` (.npz by their names, .npy as "array").

    Pickled objects are refused: a data file holds numbers, not code.
    """
    loaded = np.load(data_path(name), allow_pickle=False)
    if isinstance(loaded, np.ndarray):
        return {"array": loaded}
    with loaded:
        return {key: loaded[key] for key in loaded.files}
