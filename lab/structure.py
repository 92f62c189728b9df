"""The rules that every notebook keeps, checked without running it.

`problems(path)` returns one sentence for each broken rule. Chapters and
closing notebooks must have fixed cells; the other rules hold for every
notebook.
"""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

from lab.data import ROOT
from lab.rendering import CHECKED, is_normalised

LINES, COLUMNS, EXPLORES = 15, 79, 2
KILOBYTES = 500  # of the whole file, pictures included
CELLS = (
    "title install parameters imports problem first-look formula reference "
    "by-hand grid kernel same roofline explore-md draw explore explore-check "
    "claim-md claim claim-figure verdict limits exercise-1 check-1 "
    "exercise-2 check-2 exercise-3 check-3 onward record"
).split()
# a notebook that compares the chapters of its part has no mechanism of its
# own: its budget, its entrants and its recorded table take that place
CLOSING = (
    "title install parameters imports problem budget entrants by-hand table "
    "explore-md draw explore explore-check claim-md claim claim-figure "
    "verdict limits exercise-1 check-1 exercise-2 check-2 exercise-3 check-3 "
    "onward record"
).split()
PROSE = {"title", "problem", "formula", "explore-md", "claim-md", "limits"}
PROSE |= {"budget", "onward", "exercise-1", "exercise-2", "exercise-3"}
TAGS = {
    "parameters": {"parameters"},
    "by-hand": {CHECKED, "keep_output"},
    "same": {CHECKED, "keep_output"},
    "table": {CHECKED, "keep_output"},
    "verdict": {CHECKED, "keep_output"},
    "roofline": {"nbval-ignore-output"},
}
KNOWN_TAGS = {"nbval-skip", "raises-exception"}.union(*TAGS.values())
WORD = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
PARAMETER = re.compile(r"(\w+): *(int|float|str|bool) = .+?  # \S.*")
PICTURE = re.compile(r"!\[[^\]]*\]\(([^)\s]+)[^)]*\)|<img[^>]*src=\"([^\"]+)")
FORBIDDEN = {
    "import *": re.compile(r"^\s*from .+ import \*", re.M),
    "sys.path": re.compile(r"\bsys\.path\b"),
    "chdir": re.compile(r"\bchdir\("),
    "a warnings filter": re.compile(r"\b(filterwarnings|simplefilter)\("),
}


def notebooks() -> list[Path]:
    """Every notebook of the repository."""
    found = (ROOT / "notebooks").rglob("*.ipynb")
    return sorted(p for p in found if ".ipynb_checkpoints" not in p.parts)


def is_chapter(path: Path) -> bool:
    """Whether `path` is a chapter: in a part's folder, under a number."""
    numbered = re.match(r"\d\d-", path.name)
    return bool(numbered and re.match(r"[1-6]-", path.parent.name))


def is_closing(path: Path) -> bool:
    """Whether `path` closes a part: in its folder, without a number."""
    in_part = re.match(r"[1-6]-", path.parent.name)
    return bool(in_part and not is_chapter(path))


def anatomy(path: Path) -> list[str]:
    """The ids of the fixed cells of the notebook at `path`, in order."""
    if is_chapter(path):
        return CELLS
    return CLOSING if is_closing(path) else []


def problems(path: Path, fixed: list[str] | None = None) -> list[str]:
    """What is wrong with the notebook at `path`, one sentence each.

    `fixed` are the cells that it must have, by default those of its kind.
    """
    fixed = anatomy(path) if fixed is None else fixed
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    for cell in cells:
        cell["source"] = "".join(cell["source"])
        cell.setdefault("id", "")
    found = [*_ids(cells), *_tags(cells), *_code(cells)]
    found += _pictures(cells, path)
    if fixed:
        found += [*_fixed_cells(cells, fixed), *_ends_with_out(cells)]
    size = path.stat().st_size // 1000
    if size > KILOBYTES:
        found.append(f"{size} kB is too large; at most {KILOBYTES}")
    if not is_normalised(path):
        found.append("not in its committed form: run `lab render` on it")
    return found


def _code_cells(cells: list[dict]) -> list[dict]:
    return [cell for cell in cells if cell["cell_type"] == "code"]


def _tags_of(cell: dict) -> set[str]:
    return set(cell.get("metadata", {}).get("tags", []))


def _ids(cells):
    ids = [cell["id"] for cell in cells]
    for name in dict.fromkeys(ids):
        if not WORD.fullmatch(name):
            yield f'cell id "{name}" is not a word; use one such as `draw`'
        if ids.count(name) > 1:
            yield f'cell id "{name}" occurs {ids.count(name)} times'


