"""Shows the source of a piece of the package, with its place."""

import inspect
import linecache
import textwrap
from pathlib import Path

from lab.data import ROOT


class Source:
    """The source of one object; a notebook renders it with colours."""

    def __init__(self, place, code):
        self.place, self.code = place, code

    def _repr_markdown_(self):
        # Markdown follows the reader's theme and a code host renders it too
        return f"`{self.place}`\n\n```python\n{self.code}\n```"

    def __repr__(self):
        return f"# {self.place}\n{self.code}"


def show_source(shown):
    """The source of a function, a class or a Triton kernel of the package.

    Works for kernels, be they compiled, interpreted or tuned, and for
    operators and functions behind decorators: the innermost Python function
    is shown.
    """
    inner = unwrapped(shown)
    try:
        linecache.checkcache()
        lines, first = inspect.getsourcelines(inner)
        path = Path(inspect.getsourcefile(inner)).resolve()
    except (TypeError, OSError):
        name = getattr(shown, "__name__", repr(shown))
        raise ValueError(
            f"{name} has no Python source to show; "
            "give a function, a class or a kernel of the package"
        ) from None
    place = path
    if path.is_relative_to(ROOT):
        place = path.relative_to(ROOT).as_posix()
    code = textwrap.dedent("".join(lines)).rstrip()
    return Source(f"{place}, line {max(first, 1)}", code)


def unwrapped(shown):
    """The Python function inside a kernel, an operator or a decorator."""
    seen = set()
    while id(shown) not in seen:
        seen.add(id(shown))
        for name in ("__wrapped__", "fn", "_init_fn", "func"):
            inner = getattr(shown, name, None)
            if callable(inner) and not inspect.isclass(shown):
                shown = inner
                break
    return shown
