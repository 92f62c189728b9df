"""A layered graph and those who travel through it, a line for each."""

from lab.figures.theme import COLOURS, colour, drawn, plain, separate_lines

SPREAD = 0.5  # of the gap between two places, for all lines side by side
GAP = 2  # lanes left free between two groups
STOP = 0.1  # half of the width of a place, where a line runs level
THIN, THICK = 1.1, 1.8  # where there are many lines, and where few
FEW = 30


def travellers(roads, groups, title, note="", places=None):
    """Lines from layer to layer: `groups` maps names to a role and its paths.

    `roads` holds triples (layer, place, next place), drawn behind. A path is
    a list with a place for each layer. Each traveller keeps a lane of its own
    on the whole way, and the lanes of a group lie side by side. `places` names
    the places, the first one on top.
    """
    roads, groups = list(roads), dict(groups)
    last = 1 + max(h for h, _, _ in roads)
    count = 1 + max(max(s, t) for _, s, t in roads)
    spots = {(h, s) for h, s, _ in roads} | {(h + 1, t) for h, _, t in roads}
    behind = separate_lines(
        [((h, s), (h + 1, t)) for h, s, t in roads],
        dict(color=COLOURS["grid"], width=1.2),
        showlegend=False,
    )
    traces = [behind]
    total = sum(len(paths) + GAP for _, paths in groups.values())
    lane = GAP / 2
    for name, (role, paths) in groups.items():
        paths = [plain(path) for path in plain(paths)]
        traces.append(_lines(paths, lane, total, name, colour(role)))
        lane += len(paths) + GAP
    traces.append(_stops(sorted(spots)))
    names = list(places or map(str, range(count)))
    return drawn(
        traces,
        title,
        note,
        x=dict(
            title_text="step",
            tickvals=list(range(last + 1)),
            range=[-0.25, last + 0.25],
            showline=False,
        ),
        y=dict(
            tickvals=list(range(count)),
            ticktext=names,
            range=[count - 0.5, -0.5],
            showgrid=False,
        ),
        height=400,
    )


def _lines(paths, lane, total, name, shade):
    """The paths of one group as one trace; `None` lifts the pen."""
    x, y = [], []
    for number, path in enumerate(paths):
        off = SPREAD * ((lane + number + 0.5) / total - 0.5)
        for h, place in enumerate(path):
            x += [h - STOP, h + STOP]
            y += [place + off] * 2
        x.append(None)
        y.append(None)
    return dict(
        type="scatter",
        x=x,
        y=y,
        mode="lines",
        line=dict(color=shade, width=THICK if len(paths) <= FEW else THIN),
        opacity=0.8,
        name=name,
        showlegend=bool(paths),
        hoverinfo="skip",
    )


def _stops(spots):
    return dict(
        type="scatter",
        x=[h for h, _ in spots],
        y=[s for _, s in spots],
        mode="markers",
        marker=dict(
            size=7,
            color=COLOURS["paper"],
            line=dict(color=COLOURS["faint"], width=1.3),
        ),
        hovertemplate="step %{x}, place %{y}<extra></extra>",
        showlegend=False,
    )
