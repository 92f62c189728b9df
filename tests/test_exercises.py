"""A right answer is accepted, a wrong one is explained, and none raises."""

import numpy as np
import pytest
import torch

from lab.exercises import Exercise, check, judge

TABLE = torch.tensor([[0.5, 0.2], [0.1, 0.9], [1.0, 0.0], [0.3, 0.3]])


def value(answer, **more):
    return Exercise(slug="exercise-1", answer=answer, **more)


def function(answer, *cases):
    return Exercise(slug="exercise-2", answer=answer, cases=cases)


def softmax(x):
    return torch.softmax(x, dim=-1)


SOFTMAX = function(softmax, (torch.ones(2, 3),), (torch.arange(3.0),))


@pytest.mark.parametrize(
    "answer, attempt",
    [
        (7, 7),
        (7, 7.0),
        (0.5, 0.50001),
        (0.5, torch.tensor(0.5)),
        (0.5, np.float32(0.5)),
        ("left", "left"),
        (True, True),
        ({0, 2}, {2, 0}),
        ({0, 2}, frozenset({0, 2})),
        ((8, 3), [8, 3]),
        ((8, 3), torch.tensor([8, 3])),
        ([{0}, {0, 2}], ({0}, {2, 0})),
        ([[1], [2, 3]], [[1], [2, 3]]),
        ({"a": 0.5}, {"a": 0.50001}),
        (TABLE, TABLE.tolist()),
        (TABLE, TABLE.bfloat16()),
        (TABLE, TABLE.clone().requires_grad_()),
        (TABLE, TABLE.to_sparse()),
        (TABLE, list(TABLE.clone().requires_grad_())),
        (TABLE, list(TABLE.bfloat16())),
        ([0.5, 2.0], [torch.tensor(0.5, requires_grad=True), 2]),
        (TABLE > 0.4, (TABLE > 0.4).numpy()),
        ([], []),
    ],
)
def test_right_values_are_accepted(answer, attempt):
    assert judge(value(answer, tolerance=2e-3), attempt) == "correct"


@pytest.mark.parametrize(
    "answer, attempt, said",
    [
        (7, 8, "8, expected 7"),
        (7, 7.00001, "7.00001, expected 7"),
        (0.5, 0.3, "0.3, expected 0.5"),
        (0.5, float("nan"), "nan, expected 0.5"),
        (0.5, "half", "expected a number, found 'half'"),
        (1, True, "expected a number, found True"),
        (True, 1, "1, expected True"),
        ("left", "right", "'right', expected 'left'"),
        ({0, 2}, {0, 3}, "the sets differ: {2} missing, {3} not expected"),
        ({0, 2}, [0, 2], "expected a set, found array([0, 2])"),
        ((8, 3), (8, 4), "values differ, first at 1: 4, expected 3"),
        ((8, 3), 8, "shape (), expected (2,)"),
        ((8, 3), [[8], [3, 1]], "expected an array of shape (2,)"),
        ([{0}, {2}], [{0}, {1}], "item 1: the sets differ: {2} missing"),
        ([{0}, {2}], [{0}], "the length is 1, expected 2"),
        ({"a": 1}, {"b": 1}, "the keys differ: {'a'} missing, {'b'} not"),
        ({"a": 1}, {"a": 2}, "at 'a': 2, expected 1"),
        (TABLE, TABLE[:, :1], "shape (4, 1), expected (4, 2)"),
        (TABLE, "table", "shape (), expected (4, 2)"),
        (TABLE, TABLE + 0.1, "values differ, first at (0, 0): 0.6, expected"),
        (TABLE > 0, TABLE, "values differ, first at (0, 0)"),
        (3, lambda: 3, "a value is asked for, not a function"),
    ],
)
def test_wrong_values_are_explained(answer, attempt, said):
    assert judge(value(answer), attempt).startswith(said)


def test_a_number_larger_than_any_float_is_wrong():
    assert judge(value(0.5), 10**400).endswith("..., expected 0.5")
    said = judge(value([0.5, 1.0]), [10**400, 1.0])
    assert said.startswith("values differ, first at 0: 1000000")


def test_what_nobody_thought_of_is_no_error():
    without_values = torch.empty((), device="meta")
    for answer, attempt in ((7, 10**5000), (0.5, without_values)):
        said = judge(value(answer), attempt)
        assert said.startswith("the answer cannot be compared")


def empty(x): ...


def passing(x):
    pass


def documented(x):
    """Softmax of x, to be written."""
    ...


def raising(x):
    raise NotImplementedError


def returning(x):
    return ...


@pytest.mark.parametrize(
    "attempt", [None, ..., empty, passing, documented, raising, returning]
)
def test_an_untouched_exercise_is_not_attempted_yet(attempt):
    assert judge(SOFTMAX, attempt) == "not attempted yet"


def test_a_right_function_is_accepted():
    assert judge(SOFTMAX, lambda x: x.exp() / x.exp().sum(-1, True)) == (
        "correct"
    )


@pytest.mark.parametrize(
    "attempt, said",
    [
        (lambda x: x, "case 1: values differ, first at (0, 0): 1, expected"),
        (lambda x: x[:, :2], "case 1: shape (2, 2), expected (2, 3)"),
        (lambda x: 1 / 0, "case 1: it raised ZeroDivisionError: division by"),
        (lambda: 1, "case 1: it raised TypeError"),
        (lambda x: print(end=""), "case 1: it returned nothing"),
        (lambda x: softmax(x[:2, :3]), "case 2: it raised IndexError"),
        (3, "a function is asked for, not a value"),
    ],
)
def test_a_wrong_function_is_explained(attempt, said):
    assert judge(SOFTMAX, attempt).startswith(said)


def test_an_attempt_that_changes_its_input_spoils_nothing():
    def in_place(x):
        return x.exp_().div_(x.sum(-1, keepdim=True))

    assert judge(SOFTMAX, in_place) == "correct"
    assert judge(SOFTMAX, softmax) == "correct"


def test_a_single_case_is_not_numbered():
    one = function(lambda x: x + 1, (1,))
    assert judge(one, lambda x: x) == "1, expected 2"


def test_a_tolerance_may_be_strict():
    strict = value(0.0, tolerance=1e-12)
    assert judge(strict, 1e-13) == "correct"
    assert judge(strict, 1e-9) != "correct"


@pytest.mark.parametrize("shape", [(), (2,)])
def test_of_both_tolerances_the_wider_counts_and_not_their_sum(shape):
    one = value(np.ones(shape), tolerance=0.1)
    assert judge(one, np.full(shape, 1.09)) == "correct"
    assert judge(one, np.full(shape, 1.15)) != "correct"


def test_check_prints_one_line(capsys):
    check(value(7), 8)
    assert capsys.readouterr().out == "8, expected 7\n"


def test_a_function_without_cases_is_refused():
    with pytest.raises(ValueError, match="give the cases"):
        function(softmax)
