"""Pruning in stages, after each of which the answers are brought back to the parent's, without labels."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from decant.reconstruction.params import Logits


class StagedLogits(Logits):
    """Logits that are matched after each of several stages, in each of which a part is removed.

    What is left halves from stage to stage, and less fast where that would begin with more than there is: to
    95 % zeros in three stages by 80 and 90 %. Layers are solved towards what the stage before made of them.

    Attributes:
        stages: How many; each costs `iterations`.
    """

    stages: Annotated[int, Field(ge=1, le=1000)] = 1

    @property
    def rounds(self) -> int:
        """How many stages there are."""
        return self.stages

    def part(self, number: int, start: float, end: float) -> float:
        """Return how much is left after stage `number` of 1 to `stages`, on the way from `start` to `end`."""
        ratio = min(2.0, (start / end) ** (1 / self.stages))
        return float(end * ratio ** (self.stages - number))
