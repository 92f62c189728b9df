"""The README shows what the lab computed, and nothing else."""

import re

import pytest

from lab import catalogue, readme
from lab.data import ROOT
from lab.headless import notebook_of


def text():
    return readme.README.read_text(encoding="utf-8")


def test_the_table_is_the_recorded_ledger():
    assert readme.with_ledger(text()) == text(), "run `lab readme`"


def test_every_picture_is_the_one_its_notebook_stores():
    for name, (notebook, cell) in readme.SHOWN.items():
        stored = readme.picture(ROOT / notebook, cell)
        kept = (readme.PICTURES / name).read_bytes()
        assert kept == stored, f"{name}: run `lab readme`"


def test_the_number_of_chapters_that_are_ready_is_said():
    chapters = [one for one in catalogue.PAGES if one.number.isdigit()]
    ready = {one.part for one in chapters if one.ready}
    count = sum(one.ready for one in chapters)
    assert f"{len(chapters)} papers on routing" in text()
    assert f"; {count} are ready, at least one in each of six" in text()
    assert len(ready) == len({one.part for one in chapters}) == 6


def test_every_local_link_leads_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", text()):
        assert "://" in target or (ROOT / target).exists(), target


def test_a_readme_without_its_marks_is_refused():
    with pytest.raises(ValueError, match="lacks the line"):
        readme.with_ledger("# Routing Lab")


def test_a_notebook_without_the_picture_is_named():
    notebook = ROOT / "notebooks" / "00-start-here.ipynb"
    with pytest.raises(
        ValueError, match='no picture in a cell "nowhere"'
    ) as e:
        readme.picture(notebook, "nowhere")
    # the command names the notebook's file, which always works
    (named,) = re.findall("run `lab render (.+)` first", str(e.value))
    assert notebook_of(named) == notebook
