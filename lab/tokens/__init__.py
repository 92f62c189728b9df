"""Part 1, tokens: routing inside a model. One file per paper.

Shared by the chapters of this part:

============  ============================================================
``text``      the real text that the models read, and its alphabet
``char_lm``   a small character language model with experts, any router
``capacity``  an expert takes only so many tokens
``routers``   what a router is; the top-k router; balance and entropy loss
============  ============================================================
"""
