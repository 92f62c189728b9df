"""What a live view does in the browser: a button, and what widgets lack."""

import anywidget
import traitlets


class CopyCommand(anywidget.AnyWidget):
    """A button that copies `command` in the browser, beside its text.

    It also looks after the view around it: sliders get the names that a
    screen reader says, drop-downs the keys that JupyterLab takes for its own
    shortcuts, and the figure the width of its place.
    """

    command = traitlets.Unicode().tag(sync=True)
    _esm = """
    async function copy(text) {
      try { await navigator.clipboard.writeText(text); return true; }
      catch (error) {
        // no clipboard for a page without https: select and copy instead
        const area = document.createElement("textarea");
        area.value = text;
        document.body.append(area);
        area.select();
        const done = document.execCommand("copy");
        area.remove();
        return done;
      }
    }
    function attend(view) {
      for (const knob of view.querySelectorAll(".widget-slider")) {
        const handle = knob.querySelector("[role=slider]");
        const name = knob.querySelector(".widget-label")?.textContent;
        if (handle && name) handle.ariaLabel = name;
      }
      view.onkeydown = (event) => {
        const plain = !event.ctrlKey && !event.metaKey;
        if (plain && event.target.matches("select")) event.stopPropagation();
      };
    }
    function render({ model, el }) {
      const button = document.createElement("button");
      const code = document.createElement("code");
      button.className = "jupyter-button widget-button";
      button.style.cssText = "width:auto;margin:2px 8px 2px 2px";
      code.style.cssText = "user-select:all;font-size:12px";
      const name = "Copy papermill command";
      const show = () => {
        code.textContent = model.get("command");
        button.textContent = name;
      };
      button.addEventListener("click", async () => {
        const done = await copy(model.get("command"));
        button.textContent = done ? "Copied" : "Select the text and copy";
        setTimeout(() => { button.textContent = name; }, 1500);
      });
      model.on("change:command", show);
      el.classList.add("routing-lab-command");
      el.append(button, code);
      show();
      // a figure drawn before it had a place, or whose place has changed,
      // takes the width of that place
      let wide = 0;
      const place = new ResizeObserver(() => {
        const view = el.closest(".widget-vbox");
        if (view) attend(view);
        const now = el.clientWidth;
        // out of sight there is no width to take
        if (now === 0 || now === wide) return;
        wide = now;
        window.dispatchEvent(new Event("resize"));
      });
      place.observe(el);
      return () => place.disconnect();
    }
    export default { render };
    """
