"""What an experiment showed: curves, bars and trade-offs."""

import math
from itertools import pairwise

from lab.figures.theme import (
    COLOURS,
    SERIES,
    colour,
    drawn,
    error_bars,
    number,
    plain,
    upright,
)
from lab.rounding import fixed

FEW = 10  # whole numbers on an axis that has room for every one


def curves(
    x,
    lines,
    title,
    x_title,
    y_title,
    note="",
    colours=None,
    marks=None,
    log="",
):
    """One line for each entry of `lines`, a name and its values over `x`.

    Values that are lists of runs (one list per seed) are drawn as their mean
    with a band from the lowest to the highest run. `marks` maps the names of
    vertical lines to their places. `log` says which axes are logarithmic, "x",
    "y" or "xy"; a logarithmic x is labelled at the values of `x`.
    """
    traces, colours = [], colours or {}
    for place, (name, values) in enumerate(lines.items()):
        shade = colour(colours.get(name, SERIES[place % len(SERIES)]))
        traces += _band_and_line(plain(x), _runs(values), name, shade)
    shapes, labels = [], []
    for name, at in (marks or {}).items():
        shapes.append(upright(at))
        labels.append(
            dict(
                # on a logarithmic axis a text stands at the exponent
                x=math.log10(at) if "x" in log else at,
                y=1,
                yref="paper",
                xanchor="left",
                yanchor="bottom",
                text=name,
                showarrow=False,
                font=dict(color=COLOURS["cut"], size=12),
            )
        )
    return drawn(
        traces,
        title,
        note,
        x=_axis(x_title, "x" in log, plain(x)),
        y=_axis(y_title, "y" in log),
        showlegend=len(lines) > 1,
        shapes=shapes,
        annotations=labels,
    )


def _axis(title, logarithmic, ticks=None):
    if not logarithmic:
        axis = dict(title_text=title)
        # plotly would also label the halves between a few whole numbers
        return axis | dict(dtick=1) if _counts(ticks) else axis
    # 10000 rather than 10k, and 0.001 rather than 1m
    axis = dict(title_text=title, type="log", exponentformat="none")
    return axis if ticks is None else axis | dict(tickvals=ticks)


def _counts(ticks):
    """Whether these are a few whole numbers in a row, such as 1, 2, 3."""
    steps = [b - a for a, b in pairwise(ticks or [])]
    return 0 < len(steps) < FEW and set(steps) == {1} and ticks[0] % 1 == 0


def _band_and_line(x, runs, name, shade):
    """The mean of `runs`, and a band where there are several."""
    columns = list(zip(*runs, strict=True))
    mean = [sum(column) / len(column) for column in columns]
    several = len(runs) > 1
    high = [max(column) for column in columns]
    low = [min(column) for column in reversed(columns)]
    band = dict(
        type="scatter",
        x=[*x, *reversed(x)] if several else [],
        y=[*high, *low] if several else [],
        fill="toself",
        fillcolor=shade,
        opacity=0.18,
        line=dict(width=0),
        mode="lines",
        hoverinfo="skip",
        showlegend=False,
        legendgroup=name,
        meta="backdrop",
    )
    line = dict(
        type="scatter",
        x=x,
        y=mean,
        mode="lines+markers" if len(mean) <= 24 else "lines",
        line=dict(color=shade, width=2.2),
        marker=dict(size=6),
        name=name,
        legendgroup=name,
        hovertemplate="%{x:.4g}: %{y:.4g}<extra>" + name + "</extra>",
    )
    return [band, line]


