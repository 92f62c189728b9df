"""Adds what the widgets of a live view lack in the browser."""

import anywidget


class ViewCare(anywidget.AnyWidget):
    """Looks after the view in whose box it lies, and shows nothing itself.

    Sliders get the names that a screen reader says. Drop-downs get the keys
    that JupyterLab would take for its own shortcuts. The figure gets the
    width of its place, but never less than it needs to be readable.
    """

    _esm = """
    function attend(view) {
      for (const knob of view.querySelectorAll(".widget-slider")) {
        const handle = knob.querySelector("[role=slider]");
        const name = knob.querySelector(".widget-label")?.textContent;
        if (handle && name) handle.ariaLabel = name;
      }
      // texts run into each other below this width; a narrower place scrolls
      const figure = view.querySelector(".js-plotly-plot")?.parentElement;
      if (figure) figure.style.minWidth = "700px";
      view.onkeydown = (event) => {
        const plain = !event.ctrlKey && !event.metaKey;
        if (plain && event.target.matches("select")) event.stopPropagation();
      };
    }
    function render({ el }) {
      // a figure that was drawn before it had a place, or whose place has
      // changed, takes the width of that place
      let wide = 0;
      const place = new ResizeObserver(() => {
        const view = el.closest(".widget-vbox");
        if (view) attend(view);
        const now = el.clientWidth;
        // a place that is out of sight has no width
        if (now === 0 || now === wide) return;
        wide = now;
        window.dispatchEvent(new Event("resize"));
      });
      place.observe(el);
      return () => place.disconnect();
    }
    export default { render };
    """
