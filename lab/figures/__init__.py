"""The figure archetypes: pure functions from plain data to `go.Figure`.

Importing this package sets the plotly theme of the whole session.
"""

from lab.figures import renderers as renderers  # before plotly does
from lab.figures.assignments import assignments
from lab.figures.choices import (
    heatmap,
    histogram,
    load_heatmap,
    selection_bars,
)
from lab.figures.flow import stage_flow
from lab.figures.fronts import fronts, gaps
from lab.figures.horizon import answers, horizon
from lab.figures.kernels import block_grid, roofline
from lab.figures.ledger import ledger
from lab.figures.network import network
from lab.figures.panels import panels
from lab.figures.pareto import pareto, shares
from lab.figures.patches import patch_grids
from lab.figures.results import bars, curves, trade_off
from lab.figures.roads import road_map
from lab.figures.route import INKS, five_steps
from lab.figures.story import STEPS, first_look, steps
from lab.figures.text import text_strip
from lab.figures.theme import COLOURS, SCALE, SERIES, colour, drawn, number
from lab.figures.timeline import timeline
from lab.figures.tours import tour_map
from lab.figures.travellers import travellers
from lab.figures.verdicts import effect

__all__ = [
    "COLOURS",
    "INKS",
    "SCALE",
    "SERIES",
    "STEPS",
    "answers",
    "assignments",
    "bars",
    "block_grid",
    "colour",
    "curves",
    "drawn",
    "effect",
    "first_look",
    "five_steps",
    "fronts",
    "gaps",
    "heatmap",
    "histogram",
    "horizon",
    "ledger",
    "load_heatmap",
    "network",
    "number",
    "panels",
    "pareto",
    "patch_grids",
    "road_map",
    "roofline",
    "selection_bars",
    "shares",
    "stage_flow",
    "steps",
    "text_strip",
    "timeline",
    "tour_map",
    "trade_off",
    "travellers",
]
