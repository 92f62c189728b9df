"""Accountability in algorithmic supply chains (chapter 37).

Cobbe, Veale, Singh, "Understanding accountability in algorithmic supply
chains", FAccT 2023, arXiv 2304.14749. Algorithmic systems are made and used by
chains of actors. Responsibility is distributed among them, and each sees only
part of the chain, up to its **accountability horizon**.

The paper is one of law and has no formula; the model here is ours:

    V_h(i)   = {j : i reaches j in 1 to h steps}     what i sees
    nu_h(i)  = |V_h(i)| / |V_inf(i)|                 the visible share
    rho_i    = e_i (I - a P)^-1 K                    who is responsible

with P = what part of what i passes on goes to which supplier, a = the share
passed on, and K = 1 - a, or 1 for an actor without suppliers. ``visibility``
and ``responsibility`` compute them for the packages of a real environment.

Only the paper's abstract and parts of reviews were at hand. What is said of
the fourth of four features of such chains is told from memory.
"""

import random
from functools import cache, partial

from torch import Tensor

from lab.claims import Claim
from lab.exercises import Exercise
from lab.models import supply_chain
from lab.models.responsibility import (
    SPLITS,
    as_told,
    flow,
    known_lists,
    misplaced,
    shares,
)
from lab.models.supply_chain import CHANCE
from lab.models.visibility import (
    best_disclosers,
    dependents,
    disclosed,
    most_depended_on,
    products,
    steps,
    visible,
)

FEW = 5  # providers that are called systemically important
PASSED = 0.7


@cache
def distances(level: str) -> Tensor:
    """The steps between all actors of the real chain."""
    return steps(supply_chain.named(level))


@cache
def shuffled() -> list[int]:
    """The products of the real chain, in a random order."""
    found = products(distances("packages"))
    return random.Random(0).sample(found, len(found))


def product(seed: int) -> int:
    """The product that this seed stands for."""
    if not 0 <= seed < len(shuffled()):
        raise ValueError(
            f"seed {seed} stands for no product; use 0 to"
            f" {len(shuffled()) - 1}"
        )
    return shuffled()[seed]


def seen(far: Tensor, h: int, rows: list[int] | None = None) -> float:
    """Percent of their chains that products see in h steps, on average."""
    rows = products(far) if rows is None else rows
    return 100 * visible(far, h)[rows].mean().item()


def weight_of_few(far: Tensor, few: int = FEW) -> float:
    """Percent of all pairs of an actor and a supplier, direct or not, in which
    the supplier is one of the few with most dependents."""
    many = dependents(far).sort(descending=True).values
    return 100 * many[:few].sum().item() / many.sum().item()


def wrong(i: int, h: int, passed: float, split: str) -> float:
    """Percent of the responsibility for product i that is misplaced by who
    sees h steps."""
    parts = shares(supply_chain.packages(), split)
    known = known_lists(distances("packages")[i], h)
    told = as_told(parts, known, i, passed)
    return 100 * misplaced(flow(parts, i, passed), told)


def halves(seed: int) -> tuple[list[int], list[int]]:
    """Products to choose disclosers by, and others to judge them by."""
    every = products(distances("packages"))
    order = random.Random(seed).sample(every, len(every))
    cut = len(every) // 2
    return sorted(order[:cut]), sorted(order[cut:])


def _seen(seed: int, h: int) -> float:
    """Percent of its chain that one product sees."""
    return 100 * visible(distances("packages"), h)[product(seed)].item()


def _wrong(seed: int, h: int, passed: float) -> float:
    """Percent misplaced for one product, the lesser of both ways to split."""
    return min(wrong(product(seed), h, passed, s) for s in SPLITS)


@cache
def by_chance(seed: int, how: str) -> Tensor:
    """The steps between all actors of a blind chain."""
    return steps(supply_chain.blind(supply_chain.packages(), seed, how))


def _blind_shows(seed: int, h: int) -> float:
    """Points that products of a blind chain see more than real ones."""
    drawn = by_chance(seed, CHANCE[0])
    return seen(drawn, h) - seen(distances("packages"), h)


def _consolidated(seed: int, how: str) -> float:
    """Points of weight of the few, real minus blind."""
    real, drawn = distances("packages"), by_chance(seed, how)
    return weight_of_few(real) - weight_of_few(drawn)


def _important_show(seed: int, count: int) -> float:
    """Points that others see at one step if the most depended on disclose,
    minus the same if as many do who were chosen for it."""
    real = supply_chain.packages()
    learn, judge = halves(seed)
    arms = most_depended_on(real, count), best_disclosers(real, learn, count)
    found = (seen(steps(disclosed(real, who)), 1, judge) for who in arms)
    popular, best = found
    return popular - best


ACTORS = (
    "Packages of one environment stand for actors, and requirements for flows"
    " of data."
)
OF_PRODUCTS = (
    ACTORS + " A seed is one of the 41 packages with ten suppliers or more,"
    " direct or not. These are all there are, so the mean is exact, and the"
    " interval speaks of others like them. They share suppliers, so it is"
    " narrower than that of 41 separate chains."
)
OF_ALL = (
    " The limit of ten decides: the 116 packages with any supplier see 64 % in"
    " one step, on average."
)
OF_CHANCE = ACTORS + " The real chain is one; seeds draw the blind ones."
FEATURE = (
    "the fourth of four features, as remembered from reviews; the full text"
    " was not at hand"
)

