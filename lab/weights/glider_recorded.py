"""What the pictures of chapter 22 show: bits of every query at every setting.

The model, the experts and the gates are those recorded for chapter 21 (seed
0). The curves were measured once; the passage shown is read live.
"""

import html
import textwrap
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import numpy as np
import torch

from lab.atomic import write_arrays
from lab.data import DATA, read_arrays
from lab.tokens.char_lm import CONTEXT
from lab.weights import names, phatgoose, phatgoose_recorded
from lab.weights.adapters import bits
from lab.weights.contributors import GATE_STEPS, Trained
from lab.weights.descriptions import (
    KINDS,
    WORDINGS,
    alike,
    known,
    queries,
)
from lab.weights.glider import ALPHAS, by_alpha, measure, read
from lab.weights.hints import BETA, guided, is_familiar

RULES = ("constant", "threshold")
RIVALS = ("described", "shuffled", "merged", "oracle")
KS = tuple(range(1, 7))
RECORDED = "glider/curves.npz"
MEASURED = 1024  # characters of each query that the curves rest on
SHOWN = 512  # characters that a description of your own is tried on
WIDTH = 56  # characters of the picture
# a logarithmic axis has no place for 0
AXIS = (0.1, *ALPHAS[1:])


@cache
def trained() -> Trained:
    """The experts of chapter 21, with its gates after 100 steps."""
    found = phatgoose_recorded.recorded()
    at = phatgoose_recorded.STEPS.index(GATE_STEPS)
    return found._replace(gates=found.gates[at])


def train_checkpoints(progress: Callable = iter) -> None:
    """Measure all queries again at every alpha and k: a minute.

    Nothing is trained: the experts are chapter 21's (`lab train 21`).
    """
    shape = len(KINDS), WORDINGS, len(names.EXPERTS)
    spent = np.zeros((len(KS), *shape, len(ALPHAS)), dtype=np.float32)
    others = np.zeros((*shape, len(RIVALS)), dtype=np.float32)
    without = np.zeros(shape, dtype=np.float32)
    part, seen = slice(0, MEASURED + CONTEXT), {}
    for place in progress([*np.ndindex(shape)]):
        kind, wording, number = place
        query = queries(KINDS[kind], wording)[number]
        # sentences with the same known words need no second run
        hint = alike(query.said)
        key = query.languages, tuple(hint.tolist())
        if key not in seen:
            ids = read(query.languages).ids[part]
            rows = [by_alpha(trained(), ids, hint, k) for k in KS]
            rivals = measure(trained(), query, part)
            seen[key] = (
                [[*row.values()] for row in rows],
                [rivals.get(way, np.nan) for way in RIVALS],
                bits(trained().model, ids),
            )
        spent[:, *place], others[place], without[place] = seen[key]
    write_arrays(DATA / RECORDED, bits=spent, rivals=others, without=without)


@cache
def _recorded() -> dict[str, np.ndarray]:
    """bits [k, kind, wording, query, alpha], rivals [kind, wording, query,
    way] at k = 2, and without [kind, wording, query] any expert."""
    return read_arrays(RECORDED)


def alpha_of(rule: str, alpha: float, hint: torch.Tensor, p: float) -> float:
    """The scale of one query; by the rule with p, ``alpha`` is beta, and a
    familiar query gets 100."""
    if rule not in RULES:
        raise ValueError(f"rule={rule!r} is not one of {', '.join(RULES)}")
    if rule == RULES[0]:
        return alpha
    return ALPHAS[-1] if is_familiar(hint, p) else alpha


@cache
def saved(rule: str, p: float, k: int) -> dict[str, list[float]]:
    """Bits per character saved against no expert, over ALPHAS for each kind,
    mean of six queries in three wordings."""
    spent, without = _recorded()["bits"][KS.index(k)], _recorded()["without"]
    found = {}
    for at, kind in enumerate(KINDS):
        rows = []
        for wording in range(WORDINGS):
            for number, query in enumerate(queries(kind, wording)):
                hint = alike(query.said)
                used = [alpha_of(rule, alpha, hint, p) for alpha in ALPHAS]
                row = spent[at, wording, number]
                row = row[[ALPHAS.index(alpha) for alpha in used]]
                rows.append(without[at, wording, number] - row)
        found[kind] = np.mean(rows, axis=0).tolist()
    return found


