"""Pictures that open a chapter: the five steps, and a table that moves."""

from lab.figures.theme import COLOURS, drawn, wrapped

STEPS = ("score", "select", "dispatch", "compute", "combine")


def steps(captions, title, highlight="select"):
    """The five steps of every routing decision, with this chapter's words.

    `captions` says what a step does here; the step that the chapter changes
    is highlighted.
    """
    boxes, labels = [], []
    for place, name in enumerate(STEPS):
        chosen = name == highlight
        boxes.append(
            dict(
                type="rect",
                x0=place - 0.38,
                x1=place + 0.38,
                y0=0.45,
                y1=1,
                fillcolor=COLOURS["kept"] if chosen else "#EEF2F5",
                line=dict(color=COLOURS["faint"], width=0 if chosen else 1),
            )
        )
        labels += _words(place, name, captions.get(name, ""), chosen)
    # shapes have no hover text, so a point in each box carries it
    points = dict(
        type="scatter",
        x=list(range(len(STEPS))),
        y=[0.725] * len(STEPS),
        mode="markers",
        marker=dict(opacity=0, size=40),
        text=[f"{name}: {captions.get(name, '')}" for name in STEPS],
        hovertemplate="%{text}<extra></extra>",
    )
    return drawn(
        [points],
        title,
        x=dict(visible=False, range=[-0.5, 4.5], fixedrange=True),
        y=dict(visible=False, range=[-0.25, 1.05], fixedrange=True),
        height=225,
        showlegend=False,
        margin=dict(l=14, r=14, b=6),
        shapes=boxes,
        annotations=labels,
    )


def _words(place, name, caption, chosen):
    """The name in a step's box, its caption, the arrow leading to it."""
    inside = "#FFFFFF" if chosen else COLOURS["ink"]
    yield dict(
        x=place,
        y=0.725,
        text=f"<b>{name}</b>",
        showarrow=False,
        font=dict(size=15, color=inside),
    )
    yield dict(
        x=place,
        y=0.38,
        yanchor="top",
        text=wrapped(caption, 18),
        showarrow=False,
        font=dict(size=12.5),
    )
    if place:
        yield dict(
            x=place - 0.39,
            ax=place - 0.61,
            y=0.725,
            ay=0.725,
            xref="x",
            yref="y",
            axref="x",
            ayref="y",
            text="",
            arrowhead=2,
            arrowwidth=1.6,
            arrowcolor=COLOURS["faint"],
        )


def first_look(
    tables,
    knob,
    title,
    rows,
    columns,
    row_title="token",
    column_title="expert",
    note="",
):
    """A small table that moves without a kernel: one table per knob value.

    `tables` maps each value of `knob` to a table of weights, in which 0 is a
    cell that was not chosen; `title` maps each value to the title shown then.
    """
    values, frames = list(tables), []
    # one scale for all tables; for weights it ends at 1
    most = max(float(v) for t in tables.values() for row in t for v in row)
    most = max(1.0, most)
    longest = max(title.values(), key=len)
    for value in values:
        head = drawn([], title[value], note).layout.title
        cells = _weights(tables[value], most)
        frames.append(
            dict(name=str(value), data=[cells], layout=dict(title=head))
        )
    figure = drawn(
        [_weights(tables[values[0]], most)],
        longest,
        note,
        x=dict(
            title_text=column_title,
            tickvals=list(range(len(columns))),
            ticktext=[str(c) for c in columns],
            showline=False,
            fixedrange=True,
        ),
        y=dict(
            title_text=row_title,
            tickvals=list(range(len(rows))),
            ticktext=[str(r) for r in rows],
            range=[len(rows) - 0.5, -0.5],
            showgrid=False,
            fixedrange=True,
        ),
        height=205 + 27 * len(rows),
        showlegend=False,
        margin=dict(b=118),
        sliders=[_slider(knob, values)],
    )
    figure.frames = frames
    return figure.update_layout(title=frames[0]["layout"]["title"])


def _slider(knob, values):
    """A slider that shows the frame of each value without a transition."""
    still = dict(
        mode="immediate",
        frame=dict(duration=0, redraw=True),
        transition=dict(duration=0),
    )
    return dict(
        active=0,
        steps=[
            dict(method="animate", label=str(v), args=[[str(v)], still])
            for v in values
        ],
        currentvalue=dict(prefix=f"{knob}: ", font=dict(size=13)),
        pad=dict(t=38, b=0),
        x=0.02,
        len=0.96,
        font=dict(size=12),
        tickcolor=COLOURS["faint"],
        bgcolor=COLOURS["grid"],
        activebgcolor=COLOURS["kept"],
        bordercolor=COLOURS["faint"],
    )


def _weights(table, most):
    """Chosen cells blue by weight with their number, the others blank."""
    return dict(
        type="heatmap",
        z=[[float(v) for v in row] for row in table],
        text=[[_written(v) if v else "·" for v in row] for row in table],
        texttemplate="%{text}",
        textfont=dict(size=13),
        zmin=0,
        zmax=most,
        # a cell that was not chosen is blank, a chosen one is never pale
        colorscale=[(0, "#F1F3F5"), (1e-6, "#A9CDE3"), (1, COLOURS["kept"])],
        showscale=False,
        xgap=3,
        ygap=3,
        hovertemplate="row %{y}, column %{x}: %{z:.3f}<extra></extra>",
    )


def _written(value) -> str:
    """Counts without digits after the point."""
    return str(value) if type(value) is int else f"{value:.2f}"
