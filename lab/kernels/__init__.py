"""The GPU kernels of the lab, one operation per file.

Each file tells the whole story of one operation: formula, plain PyTorch
reference, Triton kernel, registration as a PyTorch operator, and one
declaration from which tests, benchmarks and ahead-of-time compilation follow.

=================  ========================================================
``topk_gate``      each token picks its k best experts (null experts too)
``topp_gate``      each token picks experts until their mass reaches p
``gate_backward``  from the gradient of the gate weights to the logits
``dispatch``       sorts the kept (token, expert) pairs by expert
``expert_mlp``     every expert's two-layer network over its own rows
``combine``        every token sums its experts' rows by gate weight
``moe_layer``      the four steps together
=================  ========================================================
"""

from lab.kernels import runtime as runtime  # sets Triton up; must come first
