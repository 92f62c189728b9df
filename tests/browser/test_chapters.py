"""Every chapter is opened, run, and its first knob moved, as by a reader."""

import pytest

from lab.catalogue import PAGES

READY = [c for c in PAGES if c.ready]


@pytest.fixture(scope="module")
def server(start, notebooks):
    return start(notebooks)


@pytest.mark.parametrize("chapter", READY, ids=lambda c: c.number)
def test_a_chapter_runs_and_its_first_knob_moves_the_figure(
    chapter, server, open_notebook, screenshots
):
    path = chapter.notebook.removeprefix("notebooks/")
    notebook = open_notebook(server, path, width=1440, height=900)
    notebook.run_all(timeout=240)
    assert notebook.errors() == []
    notebook.screenshot(screenshots, f"chapter-{chapter.number}")

    before = notebook.figures()
    assert all(figure["title"] for figure in before)
    knob = notebook.panel.locator(".widget-slider .widget-label").first
    name = knob.inner_text()
    notebook.press(name, "Home" if notebook.at_end(name) else "End")
    # patiently, because the machine may be busy with other tests
    for _ in range(600):
        if notebook.figures() != before:
            break
        notebook.page.wait_for_timeout(50)
    after = notebook.figures()
    moved = [b["title"] for b, a in zip(before, after, strict=True) if b != a]
    assert len(moved) == 1, f"{name} changed {len(moved)} figures"
    assert notebook.errors() == []
    notebook.screenshot(screenshots, f"chapter-{chapter.number}-moved")
    # the kernels, of 300 MB each, would fill a small machine
    notebook.page.context.close()
