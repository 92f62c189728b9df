"""What one can do with strangers' experts without training gates.

    merged               B A is the mean of all B_i A_i
    retrieval            one expert per passage: the one whose training text
                         holds the most similar passage
    average activation   a router whose row is the mean input of a module
                         under the expert, on the expert's own task
    Arrow                a router whose row is the direction that B_i A_i
                         amplifies most (Ostapenko et al. 2024)

The first two are adapters, the last two give the rows of a router. All four
are rivals in the paper too. There, retrieval takes one expert per example, by
sentence vectors of 1000 training examples of each expert.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from lab.tokens.char_lm import CONTEXT, windows
from lab.weights.adapters import (
    MODULES,
    Adapter,
    CharModel,
    Experts,
    everywhere,
    own,
)
from lab.weights.names import split

PASSAGE = 64  # characters that retrieval looks at, and decides for
BUCKETS = 2048  # for counts of three characters in a row


def merged(experts: Experts) -> Adapter:
    """All experts with weight 1 / N: the mean of the products B A.

    The mean of the As times the mean of the Bs would be another matrix.
    """
    N = experts.down.shape[1]

    def adapter(module: int, u: Tensor) -> Tensor:
        slots = torch.arange(N, dtype=torch.int32).expand(len(u), N)
        weights = torch.full((len(u), N), 1 / N)
        return own(experts, slots, weights)(module, u)

    return adapter


def retrieved(
    experts: Experts, languages: tuple[str, ...], ids: Tensor
) -> Adapter:
    """One expert for each 64 characters of ids, chosen by the 64 before.

    The first passage has none before it and looks at the last one instead.
    Characters left over at the end go with the last whole passage.
    """
    stored = [fingerprints(split(language).train) for language in languages]
    queries = fingerprints(ids).roll(1, dims=0)
    near = torch.stack([(queries @ s.T).amax(dim=1) for s in stored], dim=1)
    passage = torch.arange(CONTEXT, len(ids)) // PASSAGE
    passage = passage.clamp(max=len(queries) - 1)
    slots = near.argmax(dim=1)[passage].int()[:, None]
    return own(experts, slots, torch.ones(len(slots), 1))


def fingerprints(ids: Tensor) -> Tensor:
    """How often each run of three characters occurs in each whole passage of
    ids, [passages, buckets]; rows of length 1, so a product is a cosine."""
    passages = ids[: len(ids) // PASSAGE * PASSAGE].view(-1, PASSAGE)
    a, b, c = (passages[:, i : PASSAGE - 2 + i] for i in range(3))
    bucket = (a * 12343 + b * 113 + c) % BUCKETS
    counts = torch.zeros(len(passages), BUCKETS)
    counts.scatter_add_(1, bucket, torch.ones(bucket.shape))
    return F.normalize(counts, dim=1)


@torch.no_grad()
def average_activations(
    model: CharModel,
    experts: Experts,
    languages: tuple[str, ...],
    characters: int = 2048,
) -> Tensor:
    """Mean input of each module under each expert, [modules, N, n]."""
    N, n = experts.down.shape[1], experts.down.shape[3]
    means = torch.zeros(len(MODULES), N, n)
    for e, language in enumerate(languages):
        ids = split(language).train[: characters + CONTEXT]
        context, _ = windows(ids, torch.arange(CONTEXT, len(ids)))
        through = everywhere(experts, e)

        def watch(module: int, u: Tensor, e=e, through=through) -> Tensor:
            means[module, e] = u.mean(dim=0)
            return through(module, u)

        model(context, watch)
    return means


def arrows(experts: Experts) -> Tensor:
    """The first right singular vector of every B A, [modules, N, n]."""
    _, _, right = torch.linalg.svd(experts.up @ experts.down)
    return right[:, :, 0]
