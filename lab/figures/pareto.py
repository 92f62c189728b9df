"""Cost against quality for several methods, and how the work is shared."""

from lab.figures.theme import COLOURS, SERIES, drawn


def pareto(
    curves,
    points,
    here,
    best,
    title,
    note="",
    cost="cost (%)",
    quality="quality",
    bound=(),
    mixing=((), ()),
):
    """Curves in the plane of cost and quality; up and to the left is better.

    `curves` maps each name to its costs and qualities, and `best` is the one
    to look at; those in `bound` are bounds that nobody can reach. `points`
    maps the names of single choices to their places, `mixing` is the line
    between them, and `here` is the place that is shown now. The picture is
    cut below the worst curve; a triangle on its lower edge is a point that
    lies further down.
    """
    heights = [y for _, qualities in curves.values() for y in qualities]
    heights += [here[1], *mixing[1]]
    room = 0.08 * (max(heights) - min(heights) or 1)
    low, high = min(heights) - room, max(heights) + room
    traces = [
        dict(
            type="scatter",
            x=list(mixing[0]),
            y=list(mixing[1]),
            mode="lines",
            name="mixing at random",
            line=dict(color=COLOURS["baseline"], dash="dot", width=1.5),
            hoverinfo="skip",
            meta="backdrop",
        )
    ]
    named = points.items()
    rivals = [name for name in curves if name not in bound]
    for name, (costs, qualities) in curves.items():
        shade = COLOURS["ink"]
        if name in rivals:
            shade = SERIES[rivals.index(name) % len(SERIES)]
        shown = name == best
        traces.append(
            dict(
                type="scatter",
                x=list(costs),
                y=list(qualities),
                mode="lines",
                name=f"<b>{name}</b>" if shown else name,
                opacity=1.0 if shown else 0.6,
                showlegend=bool(costs),
                line=dict(
                    color=shade,
                    width=4 if shown else 1.6,
                    dash="solid" if name in rivals else "dash",
                ),
                hovertemplate=f"{name}: {quality} %{{y:.3f}} at %{{x:.0f}}"
                "<extra></extra>",
            )
        )
    traces.append(
        dict(
            type="scatter",
            x=[x for x, _ in points.values()],
            y=[max(y, low) for _, y in points.values()],
            mode="markers",
            marker=dict(
                size=9,
                color=COLOURS["baseline"],
                symbol=[
                    "square" if y >= low else "triangle-down"
                    for _, y in points.values()
                ],
            ),
            text=[f"{name}: {y:.3f} at {x:.0f}" for name, (x, y) in named],
            name="one for all",
            cliponaxis=False,
            hovertemplate="%{text}<extra></extra>",
            meta="backdrop",
        )
    )
    traces.append(
        dict(
            type="scatter",
            x=[here[0]],
            y=[here[1]],
            mode="markers",
            marker=dict(
                size=16,
                color=COLOURS["ink"],
                line=dict(color=COLOURS["paper"], width=2),
            ),
            name="here",
            showlegend=False,
            hovertemplate="here: %{y:.3f} at %{x:.0f}<extra></extra>",
        )
    )
    return drawn(
        traces,
        title,
        note,
        x=dict(title_text=cost, rangemode="tozero"),
        y=dict(title_text=quality, range=[low, high]),
        height=470,
        meta=dict(room=320),
    )


def shares(parts, title, note="", unit="share (%)"):
    """How a whole is divided: one bar per part; `parts` has its percent."""
    names = list(parts)
    bars = dict(
        type="bar",
        orientation="h",
        x=[parts[name] for name in names],
        y=list(range(len(names))),
        marker=dict(color=COLOURS["kept"]),
        text=[f"{parts[name]:.0f} %" for name in names],
        textposition="outside",
        cliponaxis=False,
        customdata=names,
        hovertemplate="%{customdata}: %{x:.1f} %<extra></extra>",
    )
    return drawn(
        [bars],
        title,
        note,
        x=dict(title_text=unit, range=[0, 112], showgrid=True),
        y=dict(
            tickvals=list(range(len(names))),
            ticktext=names,
            range=[len(names) - 0.5, -0.5],
            showgrid=False,
        ),
        height=130 + 26 * max(3, len(names)),
        showlegend=False,
    )
