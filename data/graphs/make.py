"""Writes the small graphs of this folder, and where they are drawn.

    python data/graphs/make.py

Needs NetworkX beside the lab; the file here was made with NetworkX 3.6.1.
"""

import json
from pathlib import Path

import networkx as nx

from lab.paths.graphs import SHOWN, power_law

HERE = Path(__file__).parent
GRAPHS = {
    "les miserables": nx.les_miserables_graph(),
    "karate": nx.karate_club_graph(),
    "florentine": nx.florentine_families_graph(),
    "davis": nx.davis_southern_women_graph(),
    "power law": nx.Graph(power_law(*SHOWN)),
}


def recorded(graph):
    """Edges between numbers, and a place on a plane for each number."""
    nodes = {node: i for i, node in enumerate(sorted(graph))}
    # neighbours stand about one unit apart, whatever their weight
    places = nx.kamada_kawai_layout(graph, weight=None)
    return {
        "edges": sorted(sorted((nodes[u], nodes[v])) for u, v in graph.edges),
        "places": [[round(x, 3) for x in places[n].tolist()] for n in nodes],
    }


found = {name: recorded(graph) for name, graph in GRAPHS.items()}
# the lab draws this one itself
found["power law"].pop("edges")
lines = [f" {json.dumps(name)}: {json.dumps(g)}" for name, g in found.items()]
(HERE / "graphs.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")
