"""Dispatch: sort the kept (token, expert) pairs by expert, stably.

A gate leaves T S slots; slot s of token t is pair t S + s, and -1 in it means
that no expert was taken. Dispatch lists the kept pairs expert by expert, and
within an expert in the order of the tokens:

    load_e    = number of pairs that chose e
    offset_e  = load_0 + ... + load_{e-1};  rows offset_e .. offset_{e+1} - 1
                of the sorted order belong to expert e
    row_p     = offset_e + #{q < p : q chose e}     for a pair p that chose e

Dropped pairs are gone before anything is counted, so they cost no row: a null
expert saves its work. Nothing of size T E is built, nothing is sorted on the
GPU, and the same input gives the same rows on every run.

Bytes: 4 read and 8 written per pair, 8 per expert.

Source: the counting sort; the three stages are those of the routing kernels
of MegaBlocks (Gale et al. 2023) and SonicMoE (Guo et al. 2025), here without
atomic counters, which would give another order on each run.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class Dispatch(NamedTuple):
    """Who computes what: rows sorted by expert, and the way back."""

    load: Tensor  # [E] int32, rows of each expert
    offsets: Tensor  # [E+1] int32, where each expert's rows begin
    pairs: Tensor  # [T*S] int32, the pair t*S+s in each row, -1 past the end
    rows: Tensor  # [T, S] int32, the row of each slot, -1 for an empty one


def dispatch(experts: Tensor, num_experts: int) -> Dispatch:
    """Sort the kept slots of experts [T, S] by expert, stably.

    A slot holds an expert, 0 to ``num_experts`` - 1, or -1 for none. Other
    values are refused on a CPU and count as none on a GPU, where looking
    would stall it. O(T S) on a GPU for a fixed number of experts.
    """
    if experts.ndim != 2 or experts.dtype != torch.int32:
        raise ValueError(
            f"experts are {experts.dtype} of shape {tuple(experts.shape)};"
            " dispatch needs int32 [tokens, slots], as a gate returns them"
        )
    if not 1 <= num_experts <= 32767:
        raise ValueError(
            f"num_experts={num_experts} is not within 1 to 32767"
        )
    if experts.device.type == "cpu" and experts.numel():
        low, high = (int(x) for x in experts.aminmax())
        if low < -1 or high >= num_experts:
            raise ValueError(
                f"experts run from {low} to {high}; use 0 to"
                f" {num_experts - 1}, and -1 for an empty slot"
            )
    return Dispatch(*_dispatch(experts, num_experts))


def dispatch_reference(experts: Tensor, num_experts: int) -> Dispatch:
    """The sort in plain PyTorch: one stable sort of 16-bit expert ids."""
    T, S = experts.shape
    # empty slots sort behind the last expert, as if they had chosen E
    chosen = experts.flatten()
    chosen = chosen.masked_fill(chosen < 0, num_experts).to(torch.int16)
    pairs = chosen.sort(stable=True).indices
    load = chosen.bincount(minlength=num_experts + 1)[:num_experts]
    offsets = F.pad(load.cumsum(0), (1, 0))

    row = torch.arange(T * S, device=experts.device)
    past_the_end = row >= offsets[-1]
    row = row.masked_fill(past_the_end, -1)
    rows = torch.empty_like(row).scatter_(0, pairs, row).view(T, S)
    pairs = pairs.masked_fill(past_the_end, -1)
    return Dispatch(*(x.int() for x in (load, offsets, pairs, rows)))


@torch.library.custom_op("lab::dispatch", mutates_args=(), device_types="cpu")
def _dispatch(
    experts: Tensor, num_experts: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return tuple(dispatch_reference(experts, num_experts))


@_dispatch.register_fake
def _(experts, num_experts):
    return (
        experts.new_empty(num_experts),
        experts.new_empty(num_experts + 1),
        experts.new_empty(experts.numel()),
        torch.empty_like(experts, memory_format=torch.contiguous_format),
    )
