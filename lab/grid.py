"""Parameter values from outside: `-p top_k=1:4 -p null_experts=0,4,8`.

papermill accepts any name and any type without complaint; here both are
checked against the notebook's `parameters` cell before anything runs.
"""

from __future__ import annotations

import csv
import difflib
import itertools
import math
from pathlib import Path
from typing import NamedTuple

TYPES = {"int": int, "float": float, "bool": bool, "str": str}
BOOLEANS = {"true": True, "1": True, "false": False, "0": False}
LIMIT = 10_000  # combinations; more than that are taken for a typing error


class Parameter(NamedTuple):
    """One line of a notebook's `parameters` cell."""

    name: str
    type: str  # "int", "float", "bool" or "str"
    default: str  # as written
    help: str


def declared(notebook: Path) -> dict[str, Parameter]:
    """The parameters that `notebook` declares, in their order."""
    from papermill import inspect_notebook

    if not notebook.is_file():
        raise FileNotFoundError(f"there is no notebook {notebook}")
    found = inspect_notebook(str(notebook))
    if not found:
        raise ValueError(
            f"{notebook.name} declares no parameters; tag one cell "
            "`parameters` and write lines such as `top_k: int = 2`"
        )
    return {
        name: Parameter(
            name, one["inferred_type_name"], one["default"], one["help"]
        )
        for name, one in found.items()
    }


def one_value(text: str, parameter: Parameter) -> object:
    """Reads `text` as a value of `parameter`."""
    name, kind = parameter.name, parameter.type
    if kind not in TYPES:
        raise ValueError(
            f"{name} has no type in the notebook; write `{name}: int = ...` "
            "(or float, bool, str) in its parameters cell"
        )
    try:
        value = BOOLEANS[text.lower()] if kind == "bool" else TYPES[kind](text)
    except (KeyError, ValueError):
        wanted = {
            "int": "a whole number",
            "float": "a number",
            "bool": "true or false",
        }
        raise ValueError(
            f"{name}={text} is not {wanted[kind]}; "
            f"the notebook's default is {parameter.default}"
        ) from None
    if kind == "float" and not math.isfinite(value):
        raise ValueError(f"{name}={text} is not finite; give a plain number")
    return value


def _range(text: str, parameter: Parameter) -> list[object]:
    name = parameter.name
    ends = [one_value(part, parameter) for part in text.split(":")]
    if len(ends) == 2 and all(end == int(end) for end in ends):
        ends.append(type(ends[0])(1))
    if len(ends) != 3:
        raise ValueError(
            f"{name}={text} is not a range; write low:high:step, or low:high "
            "for whole numbers"
        )
    low, high, step = ends
    if step <= 0 or high < low:
        raise ValueError(
            f"{name}={text} is an empty range; write low:high:step with "
            "low at most high and a step above 0"
        )
    if high - low >= LIMIT * step:
        raise ValueError(
            f"{name}={text} has more than {LIMIT} values; make the range "
            "shorter or its step larger"
        )
    # the small excess keeps 0.5 in 0.1:0.5:0.1
    count = math.floor((high - low) / step + 1e-9) + 1
    values = [low + i * step for i in range(count)]
    if parameter.type == "float":
        values = [float(f"{value:.12g}") for value in values]
    return values


def _parts(name: str, text: str) -> list[str]:
    """Splits `text` at its commas, except for those in quotes."""
    try:
        (parts,) = csv.reader([text], skipinitialspace=True, strict=True)
    except (csv.Error, ValueError):
        raise ValueError(
            f"{name}={text} has a missing or misplaced quote; write a text "
            f"that contains a comma as -p '{name}=\"one, two\",three'"
        ) from None
    return parts


def parse(
    texts: list[str], notebook: Path, single: bool = False
) -> dict[str, list[object]]:
    """Reads the grid in `texts`, each `name=values` with values `4`, `0,4,8`,
    `1:4` or `1:9:2` (both ends included); strings have no ranges.

    A string that contains commas is quoted, as in a CSV file; if a `single`
    value is wanted, the quotes may be left out.
    """
    known = declared(notebook)
    grid: dict[str, list[object]] = {}
    for text in texts:
        name, equals, right = (part.strip() for part in text.partition("="))
        if not equals or not name or not right:
            example = "top_k=4" if single else "top_k=1:4"
            raise ValueError(
                f"-p {text} is not name=value; write for example -p {example}"
            )
        check_name(name, known)
        if name in grid:
            raise ValueError(
                f"{name} is given twice; write -p {name}=1,2 for two values"
            )
        parts = _parts(name, right)
        if single and known[name].type == "str" and len(parts) > 1:
            parts = [right]
        values: list[object] = []
        for part in parts:
            ranged = ":" in part and known[name].type in ("int", "float")
            values += (
                _range(part, known[name])
                if ranged
                else [one_value(part.strip(), known[name])]
            )
        grid[name] = list(dict.fromkeys(values))
    return grid


def check_name(name: str, known: dict[str, Parameter]) -> None:
    """Refuses `out` and every other `name` that is not among the `known`."""
    if name == "out":
        raise ValueError(
            "out is set by the runner; use --out to choose the folder"
        )
    if name not in known:
        names = [one for one in known if one != "out"]
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {near[0]}?" if near else "use one of"
        raise ValueError(
            f"the notebook has no parameter {name}; {hint} "
            f"({', '.join(names)})"
        )


def check_values(
    values: dict[str, object], known: dict[str, Parameter]
) -> dict[str, object]:
    """Returns `values`, with whole numbers turned into floats where a float
    is declared; refuses unknown names and wrong types.
    """
    checked = {}
    for name, value in values.items():
        check_name(name, known)
        kind = known[name].type
        if kind == "float" and type(value) is int:
            value = float(value)
        if kind in TYPES and type(value) is not TYPES[kind]:
            raise ValueError(
                f"{name}={value!r} is of type {type(value).__name__}; the "
                f"notebook wants {kind}, such as {known[name].default}"
            )
        checked[name] = value
    return checked


def combinations(grid: dict[str, list[object]]) -> list[dict[str, object]]:
    """Every combination of values in `grid`; the last name varies fastest."""
    count = math.prod(len(values) for values in grid.values())
    if count > LIMIT:
        raise ValueError(
            f"the grid has {count} combinations, but at most {LIMIT} are "
            "allowed; make a range shorter or its step larger"
        )
    return [
        dict(zip(grid, values, strict=True))
        for values in itertools.product(*grid.values())
    ]
