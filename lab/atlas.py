"""The atlas: all chapters on one map and in one table, along three axes.

The axes are what is routed (the part), who decides, and what holds the
decision back. Any two of them span a grid. A chapter is a numbered circle in
its cell, filled if its notebook exists. All data come from the catalogue.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import NamedTuple

from lab.catalogue import (
    CHAPTERS,
    CLOSINGS,
    CONSTRAINTS,
    DECIDES,
    PARTS,
    Chapter,
    Page,
)
from lab.figures.theme import COLOURS, SERIES, drawn

DOT = 23  # pixels across, room for two digits
SIDE = 2  # circles side by side in a cell
BESIDE = 0.47  # distance between two of them, in widths of a column
GAP = 0.3  # lines between two rows of the grid
HEIGHT = 450  # pixels of the grid
LEFT, RIGHT = 122, 14  # pixels beside it


class Axis(NamedTuple):
    """One way to tell chapters apart."""

    name: str
    key: str  # an attribute of a chapter
    values: tuple[str, ...]
    labels: tuple[str, ...]


ROUTED = Axis(
    "what is routed",
    "part",
    tuple(part.name for part in PARTS),
    tuple(f"{part.number} {part.name}" for part in PARTS),
)
DECIDER = Axis("who decides", "decides", DECIDES, DECIDES)
LIMIT = Axis("what holds it back", "constraint", CONSTRAINTS, CONSTRAINTS)
# each view as (down, across)
VIEWS = ((DECIDER, LIMIT), (ROUTED, LIMIT), (ROUTED, DECIDER))


class Map(NamedTuple):
    """Where everything lies in one view, in columns and lines."""

    spots: dict[str, tuple[float, float]]  # x and y by chapter number
    rows: tuple[tuple[float, float], ...]  # top and bottom of each row
    height: float  # lines in all


def value(chapter: Chapter, axis: Axis) -> str:
    """Where `chapter` lies on `axis`."""
    found = getattr(chapter, axis.key)
    return getattr(found, "name", found)


def laid_out(chapters: Sequence[Chapter], down: Axis, across: Axis) -> Map:
    """Each chapter's spot in its cell, two side by side, in reading order.

    A row of the grid is as many lines high as its fullest cell needs.
    """
    cells: dict[tuple[str, str], list[Chapter]] = {}
    for one in chapters:
        cells.setdefault((value(one, down), value(one, across)), []).append(
            one
        )
    spots, rows, top = {}, [], 0.0
    for name in down.values:
        mine = [cells.get((name, other), []) for other in across.values]
        lines = max(1, *(-(-len(cell) // SIDE) for cell in mine))
        for column, cell in enumerate(mine):
            used = -(-len(cell) // SIDE)
            for i, one in enumerate(cell):
                line, place = divmod(i, SIDE)
                beside = min(SIDE, len(cell) - line * SIDE)
                x = column + BESIDE * (place - (beside - 1) / 2)
                y = top + GAP / 2 + (lines - used) / 2 + line + 0.5
                spots[one.number] = (x, y)
        rows.append((top, top + lines + GAP))
        top += lines + GAP
    return Map(spots, tuple(rows), top)


def figure(chapters: Sequence[Chapter] = CHAPTERS):
    """The map: three views behind three buttons, one colour per part.

    Works without a kernel. Hovering shows title, paper, year and minutes; a
    click on a part below hides or shows it.
    """
    maps = [laid_out(chapters, *view) for view in VIEWS]
    parts = [[c for c in chapters if c.part == part] for part in PARTS]
    traces = [
        trace
        for part, mine, shade in zip(PARTS, parts, SERIES, strict=True)
        for trace in (_key(part, shade), _dots(mine, maps[0], shade))
    ]
    ready = sum(one.ready for one in chapters)
    first = _frame(maps[0], *VIEWS[0])
    return drawn(
        traces,
        f"The atlas: {len(chapters)} chapters, {ready} ready",
        "filled: ready; ring: to come; hover for the paper; click a part "
        "below to hide it",
        x=first.pop("xaxis"),
        y=first.pop("yaxis"),
        height=HEIGHT + 202,
        margin=dict(l=LEFT, r=RIGHT, t=158, b=44),
        updatemenus=[_buttons(maps, parts)],
        **first,
    )


def table(chapters: Sequence[Chapter] = CHAPTERS, base: str = "") -> str:
    """All chapters as Markdown with links, in one folding block per part.

    `base` is the path from the table's place to the folder `notebooks/`. If
    the folder is missing, as on Colab, the links lead to Colab. Parts with a
    ready chapter are open; a closing notebook is listed below its part.
    """
    blocks = []
    for part in PARTS:
        mine = [one for one in chapters if one.part == part]
        ready = sum(one.ready for one in mine)
        fold = "<details open>" if ready else "<details>"
        state = f"{ready} of {len(mine)} ready"
        blocks.append(
            f"{fold}<summary><b>{part.number} {part.title}</b> ({state})"
            "</summary>\n\n"
            "| | chapter | routes | who decides | held back by | min | paper |"
            "\n|---|---|---|---|---|---:|---|\n"
            + "\n".join(_line(one, base) for one in mine)
            + "".join(
                f"\n\nTo close the part: {_link(one, base)}, "
                f"{one.minutes} minutes"
                for one in CLOSINGS
                if one.part == part and one.ready
            )
            + "\n\n</details>\n"
        )
    return "\n".join(blocks)


def _line(one: Chapter, base: str) -> str:
    title = _link(one, base) if one.ready else one.title
    cells = (
        one.number,
        title,
        one.routed,
        one.decides,
        one.constraint,
        str(one.minutes),
        f"[{_first_author(one)} {one.year}]({one.url})",
    )
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


def _link(one: Page, base: str) -> str:
    where = base + one.notebook.removeprefix("notebooks/")
    if not one.path.is_file():
        where = one.colab_url
    return f"**[{one.title}]({where})**"


def _first_author(one: Chapter) -> str:
    first, *others = one.authors.removesuffix(" et al.").split(", ")
    surname = first.split()[-1]
    if len(others) == 1:
        return f"{surname} and {others[0].split()[-1]}"
    more = others or one.authors.endswith("et al.")
    return f"{surname} et al." if more else surname


def _dots(chapters, where: Map, shade: str) -> dict:
    full = [one.ready for one in chapters]
    letters = COLOURS["paper"] if _dark(shade) else COLOURS["ink"]
    x, y = _coordinates(chapters, where)
    return dict(
        type="scatter",
        mode="markers+text",
        x=x,
        y=y,
        text=[one.number for one in chapters],
        textfont=dict(
            size=11, color=[letters if f else COLOURS["ink"] for f in full]
        ),
        marker=dict(
            size=DOT,
            opacity=1,
            color=[shade if f else COLOURS["paper"] for f in full],
            line=dict(color=shade, width=2),
        ),
        legendgroup=chapters[0].part.name if chapters else "",
        showlegend=False,
        hovertext=[_hover(one) for one in chapters],
        hovertemplate="%{hovertext}<extra></extra>",
    )


def _key(part, shade: str) -> dict:
    """A trace without points, whose circle in the legend is always filled."""
    return dict(
        type="scatter",
        mode="markers",
        x=[None],
        y=[None],
        name=f"{part.number} {part.name}",
        legendgroup=part.name,
        marker=dict(size=12, color=shade),
    )


def _hover(one: Chapter) -> str:
    paper = "<br>".join(textwrap.wrap(one.paper, 56))
    state = "ready" if one.ready else "to come"
    return (
        f"<b>{one.number} {one.title}</b><br>{paper}<br>"
        f"{_first_author(one)}, {one.venue} {one.year}<br>"
        f"routes {one.routed}; {one.decides} decides; held back by "
        f"{one.constraint}<br>{one.minutes} minutes, {state}"
    )


def _coordinates(chapters, where: Map):
    spots = [where.spots[one.number] for one in chapters]
    return [x for x, _ in spots], [y for _, y in spots]


def _frame(where: Map, down: Axis, across: Axis) -> dict:
    """The axes and the bands of one view."""
    still = dict(showgrid=False, showline=False, fixedrange=True)
    return dict(
        xaxis=still
        | dict(
            title=dict(text=across.name),
            side="top",
            tickvals=list(range(len(across.values))),
            ticktext=[folded(label) for label in across.labels],
            tickangle=0,
            tickfont=dict(size=11),
            range=[-0.5, len(across.values) - 0.5],
        ),
        yaxis=still
        | dict(
            title=dict(text=""),
            tickvals=[(top + bottom) / 2 for top, bottom in where.rows],
            ticktext=list(down.labels),
            range=[where.height, 0],
        ),
        shapes=[
            dict(
                type="rect",
                layer="below",
                xref="paper",
                x0=0,
                x1=1,
                y0=top,
                y1=bottom,
                fillcolor="#F5F7F9" if i % 2 else COLOURS["paper"],
                line=dict(width=0),
            )
            for i, (top, bottom) in enumerate(where.rows)
        ],
    )


def _buttons(maps, parts) -> dict:
    buttons = []
    for where, (down, across) in zip(maps, VIEWS, strict=True):
        x, y = [], []
        for mine in parts:
            spots = _coordinates(mine, where)
            # the legend's traces stay where they are
            x += [[None], spots[0]]
            y += [[None], spots[1]]
        buttons.append(
            dict(
                method="update",
                label=f"{down.name} × {across.name}",
                args=[dict(x=x, y=y), _frame(where, down, across)],
            )
        )
    return dict(
        type="buttons",
        direction="right",
        buttons=buttons,
        active=0,
        showactive=True,
        x=0,
        xanchor="left",
        y=1,
        yanchor="bottom",
        pad=dict(b=64),
        font=dict(size=12),
        bgcolor=COLOURS["paper"],
        bordercolor=COLOURS["dropped"],
    )


def _dark(shade: str) -> bool:
    red, green, blue = bytes.fromhex(shade.removeprefix("#"))
    return 0.299 * red + 0.587 * green + 0.114 * blue < 140


def folded(label: str) -> str:
    """`label` on lines short enough to stand above a column."""
    return "<br>".join(textwrap.wrap(label, 11))
