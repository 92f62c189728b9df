"""A figure is live only if somebody can move it."""

import sys
import types

import pytest

from lab import front_end
from lab.front_end import has_front_end


@pytest.fixture(autouse=True)
def nobody(monkeypatch):
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    monkeypatch.delenv("SERVER_SOFTWARE", raising=False)


def test_nobody_looks_at_a_kernel_of_papermill_or_nbval():
    assert not has_front_end()


def test_jupyterlab_names_its_sessions(monkeypatch):
    monkeypatch.setenv("JPY_SESSION_NAME", "chapter.ipynb")
    assert has_front_end()


def test_colab_brings_its_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "google.colab", types.ModuleType("colab"))
    assert has_front_end()


def test_vs_code_leaves_its_mark_in_the_kernel(monkeypatch):
    shell = types.SimpleNamespace(user_ns={"__vsc_ipynb_file__": "a.ipynb"})
    monkeypatch.setattr(front_end, "get_ipython", lambda: shell)
    assert has_front_end()


def test_voila_names_its_server(monkeypatch):
    monkeypatch.setenv("SERVER_SOFTWARE", "voila/0.5.13")
    assert has_front_end()
