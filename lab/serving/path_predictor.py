"""Which experts will a token need? All layers at once, before the first runs.

The predictor is a small causal transformer on the characters alone. For every
position it gives each expert of each layer a score, and it learns from the
paths that the model's routers chose, by binary cross-entropy:

    P(t, l, e) = sigmoid(head(body(ids up to t)))
    loss       = - mean of  r log P + (1 - r) log(1 - P)

The expert with the largest P in a layer is the predicted one, as the routers
of the model choose one. Two guesses need no training: a table of the expert
that each character takes most often, and the path of the token before.

The paper's predictor is an encoder and decoder in the style of T5 with a head
for each layer; it learns from 10 000 texts for each task and model.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lab.descent import one_cycle_adam
from lab.tokens.char_lm import CONTEXT, CharLM
from lab.tokens.text import ALPHABET

WIDTH, HEADS, HIDDEN, DEPTH = 32, 4, 64, 2
LENGTH = 64  # tokens of a training sequence
BATCH = 16  # sequences in one step
STEPS = 1500
PEAK_RATE = 2.5e-2
LEAD = CONTEXT - 1  # characters before the first token's own


class PathPredictor(nn.Module):
    """Characters [B, T] to scores [B, T, L, E], each from those up to it."""

    def __init__(self, layers: int, experts: int, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.embedding = nn.Embedding(len(ALPHABET), WIDTH)
            self.place = nn.Embedding(LEAD + LENGTH, WIDTH)
            block = nn.TransformerEncoderLayer(
                WIDTH, HEADS, HIDDEN, dropout=0.0, batch_first=True,
                norm_first=True,
            )  # fmt: skip
            self.body = nn.TransformerEncoder(
                block, DEPTH, nn.LayerNorm(WIDTH), enable_nested_tensor=False
            )
            self.head = nn.Linear(WIDTH, layers * experts)
        self.shape = layers, experts

    def forward(self, ids: Tensor) -> Tensor:
        T = ids.shape[1]
        x = self.embedding(ids) + self.place.weight[:T]
        mask = nn.Transformer.generate_square_subsequent_mask(
            T, device=ids.device
        )
        x = self.body(x, mask=mask, is_causal=True)
        return self.head(x).unflatten(2, self.shape)


@torch.no_grad()
def paths(model: CharLM, text: Tensor) -> Tensor:
    """The experts [B, T - 11, L] that the model takes in texts [B, T].

    The token at a character is the model's prediction of the next one, from
    the 12 characters that end there.
    """
    contexts = text.unfold(1, CONTEXT, 1)
    chosen = model(contexts.flatten(0, 1)).routings
    chosen = torch.cat([routing.gate.experts for routing in chosen], dim=1)
    return chosen.long().unflatten(0, contexts.shape[:2])


class Learned(NamedTuple):
    """What was learned from one model's paths."""

    predictor: PathPredictor
    table: Tensor  # [symbols, L], the expert each character takes most often


def learn(
    model: CharLM,
    ids: Tensor,
    seed: int,
    steps: int = STEPS,
    progress: Callable = iter,
) -> Learned:
    """Learn the paths of ``model`` in the text ``ids`` [characters].

    Predictor and table see the same tokens, drawn anew in every step.
    """
    layers, experts = len(model.layers), model.layers[0].w_up.shape[0]
    predictor = PathPredictor(layers, experts, seed)
    counts = torch.zeros(len(ALPHABET), layers, experts)
    generator = torch.Generator().manual_seed(seed)
    span = torch.arange(LEAD + LENGTH)

    def loss(_: int) -> Tensor:
        starts = torch.randint(
            len(ids) - len(span) + 1, (BATCH, 1), generator=generator
        )
        text = ids[starts + span]
        taken = F.one_hot(paths(model, text), experts).float()
        counts.index_add_(0, text[:, LEAD:].flatten(), taken.flatten(0, 1))
        scores = predictor(text)[:, LEAD:]
        # a sum over the experts, or the gradient would shrink with E
        return experts * F.binary_cross_entropy_with_logits(scores, taken)

    one_cycle_adam(predictor.parameters(), loss, steps, PEAK_RATE, progress)
    return Learned(predictor.eval(), counts.argmax(dim=2))


@torch.no_grad()
def predict(predictor: PathPredictor, text: Tensor) -> Tensor:
    """The predicted experts [B, T - 11, L] of texts [B, T].

    A text is read in pieces of 64 tokens, each with the characters that come
    before it.
    """
    if text.shape[1] <= LEAD or (text.shape[1] - LEAD) % LENGTH:
        raise ValueError(
            f"a text of {text.shape[1]} characters is no whole number of"
            f" pieces; use {LEAD} and a multiple of {LENGTH}"
        )
    pieces = text.unfold(1, LEAD + LENGTH, LENGTH)
    scores = predictor(pieces.flatten(0, 1))[:, LEAD:]
    return scores.argmax(dim=3).unflatten(0, pieces.shape[:2]).flatten(1, 2)
