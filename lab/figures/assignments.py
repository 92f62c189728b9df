"""Which server got which item: a colour per server, a cell per decision."""

from lab.figures.theme import SERIES, colour, drawn, plain, stepped


def assignments(
    choices,
    servers,
    rows,
    columns,
    title,
    note="",
    row_title="",
    tips=None,
    colours=SERIES,
    room=None,
):
    """A table of choices: choices[row][column] is an index into `servers`.

    `None` leaves a cell empty. `columns` may repeat, as the letters of a text
    do; `tips` adds words to a cell's hover text. `colours` are those of the
    servers, `room` the pixels that the table needs in a panel.
    """
    if len(servers) > len(colours):
        raise ValueError(
            f"{len(servers)} servers are more than there are colours; "
            f"give 1 to {len(colours)}"
        )
    choices = [plain(row) for row in plain(choices)]
    count = len(servers)
    words = [["" if i is None else servers[i] for i in row] for row in choices]
    if tips:
        pairs = zip(words, tips, strict=True)
        words = [
            [f"{w} {t}" for w, t in zip(row, more, strict=True)]
            for row, more in pairs
        ]
    cells = dict(
        type="heatmap",
        z=choices,
        text=words,
        zmin=-0.5,
        zmax=count - 0.5,
        colorscale=stepped([colour(c) for c in colours[:count]]),
        xgap=1,
        ygap=2,
        hovertemplate="%{text}<extra></extra>",
        hoverongaps=False,
        colorbar=dict(
            tickvals=list(range(count)),
            ticktext=list(servers),
            thickness=12,
            outlinewidth=0,
            tickfont=dict(size=11),
        ),
    )
    # a tick costs the browser time, even one without a name
    named = [place for place, sign in enumerate(columns) if sign]
    x = dict(
        tickvals=named,
        ticktext=[_visible(columns[place]) for place in named],
        tickangle=0,
        tickfont=dict(size=11.5),
        showline=False,
        fixedrange=True,
        # otherwise plotly leaves out labels that it thinks are crowded
        ticklabelstep=1,
    )
    y = dict(
        title_text=row_title,
        tickvals=list(range(len(rows))),
        ticktext=list(rows),
        range=[len(rows) - 0.5, -0.5],
        showgrid=False,
        fixedrange=True,
    )
    height = 150 + 25 * len(rows)
    meta = dict(room=room) if room else None
    return drawn(
        [cells], title, note, x, y, height, showlegend=False, meta=meta
    )


def _visible(sign):
    return {"\n": "⏎", " ": "␣", "<": "&lt;", "&": "&amp;"}.get(sign, sign)
