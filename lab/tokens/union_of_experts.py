"""Union of Experts: one layer cut into slices (chapter 06).

Yang, Lian, Li, "Union of Experts: Adapting Hierarchical Routing to
Equivalently Decomposed Transformer", arXiv 2503.02495, 2025. A trained layer
is cut as tensor parallelism would cut it, so that all slices together *are*
the layer, and only some pairs of slice and token are computed.

    E_i(x) = W2_i phi(W1_i x + b1_i)       slice i has D / n hidden units
    MLP(x) = sum over all i of E_i(x) + b2       exactly, b2 once
    head i of an attention layer is expert i, with its rows of W_o

Two selections (the authors' SwitchGate and preprocess):

    1  P = softmax(x W_g + b_g)                               [B, S, n]
    2  M = P where slice i is among the k best of its token, else 0
    3  R = M / (sum over the batch of M + 1e-8) * floor(C B)
    4  slice i takes D_i, its c best tokens by R, in order of time
       y_t = sum of E_i(x_t) over the slices i that took t, plus b2

Every slice computes exactly c tokens: demand beyond c is dropped, and seats
left over go to tokens of score 0, which did not choose the slice. A token
that no slice took keeps only its residual.

"released" follows the code: the sum has no weights and W_g no gradient, so
the gate stays as it was drawn. "weighted" is the variant that can learn: each
slice is weighted by n P, which is 1 where the gate is indifferent.

This is what is left out or different. A patch is one token here and in the
authors' code. In the paper's figure the experts are chosen for the whole
input: k of the n slices work on all its patches, as in the file UoME_ES, and
seats left over stay empty. Here every token chooses, by the rule of UoME_DS,
which the authors' models use. Their long-range attention divides by the sum
over a token's slices, plus 1, instead of the sum over the batch. A third
long-range MLP, which nothing imports, multiplies the output by the sum of R,
so that its gate would learn. Their heads get a position within the gathered
list (RoPE) and a causal mask; pixels need neither. Their third version of
attention sets c to the demand for the most wanted head; here c is a share of
S, as for the MLP. They add b2 once per chosen slice; here it is added once,
as the equivalence requires.
What the pictures show is in `union_of_experts_recorded`.
"""

from functools import cache, partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lab.claims import Claim
from lab.exercises import Exercise
from lab.tokens.digit_model import DIM, HIDDEN, PATCHES, STEPS, evaluate, train
from lab.tokens.union_layers import decompose, union_mlp, untrained


class Arm(NamedTuple):
    accuracy: float  # % of the test digits
    cross_entropy: float  # nats
    active: float  # share of the pairs of slice and patch that is computed


ARMS = {  # by name: the rule, and whether attention follows it too
    "dense": ("dense", False),
    "top-k": ("top-k", False),
    "random": ("random", False),
    "released": ("released", False),
    "weighted": ("weighted", False),
    "released, selective": ("released", True),
    "weighted, selective": ("weighted", True),
}


@cache
def arm(name: str, seed: int, steps: int = STEPS) -> Arm:
    """Train and test one arm; a seed fixes initial weights and batches."""
    model = train(untrained(*ARMS[name], seed=seed), steps, seed)
    score = evaluate(model)
    works = [layer.mlp.choice.chosen for layer in model.layers]
    return Arm(*score, torch.stack(works).double().mean().item())


def experiment(seed: int, steps: int = STEPS) -> dict[str, Arm]:
    """Train all arms of one seed, by name."""
    return {name: arm(name, seed, steps) for name in ARMS}


def gap(slices: int, seed: int) -> float:
    """Largest error of the sum of all slices against the layer, in float64.

    The layer is random and of the digit model's size. The error is relative
    to the layer's largest output.
    """
    generator = torch.Generator().manual_seed(seed)
    shapes = (HIDDEN, DIM), (HIDDEN,), (DIM, HIDDEN), (8, PATCHES, DIM)
    up, bias, down, x = (
        torch.randn(shape, generator=generator, dtype=torch.float64)
        for shape in shapes
    )
    ones = x.new_ones(*x.shape[:2], slices)
    s = decompose(up, bias, down, slices)
    dense = F.gelu(x @ up.T + bias) @ down.T
    error = union_mlp(x, ones, ones.bool(), s) - dense
    return (error.abs().max() / dense.abs().max()).item()


def _gap(seed: int) -> float:
    return 1e15 * max(gap(slices, seed) for slices in (1, 2, 4, 8))


