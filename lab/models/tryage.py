"""Tryage: guess the loss, then choose (chapter 29).

Hari and Thomson, "Tryage: Real-time, intelligent Routing of User Prompts to
Large Language Models", 2023, arXiv 2308.11601. A small language model reads
the prompt z and predicts the loss that every expert of a library would have
on it. What the user wishes for is added as a penalty, and the lowest sum wins:

    v_i(z) = L^_i(z) + sum over j of lambda_j C_j(M_i),  M* = argmin over i

C_j measures model i against wish j: its size, its age and so on. The losses
of the training prompts are measured once. The router then learns them, so
another wish needs no training.

Only the paper's abstract was at hand, and no code of the authors was found.
It says that predictions are integrated with goals and constraints, set by
flags; that they are added with weights, and squared error, is our reading.
Here the experts are eleven character n-gram models, small enough to measure
every loss (`ngrams`): a trigram model for each of eight kinds of text
(`snippets`) and three general ones (`expert_library`). The router sees hashed
trigrams (`loss_routers`). Losses are bits per character. Sizes are divided by
the largest, so lambda is the number of bits that the largest size is worth.

The rival that learns no loss at all is a classifier of the best expert. The
rival that needs no loss either is a card: the mean features of an expert's
sample prompts. What the pictures show is recorded in `tryage_recorded`.
"""

from functools import cache, partial
from typing import NamedTuple

import torch
from torch import Tensor

from lab.claims import Claim
from lab.exercises import Exercise
from lab.kernels.frontier import Frontier, frontier
from lab.kernels.route_select import Selection, route_select
from lab.kernels.runtime import device
from lab.models import (
    llm_routing,
    loss_routers,
    recorded,
    snippets,
    strategies,
)
from lab.models.expert_library import CARD, parts, router, world
from lab.models.loss_routers import Router

WISH = 1.0  # bits for the largest expert's size, in the middle of the slider
MILD = 0.3  # a wish that shrinks the experts and should cost little
RATES = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)  # log odds for a bit
FLEXIBLE = loss_routers.KINDS[:2]  # their values are in bits, as the wish is


def choose(router: Router, hidden: Tensor, penalty: Tensor) -> Selection:
    """The expert of each prompt from its hidden states [N, WIDTH].

    The penalty [K] is added to the values.
    """
    given = hidden, router.head, router.bias, penalty
    found = route_select(*(tensor.to(device()) for tensor in given))
    return Selection(*(tensor.cpu() for tensor in found))


def sweep(values: Tensor, losses: Tensor, costs: Tensor, wishes) -> Frontier:
    """Mean loss (negated) and mean cost at every wish, in one pass."""
    wishes = torch.as_tensor(wishes, dtype=values.dtype)
    return frontier(-values, -losses, costs, wishes)


def hits(chosen: Tensor, losses: Tensor) -> float:
    """Share of prompts [N] sent to a best expert; every best one counts."""
    mine = losses.gather(1, chosen.long()[:, None])[:, 0]
    return (mine == losses.amin(dim=1)).double().mean().item()


class Result(NamedTuple):
    """What the choices of one router are worth on the test prompts."""

    hits: float  # share sent to the best expert
    bits: float  # mean loss of the chosen experts
    size: float  # their mean size, in counts
    cost: float  # the same, the largest expert being 1


@cache
def experiment(
    seed: int,
    kind: str,
    penalty: float = 0.0,
    card: int = CARD,
    rate: float = 0.0,
) -> Result:
    """Route the test prompts of one seed by one router.

    ``kind`` is one of `loss_routers.KINDS`, "oracle" or "best single". The
    values of a classifier or of cards are no bits, so the ``penalty`` counts
    at an exchange ``rate`` there, by default not at all.
    """
    known = world(seed)
    if kind == "oracle":
        chosen = (known.losses + penalty * known.costs).argmin(dim=1)
    elif kind == "best single":
        best = known.learned.mean(dim=0).argmin()
        chosen = best.expand(len(known.losses))
    else:
        prompts = snippets.load().prompts[parts(seed).test]
        wants = penalty if kind in FLEXIBLE else rate * penalty
        by = router(seed, kind, card)
        hidden = by.hidden(loss_routers.features(prompts))
        chosen = choose(by, hidden, wants * known.costs).choice.long()
    return Result(
        hits(chosen, known.losses),
        known.losses.gather(1, chosen[:, None]).double().mean().item(),
        known.sizes[chosen].double().mean().item(),
        known.costs[chosen].double().mean().item(),
    )