def trade_off(
    arms,
    between,
    best,
    compute="experts per token",
    quality="bits per character",
    digits=3,
):
    """Quality against compute; lower is better in both.

    `arms` maps each name to its runs, a list of computes and a list of
    qualities, one entry per seed; bars reach from the lowest to the highest
    seed. `between` names the two baselines that the line joins; the line is
    what mixing them would give. The title compares the arm `best` with it.
    """
    points = {n: (_mean(c), _mean(q)) for n, (c, q) in arms.items()}
    (x0, y0), (x1, y1) = (points[name] for name in between)
    x, y = points[best]
    line = y0 + (y1 - y0) * (x - x0) / (x1 - x0) if x1 != x0 else y0
    traces = [
        dict(
            type="scatter",
            x=[x0, x1],
            y=[y0, y1],
            mode="lines",
            line=dict(color=COLOURS["baseline"], dash="dot", width=1.5),
            name=f"mixing {between[0]} and {between[1]}",
            hoverinfo="skip",
            meta="backdrop",
        )
    ]
    shades = {
        n: COLOURS["baseline" if n in between else "kept"] for n in arms
    } | {best: COLOURS["best"]}
    for name, (computes, qualities) in arms.items():
        cx, cy = points[name]
        traces.append(
            dict(
                type="scatter",
                x=[cx],
                y=[cy],
                error_x=_seeds(computes, cx, shades[name]),
                error_y=_seeds(qualities, cy, shades[name]),
                mode="markers",
                marker=dict(size=11, color=shades[name]),
                name=name,
                hovertemplate=(
                    f"{name}: %{{y:.4g}} {quality} at %{{x:.3g}} {compute}"
                    "<extra></extra>"
                ),
            )
        )
    traces.append(_names(arms, between, shades))
    gap = y - line
    title = (
        f"{best}: {y:.{digits}f} {quality} at {number(x)} {compute}, "
        f"{abs(gap):.{digits}f} {'above' if gap > 0 else 'below'} the line"
    )
    note = f"the line mixes {between[0]} and {between[1]}, below it is better"
    if len(arms[best][0]) > 1:
        note += f"; bars: lowest and highest of {len(arms[best][0])} seeds"
    return drawn(
        traces,
        title,
        note,
        x=dict(title_text=compute, range=_room(arms, 0, 0.16)),
        y=dict(title_text=quality, range=_room(arms, 1, 0.2)),
        height=400,
        showlegend=False,
    )


def _names(arms, between, shades):
    """A label for each arm: the baselines' above, the others' beside them."""
    ends = [c for computes, _ in arms.values() for c in computes]
    middle = (min(ends) + 2 * max(ends)) / 3
    places, sides = [], []
    for name, (computes, qualities) in arms.items():
        if name in between:
            places.append((_mean(computes), max(qualities)))
            sides.append("top center")
        elif _mean(computes) > middle:
            places.append((min(computes), _mean(qualities)))
            sides.append("middle left")
        else:
            places.append((max(computes), _mean(qualities)))
            sides.append("middle right")
    return dict(
        type="scatter",
        x=[x for x, _ in places],
        y=[y for _, y in places],
        mode="text",
        # the spaces keep the label off the marker
        text=[
            f"{n}<br> " if n in between else f"\u2003{n}\u2003" for n in arms
        ],
        textposition=sides,
        textfont=dict(color=[shades[n] for n in arms], size=13),
        cliponaxis=False,
        hoverinfo="skip",
        meta="backdrop",
    )


def bars(values, title, unit, best="", at=None, note="", digits=2):
    """One bar for each entry of `values`, a name and its number.

    `best` is the one to look at; `at` is a bound, drawn as a line.
    """
    names = list(values)
    reach = [*values.values(), at or 0]
    least = min(0, *reach)
    # a label left of a negative bar must not run into the names
    low = min(1.2 * least, least - 0.2 * max(reach)) if least else 0
    # plotly would extend a range of length 0 to negative values
    high = 1.2 * max(reach) or (0 if low else 1)
    row = dict(
        type="bar",
        x=list(values.values()),
        y=names,
        orientation="h",
        marker=dict(
            color=[COLOURS["best" if n == best else "baseline"] for n in names]
        ),
        text=[fixed(v, digits) for v in values.values()],
        textposition="outside",
        cliponaxis=False,
        hovertemplate=f"%{{y}}: %{{x:.4g}} {unit}<extra></extra>",
    )
    return drawn(
        [row],
        title,
        note,
        x=dict(title_text=unit, range=[low, high]),
        y=dict(autorange="reversed", showgrid=False),
        height=150 + 34 * len(names),
        showlegend=False,
        bargap=0.35,
        shapes=[] if at is None else [upright(at)],
    )


def _mean(values):
    return sum(values) / len(values)


def _runs(values):
    values = plain(values)
    nested = values and hasattr(values[0], "__len__")
    return [plain(v) for v in values] if nested else [values]


def _seeds(runs, mean, shade):
    """The bar from the lowest to the highest run."""
    return error_bars([(mean, min(runs), max(runs))], shade, 1.5, 4)


def _room(arms, axis, share):
    """The range of one axis with room around it for the labels."""
    values = [v for runs in arms.values() for v in runs[axis]]
    low, high = min(values), max(values)
    room = share * (high - low or 1)
    return [low - room, high + room]
