"""Several small curves of cost and quality against that of one baseline."""

import math

from lab.figures.theme import (
    COLOURS,
    SERIES,
    drawn,
    error_bars,
    number,
    upright,
)

# ten colours for ten curves, the later ones from Paul Tol's muted palette
SHADES = (*SERIES, "#332288", "#882255", "#999933", "#44AA99")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "star")
ROOM = 350  # pixels of the plane's height
LABEL = 15  # pixels between two labels


def fronts(
    curves,
    baseline,
    title,
    note="",
    here=None,
    among=(),
    cost="cost",
    quality="quality",
    ticks=(),
):
    """Curves in the plane of cost and quality; down and left is better.

    `curves` maps each name to its points, dictionaries with ``x``, ``y``,
    ``low``, ``high`` (the ends of a bar) and ``hover``. The `baseline`'s
    points are joined by a straight line, with which the others are compared;
    on the logarithmic axis of the cost it looks bent. `among` are all names
    that there can be, so that each keeps its look while others come and go.
    `here` is a single point, marked by a ring. Where fewer than two `ticks` of
    the cost lie between the points, plotly chooses its own.
    """
    among = [n for n in (among or curves) if n != baseline]
    shown = [p for points in curves.values() for p in points]
    ring = [here] if here else []
    costs = [p["x"] for p in [*shown, *ring]]
    first, last = min(costs), max(costs)
    few = sum(first <= t <= last for t in ticks) < 2
    # around a single cost plotly shows a decade to each side
    own = few and first < last
    low = min(p.get("low", p["y"]) for p in [*shown, *ring])
    high = max(p.get("high", p["y"]) for p in [*shown, *ring])
    room = 0.06 * (high - low or 1)
    span = [low - room, high + room]
    knots = curves.get(baseline, [])
    traces = [_line(knots)]
    for name in [baseline, *among]:
        curve = _curve(name, curves.get(name, []), *_look(name, among))
        if name == baseline:
            curve["mode"] = "markers"
        traces.append(curve)
    traces.append(_ring(here))
    return drawn(
        traces,
        title,
        note,
        x=dict(
            title_text=cost,
            type="log",
            tickmode="auto" if own or not ticks else "array",
            tickvals=list(ticks) or None,
            ticktext=[number(t) for t in ticks] or None,
            exponentformat="none",
        ),
        y=dict(title_text=quality, range=span),
        height=ROOM + 150,
        showlegend=False,
        meta=dict(room=ROOM),
        annotations=list(_labels(curves, among, span)),
    )


def gaps(rows, title, note="", unit="", at=0.0):
    """Intervals below each other; `rows` maps names to (mean, low, high).

    An interval that lies wholly to the left of `at` is better, one wholly to
    the right worse.
    """
    names = list(rows)
    traces = []
    for role in ("best", "baseline", "cut"):
        mine = [n for n in names if _side(*rows[n][1:], at) == role]
        traces.append(
            dict(
                type="scatter",
                mode="markers",
                x=[rows[n][0] for n in mine],
                y=[names.index(n) for n in mine],
                error_x=error_bars(
                    [rows[n] for n in mine], COLOURS[role], 3, 0
                ),
                marker=dict(size=9, color=COLOURS[role]),
                customdata=mine,
                hovertemplate=f"%{{customdata}}: %{{x:+.3f}} {unit}"
                "<extra></extra>",
                name=role,
            )
        )
    bound = upright(at) | dict(line=dict(color=COLOURS["ink"], width=1))
    return drawn(
        traces,
        title,
        note,
        x=dict(title_text=unit, showgrid=True),
        y=dict(
            tickvals=list(range(len(names))),
            ticktext=names,
            range=[len(names) - 0.4, -0.6],
            showgrid=False,
        ),
        height=150 + 21 * len(names),
        showlegend=False,
        shapes=[bound],
        meta=dict(room=21 * len(names)),
    )


def _side(low, high, at):
    if high < at:
        return "best"
    return "cut" if low > at else "baseline"


def _look(name, among):
    """Colour and symbol of a curve, the same whichever others are shown."""
    if name not in among:
        return COLOURS["baseline"], "circle"
    place = among.index(name)
    return SHADES[place % len(SHADES)], SYMBOLS[place % len(SYMBOLS)]


def _line(knots):
    """The straight lines between the knots, bent by the logarithmic axis."""
    x, y = [], []
    for one, other in zip(knots, knots[1:], strict=False):
        for step in range(13):
            share = step / 12
            x.append(one["x"] + share * (other["x"] - one["x"]))
            y.append(one["y"] + share * (other["y"] - one["y"]))
    return dict(
        type="scatter",
        mode="lines",
        x=x,
        y=y,
        line=dict(color=COLOURS["baseline"], dash="dot", width=1.5),
        hoverinfo="skip",
        name="",
        meta="backdrop",
    )


def _curve(name, points, shade, symbol):
    return dict(
        type="scatter",
        mode="lines+markers",
        x=[p["x"] for p in points],
        y=[p["y"] for p in points],
        error_y=error_bars(
            [(p["y"], p["low"], p["high"]) for p in points], shade, 1.2, 3
        ),
        line=dict(color=shade, width=1.6),
        marker=dict(size=9, color=shade, symbol=symbol),
        text=[p["hover"] for p in points],
        hovertemplate="%{text}<extra></extra>",
        name=name,
    )


def _ring(here):
    return dict(
        type="scatter",
        mode="markers",
        x=[here["x"]] if here else [],
        y=[here["y"]] if here else [],
        marker=dict(
            size=17,
            color="rgba(0,0,0,0)",
            line=dict(color=COLOURS["ink"], width=2.5),
        ),
        text=[here["hover"]] if here else [],
        hovertemplate="%{text}<extra></extra>",
        name="here",
        meta="backdrop",
    )


def _labels(curves, among, span):
    """A name at the right end of each curve, moved apart where they meet."""
    ends = [
        (name, max(points, key=lambda p: p["x"]))
        for name, points in curves.items()
        if points
    ]
    step = LABEL * (span[1] - span[0]) / ROOM
    taken = []
    for name, end in sorted(ends, key=lambda one: one[1]["y"]):
        x, y = math.log10(end["x"]), end["y"]
        near = [b for a, b in taken if abs(a - x) < 0.25]
        while any(abs(b - y) < step * 0.99 for b in near):
            y += step
        taken.append((x, y))
        yield dict(
            x=x,
            y=y,
            text=name,
            showarrow=False,
            xanchor="left",
            xshift=8,
            yanchor="bottom",
            font=dict(size=12, color=_look(name, among)[0]),
        )
