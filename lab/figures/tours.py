"""A tour on its map, with what the search was told about the edges."""

from lab.figures.theme import COLOURS, drawn, of_a_plane, plain, separate_lines

LEVELS = (0.05, 0.15, 0.4)  # of heat: thin, medium and thick lines
SHADES = ("#DCE6EE", "#B7CFE1", "#8DB6D3")


def tour_map(points, tour, title, note="", heat=(), best=(), unit="map units"):
    """The cities of `points`, a `tour` of city numbers, and edges of `heat`.

    `heat` holds triples (city, city, value from 0 to 1); the higher the
    value, the thicker the line. If the tour `best` is given, edges of `tour`
    that are not in it are drawn in another colour.
    """
    points, tour, best = plain(points), plain(tour), plain(best)
    traces = list(_heat(points, heat))
    known = _edges(best) if best else _edges(tour)
    right, wrong = [], []
    for edge in zip(tour, [*tour[1:], tour[0]], strict=True):
        (right if frozenset(edge) in known else wrong).append(edge)
    name = "tour, as in the best one" if best else "tour"
    traces.append(_lines(points, right, name, COLOURS["kept"], 2.4))
    traces.append(
        _lines(points, wrong, "tour, elsewhere", COLOURS["cut"], 2.4)
        | dict(showlegend=bool(best))
    )
    traces.append(
        dict(
            type="scatter",
            x=[x for x, _ in points],
            y=[y for _, y in points],
            mode="markers",
            marker=dict(size=5, color=COLOURS["ink"]),
            name="city",
            text=[str(i) for i in range(len(points))],
            hovertemplate="city %{text}<extra></extra>",
            showlegend=False,
        )
    )
    x, y = zip(*points, strict=True)
    return drawn(
        traces,
        title,
        note,
        x=of_a_plane(x, 0.04, f"x ({unit})"),
        y=of_a_plane(y, 0.04, f"y ({unit})"),
        height=430,
    )


def _heat(points, heat):
    """A trace for each level of heat, so that a few lines are enough."""
    bounds = [*LEVELS[1:], float("inf")]
    for low, high, shade, width in zip(
        LEVELS, bounds, SHADES, (1, 2.5, 5), strict=True
    ):
        edges = [(i, j) for i, j, value in heat if low <= value < high]
        yield _lines(points, edges, "heat", shade, width) | dict(
            showlegend=False, meta="backdrop"
        )
    # a level may have no edge at all, so the legend has a trace of its own
    shown = any(value >= LEVELS[0] for _, _, value in heat)
    yield _lines(points, [], "heat", SHADES[1], 2.5) | dict(
        x=[None], y=[None], showlegend=shown, meta="backdrop"
    )


def _edges(tour):
    return {frozenset(e) for e in zip(tour, [*tour[1:], tour[0]], strict=True)}


def _lines(points, edges, name, shade, width):
    """The edges as one trace."""
    ends = [(points[i], points[j]) for i, j in edges]
    return separate_lines(ends, dict(color=shade, width=width), name=name)
