"""Writes the seven texts of this folder from an installed Python.

    python data/domains/make.py

Needs numpy and plotly beside the standard library. The bytes are those that
lie here with CPython 3.11.7, NumPy 2.4.6 and plotly 7.1.0; other versions
have other texts.
"""

import ast
import encodings
import gzip
import hashlib
import lzma
import os
import sysconfig
from pathlib import Path
from pydoc_data.topics import topics

import numpy
import plotly

CHARACTERS = 150_000  # of each domain
BLOCK = 2_000  # characters, cut at a line break
HERE = Path(__file__).parent

library = Path(os.__file__).parent
include = Path(sysconfig.get_paths()["include"])
pages = Path(encodings.__file__).parent
numpy_folder = Path(numpy.__file__).parent
tables = Path(plotly.__file__).parent / "package_data/datasets"


def read(paths):
    """The files, joined by blank lines."""
    return "\n\n".join(path.read_text("utf-8") for path in paths)


def docstrings(paths):
    """What stands in the docstrings of the files' functions."""
    found = []
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.FunctionDef):
                text = ast.get_docstring(node)
                if text and len(text) > 200:
                    found.append(text)
    return "\n\n".join(found)


def csv(names):
    """The packed tables, one below the other."""
    packed = [(tables / f"{name}.csv.gz").read_bytes() for name in names]
    return "\n".join(gzip.decompress(table).decode() for table in packed)


def spread(text, limit=CHARACTERS):
    """The text with every tenth block moved to the end, to test on."""
    blocks, block = [], ""
    for line in text.splitlines(keepends=True):
        block += line
        if len(block) >= BLOCK:
            blocks.append(block)
            block = ""
    # blocks from all over the text, if there is more of it than we want
    step = max(1, len(blocks) * BLOCK // limit)
    blocks = blocks[::step][: limit // BLOCK]
    test = blocks[9::10]
    learn = [b for i, b in enumerate(blocks) if i % 10 != 9]
    return "".join(learn + test)


MODULES = (
    "argparse bisect calendar copy csv dataclasses difflib enum fractions"
    " functools heapq inspect random shutil statistics textwrap"
).split()
TABLES = "gapminder election carshare stocks tips iris experiment".split()

TEXTS = {
    "python": read(library / f"{name}.py" for name in MODULES),
    "headers": read(sorted(include.glob("*.h"))),
    "prose": "\n\n".join(topics[name] for name in sorted(topics)),
    "tables": csv(TABLES),
    "code pages": read(sorted(pages.glob("cp*.py"))),
    "stubs": read(sorted(numpy_folder.glob("lib/*.pyi"))),
    "docstrings": docstrings(
        [
            numpy_folder / "_core/fromnumeric.py",
            *sorted(numpy_folder.glob("lib/*_impl.py")),
        ]
    ),
}

for domain, text in TEXTS.items():
    kept = spread(text)
    name = domain.replace(" ", "-")
    (HERE / f"{name}.txt.xz").write_bytes(
        lzma.compress(kept.encode("utf-8"), preset=9)
    )
    digest = hashlib.sha256(kept.encode("utf-8")).hexdigest()
    print(f"{name} {len(kept)} of {len(text)} {digest[:16]}")
