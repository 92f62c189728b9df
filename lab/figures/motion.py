"""How a figure on the screen becomes another one, and what it leaves behind.

Works on a live `FigureWidget` and on a plain `Figure` alike.
"""

COMPARABLE = ("scatter", "bar", "histogram")
LISTS = ("annotations", "shapes", "images", "sliders", "updatemenus")


def bring(figure, shown, wanted, layout):
    """Change `figure` in place from the traces `shown` to those `wanted`.

    Traces are changed where their kind stays, and replaced from the first one
    that differs. The template is never sent again: it would cost 300 ms.
    """
    same = 0
    for old, new in zip(shown, wanted, strict=False):
        if old["type"] != new["type"]:
            break
        same += 1
    if same < len(shown):
        figure.data = figure.data[:same]
    with figure.batch_update():
        pairs = zip(shown[:same], wanted, strict=False)
        for live, (old, new) in zip(figure.data, pairs, strict=True):
            if old is not new:
                gone = dict.fromkeys(old.keys() - new.keys())
                live.update(gone | new)
        if layout is not figure.layout:
            _bring_layout(figure.layout, layout.to_plotly_json())
    if same < len(wanted):
        figure.add_traces(wanted[same:])


def _bring_layout(old, new):
    new.pop("template", None)
    for name in LISTS:
        # an update would merge item by item and keep what is surplus
        items = new.pop(name, ())
        if items or old[name]:
            old[name] = items
    old.update(new)


def ghosts_of(traces):
    """Pale copies of `traces`, to compare the next picture with.

    A heatmap has none, and a trace marked as `backdrop` needs none.
    """
    return [
        _ghost(trace)
        for trace in traces
        if trace["type"] in COMPARABLE and trace.get("meta") != "backdrop"
    ]


def _ghost(trace):
    ghost = {k: v for k, v in trace.items() if not k.startswith("text")}
    ghost.pop("hovertemplate", None)
    ghost |= dict(opacity=0.35, showlegend=False, hoverinfo="skip")
    if trace["type"] == "bar":
        # an outline, so that the bar in front of it stays visible
        colour = trace.get("marker", {}).get("color", "#000000")
        edge = dict(color=colour, width=2)
        ghost |= dict(marker=dict(color="rgba(0,0,0,0)", line=edge))
        ghost["opacity"] = 0.6
    if "mode" in trace:
        modes = [mode for mode in trace["mode"].split("+") if mode != "text"]
        ghost["mode"] = "+".join(modes) or "none"
    return ghost
