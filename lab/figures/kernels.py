"""What a kernel costs: the bytes it must move and the time it takes."""

from lab.figures.theme import (
    COLOURS,
    SERIES,
    drawn,
    number,
    stepped,
    upright,
)

MANY = 64  # cells in a row; fewer get wide gaps, half as many all numbers


def block_grid(
    rows,
    columns,
    block_rows,
    block_columns,
    bytes_per_row,
    row="token",
    column="expert",
    bytes_formula="",
):
    """How one kernel's programs cover an array of `rows` x `columns`.

    Each program has a colour, and the first one also a frame. The cells past
    the edge, which a mask keeps from being touched, are grey.
    """
    down, across = -(-rows // block_rows), -(-columns // block_columns)
    tones = len(SERIES) - 1
    high, wide = down * block_rows, across * block_columns
    # neighbours below each other never have the same colour either
    turn = across if across % tones else across + 1
    cells, tips = [], []
    for r in range(high):
        place = r // block_rows
        parts = [c // block_columns for c in range(wide)]
        inside = [r < rows and c < columns for c in range(wide)]
        pairs = list(zip(parts, inside, strict=True))
        cells.append(
            [(place * turn + p) % tones + 1 if ok else 0 for p, ok in pairs]
        )
        tips.append(
            [
                f"program {place * across + p}" if ok else "masked"
                for p, ok in pairs
            ]
        )
    scale = stepped(["#ECEEF1", *(_pale(s) for s in SERIES[:tones])])
    blocks = dict(
        type="heatmap",
        z=cells,
        text=tips,
        zmin=-0.5,
        zmax=tones + 0.5,
        colorscale=scale,
        showscale=False,
        xgap=2 if wide < MANY else 0.5,
        ygap=2 if high < MANY else 0.5,
        hovertemplate=f"{row} %{{y}}, {column} %{{x}}: %{{text}}"
        "<extra></extra>",
    )
    frame = dict(
        type="rect",
        x0=-0.5,
        x1=block_columns - 0.5,
        y0=-0.5,
        y1=block_rows - 0.5,
        line=dict(color=COLOURS["ink"], width=2.5),
    )
    label = dict(
        x=(block_columns - 1) / 2,
        y=(block_rows - 1) / 2,
        text="program 0",
        showarrow=False,
        bgcolor="rgba(255,255,255,0.85)",
        borderpad=3,
        font=dict(size=13, color=COLOURS["ink"]),
    )
    count = down * across
    programs = f"{count} program{'s' if count > 1 else ''}"
    title = (
        f"{programs} of {block_rows} {row}{'s' if block_rows > 1 else ''}"
        f" x {block_columns} {column}{'s' if block_columns > 1 else ''}: "
        f"{number(bytes_per_row)} bytes a {row}"
    )
    cover = f"the array is {rows} {row}s x {columns} {column}s"
    masked = high * wide - rows * columns
    note = f"{cover}; {masked} grey cells are masked" if masked else cover
    if bytes_formula:
        note = f"bytes a {row} = {bytes_formula}; {note}"
    return drawn(
        [blocks],
        title,
        note,
        x=dict(
            title_text=column,
            showline=False,
            dtick=1 if wide <= MANY // 2 else block_columns,
        ),
        y=dict(
            title_text=row,
            showgrid=False,
            range=[high - 0.5, -0.5],
            dtick=block_rows,
        ),
        height=min(520, 170 + 18 * high),
        showlegend=False,
        shapes=[frame],
        annotations=[label],
    )


def roofline(
    times, floor, operation, machine, date="", size="", bound="memory"
):
    """Measured times of one operation beside the least that is possible.

    `times` gives each implementation its microseconds, ours first; `floor`
    is the time that moving the bytes (or doing the FLOPs) takes at the
    machine's best. A `date` says that the numbers were recorded.
    """
    ours = next(iter(times))
    names = [*times, f"floor ({bound})"]
    values = [*times.values(), floor]
    shades = [COLOURS["best"], *[COLOURS["baseline"]] * (len(times) - 1)]
    bars = dict(
        type="bar",
        x=values,
        y=names,
        orientation="h",
        marker=dict(
            color=[*shades, "#FFFFFF"],
            line=dict(color=[*shades, COLOURS["cut"]], width=1.5),
        ),
        text=[f"{number(v)} µs" for v in values],
        textposition="outside",
        cliponaxis=False,
        hovertemplate="%{y}: %{x:.4g} µs<extra></extra>",
    )
    share = 100 * floor / times[ours]
    both = f"{number(times[ours])} µs, floor {number(floor)} µs"
    if ours == "reference":  # on a CPU there is no kernel to time
        title = f"{operation} in PyTorch: {both}"
    else:
        title = (
            f"{operation} runs at {share:.0f} % of what {bound} allows: {both}"
        )
    when = (
        f"recorded {date} on {machine}" if date else f"measured on {machine}"
    )
    note = f"{size} · {when}" if size else when
    return drawn(
        [bars],
        title,
        note,
        x=dict(
            title_text="time (µs)",
            range=[0, 1.18 * max(values)],
            showgrid=True,
        ),
        y=dict(autorange="reversed", showgrid=False),
        height=150 + 40 * len(names),
        showlegend=False,
        bargap=0.35,
        shapes=[upright(floor)],
    )


def _pale(shade):
    """`shade`, halfway to white."""
    parts = bytes.fromhex(shade.removeprefix("#"))
    return "#" + "".join(f"{(part + 255) // 2:02X}" for part in parts)