_claim = partial(Claim, chapter="37", source="abstract")


def _both(**parameters) -> dict:
    return {"parameters": parameters, "reduced": parameters}


CLAIMS = (
    _claim(
        slug="little-is-visible",
        sentence="Limited visibility due to the accountability horizon (here:"
        " who knows its direct suppliers sees less than half of the chain).",
        effect="suppliers that a product sees in one step, of all",
        unit="%",
        experiment=_seen,
        threshold=50.0,
        side="below",
        seeds=41,
        limits=OF_PRODUCTS + OF_ALL,
        **_both(h=1),
    ),
    _claim(
        slug="little-in-two-steps",
        sentence="... and still less than half if the direct suppliers name"
        " theirs (stronger than the paper's words).",
        source="our control",
        effect="suppliers that a product sees in two steps, of all",
        unit="%",
        experiment=_seen,
        threshold=50.0,
        side="below",
        seeds=41,
        limits=OF_PRODUCTS,
        **_both(h=2),
    ),
    _claim(
        slug="the-wrong-address",
        sentence="Challenges for allocating accountability (here: who sees one"
        " step misplaces more than a tenth of the responsibility).",
        effect="responsibility misplaced at a horizon of one step, 0.7 passed"
        " on, the lesser of two ways to split it",
        unit="%",
        experiment=_wrong,
        threshold=10.0,
        side="above",
        seeds=41,
        limits=OF_PRODUCTS + " That responsibility flows, and how much, is"
        " our assumption: with 0.3 passed on, it is a twentieth.",
        **_both(h=1, passed=PASSED),
    ),
    _claim(
        slug="chance-hides-as-much",
        sentence="The horizon follows from branching alone (our control; here:"
        " a blind chain shows at most 10 points more).",
        source="our control",
        effect="mean share seen in one step, blind chains minus the real one",
        unit="points",
        experiment=_blind_shows,
        threshold=10.0,
        side="below",
        seeds=20,
        limits=OF_CHANCE + " In each, its own packages with ten suppliers or"
        " more are judged; they are not the same ones.",
        **_both(h=1),
    ),
    _claim(
        slug="a-few-carry-many",
        sentence="Supply chains consolidate around systemically important"
        " providers (here: more than by chance, in any order).",
        source=FEATURE,
        effect="five most depended on, share of all pairs of a package and a"
        " supplier, direct or not, real minus blind",
        unit="points",
        experiment=_consolidated,
        threshold=0.0,
        side="above",
        seeds=20,
        limits=OF_CHANCE + " One moment shows no trend.",
        **_both(how=CHANCE[0]),
    ),
    _claim(
        slug="more-than-depth-explains",
        sentence="... also more than by chance among those who lie deeper in"
        " the same chain (our control).",
        source="our control",
        effect="five most depended on, share of all pairs of a package and a"
        " supplier, direct or not, real minus blind by depth",
        unit="points",
        experiment=_consolidated,
        threshold=0.0,
        side="above",
        seeds=20,
        limits=OF_CHANCE + " Few packages lie deep, and this chance sends"
        " everybody to them.",
        **_both(how=CHANCE[1]),
    ),
    _claim(
        slug="the-important-should-disclose",
        sentence="Systemically important providers are the ones to open up the"
        " chain (our reading of where to act).",
        source="our reading of the fourth feature",
        effect="mean share seen in one step if five disclose, most depended"
        " on minus chosen for it by other products",
        unit="points",
        experiment=_important_show,
        threshold=0.0,
        side="above",
        seeds=20,
        limits=ACTORS + " Seeds split the 41 products into 20 to choose by"
        " and 21 to judge by; the halves share suppliers. The others are"
        " chosen by what is measured: five drawn at random among those with a"
        " list show less than the most depended on.",
        **_both(count=FEW),
    ),
    _claim(
        slug="law-across-borders",
        sentence="Service models of use and liability, cross-border supply"
        " chains and regulatory arbitrage make accountability harder.",
        effect="harms without anybody who answers for them",
        unit="%",
        experiment=None,
        threshold=0.0,
        side="above",
        out_of_reach=(
            "it needs contracts, data flows and places of business, which no"
            " list of packages holds"
        ),
    ),
)


def _within(lists, hops):
    """Who is within so many steps of whom, as one whole number for each."""
    seen = [1 << i for i in range(len(lists))]
    for _ in range(hops):
        before = list(seen)
        for i, suppliers in enumerate(lists):
            for j in suppliers:
                seen[i] |= before[j]
    return seen


_LISTS = [[1, 2], [3], [3, 4], [5], [5, 6], [], [2]]

EXERCISES = {
    "exercise-1": Exercise(slug="exercise-1", answer=0.8**3, tolerance=1e-9),
    "exercise-2": Exercise(slug="exercise-2", answer=("c", 0.75)),
    "exercise-3": Exercise(
        slug="exercise-3",
        answer=_within,
        cases=[(_LISTS, 1), (_LISTS, 2), (_LISTS, 5), (_LISTS, 0), ([[]], 3)],
    ),
}
