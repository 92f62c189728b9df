"""A reader opens a notebook, runs it, and sees the figure follow a slider."""

import statistics

import nbformat
import pytest

IMPORTS = """\
from ipywidgets import Dropdown, FloatSlider, IntSlider
import lab.kernels
from lab import figures
from lab.explore import explore"""
STATIC = """\
figures.first_look(
    {1: [[1, 0], [0, 1]], 2: [[0.5, 0.5], [0.3, 0.7]]},
    "k", {1: "one each", 2: "two each"}, ["t", "h"], ["A", "B"],
)"""
DRAW = """\
def draw(top_k, sharp, loss):
    if top_k == 8:
        raise ValueError("k=8 is more than the 7 experts; use 1 to 7")
    weights = [2.0 ** (-sharp * i) for i in range(7)]
    shares = [w / sum(weights) for w in weights]
    bars = figures.selection_bars(shares, range(top_k))
    counts = [0] * top_k + [100 * sharp, 40, 10]
    load = [[100 * s * (1 + r) for s in shares] for r in range(3)]
    text = "who goes where? " * 12
    return figures.panels(
        [[bars, figures.histogram(counts, expected=2.5)],
         [figures.load_heatmap(load)],
         [figures.text_strip(text, [i % top_k for i in range(len(text))],
                             "experts", "a text", high=8)]],
        f"k = {top_k}, sharpness {sharp:g}, {loss} loss",
        "a line that makes the figure taller" if loss == "ordinary" else "")"""
EXPLORE = """\
view = explore(
    draw,
    chapter="02",
    top_k=IntSlider(value=2, min=1, max=8),
    sharp=FloatSlider(value=0.5, min=0.1, max=2.0, step=0.1),
    loss=Dropdown(options=["null", "ordinary"]),
)"""
CHECK = """\
view.set(top_k=3)
assert view.title.startswith("k = 3")
view.set(top_k=2)"""

