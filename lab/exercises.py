"""Exercises that check themselves and never stop a notebook."""

import copy
import dis
import math
import numbers
from dataclasses import dataclass
from typing import Any

import numpy as np

UNTOUCHED = "not attempted yet"
CORRECT = "correct"
# what the body `...`, `pass` or a lone docstring compiles to
EMPTY = {"RESUME", "NOP", "LOAD_CONST", "RETURN_VALUE", "RETURN_CONST"}
EMPTY |= {"COPY_FREE_VARS", "MAKE_CELL"}


@dataclass(frozen=True, kw_only=True)
class Exercise:
    """What is asked for: a value, or a function checked on `cases`.

    `answer` is the value, or the reference function; a case is a tuple of its
    arguments. Numbers may differ by `tolerance`, absolute or relative,
    whichever is wider; whole numbers may not differ.
    """

    slug: str
    answer: Any
    cases: tuple | list = ()
    tolerance: float = 1e-4

    def __post_init__(self):
        if callable(self.answer) and not self.cases:
            raise ValueError(
                f"{self.slug} asks for a function; give the cases to try it on"
            )


def check(exercise, attempt):
    """Print what is right or wrong about `attempt`; never raise."""
    print(judge(exercise, attempt))


def judge(exercise, attempt):
    """What `check` prints, one sentence."""
    try:
        return _judge(exercise, attempt)
    except Exception as error:
        return f"the answer cannot be compared: {_first_line(error)}"


def _judge(exercise, attempt):
    if attempt is None or attempt is Ellipsis:
        return UNTOUCHED
    if not callable(exercise.answer):
        if callable(attempt) and not hasattr(attempt, "__array__"):
            return "a value is asked for, not a function"
        return _difference(attempt, exercise.answer, exercise.tolerance)
    if not callable(attempt):
        return "a function is asked for, not a value"
    if _is_empty(attempt):
        return UNTOUCHED
    for number, case in enumerate(exercise.cases, start=1):
        case = case if isinstance(case, tuple | list) else (case,)
        said = _try(exercise, attempt, case)
        if said != CORRECT:
            few = len(exercise.cases) == 1 or said == UNTOUCHED
            return said if few else f"case {number}: {said}"
    return CORRECT


def _try(exercise, attempt, case):
    # copies, so that an attempt that changes its input spoils nothing
    expected = exercise.answer(*copy.deepcopy(case))
    try:
        found = attempt(*copy.deepcopy(case))
    except NotImplementedError:
        return UNTOUCHED
    except Exception as error:
        return f"it raised {_first_line(error)}"
    if found is Ellipsis:
        return UNTOUCHED
    if found is None and expected is not None:
        return "it returned nothing; end it with a return statement"
    return _difference(found, expected, exercise.tolerance)


def _first_line(error):
    first = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {first}".rstrip(": ")


def _is_empty(function):
    """Whether the body is still empty, so that nothing has been tried yet."""
    try:
        code = function.__code__
    except AttributeError:
        return False
    steps = {step.opname for step in dis.get_instructions(code)}
    returned = [c for c in code.co_consts if c not in (None, Ellipsis)]
    returned = [c for c in returned if c != function.__doc__]
    return steps <= EMPTY and not returned


def _difference(found, expected, tolerance):
    """ "correct", or the first difference in one sentence."""
    found, expected = _plain(found), _plain(expected)
    if isinstance(expected, np.ndarray):
        try:
            found = np.asarray(found)
        except ValueError:
            return f"expected an array of shape {expected.shape}"
        return _array_difference(found, expected, tolerance)
    if isinstance(expected, set):
        return _set_difference(found, expected)
    if isinstance(expected, dict):
        return _dict_difference(found, expected, tolerance)
    if isinstance(expected, list):
        return _list_difference(found, expected, tolerance)
    if _is_number(expected):
        if isinstance(found, np.ndarray) and found.size == 1:
            found = found.item()
        if not _is_number(found):
            return f"expected a number, found {_short(found)}"
        same = _close(found, expected, tolerance)
    else:
        same = type(found) is type(expected) and found == expected
    if same:
        return CORRECT
    return f"{_short(found)}, expected {_short(expected)}"


def _array_difference(found, expected, tolerance):
    if found.shape != expected.shape:
        return f"shape {found.shape}, expected {expected.shape}"
    if found.dtype.kind not in "biufc" or expected.dtype.kind not in "biufc":
        same = found == expected
    elif expected.dtype.kind == "b" or found.dtype.kind == "b":
        same = (found == expected) & (found.dtype == expected.dtype)
    else:
        slack = 0 if expected.dtype.kind in "iu" else tolerance
        # numpy would add the two tolerances
        same = np.isclose(found, expected, rtol=slack, atol=0)
        same |= np.isclose(found, expected, rtol=0, atol=slack)
    if np.all(same):
        return CORRECT
    place = tuple(int(i) for i in np.argwhere(~same)[0])
    where = place if len(place) != 1 else place[0]
    return (
        f"values differ, first at {where}: {_short(found[place])}, "
        f"expected {_short(expected[place])}"
    )


def _set_difference(found, expected):
    if not isinstance(found, set):
        return f"expected a set, found {_short(found)}"
    missing, extra = expected - found, found - expected
    if not missing and not extra:
        return CORRECT
    parts = [f"{_short(missing)} missing"] if missing else []
    parts += [f"{_short(extra)} not expected"] if extra else []
    return "the sets differ: " + ", ".join(parts)


def _dict_difference(found, expected, tolerance):
    if not isinstance(found, dict):
        return f"expected a dictionary, found {_short(found)}"
    keys = _set_difference(set(found), set(expected))
    if keys != CORRECT:
        return keys.replace("the sets", "the keys")
    for key, value in expected.items():
        said = _difference(found[key], value, tolerance)
        if said != CORRECT:
            return f"at {key!r}: {said}"
    return CORRECT


def _list_difference(found, expected, tolerance):
    if not isinstance(found, list | np.ndarray):
        return f"expected {len(expected)} items, found {_short(found)}"
    if len(found) != len(expected):
        return f"the length is {len(found)}, expected {len(expected)}"
    pairs = zip(found, expected, strict=True)
    for place, (one, other) in enumerate(pairs):
        said = _difference(one, other, tolerance)
        if said != CORRECT:
            return f"item {place}: {said}"
    return CORRECT


def _plain(value):
    """Tensors and lists of numbers become arrays, other sequences lists."""
    if hasattr(value, "detach"):
        value = value.detach().cpu().to_dense()
        # numpy has no bfloat16
        value = (
            value.float()
            if value.is_floating_point() and (value.element_size() == 2)
            else value
        )
        value = value.numpy()
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, np.ndarray):
        return value.item() if value.ndim == 0 else value
    if isinstance(value, frozenset):
        return set(value)
    if not isinstance(value, list | tuple | range):
        return value
    items = [_plain(item) for item in value]
    try:
        array = np.array(items)
    except (ValueError, TypeError):
        return items
    return array if array.dtype.kind in "biuf" else items


def _is_number(value):
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _close(found, expected, tolerance):
    if isinstance(expected, int):
        return found == expected
    try:
        found = float(found)
    except OverflowError:
        # a whole number larger than any float
        return False
    return math.isclose(found, expected, rel_tol=tolerance, abs_tol=tolerance)


def _short(value):
    if isinstance(value, np.generic):
        value = value.item()
    text = f"{value:.6g}" if isinstance(value, float) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
