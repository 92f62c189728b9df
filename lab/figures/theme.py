"""One look for every figure: the palette, the template, the title.

The colours are Okabe and Ito's, which colour-blind readers can tell apart. A
thing keeps its colour in all chapters, so ask for it by what it is:
`COLOURS["kept"]`. Figures that show arms of a comparison use `SERIES`.
"""

import re
import textwrap

import plotly.graph_objects as go
import plotly.io as pio

COLOURS = {
    "kept": "#0072B2",  # chosen, taken, sent
    "dropped": "#C4CAD1",  # not chosen
    "null": "#CC79A7",  # chosen, but does nothing
    "best": "#009E73",  # the one to look at
    "baseline": "#5F6B78",  # what it is compared with
    "cut": "#D55E00",  # a threshold, a bound, a claim
    "mean": "#E69F00",  # what was measured, on average
    "ink": "#22303C",
    "quiet": "#6A7581",  # small print, dark enough to be read on white
    "faint": "#8A94A0",  # lines that must not stand out
    "grid": "#E7EAEE",
    "paper": "#FFFFFF",
}
SERIES = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")

# from nothing to much, readable in grey; the pale one carries dark letters
SCALE = [
    [0.0, "#F3F6F9"],
    [0.25, "#C3DAEA"],
    [0.5, "#7FB5D5"],
    [0.75, "#2F83B5"],
    [1.0, "#0A3A5C"],
]
PALE = [[0.0, "#F5F7F9"], [0.5, "#B4D4E7"], [1.0, "#5FA8D0"]]

AXIS = re.compile(r"[xy]axis\d*$")
LINE = 76  # characters of a title that fit beside the file browser
NARROW = 44  # the same in one of two panels


def _template():
    axis = dict(
        gridcolor=COLOURS["grid"],
        linecolor=COLOURS["faint"],
        zeroline=False,
        ticks="",
        automargin=True,
        # otherwise each redraw measures all labels, to hide those too long
        ticklabeloverflow="allow",
        title=dict(standoff=8, font=dict(size=13)),
        tickfont=dict(size=12),
    )
    return go.layout.Template(
        layout=dict(
            font=dict(
                family="Helvetica Neue, Helvetica, Arial, sans-serif",
                size=13,
                color=COLOURS["ink"],
            ),
            colorway=SERIES,
            paper_bgcolor=COLOURS["paper"],
            plot_bgcolor=COLOURS["paper"],
            barmode="overlay",
            bargap=0.25,
            hovermode="closest",
            modebar=dict(
                # the last one would upload the figure
                remove=[
                    *["select2d", "lasso2d", "zoomin", "zoomout"],
                    "sendChartToCloud",
                ],
                orientation="v",
            ),
            hoverlabel=dict(font=dict(size=12)),
            title=dict(
                font=dict(size=15.5),
                x=0,
                xref="container",
                xanchor="left",
                y=1,
                yref="container",
                yanchor="top",
                pad=dict(l=14),
            ),
            legend=dict(
                orientation="h",
                font=dict(size=12),
                x=0,
                y=0,
                yref="container",
                yanchor="bottom",
            ),
            xaxis=dict(axis, showgrid=False, showline=True),
            yaxis=axis,
        )
    )


pio.templates["routing-lab"] = _template()
pio.templates.default = "routing-lab"


def colour(role):
    """The colour of `role`; a colour passes through unchanged."""
    return COLOURS.get(role, role)


def drawn(
    traces,
    title,
    note="",
    x=None,
    y=None,
    height=360,
    showlegend=True,
    margin=None,
    **layout,
):
    """The figure of `traces`, with title, a quiet second line, and margins.

    The margins are counted from the lines that the title needs, so nothing is
    cut off; the legend lies flat below the x axis, where nothing else is.
    Everything is passed in one call, because changing a figure afterwards is
    ten times slower than building it, and a slider waits for it.
    """
    text = _two_voices(wrapped(title, LINE), wrapped(note, LINE + 12))
    # plotly puts a title of several lines higher than one of a single line
    pad = dict(t=26 if "<br>" in text else 14)
    axes = {key: layout.pop(key) for key in [*layout] if AXIS.match(key)}
    axes |= dict(xaxis=x or {}, yaxis=y or {})
    return go.Figure(
        # the check takes as long as the rest of a move, and the tests check
        # all archetypes
        _validate=False,
        data=traces,
        layout=dict(
            title=dict(text=text, pad=pad),
            margin=margins(title, note, showlegend) | (margin or {}),
            height=height,
            showlegend=showlegend,
            **{key: _axis(**axis) for key, axis in axes.items()},
            **layout,
        ),
    )


