"""A picture cut into patches, and what happened to each of them."""

from lab.figures.choices import colour_bar
from lab.figures.theme import COLOURS, PALE, drawn, plain

INK = [[0.0, "rgba(34,48,60,0)"], [1.0, "rgba(34,48,60,0.5)"]]


def patch_grids(
    pixels, tables, names, title, note="", unit="", high=None, digits=None
):
    """One small picture, `pixels`, on a table of colours for each name.

    `tables` holds one number per patch, row by row; all tables share one
    colour scale, from 0 to `high`. With `digits` the numbers are written too.
    """
    pixels = [plain(row) for row in plain(pixels)]
    tables = [[plain(row) for row in plain(table)] for table in tables]
    side, across = len(tables[0]), len(tables[0][0])
    size = len(pixels) // side  # pixels of a patch
    copies = len(tables)
    tiles, ink = [], []
    for row in range(side):
        line = []
        for table in tables:
            line += [*table[row], None]
        tiles.append(line[:-1])
    for row in pixels:
        line = []
        for _ in tables:
            line += [*row, *[None] * size]
        ink.append(line[:-size])
    step = (across + 1) * size  # pixels from one copy to the next
    high = high or max(max(map(max, table)) for table in tables) or 1
    flat = dict(type="heatmap", zmin=0, y0=(size - 1) / 2, dy=size)
    cells = flat | dict(
        z=tiles,
        x0=(size - 1) / 2,
        dx=size,
        zmax=high,
        colorscale=PALE,
        xgap=2,
        ygap=2,
        hovertemplate=f"%{{z:.4g}} {unit}<extra></extra>",
        hoverongaps=False,
        showscale=copies == 1,
        colorbar=colour_bar(unit, dtick=1),
    )
    drawing = dict(
        type="heatmap",
        z=ink,
        zmin=0,
        zmax=max(map(max, pixels)) or 1,
        colorscale=INK,
        showscale=False,
        hoverinfo="skip",
        meta="backdrop",
    )
    spots = [(r, c) for r in range(side) for c in range(across)]
    written = [] if digits is None else range(copies)
    numbers = dict(
        type="scatter",
        x=[
            step * i + size * c + (size - 1) / 2
            for i in written
            for _, c in spots
        ],
        y=[size * r + (size - 1) / 2 for _ in written for r, _ in spots],
        mode="text",
        text=[
            f"<b>{tables[i][r][c]:.{digits}f}</b>"
            for i in written
            for r, c in spots
        ],
        textfont=dict(size=14, color=COLOURS["ink"]),
        hoverinfo="skip",
        meta="backdrop",
    )
    middle = (across * size - 1) / 2
    last = step * (copies - 1) + across * size - 0.5
    x = dict(
        tickvals=[step * i + middle for i in range(copies)],
        ticktext=list(names),
        range=[-0.5, last],
        showline=False,
        fixedrange=True,
    )
    y = dict(
        range=[len(pixels) - 0.5, -0.5],
        showgrid=False,
        showticklabels=False,
        fixedrange=True,
    )
    room = max(90, min(230, round(660 * len(pixels) / (last + 0.5))))
    return drawn(
        [cells, drawing, numbers],
        title,
        note,
        x,
        y,
        height=150 + room,
        showlegend=False,
        meta=dict(room=room),
    )
