"""DistServe: prefill on some GPUs, decode on others (chapter 16).

Zhong et al., "DistServe: Disaggregating Prefill and Decoding for
Goodput-optimized Large Language Model Serving", OSDI 2024. A prefill makes
all requests wait that decode on the same GPU, and both must use the same
parallelism. So each phase gets GPUs of its own, and a search with a simulator
finds how many.

    queue      mean TTFT of a prefill instance, (1) to (3)
                                              `lab.serving.prefill_queue`
    simulator  arrive, prefill, move, decode   `lab.kernels.serve_sim`
    costs      OPT-13B on A100 GPUs, as the authors measured it
                                              `lab.serving.engine_profiles`
    goodput    the largest rate per GPU with 90 % of requests within both
               limits, and the search for the best placement
                                              `lab.serving.goodput`
    requests   lengths from two services, arrivals at random
                                              `lab.serving.request_traces`

Both limits must hold for the same request, as in the paper; the authors'
search asks for each percentile alone. A request enters decode when its whole
output will fit into memory. Their simulator (LLMServe/DistServe at 82831f1)
serves 50 000 tokens a step in turn instead, moves keys and values in no time,
decodes one token too many, batches prefills up to 66 144 tokens and sends a
request to the decode instance with the fewest new ones. Here a prefill batch
has 512 or 2048 tokens, whichever is better, as section 4.3 has it, and the
least loaded instance decodes. Pipelines (inter-op) are in the formulas only.
"""

from functools import cache, partial

import torch

from lab.claims import Claim, second_look
from lab.exercises import Exercise
from lab.kernels.runtime import device
from lab.kernels.serve_sim import serve_sim
from lab.serving.distserve_recorded import REQUESTS, WORKLOADS, best
from lab.serving.engine_profiles import prefill_costs
from lab.serving.goodput import (
    NODE,
    Placement,
    goodput,
    served,
    tightest,
)
from lab.serving.request_traces import LONGEST, drawn

ALL = tuple(WORKLOADS)
PAPER = "chat 250/100"  # the limits of its chat with OPT-13B


@cache
def experiment(
    seed: int, workload: str, placement: Placement, requests: int = REQUESTS
) -> float:
    """Goodput of one placement on a stream that no search has seen."""
    trace, limits = WORKLOADS[workload]
    stream = drawn(trace, requests, seed)
    return goodput([placement], stream, limits)[0]


def _gains(seed, workloads, rival, requests, **of) -> list[float]:
    """Goodput of the best split over that of the best of a rival."""
    return [
        experiment(seed, name, best(name, "split"), requests)
        / experiment(seed, name, best(name, rival, **of), requests)
        for name in workloads
    ]


def _gain(seed: int, workloads, rival: str, requests: int) -> float:
    """Times the rival's goodput, the least of the workloads."""
    return min(_gains(seed, workloads, rival, requests))


def _over_default(seed: int, workload: str, requests: int) -> float:
    """Times the goodput of vLLM's times on one GPU an instance."""
    default = {"keep": lambda one: one.prefill_gpus == 1}
    return _gains(seed, [workload], "vLLM", requests, **default)[0]


def _half_and_half(seed: int, workload: str, requests: int) -> float:
    """Three prefill and three decode GPUs, times six colocated ones."""
    half = NODE // 2

    def equal(one: Placement) -> bool:
        return one[:4] == (half, half, 1, 1)

    def whole(one: Placement) -> bool:
        return one.gpus == NODE

    return experiment(
        seed, workload, best(workload, "split", equal), requests
    ) / experiment(
        seed, workload, best(workload, "together", whole), requests
    )  # fmt: skip


def _own_parallelism(seed: int, workloads, requests: int) -> float:
    """Percent of goodput that more GPUs an instance bring a colocated system,
    the most of the workloads."""

    def single(one: Placement) -> bool:
        return one.prefill_gpus == 1

    return max(
        100
        * (
            experiment(seed, name, best(name, "together"), requests)
            / experiment(seed, name, best(name, "together", single), requests)
            - 1
        )
        for name in workloads
    )


def _tighter(seed: int, workload: str, rate: float, requests: int) -> float:
    """How much tighter limits the split keeps at the same rate per GPU."""
    trace, limits = WORKLOADS[workload]
    systems = [best(workload, "split"), best(workload, "vLLM")]
    stream = drawn(trace, requests, seed)
    factor = tightest(served(systems, [rate, rate], stream), limits)
    return float(factor[1] / factor[0])


