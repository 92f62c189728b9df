"""What one token and all tokens chose, and which expert carries the load."""

from lab.figures.theme import COLOURS, PALE, SCALE, drawn, number, plain


def selection_bars(
    probabilities, kept, p=None, nulls=(), names=None, item="this token"
):
    """One item's probabilities, sorted, coloured by what became of each.

    `kept` and `nulls` are indices into `probabilities`; a kept null has a
    colour of its own. With `p`, the running sum is drawn too, and the line at
    which it stops.
    """
    probabilities, kept, nulls = plain(probabilities), set(kept), set(nulls)
    # a stable sort: ties go to the lowest index, as in the kernels
    order = sorted(range(len(probabilities)), key=lambda i: -probabilities[i])
    names = names or ["∅" if i in nulls else str(i) for i in sorted(order)]
    real, idle, rest = kept - nulls, kept & nulls, set(order) - kept
    traces = []
    for role, members in (("kept", real), ("null", idle), ("dropped", rest)):
        places = [x for x, i in enumerate(order) if i in members]
        traces.append(
            dict(
                type="bar",
                x=places,
                y=[probabilities[order[x]] for x in places],
                customdata=[names[order[x]] for x in places],
                name=role,
                marker=dict(color=COLOURS[role]),
                showlegend=role != "null" or bool(nulls),
                hovertemplate="expert %{customdata}: %{y:.3f}<extra></extra>",
            )
        )
    edges = [-0.5, len(order) - 0.5]
    traces += _running_sum([probabilities[i] for i in order], p, edges)
    title = f"{item[:1].upper()}{item[1:]} uses {len(real)} of "
    title += f"{len(order) - len(nulls)} experts"
    if idle:
        title += f" and {len(idle)} that {'does' if len(idle) == 1 else 'do'}"
        title += " nothing"
    mass = sum(probabilities[i] for i in kept)
    note = f"they hold {mass:.2f} of the probability"
    if p is not None:
        note += f"; the smallest set that reaches p = {p:g}"
    x = dict(
        title_text="expert, by falling probability",
        tickvals=list(range(len(order))),
        ticktext=[names[i] for i in order],
        range=edges,
    )
    top = 1.04 if p is not None else 1.15 * max(probabilities)
    y = dict(title_text="probability", range=[0, top])
    return drawn(traces, title, note, x, y)


def _running_sum(falling, p, edges):
    """The sum after each expert and the line at `p`; empty without `p`."""
    shown, total, sums = p is not None, 0.0, []
    for probability in falling:
        total += probability
        sums.append(total)
    steps = dict(
        type="scatter",
        x=list(range(len(sums))) if shown else [],
        y=sums if shown else [],
        name="running sum",
        mode="lines+markers",
        line=dict(color=COLOURS["faint"], shape="hv", width=1.5),
        marker=dict(size=5),
        showlegend=shown,
        hovertemplate="sum %{y:.3f}<extra></extra>",
    )
    cut = dict(
        type="scatter",
        x=edges if shown else [],
        y=[p, p] if shown else [],
        mode="lines+text",
        line=dict(color=COLOURS["cut"], dash="dash", width=1.5),
        text=["", f"p = {p:g}"] if shown else [],
        textposition="top left",
        textfont=dict(color=COLOURS["cut"]),
        # the name of a p near 1 stands above the axes
        cliponaxis=False,
        showlegend=False,
        hoverinfo="skip",
    )
    return [steps, cut]


