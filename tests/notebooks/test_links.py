"""A link from one notebook to another leads somewhere."""

import json
import re
from urllib.parse import unquote

import pytest

from lab.data import ROOT
from lab.structure import notebooks

LINK = re.compile(r"\]\(([^)\s#]+)[^)]*\)")


@pytest.mark.parametrize(
    "path", notebooks(), ids=lambda path: str(path.relative_to(ROOT))
)
def test_every_file_that_is_linked_exists(path):
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] != "markdown":
            continue
        for target in LINK.findall("".join(cell["source"])):
            if "://" not in target and not target.startswith("mailto:"):
                there = path.parent / unquote(target)
                assert there.is_file(), f'cell "{cell["id"]}": {target}'
