"""Measures the kernels and the layer on the machine at hand.

=============  ===============================================================
``timing``     a clock, providers in turn, and what the machine can do at best
``peers``      the layer as other packages compute it, where they are installed
``passes``     one pass of a layer as a call: eager, or from a CUDA graph
``sizes``      the layer's benchmarked sizes, and the least that each costs
``layers``     the layer beside its peers, checked and timed
``kernels``    each kernel beside its reference, checked and timed
``agreement``  whether two results are the same except for rounding
``work``       pieces of work one after the other, as long as there is time
``suite``      what is measured, in which order, and the command
``table``      the rows of `data/bench/`, one file per machine
``record``     the rows of a run, kept as they come so that none is lost
``limits``     the least times of these sizes, from the GPUs' data sheets
``tiles``      the experts' kernels with tiles that they do not choose
``picture``    one operation beside its floor, for a notebook
=============  ===============================================================
"""

from lab.bench.picture import roofline as roofline
from lab.bench.suite import main as main
from lab.bench.suite import run as run
from lab.bench.table import recorded as recorded
