"""A newcomer opens notebook 00, runs it, moves a knob and turns the map."""

import pytest

LAPTOP = dict(width=1440, height=900)


@pytest.fixture(scope="module")
def notebook(start, open_notebook, notebooks):
    server = start(notebooks)
    notebook = open_notebook(server, "00-start-here.ipynb", **LAPTOP)
    notebook.run_all()
    return notebook


def titles(notebook):
    return [one["title"] for one in notebook.figures()]


def live(notebook):
    # nothing while the figure has not been drawn yet
    return next((t for t in titles(notebook) if "is asked by" in t), "")


def wait_for(notebook, text):
    for _ in range(600):
        # figures above that are drawn late push this one out of sight, and
        # JupyterLab removes cells that are out of sight from the page
        notebook.slider("balance").scroll_into_view_if_needed()
        if text in live(notebook):
            return
        notebook.page.wait_for_timeout(50)
    raise AssertionError(f"the title stays {live(notebook)!r}")


def test_all_cells_run_and_four_figures_are_drawn(notebook, screenshots):
    notebook.screenshot(screenshots, "start-here", whole=True)
    assert notebook.errors() == []
    for _ in range(200):
        if len(titles(notebook)) == 4:
            break
        notebook.page.wait_for_timeout(50)
    assert len(titles(notebook)) == 4


def test_balance_empties_the_crowded_expert(notebook, screenshots):
    wait_for(notebook, "Expert A is asked by 11 of 12 words; 3 of 24")
    notebook.press("balance", "End")
    wait_for(notebook, "Every expert is asked by 6 of 12 words; none of 24")
    notebook.screenshot(screenshots, "start-here-balanced")
    notebook.press("capacity", "Home")
    wait_for(notebook, "20 of 24 requests turned away")
    notebook.press("balance", "Home")
    wait_for(notebook, "Expert A is asked by 11")


def test_a_button_turns_the_map_without_the_kernel(notebook, screenshots):
    def spots():
        return [
            (trace["x"], trace["y"])
            for one in notebook.figures()
            if one["title"].startswith("The atlas")
            for trace in one["traces"]
        ]

    before = spots()
    notebook.panel.get_by_text("what is routed × who decides").click()
    notebook.page.wait_for_timeout(500)
    assert spots() != before
    notebook.screenshot(screenshots, "start-here-atlas", whole=True)


def test_the_table_opens_a_chapter(notebook):
    notebook.panel.get_by_role(
        "link", name="AdaMoE: experts that do nothing"
    ).click()
    tab = notebook.page.locator(".lm-TabBar-tabLabel", has_text="02-adamoe")
    tab.wait_for()
