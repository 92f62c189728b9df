"""Vertices and the edges between them, at given places on a plane."""

import math

from lab.figures.theme import COLOURS, drawn, of_a_plane, plain, separate_lines


def network(
    points,
    edges,
    title,
    note="",
    groups=None,
    sizes=None,
    names=None,
    bold=(),
    dotted=(),
    arrows=(),
    hover="vertex",
):
    """The `edges` (pairs of places in `points`), and the vertices on top.

    `groups` maps a name to a role of the palette and its vertices; later ones
    lie on top. `bold` and `dotted` map a name to a role and pairs: edges to
    look at, and edges that are missing. `arrows` are pairs without a name.
    What is empty is not in the legend.
    """
    points = [tuple(point) for point in plain(points)]
    usual = 26 if names else 9  # pixels across; a name needs room
    groups = groups or {"vertex": ("baseline", range(len(points)))}
    traces = [_lines(points, edges, "edge", "faint", 1.2)]
    traces[0]["showlegend"] = False
    for some, width, dash in ((bold, 3.2, "solid"), (dotted, 1.6, "dot")):
        for name, (role, pairs) in dict(some).items():
            line = _lines(points, pairs, name, role, width, dash)
            traces.append(line | dict(showlegend=bool(pairs)))
    for name, (role, members) in groups.items():
        members = list(members)
        traces.append(
            dict(
                type="scatter",
                x=[points[v][0] for v in members],
                y=[points[v][1] for v in members],
                mode="markers+text" if names else "markers",
                text=[names[v] if names else str(v) for v in members],
                textfont=dict(color=COLOURS["paper"], size=13),
                marker=dict(
                    size=[sizes[v] if sizes else usual for v in members],
                    color=COLOURS[role],
                    line=dict(width=1, color=COLOURS["paper"]),
                    opacity=1,
                ),
                name=name,
                showlegend=bool(members),
                hovertemplate=f"{hover} %{{text}}<extra></extra>",
            )
        )
    heads = [_arrow(points, u, v) for u, v in arrows]
    x, y = zip(*points, strict=True)
    return drawn(
        traces,
        title,
        note,
        x=of_a_plane(x, 0.12),
        y=of_a_plane(y, 0.12),
        height=430,
        annotations=heads,
    )


def _lines(points, edges, name, role, width, dash="solid"):
    """The edges as one trace."""
    ends = [(points[u], points[v]) for u, v in edges]
    line = dict(color=COLOURS[role], width=width, dash=dash)
    return separate_lines(ends, line, name=name)


def _arrow(points, u, v):
    """An arrow beside the line from u to v, shorter than the line."""
    (x0, y0), (x1, y1) = points[u], points[v]
    long = math.dist(points[u], points[v]) or 1
    across = [max(c) - min(c) for c in zip(*points, strict=True)]
    aside = 0.055 * max(across)
    dx, dy = -aside * (y1 - y0) / long, aside * (x1 - x0) / long
    near, far = 0.24, 0.76
    return dict(
        ax=x0 + near * (x1 - x0) + dx,
        ay=y0 + near * (y1 - y0) + dy,
        x=x0 + far * (x1 - x0) + dx,
        y=y0 + far * (y1 - y0) + dy,
        xref="x",
        yref="y",
        axref="x",
        ayref="y",
        text="",
        arrowhead=2,
        arrowsize=1.1,
        arrowwidth=1.8,
        arrowcolor=COLOURS["cut"],
    )
