"""A browser and a JupyterLab for the tests of this folder."""

import os
import shutil
from pathlib import Path

import pytest
from lab_page import CHROMIUM, FLAGS, Notebook, Server

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def screenshots():
    """The folder for pictures to look at: `build/screenshots`."""
    return Path(os.environ.get("SCREENSHOTS", ROOT / "build/screenshots"))


@pytest.fixture(scope="session")
def notebooks(tmp_path_factory):
    """A copy of the notebooks, because JupyterLab saves what it opens."""
    copy = tmp_path_factory.mktemp("copy") / "notebooks"
    return shutil.copytree(ROOT / "notebooks", copy)


@pytest.fixture(scope="session")
def browser():
    """One headless Chromium for all tests."""
    path = os.environ.get("CHROMIUM", CHROMIUM)
    if not shutil.which(path):
        pytest.skip(f"no browser at {path}; set CHROMIUM to have one used")
    if not shutil.which("jupyter-lab"):
        pytest.importorskip("jupyterlab", reason="JupyterLab is missing")
    api = pytest.importorskip(
        "playwright.sync_api", reason="playwright is missing"
    )
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def start(browser, tmp_path_factory):
    """`start(folder)` returns a running JupyterLab; all stop at the end."""
    running = []

    def start(folder):
        home = tmp_path_factory.mktemp("jupyter") / "home"
        running.append(Server(folder, home).__enter__())
        return running[-1]

    yield start
    for server in running:
        server.__exit__()


@pytest.fixture(scope="module")
def open_notebook(browser):
    """`open_notebook(server, path)` returns a `Notebook` with an idle kernel.

    The page is as wide as a laptop's, and the file browser stays open.
    """
    contexts = []

    def open_notebook(server, path, width=1280, height=900):
        size = {"width": width, "height": height}
        context = browser.new_context(viewport=size)
        context.grant_permissions(["clipboard-read", "clipboard-write"])
        contexts.append(context)
        return Notebook(context.new_page(), server, path)

    yield open_notebook
    for context in contexts:
        context.close()
