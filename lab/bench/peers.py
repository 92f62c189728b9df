"""The same layer as other packages compute it.

Each peer takes the lab's inputs, lays the weights out as its package wants
them (untimed), and returns the leaves and a function from them to the output.
A package that is not installed has no peer here. All peers compute SwiGLU
experts.

Most packages have no way to say that a gate left a slot empty: they get some
expert there with weight 0, and compute it (`all_filled`). The layers that are
written here, and not in a package, leave empty slots out.
"""

import importlib.machinery
import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from lab.bench.passes import EAGER, REPLAYED, Layer
from lab.kernels.moe_layer import moe_layer
from lab.kernels.topk_gate import Gate

# bytes of weights that `batched_mm` may gather; its backward pass takes twice
# as much again
MOST_GATHERED = 20 * 2**30


class Peer(NamedTuple):
    name: str
    package: str  # whose version goes into the table
    make: Callable[..., Layer]  # (tokens, gate, w_up, w_down)
    on_cpu: bool = True
    passes: dict[str, Callable] = EAGER


def ready(*leaves):
    return tuple(x.detach().contiguous().requires_grad_() for x in leaves)


def all_filled(gate: Gate, E: int) -> Tensor:
    """The experts [T, S], with one after the other put into empty slots."""
    T, S = gate.experts.shape
    device = gate.experts.device
    spare = torch.arange(T * S, device=device).view(T, S) % E
    return gate.experts.where(gate.experts >= 0, spare.int())


def lab(tokens, gate, w_up, w_down):
    def run(x, weights, up, down):
        return moe_layer(x, Gate(gate.experts, weights), up, down)

    return Layer(ready(tokens, gate.weights, w_up, w_down), run)


def lab_bounded(tokens, gate, w_up, w_down):
    """The lab's layer for a graph, which must not wait for a row count."""
    max_rows = None
    if gate.experts.shape[1] == len(w_up):  # top-p
        max_rows = int((gate.experts >= 0).sum())

    def run(x, weights, up, down):
        gate_ = Gate(gate.experts, weights)
        return moe_layer(x, gate_, up, down, max_rows=max_rows)

    return Layer(ready(tokens, gate.weights, w_up, w_down), run)


def torch_loop(tokens, gate, w_up, w_down):
    """The loop of most model files: each expert adds to its own tokens."""

    def run(x, weights, up, down):
        y = torch.zeros_like(x)
        for e in range(len(up)):
            token, slot = torch.where(gate.experts == e)
            g, u = (x[token] @ up[e]).chunk(2, dim=1)
            out = (F.silu(g) * u) @ down[e]
            weight = weights[token, slot, None].to(out.dtype)
            y = y.index_add(0, token, out * weight)
        return y

    return Layer(ready(tokens, gate.weights, w_up, w_down), run)


