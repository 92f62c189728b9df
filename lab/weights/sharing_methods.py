"""The methods that chapter 25 compares, and the rates at which they learn."""

from typing import NamedTuple

from lab.tokens.digit_model import TRAIN
from lab.weights.pruned_at_start import WAYS, narrower, prune, rewind
from lab.weights.shared_array import share, size
from lab.weights.shared_network import (
    STEPS,
    WIDTH,
    Dense,
    Network,
    Shared,
    shapes_of,
    train,
)

SHAPES = shapes_of(WIDTH)
N = size(SHAPES)
BIASES = 2 * WIDTH + 10
START = 0.04  # s0 in the authors' code
MODERATE, HIGH = 16, 64  # compression


class Arm(NamedTuple):
    """A method and by how much it compresses the weights."""

    method: str
    compression: int = 1


# rates chosen by the rule in `parameter_sharing_rates`
RATES = {
    Arm("original"): 0.1,
    Arm("ROAST"): 0.1,
    Arm("ROAST, no scaler", MODERATE): 0.005,
    Arm("STABLE-RPS", MODERATE): 1.0,
    Arm("STABLE-RPS", HIGH): 1.0,
    **{Arm(way, c): 0.2 for c in (MODERATE, HIGH) for way in WAYS},
    Arm("rewinding", HIGH): 0.2,
    Arm("smaller", HIGH): 0.1,
    Arm("smaller, all counted", HIGH): 0.2,
}
ARMS = tuple(RATES)


def trained(
    arm: Arm, seed: int, steps: int = STEPS, rate: float | None = None,
    known: int = TRAIN, start: float = START,
) -> Network:  # fmt: skip
    """One network of an arm after its training, at its own rate if none is
    given."""
    method, compression = arm
    rate = RATES[arm] if rate is None else rate
    m = N // compression
    if method == "rewinding":
        return rewind(WIDTH, m, rate, seed, known, steps)
    if method == "original":
        network = Dense(WIDTH, seed)
    elif method in WAYS:
        network = prune(Dense(WIDTH, seed), method, m, known)
    elif method.startswith("smaller"):
        biases = method.endswith("all counted")
        first, second = narrower(m + biases * BIASES, biases)
        network = Dense(first, seed, second)
    else:
        mapping = "ROAST" if "ROAST" in method else "RandomFold"
        sharing = share(SHAPES, m, mapping, seed)
        scaler = "none" if method.endswith("no scaler") else "v1"
        network = Shared(sharing, WIDTH, start, scaler, seed)
    return train(network, rate, seed, steps, known=known)
