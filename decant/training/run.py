"""One run of an operation: its name, its seed, and where its trainings keep their state."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from decant.training.resume import Scratch


@dataclass(frozen=True)
class Run:
    """What distinguishes one run of an operation from another.

    Attributes:
        name: What progress bars say.
        seed: Every random number of the run derives from it.
        place: Returns where the state of an interrupted training lies; asked for by a run that trains.
            None keeps no state: an interrupted training begins anew.
    """

    name: str = "model"
    seed: int = 0
    place: Callable[[], Scratch] | None = None

    @cached_property
    def scratch(self) -> Scratch | None:
        """Where the run's only training keeps its state."""
        return self.place() if self.place else None

    def part(self, name: str) -> Scratch | None:
        """Return where one of several trainings keeps its state."""
        return self.scratch.part(name) if self.scratch else None
