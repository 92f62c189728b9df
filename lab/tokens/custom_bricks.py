"""Bricks added after training: route to them, merge, update and grow them.

A customised brick is a few more neurons in every layer of a frozen model:
more columns of its up-projections, more rows of its down-projections. What the
new neurons write adds to what the layer writes, so bricks stand side by side,
and to run a brick is to put it there. The operations of Xiao et al. 2024,
section 3:

    routing    an instance runs the brick of its function, and no other
    merging    the weighted mean of two bricks, parameter by parameter
    updating   train one brick further; nothing else is changed
    growing    put fresh neurons beside a brick, which stays as it is

Left out: stitching, where one brick reads what another brick wrote.

All bricks start from the same random up-projections and from down-projections
of 0. So a fresh brick changes nothing, and two bricks can be averaged neuron
by neuron.
"""

import itertools
from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from lab.descent import one_cycle_adam
from lab.tokens.brick_scores import (
    PER_DOMAIN,
    WINDOW,
    Instances,
    activations,
    function_scores,
    instances,
    most,
    token_bits,
)
from lab.tokens.char_lm import CONTEXT, DIM, LAYERS, windows
from lab.tokens.dense_lm import STEPS as PRETRAINING
from lab.tokens.dense_lm import DenseLM, trained
from lab.tokens.domains import DOMAINS, split

NEURONS = 16  # of a brick, in each layer
STEPS = 150
RATE = 1e-2
BATCH = 256  # characters of one training step


class Brick(NamedTuple):
    """Extra neurons for every layer."""

    up: Tensor  # [L, D, R]
    down: Tensor  # [L, R, D]


def fresh(neurons: int = NEURONS, seed: int = 0) -> Brick:
    """A brick that does nothing yet; a seed always gives the same brick."""
    if neurons < 1:
        raise ValueError(
            f"neurons={neurons} do not make a brick; use 1 or more"
        )
    generator = torch.Generator().manual_seed(seed)
    up = torch.randn(LAYERS, DIM, neurons, generator=generator)
    return Brick(up / (3 * DIM) ** 0.5, torch.zeros(LAYERS, neurons, DIM))


def merged(bricks: Sequence[Brick], weights: Sequence[float]) -> Brick:
    """The weighted mean of bricks of one size; weights must add up to 1."""
    if len(weights) != len(bricks) or abs(sum(weights) - 1) > 1e-6:
        raise ValueError(
            f"weights={list(weights)} do not fit {len(bricks)} bricks; give"
            " one weight for each brick, with sum 1"
        )
    pairs = list(zip(weights, bricks, strict=True))
    return Brick(
        up=sum(w * brick.up for w, brick in pairs),
        down=sum(w * brick.down for w, brick in pairs),
    )


def with_bricks(model: DenseLM, bricks: Sequence[Brick]) -> Callable:
    """Return the model with the bricks in place; ``model`` stays unchanged."""
    own = {name: w.detach() for name, w in model.named_parameters()}
    weights = dict(own)
    for layer in range(LAYERS):
        up, down = f"layers.{layer}.w_up", f"layers.{layer}.w_down"
        ups = [own[up], *(brick.up[layer] for brick in bricks)]
        downs = [own[down], *(brick.down[layer] for brick in bricks)]
        weights[up], weights[down] = torch.cat(ups, dim=1), torch.cat(downs)
    return lambda *inputs: functional_call(model, weights, inputs)


def learn(
    read: Callable,
    weights: Sequence[Tensor],
    domains: Sequence[str],
    steps: int,
    seed: int,
) -> None:
    """Train ``weights`` while ``read()(context)`` reads the domains.

    The domains take turns, one each step; Adam with a one-cycle rate.
    """
    generator = torch.Generator().manual_seed(seed)

    def loss(step: int) -> Tensor:
        ids = split(domains[step % len(domains)]).train
        at = torch.randint(CONTEXT, len(ids), (BATCH,), generator=generator)
        context, target = windows(ids, at)
        return F.cross_entropy(read()(context).logits, target)

    one_cycle_adam(weights, loss, steps, RATE)


def update(
    model: DenseLM,
    brick: Brick,
    domains: Sequence[str],
    steps: int = STEPS,
    seed: int = 0,
    beside: Sequence[Brick] = (),
) -> Brick:
    """Train a copy of ``brick`` on the frozen model, others ``beside`` it."""
    own = Brick(*(w.detach().clone().requires_grad_() for w in brick))
    learn(
        lambda: with_bricks(model, [*beside, own]), own, domains, steps, seed
    )
    return Brick(own.up.detach(), own.down.detach())


