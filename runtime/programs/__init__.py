"""Training methods as programs: one file a method; a new one is registered here and nowhere else."""

from __future__ import annotations

from halocast.runtime.programs.adaqp import AdaQP
from halocast.runtime.programs.full import FullGraph
from halocast.runtime.programs.quantized_sar import QuantizedSequentialAggregation

METHODS = {method.name: method for method in (FullGraph(), AdaQP(), QuantizedSequentialAggregation())}
"""Methods by the name that ``--method`` takes."""
