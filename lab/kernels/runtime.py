"""Where the kernels run: compiled on a GPU, interpreted, or as PyTorch.

Triton reads its switches when it is imported and when a kernel is decorated,
so this module must be imported before any kernel; ``lab.kernels`` does that.
"""

import functools
import os

import torch

# Triton 3.9 warns where this is unset and 3.10 changes the default; with it
# set, the last bits of a result stay the same across versions.
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
# without a GPU a kernel can still run, slowly, in Triton's interpreter
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


def _interpreted() -> bool:
    """How Triton reads its switch: "1", "true" and "on" all mean yes."""
    # imports Triton, so the switches above must be set by now
    from triton import knobs

    return knobs.runtime.interpret


INTERPRETED = _interpreted()
if INTERPRETED:
    from lab.kernels import interpreter

    interpreter.install()


def implementation() -> str:
    """What the operators run on here, for the badge of a figure."""
    if torch.cuda.is_available():
        return f"Triton on {torch.cuda.get_device_name()}"
    return "PyTorch reference on CPU"


def device() -> str:
    """The device the chapters put their tensors on: a GPU if there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def may_look(tensor: torch.Tensor) -> bool:
    """Whether to check the numbers of a tensor before an operation.

    On a CPU a check costs little. On a GPU reading a number stalls it, so
    there each kernel defines how it treats a bad number instead. But float64
    goes to the references even on a GPU, and they rely on the check.
    """
    return tensor.is_cpu or tensor.dtype == torch.float64


def target(tensor: torch.Tensor) -> str:
    """What Triton compiles for on the tensor's device: sm_90, gfx942, ...

    On a CPU it is that of a large GPU, so that the interpreter runs its tiles.
    """
    return _target(tensor.device)


@functools.cache
def _target(device: torch.device) -> str:
    if device.type != "cuda":
        return "sm_90"
    if torch.version.hip:
        name = torch.cuda.get_device_properties(device).gcnArchName
        return name.partition(":")[0]
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"


def multiprocessors(tensor: torch.Tensor) -> int:
    """How many programs run at once if each fills a multiprocessor.

    On a CPU it is a few, so that in the interpreter each has several tiles.
    """
    return _multiprocessors(tensor.device)


@functools.cache
def _multiprocessors(device: torch.device) -> int:
    if device.type != "cuda":
        return 4
    return torch.cuda.get_device_properties(device).multi_processor_count


def cdiv(a: int, b: int) -> int:
    """a / b rounded up, like `triton.cdiv`.

    Triton's function can be called in kernels, too, and takes 2 us to find out
    where it is called; the launchers of a layer call it a dozen times.
    """
    return -(-a // b)


def next_power_of_2(n: int) -> int:
    """The least power of 2 that is at least n, as `triton.next_power_of_2`."""
    return 1 << (n - 1).bit_length()


def triton_has_tensor_cores(tensor: torch.Tensor) -> bool:
    """Whether ``tl.dot`` reaches the matrix units of the tensor's device.

    Below compute capability 8.0 (a T4 is 7.5) Triton compiles ``tl.dot`` to
    plain multiply-adds that spill thousands of registers; there the matrix
    products go through PyTorch and only the routing kernels through Triton.
    """
    if torch.version.hip or not tensor.is_cuda:
        return True
    return torch.cuda.get_device_capability(tensor.device) >= (8, 0)
