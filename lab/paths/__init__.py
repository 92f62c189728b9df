"""Part 6, paths: a route found, learned or written. One file per paper.

Shared by the chapters of this part:

=================  =======================================================
``tours``          cities, tours and their lengths; TSPLIB; 2-opt
``tour_heatmaps``  how likely an edge is: none, flat, counted, learned
``tour_search``    Monte Carlo tree search for many tours in step
``path_data``      random networks, training paths, what these have shown
``path_gpt``       a small transformer that learns to write paths
``two_tables``     planners that add two rows, learned or given
``graphs``         sorted neighbour lists of small and of random graphs
``patterns``       symmetries, conditions and the core of a pattern
``match_plan``     in which order a pattern is matched, and what is counted
``guided_match``   matching by plan, with the work that it takes
``unaware_match``  every connected subgraph, and which pattern it is
``twisted_pairs``  Fürer's pairs of graphs that are hard to tell apart
``pair_colours``   colours of pairs of vertices, refined round by round
``route_worlds``   worlds of a few steps, and what travellers did there
``policy_tables``  tables of counts that clone, condition or plan
``return_gpt``     a small transformer that is told which return to reach
=================  =======================================================
"""
