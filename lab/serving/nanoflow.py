"""NanoFlow: nano-batches overlap compute, memory and network (chapter 15).

Zhu, Gao, Zhao et al., "NanoFlow: Towards Optimal Large Language Model Serving
Throughput", OSDI 2025. A layer of a large model needs compute, memory and
network one after the other, so two of them wait. If a batch is cut into
nano-batches, the operations of one can run beside those of the other: more
loads of the weights, but fewer idle multipliers.

    optimum     Compute / (2 P) tokens a second and GPU (5)
    operations  how long each takes alone          `lab.serving.layer_times`
    pipeline    who runs when, and how fast        `lab.kernels.nano_sim`
    search      cut, order and shares              `lab.serving.nano_search`

The released code (efeslab/Nanoflow) holds solved pipelines and a runtime, not
the search. Here each operation has the same cut; the paper cuts KQV and
attention into four and the rest in two. Prefill attention, small operations
(norms, activations), sampling and the host are left out, and so is the
exchange of an all-gather for an all-reduce. Everything is simulated, from the
paper's measured times of single operations and its table of interference.
"""

from functools import cache, partial

from lab.claims import Claim
from lab.exercises import Exercise
from lab.serving.layer_times import (
    GPUS,
    LAYERS,
    OPTIMAL,
    PRODUCTS,
    WORKLOADS,
    waves,
)
from lab.serving.nano_search import (
    GEMMS,
    GRAIN,
    Plan,
    durations,
    machine,
    one_by_one,
    search,
    speed,
    splits,
    two_stages,
)

FULL = 2048  # tokens of a batch
DECODE, PREFILL = "512 in, 1024 out", "512 in, 0 out"
COST = 0.132  # of the throughput, what splitting alone costs by the paper


def optimum_share(seconds: float, tokens: int = FULL) -> float:
    """Percent of the optimum (5), for the time that a layer takes."""
    return 100 * tokens / (seconds * LAYERS * GPUS) / OPTIMAL


def found(
    seed: int | None,
    lengths: str = DECODE,
    tokens: int = FULL,
    interfere: bool = True,
    grain: int = GRAIN,
) -> Plan:
    """The fastest two nano-batches of a machine."""
    # a cache tells f(1, grain=2) from f(1, 2), so it sees one way of calling
    return _found(seed, lengths, tokens, interfere, grain)


@cache
def _found(seed, lengths, tokens, interfere, grain) -> Plan:
    pairs = {} if interfere else {"pairs": [None]}
    cuts = splits(tokens, grain=grain)
    return search(machine(seed), WORKLOADS[lengths], cuts, **pairs)


def _alone(seed: int, lengths: str, split: tuple) -> float:
    """Seconds of a layer, one operation after the other."""
    return one_by_one(machine(seed), WORKLOADS[lengths], split)


def _faster(seed: int, lengths: str, tokens: int, grain: int) -> float:
    """Times the throughput of the whole batch, one by one."""
    plan = found(seed, lengths, tokens, grain=grain)
    return _alone(seed, lengths, (tokens,)) / plan.seconds


def _split_alone(seed: int, lengths: str, tokens: int) -> float:
    """Percent of throughput lost by the found cut, one by one."""
    split = found(seed, lengths, tokens).split
    whole = _alone(seed, lengths, (tokens,))
    return 100 * (1 - whole / _alone(seed, lengths, split))


def _at_that_cost(seed: int, lengths: str, tokens: int, cost: float) -> float:
    """Times the throughput, if splitting alone costs as much as it may."""
    of, workload = machine(seed), WORKLOADS[lengths]
    whole = one_by_one(of, workload, (tokens,))

    def slower(split: tuple) -> float:
        rows = durations(of, workload, split)
        products = sum(row[k] for row in rows for k in GEMMS)
        others = sum(map(sum, rows)) - products
        # whole / (factor products + others) = 1 - cost
        return max(1.0, (whole / (1 - cost) - others) / products)

    plan = search(of, workload, splits(tokens), slower=slower)
    return whole / plan.seconds


def _interference(seed: int, lengths: str, tokens: int) -> float:
    """Percent of the compute stream's lost time that interference takes."""
    of, workload = machine(seed), WORKLOADS[lengths]
    lost = []
    for interfere in (True, False):
        plan = found(seed, lengths, tokens, interfere)
        rows = durations(of, workload, plan.split)
        work = sum(row[k] for row in rows for k in GEMMS)
        lost.append(1 - work / plan.seconds)
    return 100 * (1 - lost[1] / lost[0])