def histogram(
    counts, unit="experts per token", expected=None, start=0, items="tokens"
):
    """How many items have each count: `counts[i]` items have `start + i`.

    The measured mean is drawn, and the `expected` one if it is given.
    """
    counts = plain(counts)
    places = [start + i for i in range(len(counts))]
    total = sum(counts)
    share = [100 * c / (total or 1) for c in counts]
    mean = sum(x * c for x, c in zip(places, counts, strict=True))
    mean /= total or 1
    top = 1.25 * max([*share, 1])
    # over many thin bars there is room for the number alone
    sign = " %" if len(counts) <= 9 else ""
    bars = dict(
        type="bar",
        x=places,
        y=share,
        name=items,
        marker=dict(color=COLOURS["kept"]),
        text=[f"{s:.0f}{sign}" if s >= 0.5 else "" for s in share],
        textposition="outside",
        # otherwise the numbers of thin bars become too small to read
        constraintext="none",
        textangle=0,
        cliponaxis=False,
        showlegend=False,
        hovertemplate="%{x}: %{y:.1f} %<extra></extra>",
    )
    marks = [
        _mark("mean", mean, top, "mean", "solid"),
        _mark("expected", expected, top, "cut", "dot"),
    ]
    title = f"{mean:.2f} {unit} on average"
    if expected is not None:
        title += f", {expected:.2f} expected"
    x = dict(
        title_text=unit,
        range=[places[0] - 0.6, places[-1] + 0.6],
        dtick=max(1, len(places) // 12),
    )
    y = dict(title_text=f"share of {items} (%)", range=[0, 1.05 * top])
    counted = items.removesuffix("s") if total == 1 else items
    return drawn([bars, *marks], title, f"{number(total)} {counted}", x, y)


def _mark(name, value, top, role, dash):
    """A thin upright line with a head, so that bar labels stay readable."""
    shown = value is not None
    return dict(
        type="scatter",
        x=[value, value] if shown else [],
        y=[0, top] if shown else [],
        mode="lines+markers",
        name=f"{name} {value:.2f}" if shown else name,
        showlegend=shown,
        line=dict(color=COLOURS[role], dash=dash, width=1.5),
        marker=dict(size=[0, 11], symbol="triangle-down", opacity=1),
        hoverinfo="skip",
    )


def heatmap(
    values,
    title,
    note="",
    rows=None,
    columns=None,
    row_title="",
    column_title="",
    unit="",
    low=None,
    high=None,
    digits=0,
):
    """A table of numbers as colours, the first row on top.

    A small table shows its numbers and needs no colour bar; `None` leaves a
    cell empty.
    """
    values = [plain(row) for row in plain(values)]
    rows = rows or [str(i) for i in range(len(values))]
    columns = columns or [str(i) for i in range(len(values[0]))]
    small = len(columns) <= 16 and len(rows) <= 16
    every = max(1, len(columns) // 16)
    # a scale of no length would paint its lowest value as its middle
    high = low + 1 if low is not None and low == high else high
    cells = dict(
        type="heatmap",
        z=values,
        zmin=low,
        zmax=high,
        zauto=low is None or high is None,
        colorscale=PALE if small else SCALE,
        xgap=2 if small else 0,
        ygap=2 if small else 0,
        texttemplate=f"%{{z:.{digits}f}}" if small else "",
        textfont=dict(size=12, color=COLOURS["ink"]),
        hovertemplate=(
            f"{row_title} %{{y}}, {column_title} %{{x}}: "
            f"%{{z:.4g}} {unit}<extra></extra>"
        ),
        showscale=not small,
        colorbar=colour_bar(unit),
    )
    if small and unit:
        note = f"{note}; numbers in {unit}" if note else f"numbers in {unit}"
    x = dict(
        title_text=column_title,
        tickvals=list(range(0, len(columns), every)),
        ticktext=columns[::every],
        showline=False,
    )
    y = dict(
        title_text=row_title,
        tickvals=list(range(len(rows))),
        ticktext=rows,
        range=[len(rows) - 0.5, -0.5],
        showgrid=False,
    )
    height = 150 + min(420, max(120, 30 * len(rows)))
    return drawn([cells], title, note, x, y, height, showlegend=False)


def load_heatmap(load, layers=None, experts=None, unit="% of tokens"):
    """How full each expert of each layer is: `load` is layer x expert.

    A layer whose experts share the load evenly has one colour.
    """
    load = [plain(row) for row in plain(load)]
    fair = [sum(row) / len(row) or 1 for row in load]
    worst, row, column = max(
        (value / fair[r], -r, -c)
        for r, line in enumerate(load)
        for c, value in enumerate(line)
    )
    layers = layers or [str(i) for i in range(len(load))]
    experts = experts or [str(i) for i in range(len(load[0]))]
    return heatmap(
        load,
        f"The fullest expert carries {worst:.2f} times its fair share",
        f"it is expert {experts[-column]} of layer {layers[-row]}",
        rows=layers,
        columns=experts,
        row_title="layer",
        column_title="expert",
        unit=unit,
        low=0,
        high=max(max(line) for line in load) or 1,
    )


def colour_bar(unit, **more):
    """A slim colour bar with the unit beside it."""
    return dict(
        title=dict(text=unit, side="right", font=dict(size=12)),
        thickness=12,
        outlinewidth=0,
        tickfont=dict(size=11),
        **more,
    )
