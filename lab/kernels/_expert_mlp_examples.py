"""Inputs that test the expert network and its backward pass."""

import torch

from lab.kernels.declaration import Example
from lab.kernels.dispatch import dispatch_reference


def forward_inputs(
    seed, device, dtype, T, E, S, H, F, activation, empty=0.0, only=None
):
    """A random gate, dispatched; ``only`` sends every slot to one expert."""
    generator = torch.Generator().manual_seed(seed)
    experts = torch.rand(T, E, generator=generator).argsort(dim=1)[:, :S]
    if only is not None:
        experts = torch.full((T, S), only)
    dropped = torch.rand(T, S, generator=generator) < empty
    sent = dispatch_reference(experts.masked_fill(dropped, -1).int(), E)
    G = 2 * F if activation == "swiglu" else F
    normal = normals(generator, device, dtype)

    return {
        "tokens": normal(T, H),
        "pairs": sent.pairs.to(device),
        "rows": sent.rows.to(device),
        "offsets": sent.offsets.to(device),
        "w_up": normal(E, H, G, fan_in=H),
        "w_down": normal(E, F, H, fan_in=F),
        "activation": activation,
    }


def backward_inputs(seed, device, dtype, wanted=None, **options):
    """The same, with a pre-activation and a gradient that are NaN past the
    end, and with ``wanted`` if only some gradients are wanted."""
    inputs = forward_inputs(seed, device, dtype, **options)
    R, kept = len(inputs["pairs"]), int(inputs["offsets"][-1])
    generator = torch.Generator().manual_seed(seed + 1)
    normal = normals(generator, device, dtype)
    widths = {"hidden": inputs["w_up"], "grad": inputs["w_down"]}
    for name, weight in widths.items():
        inputs[name] = normal(R, weight.shape[2])
        inputs[name][kept:] = float("nan")
    return inputs | ({"wanted": wanted} if wanted else {})


def normals(generator, device, dtype):
    """A function that draws a normally distributed tensor of a given shape.

    It draws in fp32, because float64 takes five times as long, and on the
    device itself, because a CPU takes ten seconds for the largest weights.
    """
    if torch.device(device).type != "cpu":
        seed = generator.initial_seed()
        generator = torch.Generator(device).manual_seed(seed)

    def normal(*shape, fan_in=1):
        drawn = torch.randn(shape, generator=generator, device=device)
        return (drawn / fan_in**0.5).to(dtype)

    return normal


def _pruned(name, activation, *wanted):
    sizes = {"T": 40, "E": 4, "S": 2, "H": 24, "F": 20, "empty": 0.2}
    return Example(name, sizes | {"activation": activation, "wanted": wanted})


def _example(name, T, E, S, H, F, activation, empty=0.0, only=None, **kind):
    sizes = {"T": T, "E": E, "S": S, "H": H, "F": F, "activation": activation}
    return Example(name, sizes | {"empty": empty, "only": only}, **kind)


EXAMPLES = (
    _example("swiglu", 100, 4, 2, 48, 40, "swiglu"),
    _example("relu", 65, 5, 2, 33, 17, "relu"),
    _example("gelu, half empty", 63, 8, 3, 20, 70, "gelu", empty=0.5),
    _example("top-p, S = E", 31, 8, 8, 16, 16, "relu", empty=0.8),
    # whole tiles only, the largest in 16 bits
    _example("even tiles", 100, 2, 1, 256, 256, "swiglu"),
    _example("many rows", 800, 1, 1, 256, 128, "swiglu"),
    _example("one token", 1, 3, 1, 7, 5, "swiglu", degenerate=True),
    _example("k = E", 17, 3, 3, 16, 8, "gelu", degenerate=True),
    _example(
        "all to the last", 70, 6, 1, 8, 8, "swiglu", only=5, degenerate=True
    ),
    _example("all empty", 9, 2, 2, 8, 4, "relu", empty=1.0, degenerate=True),
    _example("no token", 0, 2, 1, 8, 4, "relu", degenerate=True),
    _example("Mixtral-like", 4096, 8, 2, 4096, 14336, "swiglu", large=True),
    _example("fine-grained", 8192, 128, 8, 2048, 768, "swiglu", large=True),
)

# for the backward pass: only some gradients are wanted
PRUNED = (
    _pruned("tokens only", "swiglu", True, False, False),
    _pruned("weights only", "swiglu", False, True, True),
    _pruned("w_up only", "gelu", False, True, False),
    _pruned("w_down only", "relu", False, False, True),
)