def compared(p: float) -> dict[str, dict[str, float]]:
    """Bits per character saved by every way at k = 2, by kind of query; NaN
    for the oracle of languages without an expert."""
    constant = saved(RULES[0], p, 2)
    rule = saved(RULES[1], p, 2)
    found = {
        f"alpha = {alpha:g}": {
            kind: row[ALPHAS.index(alpha)] for kind, row in constant.items()
        }
        for alpha in (0.0, 3.0, 100.0)
    }
    # 3, or 100 if familiar
    found["threshold"] = {
        kind: row[ALPHAS.index(BETA)] for kind, row in rule.items()
    }
    gained = _recorded()["without"][..., None] - _recorded()["rivals"]
    means = gained.mean(axis=(1, 2))  # [kinds, ways]
    for way, column in zip(RIVALS, means.T.tolist(), strict=True):
        found[way] = dict(zip(KINDS, column, strict=True))
    return found


@cache
def familiar(p: float) -> dict[str, float]:
    """Percent of each kind's 18 sentences that reach p."""
    found = {}
    for kind in KINDS:
        asked = [q for w in range(WORDINGS) for q in queries(kind, w)]
        reach = [is_familiar(alike(query.said), p) for query in asked]
        found[kind] = 100 * sum(reach) / len(reach)
    return found


class Picture(NamedTuple):
    """What the chapter's picture shows, as plain lists."""

    letters: str  # the passage, a character a column
    choices: list[list[int]]  # best expert [modules][characters]
    language: list[int] | None  # the expert of each character's language
    alpha: float  # of this query, by the rule
    said: str  # the description
    known: list[str]  # its words that experts' descriptions have
    hint: dict[str, float]  # alpha times cosine, by expert
    spread: float  # best minus worst local score, mean
    saved: float  # bits per character on this query, against no expert
    axis: str  # what the curves run over
    curves: dict[str, list[float]]  # the same by kind of query, over ALPHAS

    @property
    def note(self) -> str:
        """The description, what of it is known, and the scale it gets."""
        said = html.escape(textwrap.shorten(self.said, 70, placeholder=" ..."))
        words = ", ".join(dict.fromkeys(self.known)) or (
            "nothing, so the local scores decide alone"
        )
        return f"“{said}” alpha = {self.alpha:g}; recognised: {words}"

    @property
    def added(self) -> str:
        """The hint's two largest shares of a score, beside the local ones."""
        most = sorted(self.hint, key=self.hint.get, reverse=True)[:2]
        parts = [f"{self.hint[e]:.1f} to {e}" for e in most if self.hint[e]]
        return (
            f"the hint adds {' and '.join(parts) or 'nothing'}; a token's"
            f" local scores lie {self.spread:.1f} apart"
        )


def picture(
    alpha: float = 3.0,
    kind: str = KINDS[3],
    rule: str = RULES[0],
    p: float = 0.5,
    k: int = 2,
    said: str = "",
) -> Picture:
    """Route the first query of a kind, described as written or as ``said``."""
    if alpha not in ALPHAS:
        raise ValueError(
            f"alpha={alpha} was not recorded; use one of"
            f" {', '.join(f'{a:g}' for a in ALPHAS)}"
        )
    query = queries(kind)[0]
    said = said.strip() or query.said
    text, hint, seen = read(query.languages), alike(said), []
    scale_ = alpha_of(rule, alpha, hint, p)
    ids = text.ids[: SHOWN + CONTEXT]
    model, experts, _, gates = trained()
    cost = bits(model, ids, guided(experts, gates, hint, scale_, k, seen))
    first = torch.stack([gate.experts[:WIDTH, 0] for gate in seen])
    whose = text.language[CONTEXT : CONTEXT + WIDTH].tolist()
    return Picture(
        letters=names.decode(ids[CONTEXT : CONTEXT + WIDTH]),
        choices=first.tolist(),
        language=None if -1 in whose else whose,
        alpha=scale_,
        said=said,
        known=known(said),
        hint={
            names.TITLES[e]: scale_ * c
            for e, c in zip(names.EXPERTS, hint.tolist(), strict=True)
        },
        spread=_spread(query.languages),
        saved=_without(query.languages) - cost,
        axis="alpha" if rule == RULES[0] else "alpha of unfamiliar queries",
        curves=saved(rule, p, k),
    )


@cache
def _without(languages: tuple[str, ...]) -> float:
    ids = read(languages).ids[: SHOWN + CONTEXT]
    return bits(trained().model, ids)


@cache
def _spread(languages: tuple[str, ...]) -> float:
    """Best minus worst local score of a token, mean of tokens and modules."""
    ids = read(languages).ids[: SHOWN + CONTEXT]
    model, experts, _, gates = trained()
    route, found = guided(experts, gates, alike(""), 0.0), []

    def watch(module: int, u: torch.Tensor) -> torch.Tensor:
        local = phatgoose.scores(u, gates[module])
        found.append((local.amax(1) - local.amin(1)).mean().item())
        return route(module, u)

    bits(model, ids, watch)
    return sum(found) / len(found)
