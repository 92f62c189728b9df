"""How long the operations of a layer take alone: LLaMA-2-70B on 8 A100 GPUs.

Every GPU holds an eighth of each matrix, so a product of b tokens with a
[n, K] part of a matrix has 2 b n K operations. It is cut into tiles, and the
108 multiprocessors do one tile each at a time, a **wave**:

    GEMM       ceil(tiles / 108) waves, at e x 280 TFLOPS a full wave, but not
               faster than memory delivers the matrices; best of four tiles
    attention  keys and values of the decoded requests / 1.64 TB/s
    AG         (7/8) b D 2 bytes / 206 GB/s;  AR twice that
    launch     5 us for each

280 TFLOPS is the paper's profiled peak (section 3.5). The bandwidths of
attention and network are those that its measured times of 2048 tokens imply
(table 2: 35.60 ms for 462.2 GB, 47.92 ms for 75.2 GB, 80 layers, 8 GPUs).
Tiles, their efficiencies e and the launch are ours. Nothing is fitted to what
happens when operations overlap.
"""

import math
from typing import NamedTuple

GPUS, LAYERS, HIDDEN = 8, 80, 8192
PARAMETERS = 70e9
MULTIPROCESSORS = 108
PEAK = 280e12  # operations a second, profiled
OPTIMAL = 1857.0  # tokens a second and GPU, equation 5 as the paper prints it
MEMORY = 2e12  # bytes a second, data sheet
LAUNCH = 5e-6  # seconds
# what the measured times leave after a launch (AG, AG and AR a layer)
ATTENTION = 462.2e9 / GPUS / (35.60e-3 - LAYERS * LAUNCH)
NETWORK = 75.2e9 / GPUS / (47.92e-3 - 3 * LAYERS * LAUNCH)
# rows and columns of a tile, and its speed against the profiled peak
TILES = ((128, 128, 1.0), (128, 64, 0.85), (64, 128, 0.85), (128, 256, 1.05))
# columns and depth of each product on one GPU
PRODUCTS = {
    "KQV": (1280, 8192),
    "O": (1024, 8192),
    "UG": (7168, 8192),
    "D": (8192, 3584),
}
TOKEN_BYTES = 2 * 2 * LAYERS * 1024  # keys and values of a token, 8 heads
# milliseconds of 80 layers, 2048 tokens, as measured (table 2)
MEASURED = {
    "KQV": 16.08, "O": 16.01, "UG": 69.92, "D": 34.96, "attention": 35.60,
    "network": 47.92,
}  # fmt: skip


class Workload(NamedTuple):
    """Mean tokens of a request."""

    prompt: int
    output: int

    def context_bytes(self, tokens: float) -> float:
        """Keys and values that a step of ``tokens`` reads, on all GPUs.

        Requests enter as fast as they leave, so prompt and output tokens are
        in each step as they are in a request. A decoded token reads its
        prompt and, on average, half of its output.
        """
        decoded = tokens * self.output / (self.prompt + self.output)
        return decoded * (self.prompt + self.output / 2) * TOKEN_BYTES


# section 6.4, and the means of table 4
WORKLOADS = {
    "512 in, 1024 out": Workload(512, 1024),
    "512 in, 512 out": Workload(512, 512),
    "512 in, 0 out": Workload(512, 0),
    "ShareGPT 246 in, 322 out": Workload(246, 322),
    "Splitwise 1155 in, 211 out": Workload(1155, 211),
}


def waves(tokens: int, columns: int, tile=TILES[0]) -> int:
    """Rounds of 108 tiles that a product of ``tokens`` rows takes."""
    rows, wide, _ = tile
    tiles = math.ceil(tokens / rows) * math.ceil(columns / wide)
    return math.ceil(tiles / MULTIPROCESSORS)


def gemm(tokens: int, columns: int, depth: int) -> float:
    """Seconds of a product [tokens, depth] x [depth, columns]."""
    best = math.inf
    for tile in TILES:
        rows, wide, speed = tile
        # 2 b n K of all multiprocessors' tiles, idle ones as well
        work = 2 * depth * rows * wide * MULTIPROCESSORS
        best = min(best, waves(tokens, columns, tile) * work / speed / PEAK)
    moved = 2 * (tokens * depth + depth * columns + tokens * columns)
    return max(best, moved / MEMORY) + LAUNCH


def alone(tokens: int, workload: Workload) -> list[float]:
    """Seconds of the eight operations of ``tokens`` tokens, one layer.

    In the order of `lab.kernels.nano_sim`. Without a decoded token there is
    no decode attention.
    """
    kqv, o, ug, down = (gemm(tokens, *size) for size in PRODUCTS.values())
    read = workload.context_bytes(tokens) / GPUS / LAYERS
    attention = read / ATTENTION + LAUNCH if read else 0.0
    sent = (GPUS - 1) / GPUS * tokens * HIDDEN * 2
    gather, reduce = (k * sent / NETWORK + LAUNCH for k in (1, 2))
    return [kqv, attention, gather, o, gather, ug, down, reduce]
