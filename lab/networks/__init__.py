"""Part 5, networks: packets, flows and signals. One file per paper.

Shared by the chapters of this part:

=================  ======================================================
``leaf_spine``     a two-tier fabric, the flows of collectives, link loads
``max_min``        fair rates on shared links, and when the last flow ends
``uplinks``        which spine each flow takes: least used first, or exactly
=================  ======================================================

For one chapter only: ``spraying_rivals`` (40 uses its ECMP, too),
``collective_time`` and ``packet_spraying_view`` belong to 39, packet spraying;
``training_jobs``, ``delay_traces``, ``slow_parts`` and ``c4_view`` to 40, C4;
``starlight``, ``reservations``, ``entanglement`` and
``quantum_network_recorded`` to 42, the quantum network; ``roads``,
``flow_net``, ``plan_search`` and ``network_design_recorded`` to 46, network
design.
"""
