"""Items that pass from stage to stage, and which of them change group."""

import math

from lab.figures.theme import COLOURS, SERIES, drawn, plain

WIDTHS = (1.0, 2.5, 5.0, 9.0)  # of the lines, from small flows to large ones
BENDS = 9  # points of one line
KINDS = (("changes the group", "cut"), ("stays on its group", "kept"))


def stage_flow(
    flows,
    groups,
    title,
    note="",
    stage="layer",
    group="GPU",
    least=0.15,
):
    """Lines between the items of neighbouring stages, as thick as the flow.

    `flows[s][i][j]` goes from item i of stage s to item j of the next;
    `groups[s][i]` is the group of an item, and items stand sorted by it. To
    keep the lines few, a flow is left out if it is less than the share `least`
    of all that leaves its item. Widths grow with the square root of the flow;
    otherwise all but the largest would be thin.
    """
    flows, groups = plain(flows), [plain(row) for row in plain(groups)]
    heights = _heights(groups)
    biggest = max((v for s in flows for row in s for v in row), default=1) or 1
    lines = {(kind, width): ([], []) for kind, _ in KINDS for width in WIDTHS}
    for s, table in enumerate(flows):
        for i, row in enumerate(table):
            for j, value in enumerate(row):
                if not value or value < least * sum(row):
                    continue
                same = groups[s][i] == groups[s + 1][j]
                kind = KINDS[int(same)][0]
                xs, ys = lines[kind, _width((value / biggest) ** 0.5)]
                bend = _bend(s, heights[s][i], heights[s + 1][j])
                for to, new in zip((xs, ys), bend, strict=True):
                    to += [*new, None]
    traces = [
        dict(
            type="scatter",
            x=lines[kind, width][0],
            y=lines[kind, width][1],
            mode="lines",
            legendgroup=kind,
            showlegend=False,
            line=dict(color=COLOURS[role], width=width),
            opacity=0.75,
            hoverinfo="skip",
        )
        for kind, role in KINDS
        for width in WIDTHS
    ]
    # a width may have no line at all, so the legend has traces of its own
    traces += [
        dict(
            type="scatter",
            x=[None],
            y=[None],
            mode="lines",
            name=kind.replace("group", group),
            line=dict(color=COLOURS[role], width=5),
        )
        for kind, role in KINDS
    ]
    return drawn(
        [*traces, _items(heights, groups, group)],
        title,
        note,
        x=dict(
            title_text=stage,
            tickvals=list(range(len(groups))),
            range=[-0.15, len(groups) - 0.85],
            showline=False,
        ),
        y=dict(
            title_text=group,
            tickvals=_middles(heights[0], groups[0]),
            ticktext=[str(g) for g in sorted(set(groups[0]))],
            range=[max(map(max, heights)) + 0.6, -0.6],
            showgrid=False,
        ),
        height=440,
        meta=dict(room=300),
    )


def _heights(groups):
    """The height of each item of each stage, sorted by group."""
    heights = []
    for row in groups:
        order = sorted(range(len(row)), key=lambda i: (row[i], i))
        # a gap between groups
        at = {
            item: place + 0.8 * row[item] for place, item in enumerate(order)
        }
        heights.append([at[i] for i in range(len(row))])
    return heights


def _middles(heights, groups):
    """The mean height of each group's items, in one stage."""
    members = {}
    for height, group in zip(heights, groups, strict=True):
        members.setdefault(group, []).append(height)
    return [sum(members[g]) / len(members[g]) for g in sorted(members)]


def _width(share):
    """The narrowest width that stands for at least this share."""
    steps = [(k + 1) / len(WIDTHS) for k in range(len(WIDTHS))]
    return WIDTHS[next(k for k, s in enumerate(steps) if share <= s + 1e-9)]


def _bend(stage, start, end):
    """A smooth line between two items: level at both ends."""
    steps = [k / (BENDS - 1) for k in range(BENDS)]
    rise = [(1 - math.cos(math.pi * t)) / 2 for t in steps]
    return (
        [round(stage + t, 3) for t in steps],
        [round(start + r * (end - start), 3) for r in rise],
    )


def _items(heights, groups, group):
    flat = [g for row in groups for g in row]
    return dict(
        type="scatter",
        x=[s for s, row in enumerate(heights) for _ in row],
        y=[h for row in heights for h in row],
        mode="markers+text",
        text=[str(i) for row in heights for i in range(len(row))],
        textfont=dict(size=9, color=COLOURS["ink"]),
        marker=dict(
            size=17,
            symbol="square",
            color=COLOURS["paper"],
            line=dict(
                width=2.5, color=[SERIES[g % len(SERIES)] for g in flat]
            ),
        ),
        customdata=flat,
        hovertemplate=f"%{{text}} on {group} %{{customdata}}<extra></extra>",
        showlegend=False,
        cliponaxis=False,
        meta="backdrop",
    )
