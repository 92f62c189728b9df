"""Wrong parameters are refused in one sentence, right ones pass."""

import math

import numpy as np
import pytest

from lab.parameters import (
    check_parameters,
    choice,
    flag,
    some_of,
    span,
    text,
)


def refusal(rule, value):
    with pytest.raises(ValueError) as error:
        check_parameters({"it": value}, it=rule)
    return str(error.value)


@pytest.mark.parametrize(
    "rule, value",
    [
        (span(1, 8), 1),
        (span(1, 8), 8),
        (span(1, 8), np.int64(3)),
        (span(0.05, 1), 0.4),
        (span(0.05, 1), 1),
        (span(0, math.inf), 10**9),
        (choice("relu", "gelu"), "gelu"),
        (choice(0, 4, 8), 8),
        (choice(0, 4, 8), np.int64(8)),
        (choice(0.0, 4.0), 4),
        (choice(0.0, 4.0), np.float64(4)),
        (choice(0, 5, 7.5), 5.0),
        (choice(0, 5, 7.5), 5),
        (choice("all", 5, 7.5), 7.5),
        (choice(None, 4), None),
        (some_of("bits", "load"), "load, bits"),
        (some_of("bits", "load"), ""),
        (text(), ""),
        (flag(), False),
    ],
)
def test_allowed_values_pass(rule, value):
    check_parameters({"it": value}, it=rule)


@pytest.mark.parametrize(
    "rule, value",
    [
        (span(1, 8), 9),
        (span(1, 8), 0),
        (span(1, 8), 2.0),
        (span(1, 8), True),
        (span(1, 8), "three"),
        (span(1, 8), None),
        (span(0.05, 1.0), math.nan),
        (span(0.05, 1.0), 1.5),
        (span(0.05, math.inf), math.nan),
        (choice("relu", "gelu"), "tanh"),
        (choice(0, 1), True),
        (choice(0.0, 1.0), True),
        (choice(0, 4), 4.0),
        (choice(0, 4), 4 + 0j),
        (choice(0.0, 4.0), 4 + 0j),
        (choice(True, False), 1),
        (some_of("bits", "load"), "bits, loads"),
        (some_of("bits", "load"), None),
        (text(), 3),
        (flag(), 1),
    ],
)
def test_other_values_are_refused(rule, value):
    assert "it=" in refusal(rule, value)


def test_the_sentence_names_value_range_and_way_out():
    assert refusal(span(1, 8), 9) == (
        "it=9 is not allowed; use a whole number from 1 to 8"
    )
    assert refusal(span(0, math.inf), -1) == (
        "it=-1 is not allowed; use a whole number from 0 up"
    )
    assert refusal(choice("relu", "gelu"), "x") == (
        "it='x' is not allowed; use one of 'relu', 'gelu'"
    )


def test_a_missing_parameter_is_refused():
    with pytest.raises(ValueError, match="top_k has no value"):
        check_parameters({}, top_k=span(1, 8))


def test_an_unknown_injected_name_is_refused():
    names = {"top_k": 2, "In": ["", "top_k = 2", "# Parameters\ntopk = 3\n"]}
    with pytest.raises(ValueError, match=r"topk is not a parameter .* top_k"):
        check_parameters(names, top_k=span(1, 8))


def test_a_corrected_parameter_is_no_longer_refused():
    cells = ["# Parameters\ntopk = 3\n", "", "# Parameters\ntop_k = 3\n"]
    check_parameters({"top_k": 3, "In": cells}, top_k=span(1, 8))


def test_every_form_of_assignment_is_seen():
    for line in ("top_k, alpha = 3, 1", "alpha: int = 1", "[alpha] = [1]"):
        names = {"top_k": 2, "In": [f"# Parameters\n{line}\n"]}
        with pytest.raises(ValueError, match="alpha is not a parameter"):
            check_parameters(names, top_k=span(1, 8))


def test_known_injected_names_and_other_cells_pass():
    cells = ["", "other = 1", "# Parameters\ntop_k = 3\nout = 'a'\n"]
    names = {"top_k": 3, "out": "a", "In": cells}
    check_parameters(names, top_k=span(1, 8), out=text())
