"""Which expert took each token in each layer: recorded and made traces.

A trace is a table of tokens by layers, [N, L]: the one expert that a top-1
router chose. The recorded ones come from the character model of part 1 with
six layers and 8 or 16 experts, trained on the source code of Python's
standard library. `lab train 12` trains the models and records them again.

A made trace is a Markov chain that is as predictable as you like: with the
probability ``affinity`` a token goes to its expert's one partner in the next
layer, otherwise it takes any expert.
"""

import json
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from lab.atomic import write_arrays
from lab.data import DATA, read_arrays
from lab.kernels.runtime import device
from lab.kernels.transition_counts import transition_counts
from lab.tokens import checkpoints
from lab.tokens.char_lm import (
    CONTEXT,
    DIM,
    CharLM,
    measure,
    train,
    windows,
)
from lab.tokens.routers import TopKRouter
from lab.tokens.text import split

FOLDER = "exflow"
DOMAIN = "code"
LAYERS = 6
STEPS = 600
TOKENS = 24576  # of each half of a trace
SNAPSHOTS = (0, 30, 100, 300, STEPS)  # training steps done
RECORDED = {8: 5, 16: 3}  # experts: seeds


class Trace(NamedTuple):
    """The chosen experts of tokens to plan on, and of others to judge on."""

    train: Tensor  # [N, L] int8, of the text that the model learned
    test: Tensor  # [N, L] int8, of text that the model has not seen
    experts: int  # E
    early: Tensor  # [S, L - 1, E, E] counts on the test text, by snapshot


@cache
def recorded(experts: int, seed: int = 0) -> Trace:
    """The trace of a trained model with 8 or 16 experts."""
    arrays = read_arrays(f"{FOLDER}/experts-{experts}-seed-{seed}.npz")
    rows = {
        name: torch.from_numpy(arrays[name]).T.contiguous()
        for name in ("train", "test")
    }
    return Trace(
        **rows, experts=experts, early=torch.from_numpy(arrays["early"])
    )


@cache
def made(experts: int, affinity: float, seed: int = 0) -> Trace:
    """A Markov trace; ``affinity`` is the chance of following the partner."""
    if not 0 <= affinity <= 1:
        raise ValueError(
            f"affinity={affinity} is not within 0 to 1, a probability"
        )
    generator = torch.Generator().manual_seed(seed)
    partner = torch.stack(
        [torch.randperm(experts, generator=generator) for _ in range(LAYERS)]
    )
    shape = (2 * TOKENS, LAYERS)
    chosen = torch.randint(experts, shape, generator=generator)
    follows = torch.rand(shape, generator=generator) < affinity
    for layer in range(1, LAYERS):
        next_ = partner[layer][chosen[:, layer - 1]]
        chosen[:, layer] = chosen[:, layer].where(~follows[:, layer], next_)
    halves = chosen.to(torch.int8).split(TOKENS)
    empty = torch.zeros(0, LAYERS - 1, experts, experts)
    return Trace(*halves, experts=experts, early=empty)


def untrained(experts: int, seed: int = 0) -> CharLM:
    """The character model with six layers of top-1 routers."""
    return CharLM(lambda _: TopKRouter(DIM, experts, 1), experts, seed, LAYERS)


@cache
def model(experts: int = 8) -> CharLM:
    """The recorded model of seed 0, whose trace is `recorded`."""
    return checkpoints.load(_checkpoint(experts), untrained(experts))


def route(model: CharLM, part: str) -> Tensor:
    """The experts [N, L] of N tokens of the "train" or "test" text.

    The places are drawn once for all models, so that every prefix of a trace
    is a fair sample of the text.
    """
    ids = getattr(split(DOMAIN), part)
    generator = torch.Generator().manual_seed(len(ids))
    places = torch.randperm(len(ids) - CONTEXT, generator=generator)
    at = places[:TOKENS] + CONTEXT
    ids, at = (x.to(model.leave.weight.device) for x in (ids, at))
    # a few thousand tokens at a time stay in the cache
    chosen = [
        torch.cat(measure(model, *windows(ids, some)).chosen, dim=1)
        for some in at.split(4096)
    ]
    return torch.cat(chosen).to(torch.int8).cpu()


def contexts(number: int) -> Tensor:
    """What the model sees before ``number`` test characters, [N, 12]."""
    ids = split(DOMAIN).test.to(device())
    at = torch.arange(2000, 2000 + number, device=ids.device)
    return windows(ids, at)[0]


def record(experts: int, seed: int) -> None:
    """Train one model and keep its trace; for seed 0 its weights as well."""
    lm, early = untrained(experts, seed), []

    def snapshot(step: int, _) -> None:
        if step in SNAPSHOTS:
            early.append(transition_counts(route(lm, "test"), experts))

    train(lm, DOMAIN, STEPS, seed, on_step=snapshot)
    if (experts, seed) == (8, 0):
        checkpoints.save(
            _checkpoint(experts), lm, DOMAIN, steps=STEPS, seed=seed
        )
    # the trace is that of the weights as they are kept, in half precision
    with torch.no_grad():
        for weight in lm.parameters():
            weight.copy_(weight.half())
    chosen = {part: route(lm, part) for part in ("train", "test")}
    early.append(transition_counts(chosen["test"], experts))
    path = DATA / FOLDER / f"experts-{experts}-seed-{seed}.npz"
    # a layer in a row compresses better than a token in a row
    rows = {name: value.T.numpy() for name, value in chosen.items()}
    about = {"steps": STEPS, "domain": DOMAIN, "seed": seed}
    write_arrays(
        path, **rows, early=torch.stack(early).numpy(), about=json.dumps(about)
    )


def record_all(progress: Callable = iter) -> None:
    """Train and record every model: two or three minutes."""
    wanted = [(e, seed) for e, n in RECORDED.items() for seed in range(n)]
    for experts, seed in progress(wanted):
        record(experts, seed)


def _checkpoint(experts: int) -> str:
    return f"top-1-of-{experts}-in-{LAYERS}-layers"
