"""The sizes of the layer that are benchmarked, and the least each costs."""

from typing import NamedTuple

import torch

from lab.kernels.declaration import Cost
from lab.kernels.topk_gate import Gate, topk_gate_reference
from lab.kernels.topp_gate import topp_gate_reference

MASS = 0.4  # p of a top-p gate, as in the paper
ZIPF = 1.2  # exponent: the first expert is chosen most, the next ones less


class Case(NamedTuple):
    """Sizes of one mixture-of-experts layer, and how its gate chooses.

    ``gate`` is "top-k"; "skewed", a top-k whose experts differ in popularity
    as words do; "null", a top-k over as many null experts as true ones; or
    "top-p". With the last two, the number of experts differs by token.
    """

    name: str
    E: int
    k: int
    H: int
    F: int
    tokens: tuple[int, ...]
    gate: str = "top-k"


ON_GPU = (
    Case("lab E8 k2", 8, 2, 48, 32, (512,)),
    Case("Mixtral-like E8 k2", 8, 2, 4096, 14336, (16, 4096)),
    Case("E64 k8", 64, 8, 2048, 1024, (16, 4096, 32768)),
    Case("E64 k8 Zipf", 64, 8, 2048, 1024, (4096,), "skewed"),
    Case("E64 k8 null", 64, 8, 2048, 1024, (4096,), "null"),
    Case("E64 top-p", 64, 64, 2048, 1024, (4096,), "top-p"),
    Case("E128 k8", 128, 8, 2048, 768, (16, 256, 4096, 32768)),
    Case("E256 k8", 256, 8, 2048, 512, (16, 4096, 32768)),
)
ON_CPU = (
    Case("lab E8 k2", 8, 2, 48, 32, (512,)),
    Case("E64 k8", 64, 8, 128, 64, (1024,)),
    Case("E64 k8 Zipf", 64, 8, 128, 64, (1024,), "skewed"),
    Case("E64 k8 null", 64, 8, 128, 64, (1024,), "null"),
    Case("E64 top-p", 64, 64, 128, 64, (1024,), "top-p"),
)


def drawn_gate(case: Case, T: int, device: str = "cpu") -> Gate:
    """A random gate of T tokens, the same on every call."""
    generator = torch.Generator(device).manual_seed(0)
    columns = 2 * case.E if case.gate == "null" else case.E
    logits = torch.randn(T, columns, generator=generator, device=device)
    if case.gate == "top-p":
        return topp_gate_reference(logits, MASS)
    if case.gate == "null":
        return topk_gate_reference(logits, case.k, null_experts=case.E)
    if case.gate == "skewed":
        # the k largest of log(share / Exp(1)) are k draws by share, without
        # repetition
        wait = torch.empty_like(logits).exponential_(generator=generator)
        expert = torch.arange(1, case.E + 1, device=device)
        logits = -ZIPF * expert.log() - wait.log()
    return topk_gate_reference(logits, case.k)


def layer_costs(case, T, dtype, gate) -> dict[str, Cost]:
    """The least bytes and FLOPs of each mode; only what is routed counts.

    Only the weights of experts in use are read, and work is done only for
    filled slots. The gradients of all weights are written, those of idle
    experts as zeros.
    """
    routed = gate.experts[gate.experts >= 0]
    expert = 3 * case.H * case.F  # three matrices [H, F]
    weights, gradients = expert * len(routed.unique()), expert * case.E
    width, flops = dtype.itemsize, 6 * len(routed) * case.H * case.F
    slots = 8 * gate.experts.numel()
    return {
        "forward": Cost(width * (2 * T * case.H + weights) + slots, flops),
        "backward": Cost(
            width * (3 * T * case.H + weights + gradients) + slots, 2 * flops
        ),
    }
