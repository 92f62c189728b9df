"""A road map: how full every road is, and which ones were widened."""

import math

from lab.figures.theme import COLOURS, drawn, of_a_plane, plain, separate_lines

# a road this full or fuller: flow over capacity, colour, name
LEVELS = (
    (0.0, "#B9C9D6", "below 0.5"),
    (0.5, "#56B4E9", "0.5 to 1"),
    (1.0, COLOURS["mean"], "1 to 1.5"),
    (1.5, COLOURS["cut"], "1.5 and more"),
)
SIDE = 0.014  # of the map's width, from the middle of a road to each direction
THIN, THICK = 2.6, 5.6
ROOM = 400  # pixels of the map's height


def road_map(points, links, load, wide, title, note=""):
    """The nodes of `points` and one line for each direction of a road.

    `links` holds pairs of node numbers, `load` the flow over capacity of each
    and `wide` whether it was widened, which draws a dark band behind its line.
    Traffic keeps to the right, and so does the line of its direction.
    """
    points, load, wide = plain(points), plain(load), plain(wide)
    side = SIDE * (max(x for x, _ in points) - min(x for x, _ in points) or 1)
    bounds = [low for low, _, _ in LEVELS[1:]] + [math.inf]
    widened = [e for e, more in enumerate(wide) if more]
    band = dict(color=COLOURS["baseline"], width=THICK)
    traces = [_lines(points, links, widened, side, band, "widened")]
    for (low, shade, name), high in zip(LEVELS, bounds, strict=True):
        level = [e for e, full in enumerate(load) if low <= full < high]
        line = dict(color=shade, width=THIN)
        traces.append(_lines(points, links, level, side, line, name))
    traces.append(_names(points))
    traces.append(_middles(points, links, load, wide, side))
    across, along = zip(*points, strict=True)
    return drawn(
        traces,
        title,
        note,
        x=of_a_plane(across, 0.06, "flow over capacity", fixedrange=True),
        y=of_a_plane(along, 0.06, fixedrange=True),
        height=ROOM + 150,
        meta=dict(room=ROOM),
    )


def _ends(points, link, side):
    """The two ends of a link's line, moved to the right of its direction."""
    (x0, y0), (x1, y1) = (points[node] for node in link)
    long = math.hypot(x1 - x0, y1 - y0) or 1
    dx, dy = side * (y1 - y0) / long, -side * (x1 - x0) / long
    return (x0 + dx, y0 + dy), (x1 + dx, y1 + dy)


def _lines(points, links, chosen, side, line, name):
    """The chosen roads as one trace.

    It starts lifted, so that a level without a road stays in the legend.
    """
    ends = [
        [(round(x, 3), round(y, 3)) for x, y in _ends(points, links[e], side)]
        for e in chosen
    ]
    trace = separate_lines(ends, line)
    x, y = [None, *trace["x"]], [None, *trace["y"]]
    return trace | dict(x=x, y=y, name=name)


def _names(points):
    return dict(
        type="scatter",
        x=[x for x, _ in points],
        y=[y for _, y in points],
        mode="markers+text",
        text=[str(node + 1) for node in range(len(points))],
        textfont=dict(size=10, color=COLOURS["ink"]),
        marker=dict(
            size=19,
            color=COLOURS["paper"],
            line=dict(color=COLOURS["faint"], width=1.2),
        ),
        hoverinfo="skip",
        showlegend=False,
    )


def _middles(points, links, load, wide, side):
    """Points without a mark, one on each link, which carry its numbers."""
    spots = [_ends(points, link, side) for link in links]
    return dict(
        type="scatter",
        x=[(one[0] + other[0]) / 2 for one, other in spots],
        y=[(one[1] + other[1]) / 2 for one, other in spots],
        mode="markers",
        marker=dict(size=12, opacity=0),
        text=[
            f"from {i + 1} to {j + 1}: flow / capacity {full:.2f}"
            + (", widened" if more else "")
            for (i, j), full, more in zip(links, load, wide, strict=True)
        ],
        hovertemplate="%{text}<extra></extra>",
        showlegend=False,
    )
