"""The parameters of a notebook, checked before any work.

Papermill checks nothing: a misspelled name becomes a new variable, and a word
is accepted where a number was meant. So the import cell of each notebook says
what is allowed, and `check_parameters` refuses the rest in one sentence.
"""

import ast
import math
from dataclasses import dataclass
from numbers import Integral, Real


@dataclass(frozen=True)
class Rule:
    """What one parameter may be: `accepts` decides, `allowed` describes it."""

    accepts: object
    allowed: str


def span(low, high):
    """A number from `low` to `high`, both included.

    If both bounds are whole, only whole numbers are accepted; if one has a
    decimal point, every number in between. An infinite bound is no limit.
    """
    whole = all(isinstance(b, Integral) or math.isinf(b) for b in (low, high))
    kind, name = (Integral, "a whole number") if whole else (Real, "a number")

    def accepts(value):
        number = isinstance(value, kind) and not isinstance(value, bool)
        return number and low <= value <= high

    if math.isinf(high):
        return Rule(accepts, f"{name} from {low} up")
    return Rule(accepts, f"{name} from {low} to {high}")


def choice(*values):
    """One of `values`; `True` does not stand for 1, nor 1 for `True`.

    If all numbers in `values` are whole, only whole numbers are accepted. If
    one has a decimal point, 1.0 may stand for 1 too.
    """
    numbers = [v for v in values if isinstance(v, Real)]
    whole = all(isinstance(v, Integral) for v in numbers)
    kind = Integral if whole else Real

    def accepts(value):
        return any(value == v and _same_kind(value, v, kind) for v in values)

    return Rule(accepts, "one of " + ", ".join(repr(v) for v in values))


def some_of(*names):
    """Any of `names`, or none, as one text, separated by commas."""

    def accepts(value):
        return isinstance(value, str) and all(
            name in names for name in listed(value)
        )

    return Rule(
        accepts, "any of " + ", ".join(names) + ", separated by commas"
    )


def listed(value):
    """The names in a text that separates them by commas."""
    return [name.strip() for name in value.split(",") if name.strip()]


def text():
    """Any string, including the empty one."""
    return Rule(lambda value: isinstance(value, str), "a text")


def flag():
    """`True` or `False`, not 0 or 1."""
    return Rule(lambda value: isinstance(value, bool), "True or False")


def check_parameters(names, **rules):
    """Refuse values in `names`, a notebook's `globals()`, that break a rule.

    A name that papermill injected and that has no rule is refused as well.
    IPython's history is the only place that still shows such names.
    """
    for name in _injected(names.get("In", ())):
        if name not in rules:
            raise ValueError(
                f"{name} is not a parameter of this notebook; "
                f"use one of {', '.join(rules)}"
            )
    for name, rule in rules.items():
        if name not in names:
            raise ValueError(
                f"{name} has no value; give it {rule.allowed} "
                "in the parameters cell"
            )
        if not rule.accepts(names[name]):
            raise ValueError(
                f"{name}={names[name]!r} is not allowed; use {rule.allowed}"
            )


def _injected(history):
    """The names assigned in the cell that papermill put into `history`.

    The last such cell counts: a reader may have corrected it and rerun it.
    """
    cells = [cell for cell in history if cell.startswith("# Parameters\n")]
    for node in ast.walk(ast.parse("".join(cells[-1:]))):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id


def _same_kind(value, choice, number):
    if isinstance(choice, bool) or isinstance(value, bool):
        return isinstance(choice, bool) and isinstance(value, bool)
    return isinstance(value, number) or not isinstance(choice, Real)