def _points(better: str, worse: str, seed: int, steps: int) -> float:
    """Accuracy of one arm minus that of another, in points."""
    first, second = (arm(name, seed, steps) for name in (better, worse))
    return first.accuracy - second.accuracy


SMALL = (
    "16 patches, two layers, 1000 digits to learn from, one fixed set of 797 "
    "test digits; the interval covers initial weights and the order of the "
    "batches, not other digits. The paper's images are larger, and its image "
    "code is not released."
)

_claim = partial(
    Claim,
    chapter="06",
    unit="points",
    parameters={"steps": STEPS},
    reduced={"steps": 8},
    side="above",
    limits=SMALL,
)

CLAIMS = (
    _claim(
        slug="slices-are-the-layer",
        sentence="The decomposition is equivalent: all slices together are"
        " the dense layer.",
        source="abstract; model/mlp/UoME_DS.py",
        effect="largest relative error over 1, 2, 4 and 8 slices, float64",
        unit="x 1e-15 of the largest output",
        experiment=_gap,
        threshold=1000.0,
        side="below",
        parameters={},
        reduced={},
        limits=(
            "It says nothing about a layer with some of its slices missing."
        ),
    ),
    _claim(
        slug="better-than-a-mixture",
        sentence="On images a union is 1.75 % more accurate on average than"
        " the best other models at comparable FLOPs.",
        source="abstract",
        effect="accuracy, weighted union minus top-k mixture over the same"
        " slices, half of the slices active in both",
        experiment=partial(_points, "weighted", "top-k"),
        threshold=0.0,
    ),
    _claim(
        slug="as-good-as-dense",
        sentence="Half of the layer is enough: no accuracy is lost against"
        " computing all slices.",
        source="abstract (full attention models are outperformed)",
        effect="accuracy, weighted union minus dense layer",
        experiment=partial(_points, "weighted", "dense"),
        threshold=-0.5,
    ),
    _claim(
        slug="better-than-random-slices",
        sentence="Which slices work on a token matters: routing beats a blind"
        " choice.",
        source="the premise of any router",
        effect="accuracy, weighted union minus random slices",
        experiment=partial(_points, "weighted", "random"),
        threshold=0.0,
        limits=SMALL
        + (
            " Both layers and all seeds use the same random draws. With draws"
            " of their own, seeds 0 to 4 gave -0.05 points [-1.00, 0.90], "
            "undecided as well."
        ),
    ),
    _claim(
        slug="a-trained-gate-pays",
        sentence="The gate learns to route (the released language code"
        " leaves it as it was drawn).",
        source="abstract against model/mlp/UoME_DS.py",
        effect="accuracy, weighted union minus the released rule",
        experiment=partial(_points, "weighted", "released"),
        threshold=0.0,
    ),
    _claim(
        slug="selective-attention-costs-nothing",
        sentence="Heads that attend among half of the tokens lose nothing.",
        source="abstract (selective multi-head attention)",
        effect="accuracy, weighted union with selective attention minus"
        " the same with full attention",
        experiment=partial(_points, "weighted, selective", "weighted"),
        threshold=-0.5,
    ),
    _claim(
        slug="lower-perplexity",
        sentence="Language modelling: perplexity 2.38 lower than the best"
        " mixture, at 76 % of its FLOPs.",
        source="abstract",
        effect="perplexity on WikiText-103 below the best mixture",
        unit="",
        experiment=None,
        threshold=0.0,
        parameters={},
        reduced={},
        out_of_reach="it needs 200 000 steps of a 16-layer model on"
        " WikiText-103, for the union and for each baseline",
    ),
)


def _two_selections(scores: Tensor, k: int, c: int) -> Tensor:
    """Steps 2 to 4 without the lab's kernels."""
    rank = scores.argsort(dim=2, descending=True, stable=True).argsort(dim=2)
    M = scores * (rank < k)
    R = M / (M.sum(dim=0, keepdim=True) + 1e-8)
    order = R.argsort(dim=1, descending=True, stable=True)
    return order[:, :c].sort(dim=1).values.transpose(1, 2)


def _case(seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(3, 6, 4, generator=generator).softmax(dim=2)


EXERCISES = {
    "exercise-1": Exercise(slug="exercise-1", answer=(0.5, 0.25)),
    "exercise-2": Exercise(
        slug="exercise-2",
        answer=_two_selections,
        cases=[(_case(0), 2, 3), (_case(1), 1, 2), (_case(2), 4, 6)],
    ),
    "exercise-3": Exercise(
        slug="exercise-3", answer={"relu", "gelu", "swiglu"}
    ),
}
