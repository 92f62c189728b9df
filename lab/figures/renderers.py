"""Imports plotly's renderers without a parser that nobody needs.

They import nbformat, which imports jsonschema. This imports rfc3987_syntax
if it is installed (JupyterLab brings it). That module builds the grammar of
web addresses, which takes 1.3 s before the first figure of every notebook, for
a check of addresses in JSON that no figure makes. jsonschema does without the
module if it is missing, so it is hidden here until the import is over.
"""

import sys

PARSER = "rfc3987_syntax"

hidden = PARSER not in sys.modules
if hidden:
    sys.modules[PARSER] = None  # "there is no such module"
try:
    import plotly.io._renderers  # noqa: F401
finally:
    if hidden:
        del sys.modules[PARSER]
