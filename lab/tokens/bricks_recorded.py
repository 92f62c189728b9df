"""What the pictures of chapter 09 show: a recorded model with pruned neurons.

The passages are read live; what every pruning costs whole domains was
measured once, with seed 0.
"""

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from lab.atomic import write_arrays
from lab.data import DATA, read_arrays
from lab.tokens import brick_scores
from lab.tokens.brick_damage import WAYS, F, percent, tables
from lab.tokens.brick_scores import most
from lab.tokens.dense_lm import recorded
from lab.tokens.domains import DOMAINS

LAYERS = ("all", "1", "2", "3")
PERCENT = (0, 1, 2, 3, 5, 7.5, 10, 15, 20, 30)  # of every layer, pruned
UNITS = {"%": "% perplexity", "bits": "bits per character"}  # of damage
PRUNED = "bricks/pruned.npz"


class Picture(NamedTuple):
    """What a picture shows of a model that lost some neurons."""

    texts: dict[str, str]  # a passage of the function, and another one
    lost: dict[str, list[float]]  # extra bits that each character costs
    damage: Tensor  # [F, F] cost to each domain, row f pruned for f
    aimed: Tensor  # [F, F] the same if the best scores were pruned
    row: int  # the function whose neurons are gone


def picture(
    by: str = "score",
    function: str = "tables",
    pruned: float = 5,
    layer: str = "all",
    unit: str = "bits",
) -> Picture:
    """Prune ``pruned`` per cent of the neurons of ``function``.

    The passages are read on every call; the damage to whole domains was
    recorded by `train_checkpoints`. Its ``unit`` is "bits" per character, or
    "%" for the rise of perplexity.
    """
    row, known = DOMAINS.index(function), _known()
    gone = _gone(known[by][row], pruned, layer)
    names = [function, "python" if function != "python" else "prose"]
    texts, lost = {}, {}
    for name in names:
        seen = brick_scores.passage(name)
        left = brick_scores.token_bits(recorded(), seen, gone)
        texts[name] = seen.text
        lost[name] = (left - _whole(name)).clamp(min=0).tolist()
    place = LAYERS.index(layer), PERCENT.index(pruned)
    damage = known["damage"][:, *place]
    if unit == "%":
        damage = percent(damage)
    ways = list(WAYS)
    return Picture(
        texts, lost, damage[ways.index(by)], damage[ways.index("score")], row
    )


def _gone(table: Tensor, pruned: float, layer: str) -> Tensor:
    """The neurons to prune, [L, n], of all layers or of one."""
    gone = most(table, pruned / 100)
    if layer != "all":
        only = torch.arange(len(gone)) == int(layer) - 1
        gone &= only[:, None]
    return gone


# every pruning is compared with this, so it is computed only once
@cache
def _whole(function: str) -> Tensor:
    """Bits lost on each character of a passage by the whole model."""
    return brick_scores.token_bits(recorded(), brick_scores.passage(function))


@cache
def _known() -> dict[str, Tensor]:
    arrays = read_arrays(PRUNED)
    return {name: torch.from_numpy(a).float() for name, a in arrays.items()}


def train_checkpoints(progress: Callable = iter) -> None:
    """Prune the recorded model in every way that a picture shows.

    Takes about three minutes; `lab train 08` makes the model itself.
    """
    model, judge = recorded(), brick_scores.instances("judge")
    ranked = tables(model)
    whole = brick_scores.bits(model, judge)
    damage = [
        brick_scores.bits(model, judge, _gone(table[f], share, layer)) - whole
        for table, layer, share, f in progress(
            [
                (table, layer, share, f)
                for table in ranked
                for layer in LAYERS
                for share in PERCENT
                for f in range(F)
            ]
        )
    ]
    shape = (len(WAYS), len(LAYERS), len(PERCENT), F, F)
    arrays = ranked._asdict() | {"damage": torch.stack(damage).view(shape)}
    write_arrays(
        DATA / PRUNED, **{name: a.numpy() for name, a in arrays.items()}
    )
