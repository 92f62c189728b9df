"""Average precision by counting: how well neurons' rankings find a function.

C instances were seen by n neurons, A [C, n]; which of F functions an instance
needs is a bit mask y [C], and y_c = f means that bit f is set in y_c. Neuron i
ranks the instances by its activation, and the average precision of that
ranking is its score for function f:

    AP_f,i = 1/P sum over c with y_c = f of  hits / above
    above  = #{c' : A_c',i >= A_c,i}
    hits   = #{c' : A_c',i >= A_c,i and y_c' = f},   P = #{c : y_c = f}

Counting >= needs no sort and settles ties: equal scores are one step of the
ranking, in whatever order they come. A ReLU network is full of ties, because
most of its activations are exactly 0. A neuron that never fires has only
ties, and its score is P / C. The counts are integers and exact.

Both counts are kept in one sum, above + 4096 hits: each instance c' with
A_c',i >= A_c,i adds the weight that its label gives it, 1 or 4097. In fp32
this is exact below 4096 instances; from there on the sum is an int64 and a
hit counts 2^31.

Bytes: 4 C n read, 4 F n written, if the cache holds the scores between two
positives. Work: C n comparisons for each positive, so C^2 n in all for
exclusive functions. The limit is instructions, two for each of these: a
comparison and an addition. Sorting takes n C log C and wins when C is large;
here C is the number of windows, a few hundred.

Source: Xiao et al. 2024, section 4 (functionality score). The number is the
same as that of scikit-learn's ``average_precision_score``.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from lab.kernels.declaration import Compile, Cost, Declaration, Example
from lab.kernels.operator import operator
from lab.kernels.runtime import may_look

MOST_FUNCTIONS = 31  # bits of an int32 without its sign
FEW, MANY = 4096, 1 << 31  # what a hit adds: FEW below FEW instances
PARTS = 16  # programs that share the positives of a function


def ap_counts(scores: Tensor, labels: Tensor, functions: int) -> Tensor:
    """Average precision [F, n] of the scores [C, n] for each function.

    Bit f of ``labels`` [C] int32 says that an instance needs function f <
    ``functions``. Results are fp32 (float64 for float64 scores). On a CPU,
    scores that are not finite and a function that all or no instances need
    are refused. On a GPU, where a check would stall it, a score that is NaN
    ranks last and counts for nothing, and a function without instances gives
    NaN. O(C^2 n).
    """
    if scores.ndim != 2 or len(scores) < 1:
        raise ValueError(
            f"scores of shape {tuple(scores.shape)} rank nothing; give"
            " [instances, neurons] with one instance or more"
        )
    if not scores.is_floating_point():
        raise TypeError(f"scores are {scores.dtype}; use a floating type")
    if labels.shape != scores.shape[:1] or labels.dtype != torch.int32:
        raise ValueError(
            f"labels {tuple(labels.shape)} {labels.dtype} do not fit; give an"
            f" int32 bit mask for each of the {len(scores)} instances"
        )
    if not 1 <= functions <= MOST_FUNCTIONS:
        raise ValueError(
            f"functions={functions} is not within 1 to {MOST_FUNCTIONS}"
        )
    if may_look(scores):
        _look(scores, labels, functions)
    return _ap_counts(scores, labels, functions)


def _look(scores, labels, functions):
    """Raise an error where there is no average precision."""
    bad = int((~scores.isfinite()).sum())
    if bad:
        raise ValueError(
            f"scores have {bad} NaN or infinite entries; only finite ones"
            " make a ranking"
        )
    C = len(scores)
    for f, positives in enumerate(bits(labels, functions).sum(dim=1)):
        if not 0 < positives < C:
            raise ValueError(
                f"function {f} is needed by {int(positives)} of {C} instances;"
                " a ranking can find it if some need it and some do not"
            )


def bits(labels: Tensor, functions: int) -> Tensor:
    """Which instance needs which function, [F, C] bool, from masks [C]."""
    shift = torch.arange(functions, device=labels.device, dtype=torch.int32)
    return ((labels[None, :] >> shift[:, None]) & 1).bool()


def ap_counts_reference(
    scores: Tensor, labels: Tensor, functions: int
) -> Tensor:
    """The counts in plain PyTorch, one positive instance after the other."""
    _, n = scores.shape
    wide = torch.float64 if scores.dtype == torch.float64 else torch.float32
    result = scores.new_zeros((functions, n), dtype=wide)
    for f, needs in enumerate(bits(labels, functions)):
        for instance in scores[needs]:
            above = (scores >= instance).sum(dim=0)
            hits = (scores[needs] >= instance).sum(dim=0)
            result[f] += hits.to(wide) / above.clamp(min=1)
        result[f] /= needs.sum()
    return result


@triton.jit
def ap_counts_kernel(
    scores_ptr,
    weights_ptr,
    positives_ptr,
    counts_ptr,
    parts_ptr,
    C,
    n,
    parts,
    BLOCK_P: tl.constexpr,
    BLOCK_N: tl.constexpr,
    HIT: tl.constexpr,
):
    function = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    column = tl.program_id(2).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    is_neuron = column < n
    positives = tl.load(counts_ptr + function).to(tl.int32)
    total = tl.zeros([BLOCK_N], tl.float32)
    for tile in range(part, tl.cdiv(positives, BLOCK_P), parts):
        p = tile * BLOCK_P + tl.arange(0, BLOCK_P)
        # past the end, repeat the last positive; it counts for nothing
        at = positives_ptr + function * C + tl.minimum(p, positives - 1)
        c = tl.load(at).to(tl.int64)
        # [BLOCK_P, BLOCK_N]
        mine = tl.load(
            scores_ptr + c[:, None] * n + column[None, :],
            mask=is_neuron[None, :],
            other=0.0,
        ).to(tl.float32)
        # above + HIT hits
        both = tl.zeros([BLOCK_P, BLOCK_N], weights_ptr.dtype.element_ty)
        for row in range(0, C):
            weight = tl.load(weights_ptr + function * C + row)
            score = tl.load(
                scores_ptr + tl.cast(row, tl.int64) * n + column,
                mask=is_neuron,
                other=0.0,
            ).to(tl.float32)
            # skip the addition, rather than choose a zero to add
            both = tl.where(score[None, :] >= mine, both + weight, both)
        if weights_ptr.dtype.element_ty == tl.float32:
            both = both.to(tl.int32)
        hits, above = both // HIT, tl.maximum(both % HIT, 1)
        precision = hits.to(tl.float32) / above.to(tl.float32)
        total += tl.sum(tl.where(p[:, None] < positives, precision, 0.0), 0)
    at = (function * parts + part) * n + column
    tl.store(parts_ptr + at, total, mask=is_neuron)


def blocks(C: int, functions: int) -> tuple[int, int]:
    """Positives and neurons of a tile; a function may have few positives."""
    return (32 if C <= 32 * functions else 64), 64


def ap_counts_triton(scores: Tensor, labels: Tensor, functions: int) -> Tensor:
    """Launch the kernel and add up what its programs found.

    A program keeps both counts of 32 or 64 positives and 64 neurons in
    registers, as one number, while all instances pass by.
    """
    C, n = scores.shape
    scores = scores.contiguous()
    needs = bits(labels, functions)
    # the positives of each function first, in their order
    order = needs.to(torch.int8).argsort(dim=1, descending=True, stable=True)
    counts = needs.sum(dim=1, dtype=torch.int32)
    # what an instance adds to the counts that it reaches
    hit, kind = (FEW, torch.float32) if C < FEW else (MANY, torch.int64)
    weights = torch.where(needs, hit + 1, 1).to(kind)
    block_p, block_n = blocks(C, functions)
    parts = min(PARTS, triton.cdiv(C, block_p))
    found = torch.empty(
        (functions, parts, n), dtype=torch.float32, device=scores.device
    )
    if n:
        ap_counts_kernel[(functions, parts, triton.cdiv(n, block_n))](
            scores, weights, order.to(torch.int32), counts, found,
            C, n, parts,
            BLOCK_P=block_p, BLOCK_N=block_n, HIT=hit,
            num_warps=4,
        )  # fmt: skip
    return found.sum(dim=1) / counts[:, None]


def _shapes(scores, labels, functions):
    wide = torch.float64 if scores.dtype == torch.float64 else torch.float32
    return scores.new_empty((functions, scores.shape[1]), dtype=wide)


_ap_counts = operator(
    "ap_counts(Tensor scores, Tensor labels, SymInt functions) -> Tensor",
    cpu=ap_counts_reference,
    cuda=ap_counts_triton,
    shapes=_shapes,
)


def _inputs(seed, device, dtype, C, n, F, several=False, relu=0.0):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(C, n, generator=generator, dtype=torch.float64)
    scores = (scores - relu).relu() if relu else scores
    # every function has an instance, and none has them all
    job = torch.arange(C) % (F + (F == 1))
    labels = torch.where(job < F, 1 << job.clamp(max=F - 1), 0)
    if several:
        labels |= torch.randint(1 << F, (C,), generator=generator)
        labels[0] = 1
        labels[-1] = 0
    return {
        "scores": scores.to(device, dtype),
        "labels": labels.int().to(device),
        "functions": F,
    }


def _cost(scores, labels, functions) -> Cost:
    C, n = scores.shape
    positives = int(bits(labels, functions).sum())
    moved = scores.element_size() * C * n + 4 * C + 4 * functions * n
    return Cost(moved, positives * C * n)


def _compile(n: int, C: int) -> Compile:
    block_p, block_n = blocks(C, 7)
    few = C < FEW
    return Compile(
        f"n{n} {block_p}x{block_n}" + ("" if few else " int64"),
        ap_counts_kernel,
        signature={
            "scores_ptr": "*fp32", "weights_ptr": "*fp32" if few else "*i64",
            "positives_ptr": "*i32", "counts_ptr": "*i32",
            "parts_ptr": "*fp32", "C": "i32",
            "n": "i32:16" if n % 16 == 0 else "i32", "parts": "i32",
        },
        constants={
            "BLOCK_P": block_p, "BLOCK_N": block_n,
            "HIT": FEW if few else MANY,
        },
    )  # fmt: skip


DECLARATION = Declaration(
    name="ap_counts",
    operation=ap_counts,
    reference=ap_counts_reference,
    triton=ap_counts_triton,
    inputs=_inputs,
    examples=(
        Example("7 functions", {"C": 126, "n": 40, "F": 7}),
        Example("ReLU", {"C": 61, "n": 70, "F": 3, "relu": 1.0}),
        Example("several jobs", {"C": 50, "n": 33, "F": 4, "several": True}),
        Example("many positives", {"C": 140, "n": 8, "F": 1}),
        Example("silent", {"C": 30, "n": 5, "F": 2, "relu": 99.0},
                degenerate=True),
        Example("one neuron", {"C": 9, "n": 1, "F": 2}, degenerate=True),
        Example("two instances", {"C": 2, "n": 3, "F": 2}, degenerate=True),
        Example("no neuron", {"C": 8, "n": 0, "F": 2}, degenerate=True),
        Example("large", {"C": 2100, "n": 14336, "F": 7}, large=True),
    ),
    cost=_cost,
    compiles=tuple(
        _compile(n, C) for n in (576, 63) for C in (126, 2100, FEW)
    ),
)  # fmt: skip