@cache
def exchange_rate(seed: int, penalty: float) -> float:
    """What a bit is worth in a classifier's values, the best of `RATES`.

    Tried on a fifth of the router's prompts, from which the classifier that
    is tried does not learn.
    """
    known, prompts = world(seed), snippets.load().prompts
    read = loss_routers.features(prompts[parts(seed).router])
    cut = len(read) - len(read) // 5
    learned = known.learned + penalty * known.costs
    by = loss_routers.train(
        "best expert", read[:cut], known.learned[:cut], seed
    )
    values, tried = by.values(read[cut:]), learned[cut:]
    chosen = [
        (values + rate * penalty * known.costs).argmin(dim=1) for rate in RATES
    ]
    paid = [tried.gather(1, one[:, None]).mean().item() for one in chosen]
    return RATES[paid.index(min(paid))]


def _more_hits(seed: int, rival: str, card: int = CARD) -> float:
    """Points of prompts sent to their best expert, Tryage minus a rival."""
    mine, other = (experiment(seed, k, card=card) for k in ("losses", rival))
    return 100 * (mine.hits - other.hits)


def _fewer_bits(seed: int, rival: str) -> float:
    """Mean loss, Tryage minus a rival."""
    return experiment(seed, "losses").bits - experiment(seed, rival).bits


def _below_dice(seed: int, penalty: float) -> float:
    """Mean loss with a wish minus that of dice at the same mean size.

    The dice mix Tryage without a wish and the single expert with which this
    costs least.
    """
    known, free = world(seed), experiment(seed, "losses")
    here = experiment(seed, "losses", penalty)
    means = known.losses.double().mean(dim=0).tolist()
    best = float("inf")
    for bits, size in zip(means, known.sizes.tolist(), strict=True):
        if size < here.size:
            share = (free.size - here.size) / (free.size - size)
            best = min(best, free.bits + share * (bits - free.bits))
    return here.bits - best


def _price_of_a_wish(seed: int, penalty: float) -> float:
    """Mean loss with a wish minus without."""
    here = experiment(seed, "losses", penalty)
    return here.bits - experiment(seed, "losses").bits


def _wish_granted(seed: int, penalty: float, rival: str) -> float:
    """Loss plus wished size, Tryage minus a rival trained without the wish."""
    mine, other = (experiment(seed, k, penalty) for k in ("losses", rival))
    return mine.bits - other.bits + penalty * (mine.cost - other.cost)


def _wish_at_a_rate(seed: int, penalty: float) -> float:
    """The same, but the classifier hears the wish, at a tuned rate."""
    mine = experiment(seed, "losses", penalty)
    rate = exchange_rate(seed, penalty)
    other = experiment(seed, "best expert", penalty, rate=rate)
    return mine.bits - other.bits + penalty * (mine.cost - other.cost)


def _real_models(seed: int, data: str, strategy: str) -> float:
    """Points of prompts sent to a best model, ridge minus the best single.

    Prompts on which all models score alike are left out.
    """
    guess = llm_routing.guess(strategy, data, seed=seed)
    train, _ = strategies.split(data, True, seed)
    single = recorded.load(data).scores[train].mean(dim=0).argmax()
    losses = 1 - guess.truth
    apart = losses.amax(dim=1) > losses.amin(dim=1)
    losses, chosen = losses[apart], guess.predicted[apart].argmax(dim=1)
    single = single.expand(len(chosen))
    return 100 * (hits(chosen, losses) - hits(single, losses))


SMALL = (
    "Eleven n-gram models of at most 36 000 counts and a router of 33 000"
    " weights stand for language models. The kinds of text are far apart."
    " Seeds redraw who learns and who tests. The set-up was chosen on two"
    " other seeds."
)
CARDS = (
    " The cards stand for Gorilla and GPT-3.5 Turbo; cards of all texts beat"
    " Tryage (beats-full-cards)."
)

_claim = partial(
    Claim, chapter="29", source="abstract", seeds=10, limits=SMALL
)


def _both(**parameters) -> dict:
    return {"parameters": parameters, "reduced": parameters}