def _above_m_d_1(seed: int, load: float, requests: int) -> float:
    """Percent of mean TTFT that unequal prompts add to equal ones.

    Both queues see the same arrivals, and their prefills take equally long on
    average.
    """
    stream = drawn("chat", requests, seed, streams=8)
    a, b, c = prefill_costs("DistServe", 1)
    prompts = stream.prompts.double()
    mean = float((a + b * prompts + c * prompts**2).mean())
    # batches of one token: every prompt is alone; nobody decodes
    pools = torch.tensor(2 * [[1, 1, 1, LONGEST + 1, 0]], dtype=torch.int32)
    rest = 6 * [1.0]
    costs = [[1000 * load / mean, 0.0, *prefill, *rest]
             for prefill in ((a, b, c), (mean, 0.0, 0.0))]  # fmt: skip
    ones = torch.ones_like(stream.outputs)
    given = (*stream._replace(outputs=ones), pools, torch.tensor(costs))
    waits = serve_sim(*(tensor.to(device()) for tensor in given))
    mixed, equal = waits.ttft.double().mean((1, 2)).tolist()
    return 100 * (mixed / equal - 1)


FULL, SHORT = {"requests": REQUESTS}, {"requests": 256}
SMALL = (
    "Simulated: OPT-13B on six A100 GPUs by fitted times, without pipelines,"
    " chunked prefill or preemption, every prefill instance with a link of its"
    f" own. {REQUESTS} requests a seed, of Azure's traces; the paper measures"
    " ShareGPT, HumanEval and LongBench on 32 GPUs."
)
QUEUE = (
    "Prefill times of OPT-13B on one A100 by the fitted formula, prompts of at"
    " most 2048 tokens. The paper speaks of pipelines, whose bubbles are not"
    " simulated."
)
AGAIN = range(10, 40)
_claim = partial(Claim, chapter="16", seeds=10, limits=SMALL)

