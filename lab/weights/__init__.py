"""Part 3, weights: adapters, checkpoints and shared parameters.

One file per paper. Shared by the chapters of this part:

================  =======================================================
``names``         the same names in twenty languages, one language one task
``adapters``      a small character model, LoRA experts and their training
``contributors``  the experts and gates of chapters 21 and 22, and their order
``rivals``        ways to use the experts of others without trained gates
``digit_tasks``   a base model fine-tuned on digits shown in eight ways
``merging``       task vectors, and ways to add them to one model
================  =======================================================

For one chapter only: ``digit_questions`` and ``inventory`` belong to 20, on
routing by blocks; ``descriptions`` and ``hints`` to 22, GLIDER; ``bands`` and
``merge_settings`` to 23, Breadcrumbs; ``shared_array``, ``shared_network``,
``sharing_methods``, ``pruned_at_start`` and ``inner_products`` to 25, on
parameter sharing. How 20 and 25 chose their rates is in
``multi_head_routing_rates`` and ``parameter_sharing_rates``. The recordings
that a chapter's pictures show are in ``<its name>_recorded``.
"""
