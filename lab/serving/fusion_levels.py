"""How many FLOPs a Monarch product makes for each byte, by what is fused.

A batch of signals of N = n^2 complex numbers, s = 2 bytes for each half. The
chain is product, twiddle, transpose, product, with 16 n N + 6 N FLOPs. Every
operation that stands alone reads and writes N numbers of 2 s bytes; the three
matrices are shared by all signals and stay in a cache. So the FLOPs per byte
double with every halving of the operations, and grow with the tile.
"""

LEVELS = {
    "four operations": 4,
    "first three fused": 2,
    "all fused": 1,
}  # kernels that each read and write every number
A100_RIDGE = 150.0  # FLOPs per byte: 300 TFLOPS and 2 TB/s


def intensity(n: int, level: str, bytes_each: int = 2) -> float:
    """FLOPs per byte of one level, for tiles of side n."""
    if level not in LEVELS:
        raise ValueError(f"level={level!r} is not one of {', '.join(LEVELS)}")
    if n < 1:
        raise ValueError(f"n={n} is no side of a tile; use 1 or more")
    flops = 16 * n + 6  # for each number
    moved = LEVELS[level] * 2 * 2 * bytes_each  # read and written, two halves
    return flops / moved