WIDTHS = """() => {
  const badge = document.querySelector(".routing-lab-badge");
  const view = badge.closest(".widget-vbox");
  const plot = view.querySelector(".js-plotly-plot");
  return { figure: plot._fullLayout.width, place: view.clientWidth };
}"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("notebooks")
    cells = [IMPORTS, STATIC, DRAW, EXPLORE, CHECK]
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(cell) for cell in cells],
        metadata={
            "kernelspec": {
                "name": "python3",
                "display_name": "Python 3",
                "language": "python",
            }
        },
    )
    nbformat.write(notebook, folder / "small.ipynb")
    return folder


@pytest.fixture(scope="module")
def notebook(start, open_notebook, folder):
    notebook = open_notebook(start(folder), "small.ipynb")
    notebook.run_all()
    return notebook


def test_all_cells_run_and_two_figures_are_drawn(notebook, screenshots):
    notebook.screenshot(screenshots, "small-whole", whole=True)
    assert notebook.errors() == []
    assert len(notebook.figures()) == 2
    assert notebook.live_figure()["title"].startswith("k = 2")
    notebook.screenshot(screenshots, "small-start")


def test_no_button_of_a_figure_uploads_it(notebook):
    buttons = notebook.panel.locator(".modebar-btn")
    names = {
        button.get_attribute("data-title")
        or button.get_attribute("aria-label")
        for button in buttons.all()
    }
    assert any("Download" in name for name in names)
    assert not any("Share" in name for name in names)


def test_a_key_moves_the_figure(notebook, screenshots):
    notebook.press("top k", "ArrowRight", times=2)
    notebook.wait_for_title("k = 4")
    kept = notebook.live_figure()["traces"][0]
    assert kept["x"] == [0, 1, 2, 3]
    notebook.screenshot(screenshots, "small-key")
    notebook.press("top k", "ArrowLeft", times=2)
    notebook.wait_for_title("k = 2")


def test_knobs_have_names_and_drop_downs_their_keys(notebook):
    for name in ("top k", "sharp"):
        notebook.panel.get_by_role("slider", name=name, exact=True).focus()
    chooser = notebook.panel.get_by_role("combobox", name="loss", exact=True)
    chooser.focus()
    cells = notebook.panel.locator(".jp-Cell").count()
    # JupyterLab would go to the next cell and insert a new one
    for key in ("ArrowDown", "b"):
        chooser.press(key)
    notebook.wait_for_title("ordinary loss")
    chooser.press("ArrowUp")
    notebook.wait_for_title("null loss")
    assert notebook.panel.locator(".jp-Cell").count() == cells


def test_dragging_ends_at_the_sliders_last_value(notebook):
    for pixels in (90, -60, 30, -300):
        notebook.drag("sharp", pixels, steps=40)
        end = float(notebook.slider("sharp").get_attribute("aria-valuenow"))
        notebook.wait_for_title(f"sharpness {end:g},")
    assert notebook.live_figure()["title"].startswith("k = 2, sharpness 0.1,")


def test_a_pinned_curve_stays_pale_behind_the_next(notebook, screenshots):
    pin = notebook.panel.get_by_role("button", name="Pin", exact=True)
    count = len(notebook.live_figure()["traces"])
    before = notebook.live_figure()["traces"][0]["y"]
    pin.click()
    notebook.wait_until_idle()
    notebook.press("sharp", "ArrowRight", times=8)
    notebook.wait_for_title("sharpness 0.9")
    traces = notebook.live_figure()["traces"]
    assert len(traces) > count
    assert traces[count]["y"] == before
    assert traces[count]["opacity"] < 1
    notebook.screenshot(screenshots, "small-pinned")
    notebook.panel.get_by_role("button", name="Unpin").click()
    notebook.wait_until_idle()
    assert len(notebook.live_figure()["traces"]) == count


def test_a_failing_draw_is_said_under_the_last_good_picture(
    notebook, screenshots
):
    badge = notebook.panel.locator(".routing-lab-badge")
    notebook.press("top k", "End")
    badge.get_by_text("k=8 is more than the 7 experts").wait_for()
    assert notebook.live_figure()["title"].startswith("k = ")
    notebook.screenshot(screenshots, "small-error")
    notebook.press("top k", "Home")
    notebook.wait_for_title("k = 1")
    badge.get_by_text("top_k = 1").wait_for()
    assert notebook.errors() == []


def test_the_figure_follows_the_width_of_its_place(notebook):
    # plotly.js fixes the width of a figure that is told a height
    chooser = notebook.panel.get_by_label("loss", exact=True)
    for loss in ("ordinary", "null"):
        chooser.select_option(loss)
        notebook.wait_for_title(f"{loss} loss")
    narrow = notebook.page.evaluate(WIDTHS)["place"]
    for _ in range(2):
        # the file browser goes, and comes again
        notebook.page.keyboard.press("Control+b")
        notebook.page.wait_for_function(
            f"() => {{ const now = ({WIDTHS})();"
            f" return now.place !== {narrow} && now.figure === now.place; }}"
        )
        narrow = notebook.page.evaluate(WIDTHS)["place"]


def test_in_a_narrow_place_the_figure_scrolls(notebook):
    # a narrower figure's texts would run into each other
    usual = notebook.page.viewport_size
    notebook.page.set_viewport_size(usual | {"width": 900})
    notebook.page.wait_for_function(f"() => ({WIDTHS})().figure === 700")
    notebook.page.set_viewport_size(usual)
    notebook.page.wait_for_function(f"() => ({WIDTHS})().figure > 700")


def test_the_command_is_copied(notebook):
    notebook.press("top k", "Home")
    notebook.press("top k", "ArrowRight", times=4)
    notebook.wait_for_title("k = 5")
    area = notebook.panel.locator(".routing-lab-command")
    area.get_by_text("top_k 5").wait_for()
    area.get_by_role("button").click()
    area.get_by_text("Copied").wait_for()
    copied = notebook.page.evaluate("() => navigator.clipboard.readText()")
    assert copied.startswith(
        "papermill notebooks/1-tokens/02-adamoe.ipynb out.ipynb -p top_k 5 "
    )
    assert copied == area.locator("code").inner_text()


def test_the_first_look_moves_without_the_kernel(notebook):
    plot = notebook.panel.locator(".js-plotly-plot").first
    plot.scroll_into_view_if_needed()
    ticks = plot.locator(".slider-rail-touch-rect")
    box = ticks.bounding_box()
    notebook.page.mouse.click(
        box["x"] + box["width"] - 3, box["y"] + box["height"] / 2
    )
    notebook.page.wait_for_timeout(500)
    first = notebook.figures()[0]
    assert first["title"] == "two each"
    assert first["traces"][0]["z"] == [[0.5, 0.5], [0.3, 0.7]]


def test_a_move_is_followed_in_a_fraction_of_a_second(
    notebook, record_property
):
    notebook.press("top k", "Home")
    notebook.wait_for_title("k = 1")
    notebook.wait_until_idle()
    median = statistics.median(notebook.latencies("top k"))
    record_property("median_ms", median)
    print(f"median of 30 moves: {median:.0f} ms")
    # 100 ms is the aim on a quiet machine; test machines are not quiet
    assert median < 600
