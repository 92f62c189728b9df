"""Several figures as one, because a notebook can afford one live figure."""

import re
from itertools import count

from lab.figures.theme import (
    COLOURS,
    LINE,
    NARROW,
    drawn,
    margins,
    voices,
    wrapped,
)

WIDTH = 760  # pixels: a notebook beside the file browser
GAP = 90  # pixels between two panels, for axis title and ticks in words
BAR = 66  # pixels that a colour bar takes from its panel
AXES = 62  # pixels below a panel for ticks and axis title
LEGEND = 24  # pixels for its legend, where it has one
REF = re.compile(r"^([xy])( domain)?$")


def panels(grid, title, note=""):
    """One figure from rows of figures; the panels of a row share its width.

    Each keeps its title, axes, shapes, colour bar and legend. A panel has one
    pair of axes, so it cannot be made of panels itself.
    """
    margin = margins(title, note)
    inner = WIDTH - margin["l"] - margin["r"]
    heads = [max(_head(panel, len(row)) for panel in row) for row in grid]
    rooms = [max(_room(panel) for panel in row) for row in grid]
    feet = [max(_foot(panel) for panel in row) for row in grid]
    total = sum(heads) + sum(rooms) + sum(feet) - feet[-1]
    traces, layout = [], dict(shapes=[], annotations=[])
    numbers, top = count(1), total
    for row, head, room, foot in zip(grid, heads, rooms, feet, strict=True):
        top -= head
        wide = (inner - GAP * (len(row) - 1)) / len(row)
        for column, panel in enumerate(row):
            left = column * (wide + GAP)
            bar = BAR if _colour_bar(panel) else 0
            across = [left / inner, (left + wide - bar) / inner]
            down = [max(0, (top - room) / total), top / total]
            suffix = _suffix(next(numbers))
            traces += _traces(panel, suffix, across, down)
            _place(layout, panel, suffix, across, down, total, len(row))
        top -= room + foot
    return drawn(
        traces,
        title,
        note,
        x=layout.pop("xaxis"),
        y=layout.pop("yaxis"),
        height=total + margin["t"] + feet[-1] + 2,
        showlegend=any(p.layout.showlegend for row in grid for p in row),
        margin=dict(b=feet[-1] + 8, t=margin["t"] - 6),
        **layout,
    )


def _traces(panel, suffix, across, down):
    """The traces of `panel` on the axes that end in `suffix`."""
    for trace in panel.data:
        new = trace.to_plotly_json()
        new |= {"xaxis": f"x{suffix}", "yaxis": f"y{suffix}"}
        if trace.type == "heatmap":
            new["colorbar"] = new.get("colorbar", {}) | {
                "x": across[1] + 0.008,
                "y": sum(down) / 2,
                "len": 1.06 * (down[1] - down[0]),
            }
        else:
            new["legend"] = f"legend{suffix}"
        if not panel.layout.showlegend:
            new["showlegend"] = False
        yield new


def _place(layout, panel, suffix, across, down, total, shared):
    """Add axes, shapes, texts and legend of `panel` to `layout`."""
    for side, domain, other in (("x", across, "y"), ("y", down, "x")):
        axis = panel.layout[f"{side}axis"].to_plotly_json()
        axis |= {"domain": domain, "anchor": f"{other}{suffix}"}
        layout[f"{side}axis{suffix}"] = axis
    for kind in ("shapes", "annotations"):
        layout[kind] += [_moved(item, suffix) for item in panel.layout[kind]]
    layout["annotations"].append(
        dict(
            text=_heading(panel, shared),
            x=across[0],
            y=down[1],
            yshift=12,
            xref="paper",
            yref="paper",
            xanchor="left",
            yanchor="bottom",
            align="left",
            showarrow=False,
            font=dict(size=13.5),
        )
    )
    layout[f"legend{suffix}"] = dict(
        x=across[0],
        y=down[0] - (AXES - 16) / total,
        xanchor="left",
        yanchor="top",
        yref="paper",
        orientation="h",
        font=dict(size=11.5),
    )


def _moved(item, suffix):
    """A shape or annotation of a panel, tied to the panel's own axes."""
    item = item.to_plotly_json()
    for key in ("xref", "yref", "axref", "ayref"):
        side = key.removesuffix("ref")[-1]
        found = item.get(key, side if key[0] != "a" else None)
        if found == "paper":
            item[key] = f"{side}{suffix} domain"
        elif found and (match := REF.match(found)):
            item[key] = f"{match[1]}{suffix}{match[2] or ''}"
    return item


def _heading(panel, shared):
    width = LINE if shared == 1 else NARROW
    head, foot = voices(panel)
    head, foot = wrapped(head, width), wrapped(foot, width + 6)
    quiet = f"font-size:11.5px;color:{COLOURS['faint']}"
    return f"{head}<br><span style='{quiet}'>{foot}</span>" if foot else head


def _head(panel, shared):
    return 30 + 17 * (1 + _heading(panel, shared).count("<br>"))


def _room(panel):
    margin = panel.layout.margin
    # a panel that needs more than most says so in its meta
    most = (panel.layout.meta or {}).get("room", 230)
    return max(90, min(most, panel.layout.height - margin.t - margin.b))


def _foot(panel):
    if panel.layout.xaxis.visible is False:
        return 18
    return AXES + (LEGEND if panel.layout.showlegend else 0)


def _colour_bar(panel):
    return any(
        trace.type == "heatmap" and trace.showscale is not False
        for trace in panel.data
    )


def _suffix(number):
    # plotly calls the first axis "x" and the second "x2"
    return "" if number == 1 else str(number)
