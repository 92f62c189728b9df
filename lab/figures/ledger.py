"""Many verdicts at once: where each interval lies against its threshold."""

from collections import Counter

from lab.figures.theme import (
    COLOURS,
    LINE,
    drawn,
    error_bars,
    upright,
    wrapped,
)

SHADES = {"confirmed": "best", "refuted": "cut", "undecided": "mean"}
ROW = 25  # pixels for one claim


def ledger(claims, title=""):
    """One line per claim, right of the threshold if it came out as claimed.

    Each of `claims` is a dictionary with ``name``, ``word`` and ``hover``
    and, unless it is out of reach, ``mean``, ``low``, ``high``, ``threshold``
    and ``side`` ("above" or "below"). Each has a scale of its own, so that
    different units share one axis.
    """
    words = [claim["word"] for claim in claims]
    counts = Counter(words)
    said = ", ".join(f"{n} {word}" for word, n in counts.most_common())
    traces = [_intervals(claims, word) for word in SHADES]
    traces.append(_out_of_reach(claims))
    title = f"{title}{len(claims)} claims: {said or 'none measured yet'}"
    more = 20 * wrapped(title, LINE).count("<br>")
    half = dict(showarrow=False, yref="paper", y=1, yanchor="bottom")
    half["font"] = dict(size=12, color=COLOURS["baseline"])
    return drawn(
        traces,
        title,
        "a line is the 95 % interval, its dot the mean; each on its own scale",
        x=dict(
            range=[-1.15, 1.15], showticklabels=False, title_text="threshold"
        ),
        y=dict(
            tickvals=list(range(len(claims))),
            ticktext=[claim["name"] for claim in claims],
            range=[len(claims) - 0.4, -0.6],
            showgrid=False,
        ),
        height=128 + more + ROW * max(1, len(claims)),
        showlegend=False,
        margin=dict(t=88 + more, b=34),
        shapes=[_claimed_side(), upright(0)],
        annotations=[
            half | dict(x=-0.6, text="← against the claim"),
            half | dict(x=0.6, text="as claimed →"),
        ],
    )


def placed(claim):
    """Mean, low and high as distances from the threshold, at most 1.

    Distances on the claimed side are positive.
    """
    sign = 1 if claim["side"] == "above" else -1
    far = [
        sign * (claim[key] - claim["threshold"])
        for key in ("mean", "low", "high")
    ]
    scale = max(abs(one) for one in far) or 1
    mean, *ends = (one / scale for one in far)
    return mean, min(ends), max(ends)


def _intervals(claims, word):
    shown = [i for i, c in enumerate(claims) if c["word"] == word]
    places = [placed(claims[i]) for i in shown]
    shade = COLOURS[SHADES[word]]
    return dict(
        type="scatter",
        mode="markers",
        x=[mean for mean, _, _ in places],
        y=shown,
        error_x=error_bars(places, shade, 4, 0),
        marker=dict(size=11, color=shade),
        name=word,
        hovertext=[claims[i]["hover"] for i in shown],
        hovertemplate="%{hovertext}<extra></extra>",
    )


def _out_of_reach(claims):
    shown = [i for i, c in enumerate(claims) if c["word"] not in SHADES]
    return dict(
        type="scatter",
        mode="text",
        x=[-1.1] * len(shown),
        y=shown,
        text=[claims[i]["word"] for i in shown],
        textposition="middle right",
        textfont=dict(size=12, color=COLOURS["quiet"]),
        hovertext=[claims[i]["hover"] for i in shown],
        hovertemplate="%{hovertext}<extra></extra>",
    )


def _claimed_side():
    return dict(
        type="rect",
        layer="below",
        x0=0,
        x1=1.15,
        y0=0,
        y1=1,
        yref="paper",
        fillcolor=COLOURS["best"],
        opacity=0.09,
        line=dict(width=0),
    )
