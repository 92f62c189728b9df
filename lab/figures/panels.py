"""Several figures in one, because a notebook can afford one live figure."""

import re
from itertools import count

from lab.figures.motion import picture
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
MARK = 14  # pixels above a panel for the names of its marks
REF = re.compile(r"^([xy])( domain)?$")


def panels(grid, title, note=""):
    """One figure from rows of figures; the panels of a row share its width.

    Each keeps its title, axes, shapes, colour bar and legend. A panel has one
    pair of axes, so it cannot be made of panels itself.
    """
    margin = margins(title, note)
    inner = WIDTH - margin["l"] - margin["r"]
    headings = [[_heading(panel, len(row)) for panel in row] for row in grid]
    # plotly's own objects are ten times slower than dictionaries
    grid = [[picture(panel) for panel in row] for row in grid]
    above = [max(_above(panel) for panel in row) for row in grid]
    heads = [max(_head(heading) for heading in row) for row in headings]
    rooms = [max(_room(panel) for panel in row) for row in grid]
    feet = [max(_foot(panel) for panel in row) for row in grid]
    total = sum(above) + sum(heads) + sum(rooms) + sum(feet) - feet[-1]
    traces, layout = [], dict(shapes=[], annotations=[])
    numbers, top = count(1), total
    for row, texts, mark, head, room, foot in zip(
        grid, headings, above, heads, rooms, feet, strict=True
    ):
        top -= head + mark
        wide = (inner - GAP * (len(row) - 1)) / len(row)
        for column, (panel, text) in enumerate(zip(row, texts, strict=True)):
            left = column * (wide + GAP)
            bar = BAR if _colour_bar(panel) else 0
            across = [left / inner, (left + wide - bar) / inner]
            down = [max(0, (top - room) / total), top / total]
            suffix = _suffix(next(numbers))
            traces += _traces(panel, suffix, across, down)
            _place(layout, panel, suffix, across, down, total)
            layout["annotations"].append(_placed(text, across, down, mark))
        top -= room + foot
    return drawn(
        traces,
        title,
        note,
        x=layout.pop("xaxis"),
        y=layout.pop("yaxis"),
        height=total + margin["t"] + feet[-1] + 2,
        showlegend=any(_legend(panel) for row in grid for panel in row),
        margin=dict(b=feet[-1] + 8, t=margin["t"] - 6),
        **layout,
    )


def _traces(panel, suffix, across, down):
    """The traces of `panel` on the axes that end in `suffix`."""
    for trace in panel.traces:
        new = trace | {"xaxis": f"x{suffix}", "yaxis": f"y{suffix}"}
        if new["type"] == "heatmap":
            new["colorbar"] = new.get("colorbar", {}) | {
                "x": across[1] + 0.008,
                "y": sum(down) / 2,
                "len": 1.06 * (down[1] - down[0]),
            }
        else:
            new["legend"] = f"legend{suffix}"
        if not _legend(panel):
            new["showlegend"] = False
        yield new


def _place(layout, panel, suffix, across, down, total):
    """Add axes, shapes, texts and legend of `panel` to `layout`."""
    for side, domain, other in (("x", across, "y"), ("y", down, "x")):
        place = {"domain": domain, "anchor": f"{other}{suffix}"}
        axis = panel.layout.get(f"{side}axis", {}) | place
        layout[f"{side}axis{suffix}"] = axis
    for kind in ("shapes", "annotations"):
        items = panel.layout.get(kind, [])
        layout[kind] += [_moved(item, suffix) for item in items]
    layout[f"legend{suffix}"] = dict(
        x=across[0],
        y=down[0] - (AXES - 16) / total,
        xanchor="left",
        yanchor="top",
        yref="paper",
        orientation="h",
        font=dict(size=11.5),
    )


def _placed(heading, across, down, above):
    """The heading of a panel, `above` pixels higher than it would stand."""
    return dict(
        text=heading,
        x=across[0],
        y=down[1],
        yshift=12 + above,
        xref="paper",
        yref="paper",
        xanchor="left",
        yanchor="bottom",
        align="left",
        showarrow=False,
        font=dict(size=13.5),
    )


def _moved(item, suffix):
    """A shape or annotation of a panel, tied to the panel's own axes."""
    item = dict(item)
    for key in ("xref", "yref", "axref", "ayref"):
        side = key.removesuffix("ref")[-1]
        found = item.get(key, side if key[0] != "a" else None)
        if found == "paper":
            item[key] = f"{side}{suffix} domain"
        elif found and (match := REF.match(found)):
            item[key] = f"{match[1]}{suffix}{match[2] or ''}"
    return item


def _heading(figure, shared):
    width = LINE if shared == 1 else NARROW
    head, foot = voices(figure)
    head, foot = wrapped(head, width), wrapped(foot, width + 6)
    quiet = f"font-size:11.5px;color:{COLOURS['quiet']}"
    return f"{head}<br><span style='{quiet}'>{foot}</span>" if foot else head


def _above(panel):
    """Pixels for the texts that stand on the upper edge of `panel`."""
    edge = {"yref": "paper", "yanchor": "bottom"}
    texts = panel.layout.get("annotations", [])
    return MARK if any(edge.items() <= text.items() for text in texts) else 0


def _head(heading):
    return 30 + 17 * (1 + heading.count("<br>"))


def _room(panel):
    margin = panel.layout["margin"]
    # a panel that needs more than most says so in its meta
    most = panel.layout.get("meta", {}).get("room", 230)
    high = panel.layout["height"] - margin["t"] - margin["b"]
    return max(90, min(most, high))


def _foot(panel):
    if panel.layout.get("xaxis", {}).get("visible") is False:
        return 18
    return AXES + (LEGEND if _legend(panel) else 0)


def _legend(panel):
    return bool(panel.layout.get("showlegend"))


def _colour_bar(panel):
    return any(
        trace["type"] == "heatmap" and trace.get("showscale") is not False
        for trace in panel.traces
    )


def _suffix(number):
    # plotly calls the first axis "x" and the second "x2"
    return "" if number == 1 else str(number)
