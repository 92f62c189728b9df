"""What the pictures of chapter 21 show: recorded experts and their gates.

Seed 0: one base, six experts, and the gates after every 25 steps. The texts
are read live.
"""

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from lab.half_precision import read_halves, write_halves
from lab.tokens.char_lm import CONTEXT
from lab.weights import names, rivals
from lab.weights.adapters import CharModel, Experts, bits, own
from lab.weights.contributors import GATE_STEPS, Trained, train
from lab.weights.phatgoose import KINDS, read, routed, ways

SNAPSHOT = 25  # gate steps between two recorded gates
STEPS = tuple(range(SNAPSHOT, 401, SNAPSHOT))  # of the recorded gates
WIDTH = 56  # characters of the picture
RECORDED = "phatgoose/experts.npz"
SHOWN = 1024  # characters that the picture's bars are measured on


def train_checkpoints(progress: Callable = iter) -> None:
    """Train the recorded experts and gates again, seed 0: half a minute."""
    for seed in progress([0]):
        trained = train(seed, gate_steps=STEPS[-1], every=SNAPSHOT)
        arrays = {
            f"base.{key}": weight
            for key, weight in trained.model.state_dict().items()
        }
        arrays |= {
            "down": trained.experts.down, "up": trained.experts.up,
            "multitask_down": trained.multitask.down,
            "multitask_up": trained.multitask.up, "gates": trained.gates,
        }  # fmt: skip
        write_halves(RECORDED, arrays)


@cache
def recorded() -> Trained:
    """The model, experts and gates of `train_checkpoints`, seed 0.

    Gates are [snapshots, modules, N, n], one after every 25 steps.
    """
    arrays = read_halves(RECORDED)
    model = CharModel()
    model.load_state_dict(
        {k[5:]: a for k, a in arrays.items() if k.startswith("base.")}
    )
    return Trained(
        model.requires_grad_(False),
        Experts(arrays["down"], arrays["up"]),
        Experts(arrays["multitask_down"], arrays["multitask_up"]),
        arrays["gates"],
    )


@cache
def _router_rows(kind: str, gate_steps: int) -> Tensor:
    _, experts, _, gates = trained = recorded()
    if kind == KINDS[2]:
        return rivals.average_activations(
            trained.model, experts, names.EXPERTS
        )
    if kind == KINDS[3]:
        return rivals.arrows(experts)
    return gates[STEPS.index(gate_steps)]


@cache
def shown_rivals(text: str) -> dict[str, float]:
    """Bits per character of everything that is not routed by token."""
    trained, ids = recorded(), read(text)[: SHOWN + CONTEXT]
    row = {way: bits(trained.model, ids, f(ids)) for way, f in ways(trained)}
    single = min(names.EXPERTS, key=row.get)
    whose = own_language(text)
    found = {"no expert": row["base"], "merged": row["merged"]}
    found["retrieval"] = row["retrieval"]
    found["multitask"] = row["multitask"]
    found[f"best single ({names.TITLES[single]})"] = row[single]
    if text == "mixed":
        slots = whose[: len(ids) - CONTEXT].int()[:, None]
        right = own(trained.experts, slots, torch.ones(len(slots), 1))
        found["own language"] = bits(trained.model, ids, right)
    return found


def own_language(text: str) -> Tensor | None:
    """The expert of each character's own language; none if held out."""
    if text == "mixed":
        return names.mixed().language[CONTEXT:]
    if text not in names.EXPERTS:
        return None
    count = len(read(text)) - CONTEXT
    return torch.full((count,), names.EXPERTS.index(text))


class Picture(NamedTuple):
    """What the chapter's picture shows, as plain lists."""

    letters: str  # the passage, a character a column
    choices: list[list[int]]  # best expert [modules][characters]
    weights: list[list[str]]  # and its weight, in words
    language: list[int] | None  # the expert of each character's language
    bits: dict[str, float]  # bits per character, the routed one last
    hits: float | None  # % of first choices that are the own language
    experts: float  # different first choices per character, over modules

    @property
    def hit_words(self) -> str:
        """The hits in words; empty where the language has no expert."""
        if self.hits is None:
            return ""
        return f"; of its own language: {self.hits:.0f} %, by chance 17 %"

    @property
    def saved(self) -> dict[str, float]:
        """Bits per character saved against the base without experts."""
        row = dict(self.bits)
        without = row.pop("no expert")
        return {way: without - value for way, value in row.items()}


def picture(
    gate_steps: int = GATE_STEPS,
    text: str = "mixed",
    k: int = 2,
    kind: str = KINDS[0],
    temperature: float = 1.0,
    start: int = 0,
) -> Picture:
    """Route a text through the recorded experts, and show a passage of it."""
    if gate_steps not in STEPS:
        raise ValueError(
            f"no gates were recorded after gate_steps={gate_steps}; use a"
            f" multiple of {SNAPSHOT} from {STEPS[0]} to {STEPS[-1]}"
        )
    trained, seen = recorded(), []
    rows = _router_rows(kind, gate_steps)
    adapter = routed(trained.experts, rows, k, kind, temperature, seen)
    ids = read(text)[: SHOWN + CONTEXT]
    value = bits(trained.model, ids, adapter)
    first = torch.stack([gate.experts[:, 0] for gate in seen])  # [modules, T]
    here, whose = slice(start, start + WIDTH), own_language(text)
    hits = None
    if whose is not None:
        same = first == whose[: first.shape[1]]
        hits = 100 * same.double().mean().item()
    several = [len(set(column)) for column in first.T.tolist()]
    weights = torch.stack([gate.weights[:, 0] for gate in seen])[:, here]
    return Picture(
        letters=names.decode(ids[CONTEXT:][here]),
        choices=first[:, here].tolist(),
        weights=[[f"{w:.2f}" for w in row] for row in weights.tolist()],
        language=None if whose is None else whose[here].tolist(),
        bits=shown_rivals(text) | {kind: value},
        hits=hits,
        experts=sum(several) / len(several),
    )
