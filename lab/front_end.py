"""Whether anybody looks at this kernel through a front end."""

import os
import sys
from contextlib import contextmanager

from IPython import get_ipython


def has_front_end():
    """Whether somebody is looking: JupyterLab, Colab, VS Code or Voila.

    Papermill and nbval start their kernels without a server, and a figure
    that carries 5 MB of widget state would be wasted on them.
    """
    shell = get_ipython()
    return (
        "JPY_SESSION_NAME" in os.environ
        or "google.colab" in sys.modules
        or (shell is not None and "__vsc_ipynb_file__" in shell.user_ns)
        or os.environ.get("SERVER_SOFTWARE", "").startswith("voila")
    )


@contextmanager
def without_front_end():
    """Hides JupyterLab from the kernels that are started in the `with` block.

    They would otherwise inherit the name of the session that started them.
    """
    name = os.environ.pop("JPY_SESSION_NAME", None)
    try:
        yield
    finally:
        if name is not None:
            os.environ["JPY_SESSION_NAME"] = name