def fine_tuned(
    model: DenseLM, domain: str, steps: int = STEPS, seed: int = 0
) -> Callable:
    """The rival without a brick: as many steps on the layers' own neurons."""
    own = {name: w.detach().clone() for name, w in model.named_parameters()}
    neurons = [
        own[name].requires_grad_()
        for name in own
        if name.endswith(("w_up", "w_down"))
    ]

    def read():
        return lambda *inputs: functional_call(model, own, inputs)

    learn(read, neurons, [domain], steps, seed)
    return read()


def asked_for(
    model: DenseLM, judge: Instances, per_domain: int = PER_DOMAIN
) -> Tensor:
    """The function [C] whose best neurons are most excited; reads no label.

    Each neuron's activation is measured in standard deviations from its mean
    over the instances that gave the scores; a function's excitement is the
    mean over its 5 % best neurons.
    """
    seen = instances("choose", per_domain)
    means = activations(model, seen)
    scores = function_scores(means, seen)
    center, spread = means.mean(dim=0), means.std(dim=0).clamp(min=1e-6)
    excited = (activations(model, judge) - center) / spread
    best = torch.stack([most(s) for s in scores]).float()
    return (excited.flatten(1) @ best.flatten(1).T).argmax(dim=1)


class Used(NamedTuple):
    """Bits per character of every domain [F], for each use of bricks."""

    none: Tensor  # the frozen model alone
    own: Tensor  # with the domain's brick
    found: Tensor  # with the brick that the model's own neurons ask for
    shared: Tensor  # with one brick trained on all domains
    merged: Tensor  # with the mean of its brick and another; mean of all
    fine_tuned: Tensor  # [F, F] row f: no brick, the layers trained on f
    trained_on: Tensor  # with its brick trained for as many steps again
    grown: Tensor  # with its brick and a second one, trained as long
    hits: float  # share of the instances whose brick was found


@cache
def use(
    seed: int,
    per_domain: int = PER_DOMAIN,
    steps: int = STEPS,
    pretraining: int = PRETRAINING,
) -> Used:
    """Give one frozen model a brick for each domain, and use them.

    Every brick gets the same steps; the shared one gets those of all seven.
    """
    model, many = trained(seed, pretraining), len(DOMAINS)
    judge = instances("judge", per_domain)

    def lost(bricks: Sequence[Brick]) -> Tensor:  # [F, characters]
        bits = token_bits(with_bricks(model, bricks), judge)
        return bits.unflatten(0, (many, -1))

    def further(brick, domain, beside=()):
        return update(model, brick, [domain], steps, seed + 1000, beside)

    bricks = [update(model, fresh(), [d], steps, seed) for d in DOMAINS]
    shared = update(model, fresh(), DOMAINS, many * steps, seed)
    table = torch.stack([lost([brick]) for brick in bricks])  # [F, F, ...]
    bits = table.mean(dim=2)
    asked = asked_for(model, judge, per_domain)
    choice = asked.repeat_interleave(WINDOW).view(1, many, -1)
    pairs = list(itertools.combinations(range(many), 2))
    halves = {
        pair: lost([merged([bricks[f] for f in pair], [0.5, 0.5])]).mean(dim=1)
        for pair in pairs
    }
    own, tuned, on, grown = bits.diagonal(), [], [], []
    for f, domain in enumerate(DOMAINS):
        rival = token_bits(fine_tuned(model, domain, steps, seed), judge)
        tuned.append(rival.unflatten(0, (many, -1)).mean(dim=1))
        on.append(lost([further(bricks[f], domain)])[f].mean())
        new = further(fresh(seed=1), domain, [bricks[f]])
        grown.append(lost([bricks[f], new])[f].mean())
    return Used(
        none=lost([]).mean(dim=1),
        own=own,
        found=table.gather(0, choice)[0].mean(dim=1),
        shared=lost([shared]).mean(dim=1),
        merged=torch.stack(
            [
                torch.stack([halves[p][f] for p in pairs if f in p]).mean()
                for f in range(many)
            ]
        ),
        fine_tuned=torch.stack(tuned),
        trained_on=torch.stack(on),
        grown=torch.stack(grown),
        hits=(asked == judge.domain).double().mean().item(),
    )
