"""How a figure on the screen becomes another one, and what it leaves behind.

Works on a live `FigureWidget` and on a plain `Figure` alike.
"""

from typing import NamedTuple

from lab.figures.theme import COLOURS

COMPARABLE = ("scatter", "bar", "histogram")
LISTS = ("annotations", "shapes", "images", "sliders", "updatemenus")


class Picture(NamedTuple):
    """What a figure shows, as plain dictionaries."""

    traces: list
    layout: dict  # without the template


def picture(figure):
    """What `figure` shows, without the template, which costs 300 ms a move."""
    layout = figure.layout.to_plotly_json()
    layout.pop("template", None)
    # never drawn, only set by `bring`
    layout.pop("autosize", None)
    traces = [trace.to_plotly_json() for trace in figure.data]
    for trace in traces:
        # a live figure adds it, so that its front end knows the trace
        trace.pop("uid", None)
    return Picture(traces, layout)


def bring(figure, before, after):
    """Change `figure` in place from the picture `before` to `after`.

    Only what differs is touched, down to the last branch, because checking a
    value costs plotly a hundred times as much as comparing it does. Traces are
    replaced from the first one whose kind differs.
    """
    same = 0
    for old, new in zip(before.traces, after.traces, strict=False):
        if old["type"] != new["type"]:
            break
        same += 1
    if same < len(before.traces):
        figure.data = figure.data[:same]
    with figure.batch_update():
        pairs = zip(before.traces[:same], after.traces, strict=False)
        for live, (old, new) in zip(figure.data, pairs, strict=True):
            live.update(_changes(old, new))
        changes = _changes(before.layout, after.layout)
        if "height" in changes:
            # given only a height, plotly.js fixes the width as well; Python's
            # own value is dropped, or it would not be sent again
            figure._layout.pop("autosize", None)
            changes["autosize"] = True
        for name in changes.keys() & set(LISTS):
            new = changes.pop(name) or ()
            _bring_list(figure.layout, name, before.layout.get(name, ()), new)
        figure.layout.update(changes)
    if same < len(after.traces):
        figure.add_traces(after.traces[same:])


def _bring_list(layout, name, old, new):
    """Change the annotations, shapes ... of ``layout`` from ``old``."""
    if len(old) != len(new):
        # an update would keep surplus items
        layout[name] = new
        return
    for live, one, other in zip(layout[name], old, new, strict=True):
        if changes := _changes(one, other):
            live.update(changes)


def _changes(old, new):
    """The update that turns ``old`` into ``new``; None removes an entry."""
    changed = {
        name: _change(name, old.get(name), value)
        for name, value in new.items()
        if not _equal(old.get(name), value)
    }
    return dict.fromkeys(old.keys() - new.keys()) | changed


def _change(name, old, new):
    # meta is the one property that may hold anything, so it is replaced whole
    if name != "meta" and isinstance(old, dict) and isinstance(new, dict):
        return _changes(old, new)
    return new


def _equal(one, other):
    if one is other:
        return True
    try:
        return bool(one == other)
    except ValueError:
        # arrays compare item by item
        return False


def ghosts_of(traces):
    """Pale copies of `traces`, to compare the next picture with.

    A heatmap has none, and a trace marked as `backdrop` needs none.
    """
    return [
        _ghost(trace)
        for trace in traces
        if trace["type"] in COMPARABLE and trace.get("meta") != "backdrop"
    ]


def beside(new, ghosts):
    """The picture `new` with the traces of `ghosts` over it.

    A fixed range grows where a ghost would leave it: a bar that the edge
    cuts off looks shorter than it is.
    """
    layout = dict(new.layout)
    for side in "xy":
        for ref in {one.get(f"{side}axis", side) for one in ghosts.traces}:
            name = f"{side}axis{ref[1:]}"
            axis, other = new.layout.get(name, {}), ghosts.layout.get(name, {})
            if axis.get("range") and other.get("range"):
                ends = sorted([*axis["range"], *other["range"]])
                wide = [ends[0], ends[-1]]
                if axis["range"][0] > axis["range"][1]:
                    wide.reverse()
                layout[name] = axis | {"range": wide}
    return Picture(new.traces + ghosts.traces, layout)


def _ghost(trace):
    ghost = {k: v for k, v in trace.items() if not k.startswith("text")}
    ghost.pop("hovertemplate", None)
    ghost |= dict(opacity=0.35, showlegend=False, hoverinfo="skip")
    if trace["type"] == "bar":
        # a dark outline shows on paper and on the bar that it lies on
        edge = dict(color=COLOURS["ink"], width=1.5)
        ghost |= dict(marker=dict(color="rgba(0,0,0,0)", line=edge))
        ghost["opacity"] = 0.6
    if "mode" in trace:
        modes = [mode for mode in trace["mode"].split("+") if mode != "text"]
        ghost["mode"] = "+".join(modes) or "none"
    return ghost
