"""What a kernel declares, once, for tests, benchmarks and compilation.

One `Declaration` is enough for all of these, with no further code per kernel:
comparison with the reference in Triton's interpreter and on a GPU, gradient
checks, operator checks, ahead-of-time compilation for GPUs that are not here,
and the roofline.
"""

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

import lab.kernels

# Triton's names for the dtypes
KINDS = {
    torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16",
}  # fmt: skip


class Cost(NamedTuple):
    """The least that any implementation of an operation must do."""

    bytes: int  # every input read once, every output written once
    flops: int  # floating-point operations; 0 where only bytes matter


@dataclass(frozen=True)
class Example:
    """One set of sizes and options, and how it may be used.

    ``options`` go to the declaration's ``inputs`` function. ``large`` examples
    are for a GPU only; ``degenerate`` ones are the corners where bugs live;
    examples that are not ``smooth`` have exact ties, where a small step
    changes a choice and finite differences mean nothing.
    """

    name: str
    options: dict[str, Any]
    degenerate: bool = False
    large: bool = False
    smooth: bool = True


@dataclass(frozen=True)
class Compile:
    """One kernel with the configuration that ships, to compile without a GPU.

    ``signature`` maps every argument of the kernel to its Triton type
    (``"*fp32"``, ``"i32"``, or ``"i32:16"`` for a size that 16 divides, which
    compiles to different code), and ``constants`` maps the compile-time
    arguments to their values. ``targets`` leaves out a GPU on which the lab
    never launches the kernel (matrix products on a T4 go through PyTorch).
    ``matrix_units`` says that the compiled code must contain matrix
    instructions.
    """

    name: str
    kernel: Any
    signature: dict[str, str]
    constants: dict[str, Any]
    num_warps: int = 4
    num_stages: int = 2
    targets: tuple[str, ...] = ("sm_75", "sm_80", "sm_90", "sm_100", "gfx942")
    matrix_units: bool = False


def targets_by_tile(
    choose: Callable[[str], Any], targets: tuple[str, ...] = Compile.targets
) -> list[tuple[Any, tuple[str, ...]]]:
    """Each tile that ``choose`` gives a target, and the targets that share it.

    So what is compiled ahead of time follows from what is launched.
    """
    found: list[tuple[Any, list[str]]] = []
    for target in targets:
        tile = choose(target)
        same = next((same for known, same in found if known == tile), None)
        if same is None:
            found.append((tile, [target]))
        else:
            same.append(target)
    return [(tile, tuple(same)) for tile, same in found]


def _whole(result, **inputs):
    return result


@dataclass(frozen=True)
class Declaration:
    """All that tests, benchmarks and the compiler must know about a kernel.

    - ``operation``: the public function; ``reference`` and ``triton`` take
      the same arguments, and so does ``cost``.
    - ``inputs(seed, device, dtype, **options)``: the keyword arguments of one
      call, reproducible from the seed.
    - ``exact``: the fields of the result (or ``"result"`` for a lone tensor)
      that must agree bit for bit; the others must agree within ``tolerance``,
      the largest error relative to the largest entry of the reference. Its
      keys are the dtypes that the operation is tested with.
    - ``differentiable``: the arguments that carry a gradient.
    - ``specified(result, **inputs)``: the part of the result that is defined,
      where an operation leaves part of its buffer undefined.
    """

    name: str
    operation: Callable
    reference: Callable
    triton: Callable
    inputs: Callable[..., dict[str, Any]]
    examples: tuple[Example, ...]
    cost: Callable[..., Cost]
    compiles: tuple[Compile, ...]
    exact: tuple[str, ...] = ()
    differentiable: tuple[str, ...] = ()
    tolerance: dict[torch.dtype, float] = field(
        default_factory=lambda: {torch.float32: 1e-5}
    )
    specified: Callable = _whole


def all_declarations() -> list[Declaration]:
    """The declarations of all kernels in `lab.kernels`, sorted by name."""
    modules = (
        importlib.import_module(f"lab.kernels.{module.name}")
        for module in pkgutil.iter_modules(lab.kernels.__path__)
        if not module.name.startswith("_")
    )
    found = [m.DECLARATION for m in modules if hasattr(m, "DECLARATION")]
    return sorted(found, key=lambda declaration: declaration.name)
