"""Capacity: an expert takes a limited number of tokens; the rest are too late.

An expert on a device of its own has a buffer of fixed size. A request beyond
it is turned away, and the token continues without that expert (Lepikhin et al.
2020, GShard, section 2.2; Fedus et al. 2021, Switch Transformer, section
2.2). Here seats go in order of arrival, by token and within a token by slot;
GShard seats all first choices before any second choice.
"""

from torch import Tensor

from lab.kernels.dispatch import dispatch
from lab.kernels.topk_gate import Gate


def within_capacity(gate: Gate, num_experts: int, capacity: int) -> Gate:
    """``gate`` [T, S] without the requests that find their expert full.

    A slot that is turned away becomes empty: -1 with weight 0. The remaining
    weights are not scaled up, so such a token gets less, as in the papers.
    """
    if capacity < 0:
        raise ValueError(f"capacity={capacity} is below 0; use 0 or more")
    late = place(gate.experts, num_experts) >= capacity
    return Gate(
        gate.experts.masked_fill(late, -1),
        gate.weights.masked_fill(late, 0),
    )


def place(experts: Tensor, num_experts: int) -> Tensor:
    """Each slot's place in the queue of its expert, [T, S] from [T, S].

    The first in a queue has place 0; an empty slot has no place, and gets -1.
    """
    sent = dispatch(experts, num_experts)
    begin = sent.offsets[experts.clamp(min=0).long()]
    return (sent.rows - begin).masked_fill(experts < 0, -1)