def torch_grouped_mm(tokens, gate, w_up, w_down):
    """PyTorch's grouped_mm of sorted rows, and what it needs around it."""
    E, (T, S) = len(w_up), gate.experts.shape

    def of_rows(expert, x, up, down):
        ends = torch.searchsorted(
            expert,
            torch.arange(E, device=x.device, dtype=torch.int32),
            right=True,
            out_int32=True,
        )
        g, u = F.grouped_mm(x, up, offs=ends).chunk(2, dim=1)
        return F.grouped_mm(F.silu(g) * u, down, offs=ends)

    def all_slots(x, weights, up, down):
        expert, order = gate.experts.flatten().sort(stable=True)
        out = of_rows(expert, x[order // S], up, down)
        back = torch.empty_like(order)
        back[order] = torch.arange(T * S, device=x.device)
        out = out[back].view(T, S, -1)
        return (out * weights[..., None].to(out.dtype)).sum(dim=1)

    def filled_slots(x, weights, up, down):
        pair = torch.where(gate.experts.flatten() >= 0)[0]  # waits for the GPU
        expert, order = gate.experts.flatten()[pair].sort(stable=True)
        pair = pair[order]
        token = pair // S
        out = of_rows(expert, x.index_select(0, token), up, down)
        weight = weights.flatten().index_select(0, pair)[:, None]
        # to put rows back in place would take S a token, most of them empty
        return torch.zeros_like(x).index_add(
            0, token, out * weight.to(out.dtype)
        )

    full = bool((gate.experts >= 0).all())
    run = all_slots if full else filled_slots
    return Layer(ready(tokens, gate.weights, w_up, w_down), run)


def transformers(implementation):
    def make(tokens, gate, w_up, w_down):
        E, F_, H = w_down.shape
        gathered = gate.experts.numel() * 3 * F_ * H * tokens.itemsize
        if implementation == "batched_mm" and gathered > MOST_GATHERED:
            raise MemoryError(
                f"would gather {gathered / 2**30:.0f} GiB of weights"
            )
        from transformers.models.qwen3_moe import modeling_qwen3_moe
        from transformers.models.qwen3_moe.configuration_qwen3_moe import (
            Qwen3MoeConfig,
        )

        config = Qwen3MoeConfig(
            num_experts=E, hidden_size=H, moe_intermediate_size=F_
        )
        config._experts_implementation = implementation
        with torch.device("meta"):
            experts = modeling_qwen3_moe.Qwen3MoeExperts(config)
        chosen = all_filled(gate, E).long()
        if implementation == "grouped_mm":  # E is no expert: no cost
            chosen = gate.experts.long().masked_fill(gate.experts < 0, E)

        def run(x, weights, up, down):
            values = {"gate_up_proj": up, "down_proj": down}
            return torch.func.functional_call(
                experts, values, (x, chosen, weights.to(x.dtype))
            )

        leaves = ready(tokens, gate.weights, w_up.mT, w_down.mT)
        return Layer(leaves, run, transposed=True)

    return make


def liger(tokens, gate, w_up, w_down):
    # its autotuner takes minutes a shape; one choice is fixed, as ours is
    os.environ.setdefault("LIGER_FUSED_MOE_AUTOTUNE", "0")
    from liger_kernel.ops.fused_moe import LigerFusedMoEFunction

    chosen = all_filled(gate, len(w_up))

    def run(x, weights, up, down):
        return LigerFusedMoEFunction.apply(x, up, down, chosen, weights)

    leaves = ready(tokens, gate.weights, w_up.mT, w_down.mT)
    return Layer(leaves, run, transposed=True)


def scattermoe(tokens, gate, w_up, w_down):
    ops = scattermoe_operations()
    E, S = len(w_up), gate.experts.shape[1]
    chosen = all_filled(gate, E).long()

    def run(x, weights, up, down):
        expert, order = chosen.flatten().sort()
        blocks, ends = ops.padded_block_indices(expert, E)
        h = ops.scattered_experts(
            x, up, S, expert, order, blocks, ends, grouped_out=True
        )
        g, u = h.chunk(2, dim=1)
        return ops.scattered_experts(
            F.silu(g) * u, down, 1, expert, order, blocks, ends,
            gates=weights.to(x.dtype), grouped_in=True,
        )  # fmt: skip

    return Layer(ready(tokens, gate.weights, w_up, w_down), run)


def scattermoe_operations():
    """ScatterMoE's kernels alone: the package around them imports more."""
    found = importlib.util.find_spec("fms_acceleration_moe")
    folder = Path(found.origin).parent / "utils" / "scattermoe_utils"
    if "khd" not in sys.modules:
        spec = importlib.machinery.PathFinder.find_spec("khd", [str(folder)])
        sys.modules["khd"] = importlib.util.module_from_spec(spec)
    return importlib.import_module("khd.kernels.ops")


def installed(device: str) -> list[Peer]:
    """The lab first, then every peer that this machine has."""
    found = [
        Peer("lab", "routing-lab", lab),
        Peer("lab, graph", "routing-lab", lab_bounded, False, REPLAYED),
        Peer("torch loop", "torch", torch_loop),
    ]
    if hasattr(F, "grouped_mm"):
        found.append(Peer("torch grouped_mm", "torch", torch_grouped_mm))
    for how in ("eager", "grouped_mm", "batched_mm"):
        found.append(
            Peer(f"transformers {how}", "transformers", transformers(how))
        )
    found.append(Peer("liger", "liger-kernel", liger, on_cpu=False))
    found.append(
        Peer("scattermoe", "fms-acceleration-moe", scattermoe, on_cpu=False)
    )
    modules = {
        "transformers": "transformers",
        "liger-kernel": "liger_kernel",
        "fms-acceleration-moe": "fms_acceleration_moe",
    }
    return [
        peer
        for peer in found
        if (peer.on_cpu or device != "cpu")
        and importlib.util.find_spec(modules.get(peer.package, "torch"))
    ]
