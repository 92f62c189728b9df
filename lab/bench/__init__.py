"""Measures the kernels and the layer on the machine at hand.

=============  ===============================================================
``timing``     a clock, providers in turn, and what the machine can do at best
``peers``      the layer as other packages compute it, each found by import
``sizes``      the layer's benchmarked sizes, and the least each costs
``limits``     what no GPU can beat there, by data sheet
``agreement``  when two results are the same but for rounding
``tiles``      the experts' kernels with other tiles than those they choose
``suite``      what is measured, in which order, and the command
``table``      the rows of `data/bench/`, one file per machine
``picture``    one operation beside its floor, for a notebook
=============  ===============================================================
"""

from lab.bench.picture import roofline as roofline
from lab.bench.suite import main as main
from lab.bench.suite import run as run
from lab.bench.table import recorded as recorded
