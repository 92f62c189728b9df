"""A passage of text, one cell per character."""

from lab.figures.choices import colour_bar
from lab.figures.theme import COLOURS, PALE, drawn, plain

CELL = 21  # pixels from one line of text to the next


def text_strip(text, values, unit, title, note="", width=62, high=None):
    """Colour each character of `text` by its entry in `values`.

    Lines break at spaces, at most `width` characters long; `high` fixes the
    top of the scale, so that colours mean the same while a knob moves. A value
    above it has the top colour, and the colour bar says so.
    """
    values = plain(values)
    if len(values) != len(text):
        raise ValueError(
            f"{len(values)} values for {len(text)} characters; "
            "give one value per character"
        )
    lines = broken(text, width)
    cells, names, start = [], [], 0
    for line in lines:
        gap = [None] * (width - len(line))
        cells.append([*values[start : start + len(line)], *gap])
        names.append([*(_visible(c) for c in line), *("" for _ in gap)])
        start += len(line)
    whole = all(v == int(v) for v in values)
    most = max(values, default=1)
    high = (most or 1) if high is None else high
    low = min(0, *values) if values else 0
    room = max(CELL * len(lines), 110)
    strip = dict(
        type="heatmap",
        z=cells,
        # a blank is named in the hover text, but need not be drawn
        text=[["" if c == " " else c for c in line] for line in names],
        hovertext=names,
        texttemplate="%{text}",
        textfont=dict(
            family="Menlo, DejaVu Sans Mono, monospace",
            size=12.5,
            color=COLOURS["ink"],
        ),
        colorscale=PALE,
        zmin=low,
        zmax=high,
        hovertemplate=f"“%{{hovertext}}” %{{z:.3g}} {unit}<extra></extra>",
        hoverongaps=False,
        colorbar=colour_bar(
            unit,
            dtick=max(1, (high - low) // 4) if whole else None,
            tickprefix="≥ " if most > high else "",
            showtickprefix="last",
        ),
    )
    return drawn(
        [strip],
        title,
        note,
        x=dict(visible=False, range=[-0.5, width - 0.5], fixedrange=True),
        y=dict(visible=False, range=[len(lines) - 0.5, -0.5], fixedrange=True),
        height=room + 46 + 36 + (16 if note else 0),
        showlegend=False,
        margin=dict(l=14, b=20),
    )


def broken(text, width):
    """`text` cut into lines of at most `width`; no character is lost."""
    lines, line = [], ""
    for word in _words(text):
        if len(line) + len(word) > width and line:
            lines.append(line)
            line = ""
        while len(word) > width:
            lines.append(word[:width])
            word = word[width:]
        line += word
        if word.endswith("\n"):
            lines.append(line)
            line = ""
    return [*lines, line] if line else lines


def _words(text):
    """Pieces that end in a space or a line end; together they are `text`."""
    start = 0
    for place, sign in enumerate(text):
        if sign.isspace():
            yield text[start : place + 1]
            start = place + 1
    if start < len(text):
        yield text[start:]


def _visible(sign):
    # plotly reads text as HTML
    return {"\n": "⏎", "\t": "⇥", " ": " ", "<": "&lt;", "&": "&amp;"}.get(
        sign, sign
    )
