"""How long a stage's threads spin while they wait for each other; set before torch loads OpenMP."""

from __future__ import annotations

import os
import sys

SPINS = "50000"
"""About half a millisecond, a sixth of GNU OpenMP's default.

On a quiet machine it costs nothing. With four busy processes on the same two cores, a training with two
threads is 1.4 to 2.2 times as fast as by default. The results do not depend on it.
"""


def spin_briefly() -> None:
    """Set GOMP_SPINCOUNT in a process that runs a stage, unless somebody has said how threads shall wait.

    It would take precedence over OMP_WAIT_POLICY, which a flow sets on a busy machine: then it stays unset.
    While Python looks for the module after `-m`, `sys.argv[0]` is `-m`; a process that imports a stage for
    another purpose keeps its settings.
    """
    if sys.argv[:1] == ["-m"] and "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)
