"""The pre-gating router: a small causal network that sees only token ids.

It reads the text once, before the layers run, and says for each token which
of N experts takes it in every layer. It learns from the dense model: from
the overlap of the neurons that a token uses with those that an expert keeps.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lab.descent import one_cycle_adam
from lab.tokens.char_lm import CONTEXT
from lab.tokens.domains import DOMAINS, split
from lab.tokens.text import ALPHABET

WIDTH = 32  # hidden units of the GRU
EMBEDDING = 16
LENGTH = 64  # characters of a training sequence
EACH = 8  # sequences of every domain in one step
STEPS = 200
LOSSES = ("paper", "code")


class PreGate(nn.Module):
    """Embedding, GRU, linear: ids [B, L] to scores of N experts [B, L, N].

    The GRU of 32 units replaces the paper's causal attention block.
    """

    def __init__(self, experts: int, seed: int = 0) -> None:
        super().__init__()
        self.embedding = nn.Embedding(len(ALPHABET), EMBEDDING)
        self.gru = nn.GRU(EMBEDDING, WIDTH, batch_first=True)
        self.leave = nn.Linear(WIDTH, experts)
        generator = torch.Generator().manual_seed(seed)
        for weight in self.parameters():
            bound = WIDTH**-0.5
            nn.init.uniform_(weight, -bound, bound, generator=generator)

    def forward(self, ids: Tensor) -> Tensor:
        return self.leave(self.gru(self.embedding(ids))[0])


def distillation(logits: Tensor, overlap: Tensor, loss: str) -> Tensor:
    """How far logits [T, N] are from overlaps [layers, T, N] with experts.

    "paper" is eq. 4, KL(softmax G || softmax overlap), where the overlap is
    the number of shared neurons, averaged over the layers. "code" is
    0.75 CE(G, argmax; label smoothing 0.5) + 0.25 CE(G, softmax overlap),
    summed over the layers, with the overlap of the code (see `read_me`).
    """
    if loss == "paper":
        said, wanted = logits.log_softmax(1), overlap.mean(0).log_softmax(1)
        return (said.exp() * (said - wanted)).sum(1).mean()
    if loss != "code":
        raise ValueError(f"loss={loss!r} is not one of {LOSSES}")
    value = logits.new_zeros(())
    for layer in overlap:
        hard = F.cross_entropy(logits, layer.argmax(1), label_smoothing=0.5)
        soft = F.cross_entropy(logits, layer.softmax(1))
        value = value + 0.75 * hard + 0.25 * soft
    return value


def train(
    router: PreGate,
    wanted: Tensor,
    seed: int,
    steps: int,
    loss: str = "paper",
    progress: Callable = iter,
) -> PreGate:
    """Distil ``wanted`` into the router, in place.

    ``wanted`` [layers, domains, characters, N] are the overlaps of the first
    training characters of every domain, from the twelfth on.
    """
    characters = wanted.shape[2]
    if characters < LENGTH:
        raise ValueError(
            f"{characters} characters are too few for a sequence of"
            f" {LENGTH}; give {LENGTH} or more"
        )
    ids = [split(d).train[: CONTEXT + characters] for d in DOMAINS]
    generator = torch.Generator().manual_seed(seed)

    def value(_: int) -> Tensor:
        starts = torch.randint(
            characters - LENGTH + 1,
            (len(DOMAINS) * EACH,),
            generator=generator,
        ).tolist()
        text, target = [], []
        for i, start in enumerate(starts):
            domain = i % len(DOMAINS)
            # the twelve characters before warm the GRU up
            text.append(ids[domain][start : start + CONTEXT + LENGTH - 1])
            target.append(wanted[:, domain, start : start + LENGTH])
        logits = router(torch.stack(text))[:, CONTEXT - 1 :]
        return distillation(
            logits.flatten(0, 1), torch.cat(target, dim=1), loss
        )

    one_cycle_adam(router.parameters(), value, steps, 1e-2, progress)
    return router.eval()


@torch.no_grad()
def route(router: PreGate, characters: int) -> Tensor:
    """Experts [domains, characters] of the first test characters.

    Position i is decided from the characters before it, as its prediction is.
    """
    ids = [split(d).test[: CONTEXT + characters - 1] for d in DOMAINS]
    return router(torch.stack(ids))[:, CONTEXT - 1 :].argmax(2)
