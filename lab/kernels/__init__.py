"""The GPU kernels of the lab, one operation per file.

Each file tells the whole story of one operation: formula, plain PyTorch
reference, Triton kernel, registration as a PyTorch operator, and one
declaration from which tests, benchmarks and ahead-of-time compilation follow.

===========================  ===============================================
``topk_gate``                each token picks its k best experts, nulls allowed
``topp_gate``                each token picks experts up to a mass of p
``gate_backward``            the logits' gradient from that of the weights
``gru_router_step``          a router with a memory: one GRU cell, then scores
``dispatch``                 sorts the kept (token, expert) pairs by expert
``expert_mlp``               every expert's two-layer network over its own rows
``expert_mlp_backward``      its gradients, without atomics
``combine``                  every token sums its experts' rows by gate weight
``combine_backward``         the gradient of each row and weight
``moe_layer``                dispatch, expert_mlp and combine together
``topc_select``              every expert takes the c tokens it scores highest
``duo_ffn``                  small or large network, as each token's route says
``sym_kl``                   how far two predictions are apart, row by row
``sym_kl_backward``          and its gradient
``multi_lora``               every token sums its own adapters' updates
``multi_lora_backward``      and their gradients
``mixed_factor_lora``        each task mixes its adapter block by block
``hashed_matmul``            a product with weights found by hash in a table
``two_sided_quantile``       where the middle of each row's sizes ends
``transition_counts``        how many tokens went from which expert to which
``placement_cost``           the traffic of many expert placements at once
``stack_distance``           what LRU caches of every size would have hit
``serve_sim``                the first and last token of each request served
``nano_sim``                 when nano-batches that share a GPU leave a layer
``mask_overlap``             a token's top features, and who shares them
``ap_counts``                how well each neuron's ranking finds a function
``min_by_budget``            the best route through the layers for each budget
``frontier``                 one prompt router per price of money, in one pass
``route_select``             the best model by loss and what the user wishes
``linkload``                 what every link of many fabrics carries
``delay_stats``              the median delay of each pair, and who is too slow
``chain_mc``                 how long chains of entangled pairs take
``ue_batch``                 traffic equilibria of many road networks
``knn_prior``                nearest neighbours by rank
``knn_vote``                 nearest neighbours vote on a query's category
``reach_bits``               what each actor of a graph meets within h steps
``kopt_simulate``            k-opt moves on many tours at once
``two_table_loss``           the loss of planners that add two rows
``two_table_loss_backward``  and its gradients
``intersect``                which candidates extend a partial match
``pair_aggregation``         what neighbours of a pair of vertices say
``fused_monarch``            a Fourier transform as two products, one program
``backward_induction``       the best plan of many worlds, from the end back
===========================  ===============================================
"""

from lab.kernels import runtime as runtime  # sets Triton up; must come first