def margins(title, note="", showlegend=True):
    """Pixels around a figure with this title and quiet second line."""
    top = 26 + 20 * (1 + wrapped(title, LINE).count("<br>"))
    if note:
        top += 16 * (1 + wrapped(note, LINE + 12).count("<br>"))
    return dict(l=64, r=24, t=top, b=86 if showlegend else 54)


def _axis(title_text=None, **axis):
    """An axis in the form that plotly.js wants, with its title in full."""
    return axis | dict(title=dict(text=title_text)) if title_text else axis


def of_a_plane(values, room, title_text=None, **axis):
    """An axis without ticks: a place, not a quantity, is drawn along it.

    A share `room` of the span of `values` is left free at both ends.
    """
    free = room * (max(values) - min(values) or 1)
    return dict(
        title_text=title_text,
        range=[min(values) - free, max(values) + free],
        showticklabels=False,
        showgrid=False,
        showline=False,
        **axis,
    )


def separate_lines(ends, line, **trace):
    """One trace of lines between pairs of points; `None` lifts the pen."""
    x, y = [], []
    for (x0, y0), (x1, y1) in ends:
        x += [x0, x1, None]
        y += [y0, y1, None]
    return dict(
        type="scatter",
        x=x,
        y=y,
        mode="lines",
        line=line,
        hoverinfo="skip",
        **trace,
    )


def _two_voices(head, foot):
    quiet = f"font-size:12.5px;color:{COLOURS['quiet']}"
    return f"{head}<br><span style='{quiet}'>{foot}</span>" if foot else head


def voices(figure):
    """The title of `figure` and its quiet second line, each on one line."""
    head, _, foot = (figure.layout.title.text or "").partition("<br><span")
    foot = foot.partition(">")[2].removesuffix("</span>")
    return head.replace("<br>", " "), foot.replace("<br>", " ")


def stepped(shades):
    """A colour scale of equal steps, one for each of `shades`."""
    count = len(shades)
    return [
        (edge, shade)
        for i, shade in enumerate(shades)
        for edge in (i / count, (i + 1) / count)
    ]


def error_bars(intervals, shade, thickness, width):
    """The error bars of a trace, from one (mean, low, high) per point."""
    return dict(
        type="data",
        symmetric=False,
        array=[high - mean for mean, _, high in intervals],
        arrayminus=[mean - low for mean, low, _ in intervals],
        color=shade,
        thickness=thickness,
        width=width,
    )


def upright(at):
    """The dashed line of a threshold or an event."""
    return dict(
        type="line",
        x0=at,
        x1=at,
        y0=0,
        y1=1,
        yref="paper",
        line=dict(color=COLOURS["cut"], dash="dash", width=1.5),
    )


def wrapped(text, width):
    """`text` broken at spaces into lines of at most `width` characters.

    Not at hyphens, or joining the lines again would give "look- ahead".
    """
    lines = textwrap.wrap(
        text.replace("<br>", " "),
        width,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return "<br>".join(lines)


def number(value):
    """`value` as a reader would write it: 3 significant digits, no e+03."""
    if isinstance(value, int) or value == int(value):
        return f"{int(value):,}".replace(",", "\u202f")
    # from here on, three digits round to a thousand
    if abs(value) >= 999.5:
        return f"{round(value):,}".replace(",", "\u202f")
    return f"{value:.3g}"


def plain(values):
    """`values` as Python lists, from arrays and tensors too."""
    return values.tolist() if hasattr(values, "tolist") else list(values)
