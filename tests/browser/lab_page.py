"""JupyterLab in a real browser, with functions for what a reader does.

`Server` starts JupyterLab on a folder, and `Notebook` is one open notebook in
a page. The tests of this folder use them for every chapter.
"""

import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

CHROMIUM = "/usr/bin/chromium"
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
NEWS = "@jupyterlab/apputils-extension:announcements"
# plotly keeps the data and the layout of a drawn figure on its element
FIGURES = """() => [...document.querySelectorAll(".js-plotly-plot")]
  .filter(e => e.offsetParent !== null)
  .map(e => ({
    title: e._fullLayout.title.text,
    shapes: (e.layout.shapes || []).length,
    traces: e._fullData.map(t => ({
      type: t.type, name: t.name, opacity: t.opacity,
      x: t.x ? [...t.x] : null, y: t.y ? [...t.y] : null,
      z: t.z ? [...t.z].map(row => [...row]) : null,
    })),
  }))"""


class Server:
    """JupyterLab on `folder`, with its own settings; use it with `with`."""

    def __init__(self, folder, home):
        self.folder, self.home = Path(folder), Path(home)
        self.token = os.urandom(16).hex()

    def __enter__(self):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        settings = self.home / "labconfig"
        settings.mkdir(parents=True)
        off = {"disabledExtensions": {NEWS: True}}
        (settings / "page_config.json").write_text(json.dumps(off))
        root = Path(__file__).resolve().parents[2]
        self.log = open(self.home / "server.log", "w")
        self.process = subprocess.Popen(
            [
                *[sys.executable, "-m", "jupyterlab", "--no-browser"],
                *["--allow-root", f"--port={port}", "--port-retries=0"],
                f"--ServerApp.root_dir={self.folder}",
                f"--LabApp.workspaces_dir={self.home / 'workspaces'}",
                f"--LabApp.user_settings_dir={self.home / 'settings'}",
            ],
            env=os.environ
            | {
                "JUPYTER_TOKEN": self.token,
                "JUPYTER_CONFIG_DIR": str(self.home),
                "JUPYTER_RUNTIME_DIR": str(self.home / "runtime"),
                "PYTHONPATH": str(root),
                "OMP_NUM_THREADS": "1",
            },
            stdout=self.log,
            stderr=subprocess.STDOUT,
        )
        self._wait()
        return self

    def __exit__(self, *_):
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
        self.log.close()

    def ask(self, what):
        """The server's own answer, such as `ask("api/kernels")`."""
        address = f"{self.url}/{what}?token={self.token}"
        with urllib.request.urlopen(address, timeout=5) as answer:
            return json.load(answer)

    def _wait(self, seconds=90):
        for _ in range(2 * seconds):
            if self.process.poll() is not None:
                break
            try:
                self.ask("api/status")
                return
            except OSError:
                time.sleep(0.5)
        said = (self.home / "server.log").read_text()[-2000:]
        raise RuntimeError(f"JupyterLab did not start; it said: {said}")


