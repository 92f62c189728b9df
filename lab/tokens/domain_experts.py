"""Experts carved from a dense model by masks, one for each domain of text.

A domain keeps the hidden units that it uses most. `read_me` says where this
comes from and how the authors' code differs. This file has the first half of
it: masks, overlaps of tokens with masks, and what a choice of experts costs.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lab.kernels.mask_overlap import mask_overlap, pack, unpack
from lab.tokens.dense_lm import DenseLM
from lab.tokens.domains import DOMAINS, passage

BITS = 1 / math.log(2)  # a nat
QUANTILES = (4, 3, 2, 1)  # fifths of N_1: the places after the first, N_1 - 1


class Experts(NamedTuple):
    """The hidden units that every domain kept, layer by layer."""

    masks: Tensor  # [layers, N, F] bool, M_i, the resident units included
    resident: Tensor  # [layers, F] bool

    @property
    def resident_share(self) -> float:
        """Share of the kept units that all domains keep."""
        return (self.resident.sum() / self.masks[:, 0].sum()).item()


@torch.no_grad()
def read(
    model: DenseLM, part: str, characters: int
) -> tuple[list[Tensor], Tensor, Tensor]:
    """Hidden units [domains, characters, F] by layer, contexts, targets."""
    parts = [passage(domain, characters, part) for domain in DOMAINS]
    context, target = map(torch.cat, zip(*parts, strict=True))
    hidden = model(context).hidden
    shape = (len(DOMAINS), characters, -1)
    return [u.view(shape) for u in hidden], context, target


def carve(hidden: list[Tensor], share: float = 0.5) -> Experts:
    """Experts from the hidden units [N, characters, F] of N domains.

    Each domain keeps ``share`` of the units, by their mean magnitude.
    """
    if len(hidden[0]) < 2 or not hidden[0].shape[1]:
        raise ValueError(
            f"hidden units of shape {tuple(hidden[0].shape)} cannot be carved"
            " into experts; give two domains or more, each with characters"
        )
    masks = []
    for u in hidden:
        importance = u.abs().mean(1)  # [N, F]
        _, width = importance.shape
        nobody = pack(importance.new_zeros(1, width))
        kept = mask_overlap(importance, nobody, round(share * width)).masks
        masks.append(unpack(kept, width))
    masks = torch.stack(masks)
    return Experts(masks, masks.all(1))


def overlaps(hidden: list[Tensor], experts: Experts) -> Tensor:
    """<M_0(t), M_j> [layers, T, N], units that token and expert share."""
    counts = []
    for u, masks in zip(hidden, experts.masks, strict=True):
        d = int(masks[0].sum())
        counts.append(mask_overlap(u.flatten(0, -2), pack(masks), d).counts)
    return torch.stack(counts).float()


def code_overlap(hidden: list[Tensor], experts: Experts) -> Tensor:
    """The overlap of the authors' code, [layers, T, N]."""
    found = []
    layers = zip(hidden, experts.masks, experts.resident, strict=True)
    for u, masks, resident in layers:
        own = (masks & ~resident).float()
        n = int(own[0].sum())  # N_1, the size of the first expert
        u = u.flatten(0, -2)
        ordered = u.sort(dim=1, descending=True).values
        # places count from 0, so r units exceed the level at place r
        places = [n - 1, *(n * fifth // 5 for fifth in QUANTILES)]
        level = sum((u > ordered[:, [place]]).float() for place in places)
        shared = level @ own.T / (3 * n)
        found.append(10 * (shared - shared.mean(1, keepdim=True)))
    return torch.stack(found)


@torch.no_grad()
def bits(
    model: DenseLM,
    context: Tensor,
    target: Tensor,
    masks: Tensor | None = None,
    choice: Tensor | None = None,
) -> Tensor:
    """Bits per character [T] where token t uses masks[layer, choice[t]].

    ``choice`` is [T], one decision for all layers, or [layers, T]. Without
    it ``masks`` holds one mask per layer; without ``masks`` the model is
    dense.
    """
    if choice is not None:
        choice = choice.expand(len(masks), -1)
        masks = [m[c] for m, c in zip(masks, choice, strict=True)]
    logits = model(context, masks).logits
    return F.cross_entropy(logits, target, reduction="none") * BITS
