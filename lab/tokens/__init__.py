"""Part 1, tokens: routing inside a model. One file per paper.

Shared by the chapters of this part:

==================  ======================================================
``text``            the real text that the models read, and its alphabet
``char_lm``         a small character language model with experts, any
                    router
``checkpoints``     trained models kept in `data/char_lm/`
``routers``         what a router is; the top-k router; balance and
                    entropy loss
``dice``            routers that draw the expert at random
``mixing``          what mixing top-1 and top-2 blindly would give
``digit_model``     a small transformer that reads handwritten digits
``capacity``        a limit on the tokens that an expert takes
``coverage``        how many distinct experts a batch touches
``inference_cost``  seconds of one expert layer, by roofline
``expert_timing``   the same, by the clock of the machine at hand
``domains``         seven more kinds of text, for chapters that need many
``dense_lm``        a dense model of those texts, with neurons to mask
``entrants``        the routers of the arena, a line each
``routing_profile`` what a routing looks like, in counts
==================  ======================================================

The closing notebook, ``arena``, also has ``arena_records``, ``arena_view`` and
``own_router``.

Used by one chapter:

====  ================================================================
01    ``experts_per_token``
02    ``adamoe_phases``
04    ``slimmable_layer``
05    ``mlp_router``, ``layer_information``
06    ``union_gate``, ``union_layers``, ``union_router``
07    ``duo_char_lm``, ``duo_routes``, ``duo_router``, ``duo_comparison``
08    ``domain_experts``, ``pre_gating``, ``pre_gate_router``,
      ``choosing_experts``, ``expert_cache``, ``expert_batching``
09    ``brick_scores``, ``brick_damage``, ``custom_bricks``
10    ``expert_reads``
====  ================================================================

The recorded results that a chapter's pictures show are in ``<its
name>_recorded``.
"""
