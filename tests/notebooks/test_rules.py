"""Every notebook keeps the rules of a chapter; nothing is run here."""

import pytest

from lab.data import ROOT
from lab.structure import notebooks, problems


@pytest.mark.parametrize(
    "path", notebooks(), ids=lambda path: str(path.relative_to(ROOT))
)
def test_a_notebook_keeps_the_rules(path):
    assert problems(path) == []
