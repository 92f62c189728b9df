"""Every chapter runs at other parameters, and refuses a wrong one."""

import json
import re

import pytest

from lab.catalogue import PAGES
from lab.grid import declared
from lab.headless import run_chapter

READY = [one for one in PAGES if one.ready]
each_chapter = pytest.mark.parametrize("one", READY, ids=lambda one: one.name)


def first_number(one):
    """The chapter's first parameter that is a number: the main knob."""
    for parameter in declared(one.path).values():
        if parameter.type in ("int", "float"):
            kind = int if parameter.type == "int" else float
            return parameter, kind(parameter.default)
    raise AssertionError(f"{one.name} has no number among its parameters")


def another_value(parameter, default):
    """A value that the parameter's comment names, `0, 8 or 16`, `1 to 8`."""
    named = [type(default)(x) for x in re.findall(r"\d[\d.]*", parameter.help)]
    return next((x for x in named if x != default), default + 1)


@each_chapter
def test_it_runs_at_other_parameters(one, tmp_path):
    parameter, default = first_number(one)
    value = another_value(parameter, default)
    run = run_chapter(one, {parameter.name: value}, tmp_path)
    assert run.scores, "the notebook recorded no score"
    json.dumps(run.scores, allow_nan=False)
    # a live figure's state would be 5 MB, its picture is not
    assert run.notebook.stat().st_size < 2_000_000


@each_chapter
def test_it_refuses_a_wrong_parameter_at_once(one):
    parameter, default = first_number(one)
    cells = json.loads(one.path.read_text(encoding="utf-8"))["cells"]
    code = {
        cell["id"]: "".join(cell["source"])
        for cell in cells
        if cell["cell_type"] == "code"
    }
    # before any work: no figure, no training
    first = ["install", "parameters", "imports", "check-parameters"]
    assert list(code)[:4] == first
    names = {}
    exec(code["parameters"], names)
    names[parameter.name] = type(default)(-1_000_000_000)
    exec(code["imports"], names)
    with pytest.raises(ValueError, match=parameter.name):
        exec(code["check-parameters"], names)
