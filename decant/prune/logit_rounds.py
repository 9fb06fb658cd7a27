"""Pruning in rounds, after each of which the answers are brought back to the parent's, without labels."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from decant.reconstruction.params import Logits


class LogitRounds(Logits):
    """Logits that are matched after each of several rounds, in each of which a part is removed.

    What is left halves from round to round, and less fast where that would begin with more than there is: to
    95 % zeros in three rounds by 80 and 90 %. Layers are solved towards what the round before made of them.

    Attributes:
        rounds: How many; each costs `iterations`.
    """

    rounds: Annotated[int, Field(ge=1, le=1000)] = 1

    def part(self, number: int, start: float, end: float) -> float:
        """Return how much is left after round `number` of 1 to `rounds`, on the way from `start` to `end`."""
        ratio = min(2.0, (start / end) ** (1 / self.rounds))
        return float(end * ratio ** (self.rounds - number))
