"""Where the five panels of a route lie, and the texts around them."""

from lab.figures.story import STEPS
from lab.figures.theme import COLOURS, upright

CAPTIONS = (
    "how well each fits,<br>in %",
    "1 = first choice,<br>× = expert was full",
    "sorted: the words of an<br>expert share a room",
    "how full the<br>experts are",
    "the outputs,<br>mixed by weight",
)
# where the five panels lie, from the left edge to the right
ACROSS = [[0, 0.17], [0.2, 0.37], [0.43, 0.67], [0.7, 0.835], [0.868, 1]]


def axes(items, experts, deep, wide, capacity):
    """The axes of the five panels; their rows are at the same heights."""
    T, E = len(items), len(experts)
    still = dict(showgrid=False, showline=False, fixedrange=True)
    rows = still | dict(range=[T - 0.5, -0.5])
    words = dict(tickvals=list(range(T)), ticktext=list(items))
    rooms = dict(
        tickvals=[e * deep + (deep - 1) / 2 for e in range(E)],
        ticktext=[f"<b>{e}</b>" for e in experts],
    )
    letters = still | dict(tickvals=list(range(E)), ticktext=list(experts))
    letters["title_text"] = "expert"
    hidden = dict(showticklabels=False)
    chairs = (
        still | hidden | dict(range=[-0.5, wide - 0.5], title_text="seats")
    )
    load = still | dict(range=[0, 1.15 * T], title_text="words")
    load |= dict(tickvals=[capacity], ticktext=[seats(capacity)])
    share = still | dict(
        range=[0, 1.6], tickvals=[0, 1], title_text="weight, mix"
    )
    horizontal = (letters, letters, chairs, load, share)
    vertical = (words, hidden, rooms, hidden, hidden)
    found = {}
    for place, (x, y) in enumerate(zip(horizontal, vertical, strict=True)):
        suffix = str(place + 1) if place else ""
        found[f"xaxis{suffix}" if place else "x"] = x | dict(
            domain=ACROSS[place], anchor=f"y{suffix}"
        )
        found[f"yaxis{suffix}" if place else "y"] = (
            rows | y | dict(anchor=f"x{suffix}")
        )
    return found


def walls(T, E):
    """White gaps between the rooms of the experts."""
    deep = max(1, T // E)
    for e in range(1, E):
        yield dict(
            type="line",
            xref="x3 domain",
            yref="y3",
            x0=0,
            x1=1,
            y0=e * deep - 0.5,
            y1=e * deep - 0.5,
            line=dict(color=COLOURS["paper"], width=7),
        )


def bound(capacity):
    """The dashed line at which an expert is full."""
    return upright(capacity) | dict(xref="x4", yref="y4 domain")


def heads():
    """The name of each step above its panel, and what the panel shows."""
    quiet = f"font-size:12px;color:{COLOURS['baseline']}"
    for place, (name, caption) in enumerate(zip(STEPS, CAPTIONS, strict=True)):
        yield dict(
            x=ACROSS[place][0],
            y=1,
            xref="paper",
            yref="paper",
            xanchor="left",
            yanchor="bottom",
            align="left",
            yshift=4,
            text=f"<b>{place + 1} {name}</b><br>"
            f"<span style='{quiet}'>{caption}</span>",
            font=dict(size=14),
            showarrow=False,
        )


def seats(capacity):
    """The capacity in words, "1 seat" or "8 seats"."""
    return f"{capacity} seat{'' if capacity == 1 else 's'}"
