"""What the pictures of chapter 22 show: bits of every query at every setting.

The model, the experts and the gates are those recorded for chapter 21 (seed
0). The curves were measured once; the passage shown is read live.
"""

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
from lab.weights.glider import ALPHAS, by_alpha, read
from lab.weights.hints import guided, is_familiar

RULES = ("constant", "threshold")
KS = tuple(range(1, 7))
RECORDED = "glider/curves.npz"
MEASURED = 1024  # characters of each query that the curves rest on
SHOWN = 512  # characters that a description of your own is tried on
WIDTH = 56  # characters of the picture


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
    shape = len(KS), len(KINDS), WORDINGS, len(names.EXPERTS), len(ALPHAS)
    found = np.zeros(shape, dtype=np.float32)
    without = np.zeros(shape[1:2] + shape[3:4], dtype=np.float32)
    part, seen = slice(0, MEASURED + CONTEXT), {}
    for place in progress([*np.ndindex(shape[:-1])]):
        k, kind, wording, number = place
        query = queries(KINDS[kind], wording)[number]
        ids, hint = read(query.languages).ids[part], alike(query.said)
        # wordings with the same known words need no second run
        key = KS[k], query.languages, tuple(hint.tolist())
        if key not in seen:
            row = by_alpha(trained(), ids, hint, KS[k])
            seen[key] = list(row.values())
        found[place] = seen[key]
        if not without[kind, number]:
            without[kind, number] = bits(trained().model, ids)
    write_arrays(DATA / RECORDED, bits=found, without=without)


@cache
def _recorded() -> dict[str, np.ndarray]:
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
    table, without = _recorded()["bits"][KS.index(k)], _recorded()["without"]
    found = {}
    for at, kind in enumerate(KINDS):
        rows = []
        for wording in range(WORDINGS):
            for number, query in enumerate(queries(kind, wording)):
                hint = alike(query.said)
                places = [
                    ALPHAS.index(alpha_of(rule, alpha, hint, p))
                    for alpha in ALPHAS
                ]
                spent = table[at, wording, number][places]
                rows.append(without[at, number] - spent)
        found[kind] = np.mean(rows, axis=0).tolist()
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
    curves: dict[str, list[float]]  # the same by kind of query, over ALPHAS


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
