"""Part 4, models: routing prompts to models and agents. One file per paper.

Shared by the chapters of this part:

==================  =========================================================
``recorded``        which real model answered which real prompt, and how well
``judging``         what an answer gives away about its own correctness
``routers``         ways to guess a model's score before it is asked
``strategies``      the families of routers, trained on a recorded benchmark
``pareto``          hulls, budgets and areas in the plane of cost and quality
``expert_pool``     experts by size, and each prompt's nearest neighbours
``expert_table``    the best pool of experts within a budget, by category
``supply_chain``    who builds on whom: real packages, owners, blind chains
``visibility``      who sees how much of a chain, and what disclosure adds
``responsibility``  how it flows up a chain, and what is told of it
==================  =========================================================
"""