def _fixed_cells(cells, fixed):
    ids = [cell["id"] for cell in cells]
    yield from (f'cell "{one}" is missing' for one in fixed if one not in ids)
    there = [one for one in ids if one in fixed]
    wanted = [one for one in fixed if one in there]
    for is_, should in zip(there, wanted, strict=False):
        if is_ != should:
            yield f'cell "{should}" should come before "{is_}"'
            break
    for cell in cells:
        name, kind = cell["id"], cell["cell_type"]
        if name in PROSE and kind != "markdown":
            yield f'cell "{name}" should be Markdown'
        # the cell "grid" is a figure, or a sentence that a figure may follow
        if name in fixed and name not in PROSE | {"grid"} and kind != "code":
            yield f'cell "{name}" should be code'
        needed = TAGS.get(name, set()) if name in fixed else set()
        missing = needed - _tags_of(cell)
        if missing:
            tags = ", ".join(sorted(missing))
            yield f'cell "{name}" lacks the tag {tags}'
    if ids and ids[-1] != "record":
        yield 'the last cell should be "record"'


def _tags(cells):
    for cell in cells:
        tags = _tags_of(cell)
        for one in sorted(tags - KNOWN_TAGS):
            yield f'cell "{cell["id"]}" has an unknown tag {one}'
        if (CHECKED in tags) != ("keep_output" in tags):
            yield (
                f'cell "{cell["id"]}" needs both tags, {CHECKED} and '
                "keep_output, or neither"
            )
        if CHECKED in tags and not cell.get("outputs"):
            yield (
                f'cell "{cell["id"]}" is checked but stores no text, '
                "so nothing would be compared: run `lab render`"
            )
    tagged = [c for c in _code_cells(cells) if "parameters" in _tags_of(c)]
    if len(tagged) > 1:
        yield f"{len(tagged)} cells are tagged parameters; papermill takes one"
    for cell in tagged:
        for line in filter(None, cell["source"].split("\n")):
            if not PARAMETER.fullmatch(line):
                yield (
                    f"parameter line `{line}` should read "
                    "`name: int = 2  # what it is, from 1 to 8`"
                )


def _ends_with_out(cells):
    tagged = [c for c in cells if "parameters" in _tags_of(c)]
    lines = tagged[0]["source"].strip().split("\n") if tagged else [""]
    if not lines[-1].startswith('out: str = ""'):
        yield 'the last parameter should be `out: str = ""  # where ...`'


def _code(cells):
    explores, longest, lengths = 0, None, []
    for cell in _code_cells(cells):
        name, lines = cell["id"], cell["source"].split("\n")
        if len(lines) > LINES:
            yield f'cell "{name}" has {len(lines)} lines; at most {LINES}'
        for line in lines:
            if len(line) > COLUMNS:
                yield (
                    f'cell "{name}" has a line of {len(line)} columns; at '
                    f"most {COLUMNS}: {line[:30]}..."
                )
        for what, pattern in FORBIDDEN.items():
            if pattern.search(cell["source"]):
                yield f'cell "{name}" uses {what}'
        for node in ast.walk(_parsed(cell)):
            if isinstance(node, ast.FunctionDef):
                length = node.end_lineno - node.lineno + 1
                lengths.append((node.name, length))
                if node.name == "draw":
                    longest = max(length, longest or 0)
            if isinstance(node, ast.Call):
                explores += getattr(node.func, "id", "") == "explore"
    if explores > EXPLORES:
        yield f"explore is called {explores} times; at most {EXPLORES}"
    for function, length in lengths:
        if longest is not None and length > longest:
            yield (
                f"{function} has {length} lines, more than draw; move it "
                "into the package"
            )


def _parsed(cell: dict) -> ast.Module:
    # a line in IPython's own syntax becomes a `pass` with the same indent
    lines = [
        re.sub(r"^(\s*)[%!].*", r"\1pass", line)
        for line in cell["source"].split("\n")
    ]
    try:
        return ast.parse("\n".join(lines))
    except SyntaxError:
        return ast.Module(body=[], type_ignores=[])


def _pictures(cells, path: Path):
    for cell in cells:
        if cell["cell_type"] != "markdown":
            continue
        if cell.get("attachments"):
            yield f'cell "{cell["id"]}" has a pasted picture; draw it by code'
        for groups in PICTURE.findall(cell["source"]):
            picture = next(filter(None, groups))
            if "://" in picture or picture.startswith("data:"):
                yield f'cell "{cell["id"]}" shows a foreign picture: {picture}'
            elif not (path.parent / picture).is_file():
                yield f'cell "{cell["id"]}" shows {picture}, which is missing'
