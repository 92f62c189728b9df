"""What the widgets of a live view lack in the browser."""

import anywidget


class ViewCare(anywidget.AnyWidget):
    """Looks after the view in whose box it lies; itself it shows nothing.

    Sliders get the names that a screen reader says, drop-downs the keys that
    JupyterLab takes for its own shortcuts, and the figure the width of its
    place, but not less than it can be read at.
    """

    _esm = """
    function attend(view) {
      for (const knob of view.querySelectorAll(".widget-slider")) {
        const handle = knob.querySelector("[role=slider]");
        const name = knob.querySelector(".widget-label")?.textContent;
        if (handle && name) handle.ariaLabel = name;
      }
      // below, texts run into each other; a narrower place scrolls
      const figure = view.querySelector(".js-plotly-plot")?.parentElement;
      if (figure) figure.style.minWidth = "700px";
      view.onkeydown = (event) => {
        const plain = !event.ctrlKey && !event.metaKey;
        if (plain && event.target.matches("select")) event.stopPropagation();
      };
    }
    function render({ el }) {
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
