"""How long OPT-13B takes for a batch on A100 GPUs, as two engines measured it.

A prefill of prompts l takes  a + b sum l + c sum l^2,  a decode step of n
requests with s tokens of context  a + b s + c n,  in milliseconds. The
coefficients are those that the authors of DistServe fitted to their own
engine and to vLLM (LLMServe/DistServe, simdistserve/estimators/profile_data),
for a model on 1, 2 or 4 GPUs with tensor parallelism. Their simulator adds 1
to a prefill, and 2 + 0.0001 s to every batch for its scheduler; here both are
part of the coefficients.

Memory is theirs, too (max_num_tokens.csv): what the weights leave of 80 GB a
GPU, in tokens of keys and values.
"""

from functools import cache

ENGINES = ("DistServe", "vLLM")
SPLITS = (1, 2, 4)  # GPUs that share a model

# prefill, decode, decode with 95 requests or more
MEASURED = {
    ("DistServe", 1): (
        (18.1025, 0.101912, 7.12226e-6),
        (19.9347, 6.26936e-4, 0.0385070),
        (7.16619, 5.79800e-4, 0.158311),
    ),
    ("DistServe", 2): (
        (14.7430, 0.0685772, 2.44957e-6),
        (13.2948, 3.41092e-4, 0.0629639),
        (10.6387, 3.11834e-4, 0.0856291),
    ),
    ("DistServe", 4): (
        (12.0623, 0.0380814, 5.22623e-7),
        (10.2562, 1.87867e-4, 0.0326927),
        (10.4835, 1.71209e-4, 0.0456665),
    ),
    ("vLLM", 1): (
        (22.0522, 0.140509, 8.07658e-6),
        (23.4750, 5.92934e-4, 0.0607269),
        (20.2064, 4.90773e-4, 0.120003),
    ),
    ("vLLM", 2): (
        (27.4408, 0.0905453, 8.45205e-6),
        (24.5406, 2.24401e-4, 0.0871579),
        (17.9478, 4.57085e-4, 0.111791),
    ),
    ("vLLM", 4): (
        (30.5363, 0.0515064, 4.23247e-7),
        (25.9011, 7.75365e-5, 0.0552809),
        (23.8839, 2.84002e-4, 0.0627652),
    ),
}
MEMORY = {1: 66_144, 2: 163_008, 4: 356_736}  # tokens, by GPUs

LAYERS, WIDTH, BYTES = 40, 5120, 2  # of OPT-13B, fp16
KV_BYTES = 2 * LAYERS * WIDTH * BYTES  # keys and values of a token
NVLINK = 4800  # Gbit/s between two A100 GPUs: 600 GB/s, as the paper says


@cache
def prefill_costs(engine: str, gpus: int) -> tuple[float, float, float]:
    """a, b and c of a prefill."""
    a, b, c = MEASURED[engine, gpus][0]
    return a + 3, b + 1e-4, c


@cache
def decode_costs(engine: str, gpus: int) -> tuple[float, ...]:
    """a, b and c of a decode step, then those of a large one."""
    # the scheduler does not count the token that the step makes
    return tuple(
        number
        for a, b, c in MEASURED[engine, gpus][1:]
        for number in (a + 2, b + 1e-4, c - 1e-4)
    )


def moving(gbits: float) -> float:
    """Milliseconds to move the keys and values of one token."""
    return KV_BYTES * 8 / (gbits * 1e6)
