"""The least time that the layer can take, from data sheets, with no GPU.

The least bytes and FLOPs of each benchmarked size are counted as in a
measured table. A data sheet's bandwidth and dense matrix rate turn them into
the least milliseconds. Nothing here was measured, and no GPU reaches its data
sheet: copies get about 90 % of it, large matrix products 70 to 80 %.

    lab bench --limits
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch

from lab.bench.sizes import ON_GPU, drawn_gate, layer_costs
from lab.bench.table import floor_ms
from lab.bench.timing import Roofs
from lab.kernels.dispatch import few
from lab.kernels.moe_layer import LAUNCHES, LAUNCHES_BACKWARD, LAUNCHES_FEW

# TB/s, and TFLOP/s in bf16 (in fp16 on a T4, which has no bf16), not sparse
SHEETS = {
    "T4": (0.32, 65),
    "A100 80 GB": (2.04, 312),
    "H100": (3.35, 989),
    "H200": (4.8, 989),
    "MI300X": (5.3, 1307),
}


class Limit(NamedTuple):
    """One size of the layer, in one direction."""

    case: str
    mode: str
    launches: int
    gigabytes: float
    teraflops: float
    ms: dict[str, float]  # the least time, by GPU


def limits() -> Iterator[Limit]:
    """The limits of all sizes that are benchmarked on a GPU, in 16 bits."""
    for case in ON_GPU:
        for T in case.tokens:
            gate = drawn_gate(case, T)
            costs = layer_costs(case, T, torch.bfloat16, gate)
            launches = {
                "forward": LAUNCHES_FEW
                if gate.experts.numel() <= few(case.E)
                else LAUNCHES,
                "backward": LAUNCHES_BACKWARD,
            }
            for mode, cost in costs.items():
                yield Limit(
                    f"{case.name} T{T}",
                    mode,
                    launches[mode],
                    cost.bytes / 1e9,
                    cost.flops / 1e12,
                    {gpu: _least(cost, *SHEETS[gpu]) for gpu in SHEETS},
                )


def _least(cost, terabytes, teraflops):
    roofs = Roofs(terabytes * 1e12, {"16 bit": teraflops * 1e12})
    return floor_ms(*cost, roofs, "16 bit")


def shown() -> str:
    """The limits as lines for a terminal."""
    head = "".join(f"{gpu:>12}" for gpu in SHEETS)
    lines = [
        "least milliseconds by data sheet, 16 bits; computed, not measured",
        f"{'layer':28}{'mode':10}{'launches':>9}{'GB':>10}{'TFLOP':>10}{head}",
    ]
    for case, mode, launches, gigabytes, teraflops, ms in limits():
        times = "".join(f"{value:12.2g}" for value in ms.values())
        lines.append(
            f"{case:28}{mode:10}{launches:9}{gigabytes:10.2g}"
            f"{teraflops:10.2g}{times}"
        )
    return "\n".join(lines)
