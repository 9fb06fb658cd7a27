"""Where to cut the weights of a layer: each range is one class, and the union names them for params.yaml."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field, PositiveFloat, model_validator
from torch import Tensor

from tasks.constraints import Constraints, Range
from tasks.params import Section


class Bounds(Section):
    """Cut at a fixed minimum, a fixed maximum, or both.

    Does not help where layers differ in scale: one bound for all cuts one layer to pieces and leaves another
    whole. A percentile or a multiple of the deviation adapts.
    """

    kind: Literal["bounds"] = "bounds"
    minimum: float | None = None
    maximum: float | None = None

    @model_validator(mode="after")
    def _ordered(self) -> Bounds:
        if self.minimum is None and self.maximum is None:
            raise ValueError("give minimum, maximum or both")
        if self.minimum is not None and self.maximum is not None and self.minimum >= self.maximum:
            raise ValueError(f"minimum {self.minimum} is not below maximum {self.maximum}")
        return self

    def constrain(self, weight: Tensor, mask: Tensor | None = None) -> Constraints:
        """Return the range; a bound that is not given is infinite."""
        low = -torch.inf if self.minimum is None else _float32(self.minimum)
        high = torch.inf if self.maximum is None else _float32(self.maximum)
        return Constraints(range=Range(low, high))


class Percentile(Section):
    """Keep the middle `keep` of the layer's weights and cut the two tails, half of the rest on either side.

    Helps quantization after it: the step shrinks with the range. Does not help where the tails are what the
    layer works with, as in a small last layer.
    """

    kind: Literal["percentile"] = "percentile"
    keep: Annotated[float, Field(gt=0, lt=1)] = 0.999

    def constrain(self, weight: Tensor, mask: Tensor | None = None) -> Constraints:
        """Return the range between two quantiles of the surviving weights, linearly interpolated."""
        values = _survivors(weight, mask).sort().values
        tail = (1 - self.keep) / 2
        return Constraints(range=Range(_quantile(values, tail), _quantile(values, 1 - tail)))


class Deviation(Section):
    """Cut at `multiple` standard deviations on both sides of the mean.

    Does not help on heavy tails, where the deviation itself is made of the values that should be cut.
    """

    kind: Literal["deviation"] = "deviation"
    multiple: PositiveFloat = 3.0

    def constrain(self, weight: Tensor, mask: Tensor | None = None) -> Constraints:
        """Return mean - k * sigma and mean + k * sigma over all surviving weights (not a sample)."""
        values = _survivors(weight, mask)
        mean, sigma = values.mean().item(), values.std(correction=0).item()
        reach = self.multiple * sigma
        return Constraints(range=Range(_float32(mean - reach), _float32(mean + reach)))


class Threshold(Section):
    """Set to zero what is at most `threshold` in size, and hold it there.

    The sparsity is whatever comes out, other in every layer; `prune` asks for an exact one.
    """

    kind: Literal["threshold"] = "threshold"
    threshold: PositiveFloat

    def constrain(self, weight: Tensor, mask: Tensor | None = None) -> Constraints:
        """Return a mask of the weights that are larger than the threshold."""
        return Constraints(mask=weight.detach().abs() > self.threshold)


Cut = Annotated[Bounds | Percentile | Deviation | Threshold, Field(discriminator="kind")]


def _survivors(weight: Tensor, mask: Tensor | None) -> Tensor:
    """Return the weights [N] that no mask holds at zero: zeros say nothing of how the others spread."""
    survivors = weight.detach().flatten() if mask is None else weight.detach()[mask]
    return survivors.double() if len(survivors) else torch.zeros(1, dtype=torch.double)


def _quantile(ordered: Tensor, share: float) -> float:
    """Return the quantile of sorted values [N]; torch.quantile refuses more than 16 million of them."""
    place = share * (len(ordered) - 1)
    below, above = ordered[int(place)].item(), ordered[min(int(place) + 1, len(ordered) - 1)].item()
    return _float32(below + (above - below) * (place - int(place)))


def _float32(value: float) -> float:
    """Return the nearest float32, so that a bound on disk is the bound that the weights were cut at."""
    return torch.tensor(value, dtype=torch.float32).item()
