"""The last cell of a notebook: its headline numbers, printed and kept."""

import math
from pathlib import Path

from lab.atomic import write_json


def record(scores, out=""):
    """Print `scores`, and write them to the file `out` as JSON, if given.

    A score is a number, a text, a truth value, None, or a list or dictionary
    of these. Anything else, as well as NaN and infinity, is refused before
    anything is written; the file is written whole or not at all.
    """
    for name, value in scores.items():
        _check(name, value)
    width = max((len(name) for name in scores), default=0)
    for name, value in scores.items():
        print(f"{name:{width}}  {_shown(value)}")
    if out:
        path = Path(out)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, scores)


def _check(name, value):
    if not isinstance(name, str):
        raise ValueError(
            f"the name {name!r} is not a text; name scores in words"
        )
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(
            f"score {name} is {value}; record a finite number or leave it out"
        )
    if isinstance(value, dict):
        for key, inner in value.items():
            _check(key if not isinstance(key, str) else f"{name}.{key}", inner)
    elif isinstance(value, list | tuple):
        for place, inner in enumerate(value):
            _check(f"{name}[{place}]", inner)
    elif not isinstance(value, str | bool | int | float | None):
        raise ValueError(
            f"score {name} is of type {type(value).__name__}; "
            "use float(), int(), str() or .tolist() on it"
        )


def _shown(value):
    """`value` as it is printed: four digits of every float in it."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(_shown(v) for v in value)
    if isinstance(value, dict):
        return ", ".join(f"{k} {_shown(v)}" for k, v in value.items())
    return str(value)
