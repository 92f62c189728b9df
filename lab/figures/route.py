"""One small routing decision in full: all five steps side by side."""

from itertools import accumulate

from lab.figures.route_layout import axes, bound, heads, seats, walls
from lab.figures.theme import COLOURS, PALE, SERIES, drawn, plain, stepped

ROW = 26  # pixels for one item


def _hex(ink):
    return "#" + "".join(f"{round(255 * (1 - part)):02X}" for part in ink)


def _ink(colour):
    """What a pale version of `colour` takes away from white paper."""
    parts = bytes.fromhex(colour.removeprefix("#"))
    return [round(0.62 * (1 - part / 255), 3) for part in parts]


# ink of each expert on white paper: red, green and blue taken away
INKS = [_ink(one) for one in SERIES[:4]]


def five_steps(
    items, experts, scores, asked, kept, weights, pairs, inks, capacity
):
    """A routing decision from scores to outputs, for a few `items`.

    `scores` [T][E] are probabilities. `asked` [T][S] are the chosen experts,
    `kept` [T][S] those that had room, with -1 for the others, and `weights`
    [T][S] their weights. `pairs` is the sorted order that dispatch gives, and
    `inks` [T][3] is what the experts together print on each item. No expert
    has more than `capacity` seats.
    """
    scores, asked, kept = plain(scores), plain(asked), plain(kept)
    weights, pairs, inks = plain(weights), plain(pairs), plain(inks)
    T, E, S = len(items), len(experts), len(asked[0])
    wished = [sum(row.count(e) for row in asked) for e in range(E)]
    load = [sum(row.count(e) for row in kept) for e in range(E)]
    rooms = _seats(items, pairs, load, S, capacity)
    traces = [
        _scores(items, experts, scores),
        _choices(items, experts, asked, kept),
        _rooms(experts, rooms),
        _loads(experts, wished, load, T),
        _mixture(items, experts, kept, weights),
        _swatches(items, kept, inks, experts),
    ]
    for trace, place in zip(traces, (0, 1, 2, 3, 4, 4), strict=True):
        suffix = str(place + 1) if place else ""
        trace |= dict(xaxis=f"x{suffix}", yaxis=f"y{suffix}")
    lost = sum(wished) - sum(load)
    fullest = max(range(E), key=lambda e: wished[e])
    even = len(set(wished)) == 1
    who = "Every expert" if even else f"Expert {experts[fullest]}"
    title = f"{who} is asked by {wished[fullest]} of {T}"
    title += f" words; {lost or 'none'} of {sum(wished)} requests turned away"
    note = f"a fair share would be {sum(wished) / E:g} words an expert; "
    note += f"each has {seats(capacity)}"
    return drawn(
        traces,
        title,
        note,
        **axes(items, experts, len(rooms) // E, len(rooms[0]), capacity),
        height=ROW * T + 178,
        showlegend=False,
        margin=dict(l=62, r=18, t=124, b=50),
        annotations=list(heads()),
        shapes=[*walls(T, E), bound(capacity)],
    )


def _scores(items, experts, scores):
    return _cells(
        [[100 * v for v in row] for row in scores],
        [[f"{100 * v:.0f}" for v in row] for row in scores],
        PALE,
        100,
        [
            [f"“{item}” fits expert {e}: {100 * v:.1f} %" for e, v in row]
            for item, row in _named(items, experts, scores)
        ],
    )


def _choices(items, experts, asked, kept):
    """Chosen cells in the colour of the expert, grey where it was full."""
    z = [[-1] * len(experts) for _ in items]
    text = [[""] * len(experts) for _ in items]
    for t, row in enumerate(asked):
        for s, e in enumerate(row):
            if e >= 0:
                seated = kept[t][s] >= 0
                z[t][e] = e if seated else -2
                text[t][e] = str(s + 1) if seated else "×"
    words = {"": "did not choose", "×": "was turned away by"}
    hover = [
        [
            f"“{item}” {words.get(sign, f'has, as choice {sign},')} expert {e}"
            for e, sign in row
        ]
        for item, row in _named(items, experts, text)
    ]
    return _inked(z, text, len(experts), hover)


def _seats(items, pairs, load, slots, capacity):
    """Where each item sits: each expert has a room with rows of seats.

    Items sit in sorted order. A free seat is "", and a place without a seat
    is `None`.
    """
    T, E = len(items), len(load)
    deep = max(1, T // E)
    wide = -(-T // deep)
    starts = [0, *accumulate(load)]
    rows = []
    for e in range(E):
        seated = pairs[starts[e] : starts[e + 1]]
        names = [items[pair // slots] for pair in seated]
        names += [""] * (min(capacity, deep * wide) - len(names))
        names += [None] * (deep * wide - len(names))
        rows += [names[i * wide : (i + 1) * wide] for i in range(deep)]
    return rows


def _rooms(experts, rooms):
    deep = len(rooms) // len(experts)
    z = [
        [None if name is None else r // deep if name else -1 for name in row]
        for r, row in enumerate(rooms)
    ]
    hover = [
        [
            f"“{name}” sits with expert {experts[r // deep]}"
            if name
            else f"a free seat with expert {experts[r // deep]}"
            for name in row
        ]
        for r, row in enumerate(rooms)
    ]
    text = [[name or "" for name in row] for row in rooms]
    cells = _inked(z, text, len(experts), hover, size=12)
    return cells | dict(hoverongaps=False)


def _loads(experts, wished, load, T):
    """One bar per expert: those it computes, and in grey those turned away."""
    deep = max(1, T // len(experts))
    middle = [e * deep + (deep - 1) / 2 for e in range(len(experts))]
    late = [w - n for w, n in zip(wished, load, strict=True)]
    inks = [_hex(INKS[e % len(INKS)]) for e in range(len(experts))]
    return dict(
        type="bar",
        orientation="h",
        y=middle * 2,
        x=load + late,
        base=[0] * len(experts) + load,
        width=0.62 * deep,
        marker=dict(color=inks + [COLOURS["dropped"]] * len(experts)),
        text=[n or "" for n in load] + [f"+{n}" if n else "" for n in late],
        textposition=["inside"] * len(load) + ["outside"] * len(late),
        insidetextanchor="middle",
        cliponaxis=False,
        textangle=0,
        textfont=dict(size=12, color=COLOURS["ink"]),
        constraintext="none",
        hovertext=[
            f"expert {e} works on {n}"
            for e, n in zip(experts, load, strict=True)
        ]
        + [
            f"expert {e} turned {n} away"
            for e, n in zip(experts, late, strict=True)
        ],
        hovertemplate="%{hovertext}<extra></extra>",
    )


def _mixture(items, experts, kept, weights):
    """Each item's weights end to end, in the colours of their experts."""
    x, y, base, colours, hover = [], [], [], [], []
    for t, (row, shares) in enumerate(zip(kept, weights, strict=True)):
        start = 0.0
        for e, share in zip(row, shares, strict=True):
            # empty slots stay as bars of no width, so that their number is
            # the same whatever a knob does
            x.append(share)
            y.append(t)
            base.append(start)
            colours.append(_hex(INKS[e % len(INKS)]))
            hover.append(f"{100 * share:.0f} % from expert {experts[e]}")
            start += share
    return dict(
        type="bar",
        orientation="h",
        x=x,
        y=y,
        base=base,
        width=0.56,
        marker=dict(color=colours),
        hovertext=hover,
        hovertemplate="%{hovertext}<extra></extra>",
        meta="backdrop",
    )


def _swatches(items, kept, inks, experts):
    """What came back to each item: the blend of its experts' colours."""
    hover = []
    for item, row in zip(items, kept, strict=True):
        names = " and ".join(experts[e] for e in row if e >= 0)
        hover.append(f"“{item}”: {names or 'no expert had room'}")
    return dict(
        type="scatter",
        mode="markers",
        x=[1.32] * len(items),
        y=list(range(len(items))),
        marker=dict(
            size=17,
            color=[_hex(ink) for ink in inks],
            line=dict(color=COLOURS["faint"], width=1),
        ),
        hovertext=hover,
        hovertemplate="%{hovertext}<extra></extra>",
        meta="backdrop",
    )


def _inked(z, text, experts, hover, size=12.5):
    """Cells in the experts' colours; -1 is empty and -2 turned away."""
    shades = [COLOURS["dropped"], "#F1F3F5"]
    shades += [_hex(INKS[e % len(INKS)]) for e in range(experts)]
    cells = _cells(z, text, stepped(shades), experts - 0.5, hover, low=-2.5)
    return cells | dict(textfont=dict(size=size, color=COLOURS["ink"]))


def _cells(z, text, scale, high, hover, low=0):
    return dict(
        type="heatmap",
        z=z,
        zmin=low,
        zmax=high,
        text=text,
        texttemplate="%{text}",
        textfont=dict(size=12, color=COLOURS["ink"]),
        colorscale=scale,
        showscale=False,
        xgap=2,
        ygap=2,
        hovertext=hover,
        hovertemplate="%{hovertext}<extra></extra>",
    )


def _named(items, experts, table):
    for item, row in zip(items, table, strict=True):
        yield item, list(zip(experts, row, strict=True))
