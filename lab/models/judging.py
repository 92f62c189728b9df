"""What an answer gives away about its own correctness.

A cascade looks at the cheap model's answer before it decides. Here it sees
twelve numbers, on the length of the answer and on whether its sums are right.
Mixtral writes its arithmetic as the benchmark's examples do, ``<<9*2=18>>``,
so every step can be checked with a pencil, without knowing the problem.
"""

import ast
import math
import operator
import re

import torch
from torch import Tensor

FEATURES = (
    "characters",
    "lines",
    "numbers in the answer",
    "calculator steps",
    "wrong calculator steps",
    "steps nobody can read",
    "share of wrong steps",
    "has a final ####",
    "final number is the last step's",
    "digits of the final number",
    "final number is whole",
    "numbers of the prompt used",
)
STEP = re.compile(r"<<([^<>=]*)=([^<>]*)>>")
NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?|\.\d+")
FINAL = re.compile(r"####\s*\$?\s*(-?[\d,]*\.?\d+)")
OPERATORS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


def answer_features(prompts, answers) -> Tensor:
    """The twelve `FEATURES` of each answer to its prompt, [N, 12] float64."""
    pairs = zip(prompts, answers, strict=True)
    rows = [_features(prompt, answer) for prompt, answer in pairs]
    return torch.tensor(rows, dtype=torch.float64).reshape(-1, len(FEATURES))


def wrong_steps(answer: str) -> int:
    """How many calculator steps of the answer do not add up."""
    return sum(step is False for step in _checked(answer))


def prompt_features(prompts) -> Tensor:
    """Length and count of numbers of each prompt, [N, 2] float64."""
    rows = [[math.log1p(len(p)), len(_numbers(p))] for p in prompts]
    return torch.tensor(rows, dtype=torch.float64).reshape(-1, 2)


def value(expression: str) -> float | None:
    """The value of a sum such as "3*(4+5)/2"; None if it is not a sum."""
    try:
        tree = ast.parse(_tidy(expression), mode="eval").body
        return float(_value(tree))
    except (SyntaxError, ValueError, ZeroDivisionError, OverflowError):
        return None


def _features(prompt: str, answer: str) -> list[float]:
    steps = _checked(answer)
    wrong = sum(step is False for step in steps)
    unread = sum(step is None for step in steps)
    match = FINAL.search(answer)
    final = value(match[1]) if match else None
    results = [value(result) for _, result in STEP.findall(answer)]
    last = results[-1] if results else None
    same = None not in (final, last) and math.isclose(final, last)
    given = set(_numbers(prompt))
    used = len(given & set(_numbers(answer))) / max(1, len(given))
    return [
        math.log1p(len(answer)),
        answer.count("\n") + 1,
        len(_numbers(answer)),
        len(steps),
        wrong,
        unread,
        wrong / max(1, len(steps)),
        match is not None,
        same,
        len(f"{abs(final):.0f}") if final is not None else 0,
        final is not None and final == int(final),
        used,
    ]


def _checked(answer: str) -> list[bool | None]:
    """For each step: right, wrong, or None where it cannot be read."""
    found = []
    for sum_, result in STEP.findall(answer):
        left, right = value(sum_), value(result)
        if left is None or right is None:
            found.append(None)
        else:
            # answers are rounded to cents
            found.append(math.isclose(left, right, rel_tol=1e-3, abs_tol=0.01))
    return found


def _numbers(text: str) -> list[str]:
    return [number.replace(",", "") for number in NUMBER.findall(text)]


def _tidy(expression: str) -> str:
    for sign, plain in (("$", ""), (",", ""), ("x", "*"), ("\\", "")):
        expression = expression.replace(sign, plain)
    expression = re.sub(r"(\d(?:\.\d+)?)\s*%", r"\1/100", expression)
    # 007 is a number on paper, but not in Python
    return re.sub(r"(?<![\d.])0+(?=\d)", "", expression).strip()


def _value(node):
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return node.value
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_value(node.operand)
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        sides = _value(node.left), _value(node.right)
        return OPERATORS[type(node.op)](*sides)
    raise ValueError("not a sum")
