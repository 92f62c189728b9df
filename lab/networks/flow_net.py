"""A graph network that guesses equilibrium flows, with its authors' weights.

Node v starts with its row of the demand matrix. Nine layers of a graph
isomorphism network then mix it with what its neighbours know:

    h_v <- h_v + ReLU BN MLP((1 + eps) h_v + sum_(u to v) c_uv / t0_uv h_u)

with five linear layers in each MLP. At each of the ten depths a head reads
[h_u, h_v, c, t0] of every link; the sum of the heads, if positive, is the flow
of the link. c is its capacity and t0 its time without traffic. The paper
writes t0 / c for the weight of a neighbour, the code divides c by t0.

The weights are the authors' own, see `data/sioux_falls`. They were trained
while the data code took the file's node numbers, which begin at 1, for
indices, which begin at 0: so node v got the demand of node v + 1, and the last
node got none. `predict` feeds them the same way, or they are of no use.

Batch norms stand still here, so each is multiplied into the linear layer
before it; and a head's first layer is applied to the nodes, not to the links,
which repeat them. Both change the last digits only.
"""

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from lab.data import read_arrays
from lab.kernels import runtime
from lab.networks.roads import Roads

DEPTH, LINEAR = 9, 5  # layers, and linear ones in each
EPSILON = 1e-5  # of the batch norms


class Layer(NamedTuple):
    """One layer of the graph network."""

    eps: Tensor
    linear: list[tuple[Tensor, Tensor]]  # weight [in, out] and bias


class Head(NamedTuple):
    """What reads a link's flow off its two ends."""

    tail: Tensor  # [H, H]
    head: Tensor  # [H, H]
    link: Tensor  # [2, H], for capacity and free time
    bias: Tensor  # [H]
    out: Tensor  # [H]
    shift: Tensor  # []


class FlowNet(NamedTuple):
    """The whole network."""

    embed: tuple[Tensor, Tensor]
    layers: list[Layer]
    heads: list[Head]


@lru_cache
def trained(device: str = "cpu") -> FlowNet:
    """The released weights for Sioux Falls."""
    w = {
        name: torch.from_numpy(array).to(device)
        for name, array in read_arrays("sioux_falls/gin.npz").items()
    }

    def linear(name, norm=None):
        weight, bias = w[f"{name}.weight"], w[f"{name}.bias"]
        if norm is None:
            return weight.T.contiguous(), bias
        spread = (w[f"{norm}.running_var"] + EPSILON).sqrt()
        scale = w[f"{norm}.weight"] / spread
        bias = (bias - w[f"{norm}.running_mean"]) * scale
        return (weight.T * scale).contiguous(), bias + w[f"{norm}.bias"]

    layers, heads = [], []
    for depth in range(DEPTH):
        mlp = f"ginlayers.{depth}.apply_func.mlp"
        norms = [f"{mlp}.batch_norms.{i}" for i in range(LINEAR - 1)]
        norms.append(f"ginlayers.{depth}.bn_node_h")
        parts = [
            linear(f"{mlp}.linears.{i}", norm) for i, norm in enumerate(norms)
        ]
        layers.append(Layer(w[f"ginlayers.{depth}.eps"], parts))
    for depth in range(DEPTH + 1):
        first, bias = linear(f"prediction.{depth}.0")
        out, shift = linear(f"prediction.{depth}.2")
        H = len(out)
        ends = first[:H], first[H : 2 * H], first[2 * H :]
        heads.append(Head(*ends, bias, out[:, 0], shift[0]))
    return FlowNet(linear("embedding_h"), layers, heads)


def shifted(demand: Tensor) -> Tensor:
    """Row v + 1 for node v, and nothing for the last: as it was trained."""
    return torch.cat([demand[..., 1:, :], demand[..., :1, :] * 0], dim=-2)


def predict(
    roads: Roads, capacity: Tensor, demand: Tensor | None = None
) -> Tensor:
    """The guessed flows [B, E] for capacities [B, E].

    ``demand`` [B or 1, N, N] is that of ``roads`` if left out.
    """
    device = runtime.device()
    net = trained(device)
    demand = roads.demand[None] if demand is None else demand
    rows = shifted(demand).to(device, torch.float32)
    return _flows(net, roads, capacity.to(device, torch.float32), rows).cpu()


@torch.no_grad()
def _flows(net: FlowNet, roads: Roads, capacity: Tensor, rows: Tensor):
    (B, E), N = capacity.shape, rows.shape[1]
    tail, head = roads.links.long().to(capacity.device)
    free = roads.free.to(capacity)
    # [B, N, N]: how much node v hears of node u
    weight = capacity.new_zeros(B, N, N)
    weight[:, head, tail] = capacity / free
    features = torch.stack([capacity, free.expand(B, E)], dim=2)
    h = torch.addmm(net.embed[1], rows.flatten(0, 1), net.embed[0])
    h = h.view(-1, N, h.shape[1]).expand(B, N, h.shape[1])
    flows = _read(net.heads[0], h, features, tail, head)
    for layer, reader in zip(net.layers, net.heads[1:], strict=True):
        z = ((1 + layer.eps) * h + weight @ h).flatten(0, 1)
        for linear, bias in layer.linear:
            z = torch.addmm(bias, z, linear).relu_()
        h = h + z.view(B, N, -1)
        flows = flows + _read(reader, h, features, tail, head)
    return flows.relu()


def _read(reader: Head, h, features, tail, head):
    ends = (h @ reader.tail)[:, tail] + (h @ reader.head)[:, head]
    hidden = (ends + features @ reader.link + reader.bias).relu_()
    return hidden @ reader.out + reader.shift
