"""Part 2, serving: models that run on several machines. One file per paper.

Shared by the chapters of this part:

===================  ======================================================
``routing_traces``   which expert took each token in each layer, recorded
``placement``        experts put on GPUs: counted, searched, solved exactly
``expert_parallel``  a mixture of experts in several processes, every byte
                     between them counted
===================  ======================================================

For one chapter only: ``path_predictor``, ``prefetch_cache``,
``demand_caches``, ``token_scheduler``, ``expertflow_recorded`` and
``expertflow_view`` belong to chapter 11, ExpertFlow; ``exflow_view`` to
chapter 12, ExFlow; ``request_traces``, ``engine_profiles``,
``prefill_queue``, ``goodput``, ``distserve_recorded`` and ``distserve_view``
to chapter 16, DistServe. Chapter 14, SN40L, has ``expert_requests``,
``model_switching``, ``fusion_levels`` and ``sn40l_view``, and takes lengths
of answers from ``request_traces``.
"""