class Notebook:
    """The notebook at `path` (below the server's folder) in `page`."""

    def __init__(self, page, server, path):
        self.page = page
        # a fresh workspace, so that nothing of an earlier test is open
        name = re.sub(r"\W", "-", str(path)) + "-" + os.urandom(3).hex()
        page.goto(
            f"{server.url}/lab/workspaces/{name}/tree/{path}"
            f"?token={server.token}"
        )
        self.panel = page.locator(".jp-NotebookPanel:not(.lm-mod-hidden)")
        self.panel.wait_for(timeout=90_000)
        self._wait_for_kernel(server)
        self.wait_until_idle()

    def wait_until_idle(self, timeout=120):
        """Wait for a kernel that has nothing to do."""
        quiet, end = 0, time.monotonic() + timeout
        while time.monotonic() < end:
            self._take_kernel()
            busy = self.panel.locator(".jp-InputArea-prompt").filter(
                has_text="[*]"
            )
            status = self.panel.locator(".jp-Notebook-ExecutionIndicator")
            state = status.first.get_attribute("data-status") or ""
            still = state == "idle" and not busy.count()
            quiet = quiet + 1 if still else 0
            if quiet >= 4:
                return
            time.sleep(0.25)
        raise TimeoutError(f"the kernel was not idle after {timeout} s")

    def _take_kernel(self):
        """Answer the dialog in which a fresh server asks for a kernel."""
        dialog = self.page.locator(".jp-Dialog")
        if dialog.count():
            dialog.locator("button.jp-mod-accept").first.click()

    def _wait_for_kernel(self, server, timeout=120):
        """Wait until the page is connected to a kernel that is idle.

        Before that, the page shows an idle kernel too, but cells that are run
        then may be forgotten.
        """
        kernels, end = [], time.monotonic() + timeout
        while time.monotonic() < end:
            self._take_kernel()
            try:
                kernels = server.ask("api/kernels")
            except OSError:
                # the server cannot answer while a kernel starts
                kernels = []
            for one in kernels:
                if one["connections"] and one["execution_state"] == "idle":
                    return
            self.page.wait_for_timeout(250)
        raise TimeoutError(f"no kernel after {timeout} s, only {kernels}")

    def run_all(self, timeout=180):
        """Run > Run All Cells, and wait until the last one is done."""
        # in the menu, not where a notebook mentions it
        self.page.click(".lm-MenuBar-itemLabel >> text=/^Run$/")
        self.page.click(".lm-Menu-itemLabel >> text=/^Run All Cells$/")
        time.sleep(0.5)
        self.wait_until_idle(timeout)
        self.page.keyboard.press("Escape")

    def errors(self):
        """The texts of all cells that ended in an error."""
        kind = "application/vnd.jupyter.error"
        return self.panel.locator(
            f'[data-mime-type="{kind}"]'
        ).all_inner_texts()

    def figures(self):
        """Title and traces of each drawn figure, as plotly holds them."""
        return self.page.evaluate(FIGURES)

    def live_figure(self):
        """The figure of the widget, the last one if there are several."""
        return self.figures()[-1]

    def slider(self, description):
        """The handle of the slider with this label."""
        box = self.panel.locator(".widget-slider").filter(
            has=self.page.locator(
                ".widget-label", has_text=re.compile(f"^{description}$")
            )
        )
        return box.locator("[role=slider]").first

    def press(self, description, key="ArrowRight", times=1):
        """Move a slider by keyboard."""
        handle = self.slider(description)
        handle.scroll_into_view_if_needed()
        for _ in range(times):
            # press() sets the focus each time: JupyterLab may have moved it
            handle.press(key)

    def at_end(self, description):
        """Whether a slider stands as far right as it goes."""
        now, last = map(
            self.slider(description).get_attribute,
            ("aria-valuenow", "aria-valuemax"),
        )
        return now == last

    def drag(self, description, pixels, steps=20):
        """Move a slider with the mouse, in `steps` small moves."""
        handle = self.slider(description)
        handle.scroll_into_view_if_needed()
        box = handle.bounding_box()
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        mouse = self.page.mouse
        mouse.move(x, y)
        mouse.down()
        mouse.move(x + pixels, y, steps=steps)
        mouse.up()

    def wait_for_title(self, text, timeout=10):
        """Wait until the live figure's title contains `text`."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            title = self.live_figure()["title"]
            if text in title:
                return title
            time.sleep(0.03)
        raise TimeoutError(f"the title is {title!r}, not {text!r}")

    def latencies(self, description, moves=30):
        """Milliseconds from a key press to the changed figure, per move.

        The page's own clock is read, from the key press in the page to the
        redraw that plotly announces.
        """
        handle = self.slider(description)
        handle.scroll_into_view_if_needed()
        handle.focus()
        self.page.evaluate(CLOCK)
        times, keys = [], ["ArrowRight", "ArrowLeft"]
        if self.at_end(description):
            keys.reverse()
        for i in range(moves):
            key = keys[i % 2]
            self.page.evaluate("() => { window.labMoved = null; }")
            self.page.keyboard.press(key)
            self.page.wait_for_function("() => window.labMoved !== null")
            times.append(self.page.evaluate("() => window.labMoved"))
            # until the kernel has reported that it is idle again
            time.sleep(0.15)
        return times

    def screenshot(self, folder, name, whole=False):
        """A picture of the page, or of the live view's cell."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        target = Path(folder) / f"{name}.png"
        cell = self.panel.locator(".jp-Cell").filter(
            has=self.page.locator(".routing-lab-badge")
        )
        if whole or not cell.count():
            self.page.screenshot(path=target)
            return target
        # a tall view needs a tall page, or its lower end is cut off
        size = self.page.viewport_size
        self.page.set_viewport_size(size | {"height": 2000})
        cell.last.scroll_into_view_if_needed()
        self.page.wait_for_timeout(300)
        cell.last.screenshot(path=target)
        self.page.set_viewport_size(size)
        return target


CLOCK = """() => {
  const plots = [...document.querySelectorAll(".js-plotly-plot")]
    .filter(e => e.offsetParent !== null);
  window.labMoved = null;
  document.addEventListener("keydown", () => {
    window.labStart = performance.now();
  }, true);
  // only the live one redraws, wherever it stands among the others
  for (const plot of plots) plot.on("plotly_afterplot", () => {
    if (window.labMoved === null)
      window.labMoved = performance.now() - window.labStart;
  });
}"""
