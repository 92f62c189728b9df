"""The sizes of the layer that are benchmarked, and the least each costs."""

from typing import NamedTuple

from lab.kernels.declaration import Cost


class Case(NamedTuple):
    """Sizes of one mixture-of-experts layer with a top-k gate."""

    name: str
    E: int
    k: int
    H: int
    F: int
    tokens: tuple[int, ...]


ON_GPU = (
    Case("lab E8 k2", 8, 2, 48, 32, (512,)),
    Case("Mixtral-like E8 k2", 8, 2, 4096, 14336, (16, 4096)),
    Case("E64 k8", 64, 8, 2048, 1024, (16, 4096, 32768)),
    Case("E128 k8", 128, 8, 2048, 768, (16, 4096, 32768)),
    Case("E256 k8", 256, 8, 2048, 512, (16, 4096, 32768)),
)
ON_CPU = (
    Case("lab E8 k2", 8, 2, 48, 32, (512,)),
    Case("E64 k8", 64, 8, 128, 64, (1024,)),
)


def layer_costs(case, T, dtype, gate) -> dict[str, Cost]:
    """The least bytes and FLOPs; only experts that are used are read."""
    # three matrices [H, F] an expert
    weights = 3 * len(gate.experts.unique()) * case.H * case.F
    width, flops = dtype.itemsize, 6 * T * case.k * case.H * case.F
    slots = 8 * T * case.k
    return {
        "forward": Cost(width * (2 * T * case.H + weights) + slots, flops),
        "backward": Cost(
            width * (3 * T * case.H + 2 * weights) + slots, 2 * flops
        ),
    }
