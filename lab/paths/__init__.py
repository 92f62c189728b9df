"""Part 6, paths: a route found, learned or written. One file per paper.

Shared by the chapters of this part:

=================  =======================================================
``tours``          cities, tours and their lengths; TSPLIB; 2-opt
``tour_heatmaps``  how likely an edge is: none, flat, counted, learned
``tour_search``    Monte Carlo tree search for many tours in step
=================  =======================================================
"""
