"""A chain of suppliers by distance, lit up to the horizon, and who answers."""

from lab.figures.theme import COLOURS, drawn, of_a_plane, separate_lines

NAMED = 96  # letters of the names that fit below one row of actors
ROOM = 330  # pixels of the chain's height
# along an edge, and above its straight line
STRAIGHT = ((0, 0), (1, 0))
BOW = ((0, 0), (0.2, 0.1), (0.5, 0.15), (0.8, 0.1), (1, 0))
CLEAR = "rgba(0,0,0,0)"
HALO = ", ".join(["0 0 3px white"] * 4)  # so that lines do not cross a name
SHORT = 22  # letters of a name beside a bar


def horizon(
    rows, edges, names, seen, known, title, note="", h=1, sizes=None, public=()
):
    """The actors of a chain, one row for each step from the first.

    `rows` holds the actors of each row from left to right, `edges` pairs of
    an actor and its supplier, and `names` all names. Who is in `seen` is lit,
    and so are the edges from those in `known`, whose lists are known. The
    dashed line lies behind `h` steps; `public` are those who disclose.
    """
    at = {
        v: ((place + 0.5) / len(row), step)
        for step, row in enumerate(rows)
        for place, v in enumerate(row)
    }
    lit = [e for e in edges if e[0] in known]
    dark = [e for e in edges if e[0] not in known]
    first, rest = rows[0][0], [v for row in rows[1:] for v in row]
    shown = _with_room(rows, names)
    groups = {
        "the product": ("best", [first]),
        "in view": ("kept", [v for v in rest if v in seen]),
        "beyond the horizon": (
            "dropped", [v for v in rest if v not in seen]
        ),
    }  # fmt: skip
    traces = [
        _ways(at, dark, "#D9DDE2", 0.9),
        _ways(at, lit, "#9CC3DF", 1.1),
        *(
            _actors(at, members, name, role, names, shown, sizes)
            for name, (role, members) in groups.items()
        ),
        _rings(at, [v for v in public if v in at], sizes),
    ]
    last = len(rows) - 1
    line = dict(
        type="line", x0=0, x1=1, xref="paper", y0=h + 0.5, y1=h + 0.5,
        line=dict(color=COLOURS["cut"], dash="dash", width=1.5),
    )  # fmt: skip
    said = dict(
        text="horizon", x=1, xref="paper", xanchor="right", y=h + 0.5,
        yanchor="bottom", showarrow=False,
        font=dict(color=COLOURS["cut"], size=12),
    )  # fmt: skip
    short = h < last
    return drawn(
        traces,
        title,
        note,
        x=of_a_plane([0, 1], 0.01, fixedrange=True),
        y=dict(
            title_text="steps up the chain",
            range=[last + 0.55, -0.55],
            tickvals=list(range(len(rows))),
            showgrid=False,
            fixedrange=True,
        ),
        height=ROOM + 150,
        meta=dict(room=ROOM),
        shapes=[line] if short else [],
        annotations=[said] if short else [],
    )


def _size(sizes, v):
    return sizes[v] if sizes else 9


def _ways(at, edges, shade, width):
    """Edges as one trace; one within a row makes a bow, so that it shows."""
    x, y = [], []
    for u, v in edges:
        (x0, y0), (x1, y1) = at[u], at[v]
        for t, rise in BOW if y0 == y1 else STRAIGHT:
            x.append(x0 + t * (x1 - x0))
            y.append(y0 + t * (y1 - y0) - rise)
        x.append(None)
        y.append(None)
    line = dict(color=shade, width=width)
    return separate_lines([], line) | dict(x=x, y=y, showlegend=False)


def _actors(at, members, name, role, names, shown, sizes):
    return dict(
        type="scatter",
        x=[at[v][0] for v in members],
        y=[at[v][1] for v in members],
        mode="markers+text",
        text=[names[v] if v in shown else "" for v in members],
        customdata=[names[v] for v in members],
        textposition="bottom center",
        textfont=dict(size=11, color=COLOURS["ink"], shadow=HALO),
        marker=dict(
            size=[_size(sizes, v) for v in members],
            color=COLOURS[role],
            line=dict(width=1, color=COLOURS["paper"]),
            opacity=1,
        ),
        name=name,
        showlegend=bool(members),
        hovertemplate="%{customdata}<extra>" + name + "</extra>",
    )


def _rings(at, members, sizes):
    """A ring around those who disclose."""
    return dict(
        type="scatter",
        x=[at[v][0] for v in members],
        y=[at[v][1] for v in members],
        mode="markers",
        marker=dict(
            size=[_size(sizes, v) + 5 for v in members],
            color=CLEAR,
            line=dict(width=2.2, color=COLOURS["mean"]),
        ),
        name="discloses",
        showlegend=bool(members),
        hoverinfo="skip",
    )


def _with_room(rows, names):
    """The actors of rows that have room for their names."""
    return {
        v
        for row in rows
        if sum(len(names[v]) + 3 for v in row) <= NAMED
        for v in row
    }


def answers(true, told, seen, title, note=""):
    """Who is responsible: bars if all lists are known, marks for what is told.

    `true` and `told` map names to percent; bars of names that are not in
    `seen` are grey.
    """
    names = [n if len(n) <= SHORT else n[: SHORT - 1] + "…" for n in true]
    places = list(range(len(names)))
    reach = [*true.values(), *told.values()]
    bar = dict(
        type="bar",
        x=list(true.values()),
        y=places,
        orientation="h",
        marker=dict(
            color=[COLOURS["kept" if n in seen else "dropped"] for n in true]
        ),
        name="all lists known",
        text=list(true),
        textposition="none",
        hovertemplate="%{text}: %{x:.1f} %<extra></extra>",
    )
    mark = dict(
        type="scatter",
        x=[told[n] for n in true],
        y=places,
        mode="markers",
        marker=dict(symbol="diamond", size=9, color=COLOURS["cut"]),
        name="told at this horizon",
        text=list(true),
        cliponaxis=False,
        hovertemplate="%{text}: %{x:.1f} % told<extra></extra>",
    )
    return drawn(
        [bar, mark],
        title,
        note,
        x=dict(
            title_text="% of the responsibility", range=[0, 1.1 * max(reach)]
        ),
        y=dict(
            autorange="reversed",
            showgrid=False,
            tickvals=places,
            ticktext=names,
            # room for a mark at 0
            ticks="outside",
            ticklen=7,
            tickcolor=CLEAR,
        ),
        height=150 + 26 * len(names),
        bargap=0.35,
    )
