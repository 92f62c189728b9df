"""A claim's verdict as a picture."""

from lab.figures.theme import COLOURS, drawn, error_bars, plain, upright
from lab.rounding import rounded

INNER = 300  # pixels between the ends of the axis in one of two panels
LETTER = 5.9  # pixels, of the label of the claimed side


def effect(effects, low, high, threshold, side, word, what, unit):
    """A claim's verdict: one dot per seed, their mean with its interval.

    The claimed `side` ("above" or "below") of the threshold is shaded; the
    claim is confirmed when the whole interval lies in it.
    """
    effects = plain(effects)
    mean = sum(effects) / len(effects)
    shade = COLOURS[
        {"confirmed": "best", "refuted": "cut"}.get(word, "baseline")
    ]
    reach = [*effects, low, high, threshold]
    span = max(reach) - min(reach) or abs(mean) or 1
    left, right = min(reach) - 0.18 * span, max(reach) + 0.18 * span
    interval = dict(
        type="scatter",
        x=[mean],
        y=["mean"],
        error_x=error_bars([(mean, low, high)], shade, 3, 9),
        mode="markers",
        marker=dict(size=13, color=shade),
        name="mean, 95 % interval",
        hovertemplate="mean %{x:.4g}<extra></extra>",
    )
    seeds = dict(
        type="scatter",
        x=effects,
        y=["seeds"] * len(effects),
        mode="markers",
        marker=dict(
            size=11, color="rgba(0,0,0,0)", line=dict(color=shade, width=2)
        ),
        name="one seed",
        hovertemplate="%{x:.4g}<extra></extra>",
    )
    claimed = dict(
        type="rect",
        x0=threshold,
        x1=right if side == "above" else left,
        y0=0,
        y1=1,
        yref="paper",
        fillcolor=COLOURS["best"],
        opacity=0.09,
        line=dict(width=0),
    )
    text = f"claimed: {side} {threshold:g} {unit}"
    room = INNER * abs(claimed["x1"] - threshold) / (right - left)
    fits = LETTER * len(text) <= room
    if not fits:
        # it would leave its panel, so it stands before the line and points
        # across
        text = f"{text} →" if side == "above" else f"← {text}"
    label = dict(
        x=threshold,
        y=1,
        yref="paper",
        # inside the axes, which a long title never reaches
        yanchor="top",
        xanchor="left" if (side == "above") == fits else "right",
        text=text,
        showarrow=False,
        font=dict(size=12),
    )
    where = rounded(mean, low, high)
    return drawn(
        [interval, seeds],
        f"{word.capitalize()}: {what} = {where[0]} {unit}",
        f"95 % interval {where[1]} to {where[2]}, {len(effects)} seeds",
        x=dict(title_text=f"{what} ({unit})", range=[left, right]),
        y=dict(showgrid=False, range=[-0.6, 1.6]),
        height=300,
        showlegend=False,
        margin=dict(t=82),
        shapes=[claimed, upright(threshold)],
        annotations=[label],
    )
