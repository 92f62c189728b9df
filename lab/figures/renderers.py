"""Plotly's renderers, imported without a parser that nobody asks.

They import nbformat, which imports jsonschema, which imports rfc3987_syntax
where it is installed (JupyterLab brings it), and that builds the grammar of
web addresses: 1.3 s before the first figure of every notebook, for a check of
addresses in JSON that no figure makes. jsonschema does without it if it is
not there, so here it is not, until the import is over.
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
