"""How much may be left: one of several measures, and the fewest removals that meet it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

from pydantic import Field, model_validator

from decant.schema import Amount, Positive, Section

Share = Annotated[float, Field(gt=0, lt=1)]


class PruningBudget(Section):
    """What the model may have when it is pruned: exactly one of these.

    For `nonzeros`, `bytes` and `macs`, a number below 1 is a share of what the teacher has, and a number from
    1 on is a count.

    Attributes:
        sparsity: Zeros among the weights that may be pruned, as a share; exact. Of blocks: the fewest that
            make as many zeros, with those that are there. Of channels: the share of the channels that is
            removed.
        nonzeros: Parameters that are not zero, biases and batch norms included.
        bytes: On disk, of all that rebuilds the function.
        macs: Multiplications for one image; needs channels, as zeros are multiplied like other weights.
        latency: Time over the teacher's in ONNX Runtime on this machine; needs channels.
        drift: How far outputs are from the unpruned model's on the last training images (criteria look at
            the first ones): remove as much as that allows. Of classes the KL divergence of the logits, in
            nats; else the squared error over the outputs' variance, 0.0001 for 1 % of their deviation.
    """

    sparsity: Share | None = None
    nonzeros: Amount | None = None
    bytes: Amount | None = None
    macs: Amount | None = None
    latency: Share | None = None
    drift: Positive | None = None

    @model_validator(mode="after")
    def _one(self) -> PruningBudget:
        if len(given := [name for name in type(self).model_fields if getattr(self, name) is not None]) != 1:
            found = " and ".join(given) or "none"
            raise ValueError(f"give exactly one of {', '.join(type(self).model_fields)}, got {found}")
        for name in ("nonzeros", "bytes", "macs"):
            amount = getattr(self, name)
            if amount is not None and amount >= 1 and amount != int(amount):
                raise ValueError(f"{name} is a share below 1 or a whole number, got {amount}")
        return self

    @property
    def measure(self) -> str:
        """Which one it is."""
        return next(name for name in type(self).model_fields if getattr(self, name) is not None)

    @property
    def amount(self) -> float:
        """The number as it stands in params.yaml."""
        amount: float = getattr(self, self.measure)
        return amount

    def limit(self, whole: float) -> float:
        """Return the amount in the measure's own unit, where `whole` is what the teacher has."""
        counted = self.measure in ("nonzeros", "bytes", "macs")
        return self.amount * whole if counted and self.amount < 1 else self.amount


def bracket(met: Callable[[int], bool], low: int, high: int, width: int = 1) -> tuple[int, int]:
    """Return (a, b) with b - a <= width, `met` false at a and true at b, for a `met` that changes once.

    Neither `low`, where it is taken to be false, nor `high`, where it is taken to be true, is tried.
    """
    while high - low > width:
        middle = (low + high) // 2
        if met(middle):
            high = middle
        else:
            low = middle
    return low, high
