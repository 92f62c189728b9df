"""Every folded solution is right, as it stands, in its own notebook."""

import json
import re
from html import unescape
from textwrap import indent

import pytest

from lab.data import ROOT
from lab.structure import notebooks

SHOWN = re.compile(r"Solution</summary>.*?<(pre|code)>(.*?)</\1>", re.S)
EMPTY = re.compile(r"^    \.\.\.$|(?<=^mine = )\.\.\.", re.M)


@pytest.mark.parametrize(
    "path", notebooks(), ids=lambda path: str(path.relative_to(ROOT))
)
def test_a_solution_put_into_its_cell_is_correct(path, capsys):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    source = {cell["id"]: "".join(cell["source"]) for cell in cells}
    for name in filter(re.compile(r"check-\d").fullmatch, source):
        task = source[name.replace("check", "exercise")]
        solution = unescape(SHOWN.search(task)[2])
        if source[name].startswith("def "):
            if "return " not in solution:
                solution = f"return {solution}"
            solution = indent(solution, "    ")
        names = {}
        exec(source["imports"], names)
        capsys.readouterr()
        exec(EMPTY.sub(lambda _, text=solution: text, source[name]), names)
        assert capsys.readouterr().out == "correct\n", f"{name}: {solution}"
