"""Part 3, weights: adapters, checkpoints and shared parameters.

One file per paper. Shared by the chapters of this part:

============  ===========================================================
``names``     the same names in twenty languages, one language one task
``adapters``  a small character model, LoRA experts and their training
``rivals``    ways to use the experts of others without trained gates
============  ===========================================================

Of one chapter: ``contributors`` is a part of 21, PHATGOOSE. What the pictures
of a chapter show, recorded, stands in ``<its name>_recorded``.
"""