CLAIMS = (
    _claim(
        slug="twice-on-chat",
        sentence="On chat, 2.0 to 4.6 times the request rate of vLLM, with"
        " three models (OPT-13B: first tokens in 250 ms, others in 100 ms).",
        source="section 6.2 and figure 8",
        effect="goodput over that of colocated instances of one GPU with"
        " vLLM's times, chat",
        unit="x",
        experiment=_over_default,
        parameters={"workload": PAPER, **FULL},
        reduced=SHORT,
        threshold=2.0,
        side="above",
        **second_look("1.83 times (1.62 to 2.03)", SMALL, AGAIN),
    ),
    _claim(
        slug="tighter-limits",
        sentence="At the same rate, limits 1.8 to 3.2 times as tight as"
        " vLLM's on chat.",
        source="section 6.2 and figure 8; the rate is ours, about the most"
        " that vLLM's times bear",
        effect="least factor on both limits that 90 % keep, vLLM's times over"
        " the split, chat, 1.5 requests/s per GPU",
        unit="x",
        experiment=_tighter,
        parameters={"workload": PAPER, "rate": 1.5, **FULL},
        reduced=SHORT,
        threshold=1.8,
        side="above",
    ),
    _claim(
        slug="always-better",
        sentence="DistServe consistently outperforms the state of the art"
        " across all the settings.",
        source="section 6",
        effect="goodput over that of the best colocated placement with vLLM's"
        " times, the least of five workloads",
        unit="x",
        experiment=_gain,
        parameters={"workloads": ALL, "rival": "vLLM", **FULL},
        reduced=SHORT | {"workloads": ALL[-1:]},
        threshold=1.0,
        side="above",
    ),
    _claim(
        slug="not-the-engine",
        sentence="Disaggregation is what brings the gain (section 6.4), so it"
        " must be there if both run on the same engine.",
        source="our control",
        effect="goodput over that of the best colocated placement of the same"
        " engine, the least of five workloads",
        unit="x",
        experiment=_gain,
        parameters={"workloads": ALL, "rival": "together", **FULL},
        reduced=SHORT | {"workloads": ALL[-1:]},
        threshold=1.0,
        side="above",
    ),
    _claim(
        slug="pays-on-code",
        sentence="On code completion, 5.7 times the request rate of vLLM"
        " (here: half as much again as the same engine, colocated).",
        source="section 6.2, with OPT-66B; control and threshold are ours",
        effect="goodput over that of the best colocated placement of the same"
        " engine, code, 400 and 40 ms",
        unit="x",
        experiment=_gain,
        parameters={
            "workloads": ("code 400/40",), "rival": "together", **FULL,
        },
        reduced=SHORT,
        threshold=1.5,
        side="above",
    ),
    _claim(
        slug="parallelism-is-no-help",
        sentence="A colocated system gains nothing from a search for its own"
        " parallelism (here: less than 5 %).",
        source="section 6.4, vLLM++ with OPT-66B; the threshold is ours",
        effect="goodput of the best colocated placement above the best with"
        " one GPU an instance, same engine, the most of five workloads",
        unit="%",
        experiment=_own_parallelism,
        parameters={"workloads": ALL, **FULL},
        reduced=SHORT | {"workloads": ALL[2:3]},
        threshold=5.0,
        side="below",
    ),
    _claim(
        slug="half-and-half",
        sentence="Splitting alone is not enough (implied by the search): on"
        " chat, three prefill and three decode GPUs do worse than six"
        " colocated ones.",
        source="our control, on the same engine",
        effect="goodput of 3 prefill and 3 decode GPUs over that of six"
        " colocated ones, chat, 250 and 100 ms",
        unit="x",
        experiment=_half_and_half,
        parameters={"workload": PAPER, **FULL},
        reduced=SHORT,
        threshold=1.0,
        side="below",
        limits=SMALL + " No split of this workload reaches the six colocated"
        " GPUs, so it does not show that other numbers would.",
    ),
    _claim(
        slug="a-queue-of-equals",
        sentence="A prefill instance is like an M/D/1 queue; unequal prompts"
        " cause slight deviations (here: less than 10 %).",
        source="sections 3.1 and 3.3; the threshold is ours",
        effect="mean TTFT above that of equal prompts, lengths of chat, load"
        " 0.7, prompts one by one",
        unit="%",
        experiment=_above_m_d_1,
        parameters={"load": 0.7, **FULL},
        reduced=SHORT,
        threshold=10.0,
        side="below",
        **second_look("11.1 % (9.3 to 12.9)", QUEUE, AGAIN),
    ),
    _claim(
        slug="real-engines",
        sentence="7.4 times more requests or 12.6 times tighter limits than"
        " state-of-the-art systems.",
        source="abstract",
        effect="goodput over that of DeepSpeed-MII",
        unit="x",
        experiment=None,
        threshold=7.4,
        side="above",
        out_of_reach="it needs OPT-66B, 32 A100 GPUs and the engines"
        " themselves; that the simulator errs by less than 2 % can only be"
        " seen there, too",
    ),
)  # fmt: skip


def _goodput(runs: list, limits: tuple, gpus: int) -> float:
    """The largest rate per GPU with 90 % within both limits, literally."""
    good = [0.0]
    for rate, ttft, tpot in runs:
        pairs = zip(ttft, tpot, strict=True)
        kept = [t <= limits[0] and p <= limits[1] for t, p in pairs]
        if sum(kept) >= 0.9 * len(kept):
            good.append(rate / gpus)
    return max(good)


# late and slow requests are not the same ones: each limit is kept by 90 %
_APART = (4.0, [9] + 9 * [1], 9 * [1] + [9])

EXERCISES = {
    # 2 x 64 layers x 9216 x 2 bytes x 512 tokens, 10 times a second, in bits
    "exercise-1": Exercise(
        slug="exercise-1",
        answer=2 * 64 * 9216 * 2 * 512 * 10 * 8 / 1e9,
        tolerance=2e-3,
    ),
    "exercise-2": Exercise(
        slug="exercise-2",
        answer=(1.75, 1 + 0.6 / 5.6, 1 / 1.5 + 0.6 / 2.7),
        tolerance=2e-3,
    ),
    "exercise-3": Exercise(
        slug="exercise-3",
        answer=_goodput,
        cases=[
            ([(2.0, 10 * [1], 10 * [1]), _APART], (5, 5), 2),
            ([(2.0, 10 * [1], 10 * [1]), (4.0, [9] + 9 * [1], 10 * [5])],
             (5, 5), 4),
            ([(1.0, [9, 1], [1, 1])], (5, 5), 1),
            ([], (5, 5), 3),
        ],
    ),
}  # fmt: skip
