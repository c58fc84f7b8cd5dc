"""Many scenarios at once: a grid, what each of its points comes to, and what follows for someone who has to choose."""

from halocast.simulator.whatif.evaluation import Evaluator
from halocast.simulator.whatif.folder import WhatIf, read_whatif

__all__ = ["Evaluator", "WhatIf", "read_whatif"]