CLAIMS = (
    _claim(
        slug="beats-model-cards",
        sentence="Tryage selects the best model more often than Gorilla and"
        " GPT-3.5 Turbo do (50.9 % against 10.8 and 23.6 %).",
        effect="prompts sent to the best expert, Tryage minus model cards of"
        " five sample prompts",
        unit="points",
        experiment=_more_hits,
        threshold=0.0,
        side="above",
        limits=SMALL + CARDS,
        **_both(rival="model card", card=CARD),
    ),
    _claim(
        slug="beats-full-cards",
        sentence="Measured losses tell more than descriptions do (implied).",
        source="our control",
        effect="prompts sent to the best expert, Tryage minus model cards of"
        " all texts that trained the expert",
        unit="points",
        experiment=_more_hits,
        threshold=0.0,
        side="above",
        limits=SMALL + " A full card holds more texts than the router learned"
        " from, but no loss.",
        **_both(rival="model card", card=0),
    ),
    _claim(
        slug="beats-one-model",
        sentence="Selecting a model by prompt is better than using one for"
        " all (implied).",
        source="our reading of the abstract",
        effect="bits per character, Tryage minus the best single expert",
        unit="bits",
        experiment=_fewer_bits,
        threshold=0.0,
        side="below",
        **_both(rival="best single"),
    ),
    _claim(
        slug="regression-selects-best",
        sentence="To select well, predict the performance of every model"
        " (implied).",
        source="our control",
        effect="prompts sent to the best expert, Tryage minus a classifier of"
        " the best expert of the same size",
        unit="points",
        experiment=_more_hits,
        threshold=0.0,
        side="above",
        **_both(rival="best expert"),
    ),
    _claim(
        slug="size-costs-accuracy",
        sentence="A wish for small models is paid for in accuracy (the"
        " trade-off of the abstract).",
        source="our reading of the abstract",
        effect=f"bits per character of Tryage, lambda {MILD:g} minus lambda 0",
        unit="bits",
        experiment=_price_of_a_wish,
        threshold=0.0,
        side="above",
        limits=SMALL + " The wish is mild; lambda 1 does cost bits.",
        **_both(penalty=MILD),
    ),
    _claim(
        slug="flags-trace-a-front",
        sentence="Flags let users explore a Pareto front of accuracy and"
        " size.",
        effect=f"bits per character at lambda {WISH:g} minus those of dice at"
        " the same mean size, between lambda 0 and a single expert",
        unit="bits",
        experiment=_below_dice,
        threshold=0.0,
        side="below",
        **_both(penalty=WISH),
    ),
    _claim(
        slug="one-router-for-every-wish",
        sentence="The objective integrates predictions with the user's goals,"
        " so a new goal needs no training (implied).",
        effect=f"bits per character + {WISH:g} x size at lambda {WISH:g},"
        " Tryage minus a classifier trained without the wish",
        unit="bits",
        experiment=_wish_granted,
        threshold=0.0,
        side="below",
        **_both(penalty=WISH, rival="best expert"),
    ),
    _claim(
        slug="wishes-need-losses",
        sentence="For goals to be integrated, losses must be predicted"
        " (implied).",
        source="our control, added when the other claims had been run",
        effect=f"bits per character + {WISH:g} x size at lambda {WISH:g},"
        " Tryage minus a classifier whose log odds hear the wish at a tuned"
        " rate",
        unit="bits",
        experiment=_wish_at_a_rate,
        threshold=0.0,
        side="below",
        **_both(penalty=WISH),
    ),
    _claim(
        slug="nine-language-models",
        sentence="Tryage identifies the optimal language model.",
        source="our reading of the abstract, on other models",
        effect="prompts sent to a best of nine language models, loss"
        " regression minus the best single model, where scores differ",
        unit="points",
        experiment=_real_models,
        threshold=0.0,
        side="above",
        limits="Recorded scores; the loss is 1 minus the score, 0 or 1 for"
        " most tasks, so several models are best at once. Ridge regression on"
        " sentence vectors stands for the router. Seeds redraw the split.",
        **_both(data="nine", strategy="classifier"),
    ),
    _claim(
        slug="half-of-all-prompts",
        sentence="The best model is found on 50.9 % of prompts, over code,"
        " text, clinical data and patents.",
        effect="prompts sent to the best expert",
        unit="%",
        experiment=None,
        threshold=50.9,
        side="above",
        out_of_reach="it needs the authors' library of language models and"
        " their prompts; a share of hits means nothing on other experts",
    ),
)


_LOSSES = torch.tensor([[2.0, 2.1, 2.4], [3.5, 3.0, 4.0], [1.0, 1.0, 1.0]])

EXERCISES = {
    "exercise-1": Exercise(
        slug="exercise-1",
        answer=[0.2, 0.6],
        tolerance=1e-9,
    ),
    "exercise-2": Exercise(
        slug="exercise-2",
        answer=loss_routers.centred,
        # the second case is the first plus another constant for each prompt
        cases=[
            (_LOSSES,),
            (_LOSSES + torch.tensor([[5.0], [-2.0], [0.5]]),),
            (torch.tensor([[0.25, 0.75]]),),
        ],
        tolerance=1e-5,
    ),
    "exercise-3": Exercise(
        slug="exercise-3",
        answer=hits,
        cases=[
            (torch.tensor([0, 1, 2]), _LOSSES),
            (torch.tensor([1, 1, 0]), _LOSSES),
            # several are best, and none of them is the first
            (torch.tensor([2, 1]), torch.tensor([[1.0, 0, 0], [1, 0, 0]])),
        ],
        tolerance=1e-6,
    ),
}
