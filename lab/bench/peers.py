"""The same layer as other packages compute it.

Each peer takes the lab's inputs, lays the weights out as its package wants
them (untimed), and returns the leaves and a function from them to the output.
A package that is not installed has no peer here. All compute SwiGLU experts.
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

from lab.kernels.moe_layer import moe_layer
from lab.kernels.topk_gate import Gate


class Layer(NamedTuple):
    leaves: tuple[Tensor, ...]  # tokens first; all carry a gradient
    run: Callable[..., Tensor]  # from the leaves to [T, H]


class Peer(NamedTuple):
    name: str
    package: str  # whose version goes into the table
    make: Callable[..., Layer]  # (tokens, gate, w_up, w_down)
    on_cpu: bool = True


def ready(*leaves):
    return tuple(x.detach().contiguous().requires_grad_() for x in leaves)


def lab(tokens, gate, w_up, w_down):
    def run(x, weights, up, down):
        return moe_layer(x, Gate(gate.experts, weights), up, down)

    return Layer(ready(tokens, gate.weights, w_up, w_down), run)


def torch_loop(tokens, gate, w_up, w_down):
    """The loop found in most model files: who chose me, add up there."""

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
    E, (T, S) = len(w_up), gate.experts.shape

    def run(x, weights, up, down):
        expert, order = gate.experts.flatten().sort(stable=True)
        ends = torch.searchsorted(
            expert,
            torch.arange(E, device=x.device, dtype=torch.int32),
            right=True,
            out_int32=True,
        )
        g, u = F.grouped_mm(x[order // S], up, offs=ends).chunk(2, dim=1)
        out = F.grouped_mm(F.silu(g) * u, down, offs=ends)
        back = torch.empty_like(order)
        back[order] = torch.arange(T * S, device=x.device)
        out = out[back].view(T, S, -1)
        return (out * weights[..., None].to(out.dtype)).sum(dim=1)

    return Layer(ready(tokens, gate.weights, w_up, w_down), run)


def transformers(implementation):
    def make(tokens, gate, w_up, w_down):
        from transformers.models.qwen3_moe import modeling_qwen3_moe
        from transformers.models.qwen3_moe.configuration_qwen3_moe import (
            Qwen3MoeConfig,
        )

        E, F_, H = w_down.shape
        config = Qwen3MoeConfig(
            num_experts=E, hidden_size=H, moe_intermediate_size=F_
        )
        config._experts_implementation = implementation
        with torch.device("meta"):
            experts = modeling_qwen3_moe.Qwen3MoeExperts(config)
        chosen = gate.experts.long()

        def run(x, weights, up, down):
            values = {"gate_up_proj": up, "down_proj": down}
            return torch.func.functional_call(
                experts, values, (x, chosen, weights.to(x.dtype))
            )

        return Layer(ready(tokens, gate.weights, w_up.mT, w_down.mT), run)

    return make


def liger(tokens, gate, w_up, w_down):
    # its autotuner takes minutes a shape; one fixed choice, as ours is
    os.environ.setdefault("LIGER_FUSED_MOE_AUTOTUNE", "0")
    from liger_kernel.ops.fused_moe import LigerFusedMoEFunction

    def run(x, weights, up, down):
        return LigerFusedMoEFunction.apply(x, up, down, gate.experts, weights)

    return Layer(ready(tokens, gate.weights, w_up.mT, w_down.mT), run)


def scattermoe(tokens, gate, w_up, w_down):
    ops = scattermoe_operations()
    E, S = len(w_up), gate.experts.shape[1]

    def run(x, weights, up, down):
        expert, order = gate.experts.flatten().long().sort()
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
    """The kernels alone: the package around them imports much more."""
    found = importlib.util.find_spec("fms_acceleration_moe")
    folder = Path(found.origin).parent / "utils" / "scattermoe_utils"
    if "khd" not in sys.modules:
        spec = importlib.machinery.PathFinder.find_spec("khd", [str(folder)])
        sys.modules["khd"] = importlib.util.module_from_spec(spec)
    return importlib.import_module("khd.kernels.ops")


def installed(device: str) -> list[Peer]:
    """The lab first, then every peer that this machine has."""
    found = [Peer("lab", "routing-lab", lab)]
    found.append(Peer("torch loop", "torch", torch_loop))
    if hasattr(F, "grouped_mm"):
        found.append(Peer("torch grouped_mm", "torch", torch_grouped_mm))
    for how in ("eager", "grouped_mm"):
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
