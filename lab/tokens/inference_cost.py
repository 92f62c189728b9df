"""What one expert layer costs: bytes, arithmetic, and the wire between.

Standard roofline arguments. A device does F operations a second and reads W
bytes a second. An expert has w = 3 d f weights of s bytes, n_i tokens come to
expert i, and a weight needs two operations for each token.

    t_experts = sum over n_i > 0 of max(w s / W, 2 w n_i / F)
    n* = F s / 2 W                             tokens at an expert's ridge
    t_transfer = (1 - h) U w s / W_h           experts that lie elsewhere
    t_all_to_all = 2 l + 2 B k d s_a (1 - 1/G) / (G W_n)

W_h, W_n: bytes a second of the link to the host and of the network between G
devices with latency l; h: share of the experts found in memory; s_a = 2 bytes
of an activation. Launches, attention and the router are left out.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from lab.tokens.char_lm import DIM, HIDDEN

ACTIVATION_BYTES = 2  # s_a, of a number sent between devices
BYTES = (0.5, 1, 2, 4)  # s, per weight


class Size(NamedTuple):
    """One expert: width d of a token, hidden units f, SwiGLU."""

    dim: int
    hidden: int

    @property
    def weights(self) -> int:
        return 3 * self.dim * self.hidden


class Machine(NamedTuple):
    """One device, and the wires that lead to it; round datasheet numbers."""

    flops: float  # F, per second, dense
    memory: float  # W, bytes per second
    host: float  # W_h, bytes per second from where the other experts lie
    network: float  # W_n, bytes per second to the other devices
    latency: float  # l, seconds


SIZES = {
    "Mixtral-like": Size(4096, 14336),
    "fine-grained": Size(2048, 1408),
    "lab toy": Size(DIM, HIDDEN),
}
MACHINES = {
    "H200": Machine(989e12, 4.8e12, 64e9, 450e9, 10e-6),
    "T4": Machine(65e12, 0.32e12, 16e9, 16e9, 20e-6),
    "laptop CPU": Machine(1e12, 50e9, 3.5e9, 1e9, 100e-6),
}


def expert_time(
    load: Tensor, size: Size, machine: Machine, bytes_per_weight: float = 2
) -> Tensor:
    """Seconds that each expert takes for its ``load`` of tokens, same shape.

    An expert without tokens takes no time. An expert with tokens takes the
    time to stream its weights once, or to compute if that is longer.
    """
    if bytes_per_weight not in BYTES:
        raise ValueError(
            f"bytes_per_weight={bytes_per_weight} is not one of {BYTES}"
        )
    w = size.weights
    reading = w * bytes_per_weight / machine.memory  # w s / W
    computing = 2 * w * load.double() / machine.flops  # 2 w n / F
    return computing.clamp(min=reading) * (load > 0)


def ridge(machine: Machine, bytes_per_weight: float = 2) -> float:
    """Tokens an expert needs to be bound by arithmetic: n* = F s / 2 W."""
    return machine.flops * bytes_per_weight / (2 * machine.memory)


def transfer_time(
    experts: float | Tensor,
    size: Size,
    machine: Machine,
    bytes_per_weight: float = 2,
    hit: float = 0.0,
) -> float | Tensor:
    """Seconds to fetch the distinct ``experts`` that are not in memory."""
    if not 0 <= hit <= 1:
        raise ValueError(f"hit={hit} is not a share; use 0 to 1")
    moved = (1 - hit) * experts * size.weights * bytes_per_weight
    return moved / machine.host


def all_to_all_time(
    batch: int, k: float, size: Size, machine: Machine, devices: int
) -> float:
    """Seconds to send tokens to their experts and back, on G devices.

    Each pair of token and expert travels, without de-duplication; a token
    finds its expert at home with chance 1 / G. One device sends nothing.
    """
    if devices == 1:
        return 0.0
    sent = batch * k * size.dim * ACTIVATION_BYTES * (1 - 1 / devices)
    return 2 * machine.latency + 2 * sent / (devices * machine.network)


def place(rates: Tensor, devices: int, greedy: bool = True) -> Tensor:
    """The device of each expert, [N]; every device gets equally many.

    With ``greedy`` the most popular expert that is left goes to the device
    with the least load among those with room. Otherwise experts stay in the
    order of their index.
    """
    N = len(rates)
    if devices < 1 or N % devices:
        raise ValueError(
            f"devices={devices} cannot hold {N} experts in equal parts;"
            f" use a divisor of {N}"
        )
    room = N // devices
    if not greedy:
        return torch.arange(N) // room
    home = torch.empty(N, dtype=torch.int64)
    load, used = [0.0] * devices, [0] * devices
    for expert in rates.argsort(descending=True, stable=True).tolist():
        free = [g for g in range(devices) if used[g] < room]
        best = min(free, key=lambda g: load[g])
        home[expert] = best
        load[best] += rates[expert].item()
        used[best] += 1
    return home


def by_device(values: Tensor, home: Tensor, devices: int) -> Tensor:
    """Sums [count, G] of ``values`` [count, N] over each device's experts."""
    sums = values.new_zeros(len(values), devices)
    return sums.index_add_(1, home, values)
