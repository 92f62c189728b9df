"""Who is busy when: jobs as bars along the time, one row for each worker."""

from lab.figures.theme import colour, drawn

INNER, LETTER = 560, 7.8  # pixels of a row, and of a letter on a bar

# plotly picks black or white, whichever the bar lets one read
NAMES = dict(
    textposition="inside",
    insidetextanchor="middle",
    textangle=0,
    constraintext="none",
    insidetextfont=dict(size=12),
)


def timeline(
    lanes, kinds, title, note="", x_title="time", ends=None, named=False
):
    """Jobs of several workers; a gap in a row is time that it waits.

    `lanes` maps each worker to its jobs, tuples of kind, start, end and words
    for the hover; the first worker is on top. `kinds` maps each kind of job
    to its colour, in the order of the legend. `ends` cuts the time off. If
    `named`, a bar with room for it carries the first of its words.
    """
    names = list(lanes)
    last = max((job[2] for jobs in lanes.values() for job in jobs), default=1)
    traces = []
    for kind, role in kinds.items():
        mine = [
            (name, start, end, words)
            for name, jobs in lanes.items()
            for what, start, end, words in jobs
            if what == kind
        ]
        # the legend leaves out a trace without a point
        mine = mine or [(None, 0, 0, "")]
        shown = (ends or last) / INNER
        texts = [_name(*job[1:], shown) for job in mine] if named else None
        traces.append(
            dict(
                type="bar",
                orientation="h",
                y=[name for name, *_ in mine],
                base=[round(start, 6) for _, start, _, _ in mine],
                x=[round(end - start, 6) for _, start, end, _ in mine],
                customdata=[
                    [words, round(start, 3), round(end, 3)]
                    for _, start, end, words in mine
                ],
                name=kind,
                showlegend=True,
                marker=dict(
                    color=colour(role), line=dict(color="#FFFFFF", width=0.7)
                ),
                hovertemplate=(
                    f"{kind} %{{customdata[0]}}<br>%{{customdata[1]}} to"
                    " %{customdata[2]}<extra></extra>"
                ),
            )
            | (dict(text=texts, **NAMES) if named else {})
        )
    return drawn(
        traces,
        title,
        note,
        x=dict(title_text=x_title, range=[0, ends or last]),
        y=dict(
            type="category",
            categoryorder="array",
            categoryarray=names[::-1],
            range=[-0.6, len(names) - 0.4],
            ticksuffix=" ",
            showgrid=False,
        ),
        height=180 + 44 * len(names),
        meta=dict(room=44 * len(names)),
    )


def _name(start, end, words, pixel):
    """The first of the words, if it fits on the bar."""
    first = words.split()[0] if words else ""
    return first if end - start >= pixel * LETTER * len(first) else ""
