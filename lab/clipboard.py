"""A button that copies text in the browser."""

import anywidget
import traitlets


class CopyCommand(anywidget.AnyWidget):
    """A button that copies `command` in the browser, beside its text."""

    command = traitlets.Unicode().tag(sync=True)
    _esm = """
    async function copy(text) {
      try { await navigator.clipboard.writeText(text); return true; }
      catch (error) {
        // a page without https has no clipboard: select and copy instead
        const area = document.createElement("textarea");
        area.value = text;
        document.body.append(area);
        area.select();
        const done = document.execCommand("copy");
        area.remove();
        return done;
      }
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
    }
    export default { render };
    """