def _uneven(seed: int, lengths: str, tokens: int) -> float:
    """Percent of throughput that the best uneven cut adds to two halves."""
    half = (tokens // 2, tokens // 2)
    of, workload = machine(seed), WORKLOADS[lengths]
    uneven = [cut for cut in splits(tokens) if cut != half]
    even = search(of, workload, [half])
    return 100 * (even.seconds / search(of, workload, uneven).seconds - 1)


def _stages(seed: int, lengths: str, tokens: int) -> float:
    """Percent of throughput that a search in two stages misses."""
    of, workload = machine(seed), WORKLOADS[lengths]
    staged = two_stages(of, workload, splits(tokens))
    return 100 * (1 - found(seed, lengths, tokens).seconds / staged.seconds)


SMALL = (
    "Simulated: LLaMA-2-70B on 8 A100 GPUs, single operations near the times"
    " that the paper measured, its table of interference with straight lines,"
    " one cut for all operations, one share for each kind. Without a GEMM,"
    " attention and network run at full speed side by side. Prefill attention,"
    " small operations and the host are left out. A seed is a machine whose"
    " operations and table are off by 5 % (standard deviation)."
)
_claim = partial(
    Claim,
    chapter="15",
    seeds=10,
    limits=SMALL,
    parameters={"lengths": DECODE, "tokens": FULL},
)

CLAIMS = (
    _claim(
        slug="both-overlaps",
        sentence="Overlapping network- and memory-bound kernels gives 1.17"
        " times the throughput (512 tokens in, 1024 out).",
        source="section 6.4 and figure 9",
        effect="throughput of the best two nano-batches over that of the"
        " whole batch one by one, 2048 tokens",
        unit="x",
        experiment=_faster,
        threshold=1.17,
        side="above",
        parameters={"lengths": DECODE, "tokens": FULL, "grain": GRAIN},
    ),
    _claim(
        slug="network-alone",
        sentence="Overlapping network-bound kernels gives 1.07 times the"
        " throughput (512 tokens in, prefill only).",
        source="section 6.4 and figure 9",
        effect="throughput of the best two nano-batches over that of the"
        " whole batch one by one, 2048 tokens",
        unit="x",
        experiment=_faster,
        threshold=1.07,
        side="above",
        parameters={"lengths": PREFILL, "tokens": FULL, "grain": GRAIN},
    ),
    _claim(
        slug="splitting-costs",
        sentence="Splitting into nano-batches alone reduces performance by"
        " 13.2 %.",
        source="section 6.4 and figure 9; the text names no lengths, ours are"
        " 512 in, 1024 out",
        effect="throughput lost by the best cut if nothing overlaps",
        unit="%",
        experiment=_split_alone,
        threshold=100 * COST,
        side="above",
        limits=SMALL + " The paper cuts KQV and attention into four.",
    ),
    _claim(
        slug="both-at-once",
        sentence="1.17 times the throughput, although splitting alone costs"
        " 13.2 %.",
        source="section 6.4, its two sentences together; our control",
        effect="throughput over that of the whole batch, GEMMs slowed until"
        " any cut costs 13.2 %",
        unit="x",
        experiment=_at_that_cost,
        threshold=1.17,
        side="above",
        parameters={"lengths": DECODE, "tokens": FULL, "cost": COST},
    ),
    _claim(
        slug="interference-is-the-rest",
        sentence="Due to kernel interference, compute usage is lower than"
        " optimal (here: it is more than half of the reason).",
        source="section 6.5; the threshold is ours",
        effect="share of the compute stream's lost time that goes away without"
        " interference",
        unit="%",
        experiment=_interference,
        threshold=50.0,
        side="above",
    ),
    _claim(
        slug="uneven-cut",
        sentence="The search cuts 2048 tokens at 768, not in halves.",
        source="figure 6; halves are our control",
        effect="throughput that the best uneven cut adds to that of two"
        " halves, each with its best order and shares",
        unit="%",
        experiment=_uneven,
        threshold=0.0,
        side="above",
    ),
    _claim(
        slug="two-stages",
        sentence="A search in two stages, structure without interference"
        " first, approximates the best pipeline (here: it misses less than"
        " 1 %).",
        source="sections 4.1.2 and 4.1.3; the threshold is ours",
        effect="throughput that the two stages miss of what one search over"
        " everything finds",
        unit="%",
        experiment=_stages,
        threshold=1.0,
        side="below",
        limits=SMALL + " Both stages try a whole grid; the paper's solve"
        " integer programs, and prefer cuts without idle compute.",
    ),
    _claim(
        slug="not-for-small-batches",
        sentence="The batch must stay sufficiently large (so at 256 tokens no"
        " two nano-batches pay, by our reading).",
        source="section 4.2.1; size and threshold are ours",
        effect="throughput of the best two nano-batches, cut in steps of 64,"
        " over that of 256 tokens one by one",
        unit="x",
        experiment=_faster,
        threshold=1.0,
        side="below",
        parameters={"lengths": DECODE, "tokens": 256, "grain": 64},
    ),
    _claim(
        slug="real-engines",
        sentence="1.91 times the throughput of the best serving system, and"
        " 50 to 72 % of the optimum across popular models.",
        source="abstract, second version; 59 to 72 % in the first",
        effect="throughput over that of TensorRT-LLM",
        unit="x",
        experiment=None,
        threshold=1.91,
        side="above",
        parameters={},
        out_of_reach="it needs eight A100 GPUs, the engines themselves and"
        " models of up to 72 billion parameters; a simulation leaves out what"
        " makes real engines slow",
    ),
)


def _until_the_first_ends(running: list) -> tuple:
    """Time until the first operation ends, and what is left of each."""
    wait = min(left / rate for left, rate in running)
    return wait, [left - rate * wait for left, rate in running]


# attention of 460 us beside a GEMM: how much the GEMM loses at R
def _lost(share: float) -> float:
    return 460 / speed(machine().attention, share) * share


EXERCISES = {
    "exercise-1": Exercise(
        slug="exercise-1",
        answer=tuple(waves(b, PRODUCTS["O"][0]) for b in (2048, 768, 1280)),
    ),
    "exercise-2": Exercise(
        slug="exercise-2",
        answer=(_lost(0.2), _lost(0.4), _lost(0.8)),
        tolerance=5e-3,
    ),
    "exercise-3": Exercise(
        slug="exercise-3",
        answer=_until_the_first_ends,
        cases=[
            ([(600.0, 0.4), (230.0, 0.8), (50.0, 0.5)],),
            ([(10.0, 1.0)],),
            ([(3.0, 0.5), (6.0, 1.0)],),
            ([(0.0, 0.3), (5.0, 1.0)],),
        ],
    ),
}
