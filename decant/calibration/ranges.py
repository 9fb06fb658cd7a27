"""Where to cut weights and the inputs of layers: each range is one class, and the unions name them.

Every range but `bounds` may be asked for per channel: `per_channel: true` gives each output channel of a
weight, or each input channel of a layer, bounds of its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from decant.calibration.grids import Bits
from decant.calibration.observers import Sample, Samples, of_weight
from decant.calibration.thresholds import LAWS, least_divergence, least_error, least_errors
from decant.checkpoints.constraints import Constraints, Range
from decant.lazy import torch
from decant.schema import Positive, Section, TrainImages

if TYPE_CHECKING:
    from torch import Tensor

BITS = 8
"""The width that a range is for where neither it nor a quantization says one."""


class Span(Section):
    """What all ranges share: bounds for one sample at a time, for a tensor or for each of its channels."""

    kind: str
    per_channel: bool = False

    def bounds(self, sample: Sample, bits: int) -> tuple[float, float]:
        """Return the low and the high end for numbers that will be rounded to `bits`."""
        raise NotImplementedError

    def each_bounds(self, samples: Sequence[Sample], bits: int) -> list[tuple[float, float]]:
        """Return `bounds` of each sample."""
        return [self.bounds(sample, bits) for sample in samples]

    def over(self, samples: Samples, bits: int = BITS) -> Range:
        """Return the range of these samples, in float32."""
        return samples.range(self.each_bounds(samples.each, bits))

    def constrain(self, weight: Tensor, mask: Tensor | None = None, axis: int = 0) -> Constraints:
        """Return the range of the weights that the mask does not hold at zero; channels lie on `axis`.

        Raises:
            ValueError: A weight is NaN or infinite.
        """
        return Constraints(range=self.over(of_weight(weight, mask, per_channel=self.per_channel, axis=axis)))

    def threshold(
        self,
        weight: Tensor,
        mask: Tensor | None,
        bits: int,
        *,
        per_channel: bool,
        group: int | None = None,
        axis: int = 0,
    ) -> Tensor:
        """Return the largest size in the range, where levels around zero should end: [], [O, 1, ...], [O, G].

        Never more than the largest |w|, beyond which levels would be wasted; and the largest |w| where the
        range holds nothing but zero, which leaves no step to round to. What shares a range is as in
        `of_weight`.

        Raises:
            ValueError: A weight is NaN or infinite.
        """
        samples = of_weight(weight, mask, per_channel=per_channel, group=group, axis=axis)
        threshold, largest = _largest(self.over(samples, bits)), _largest(samples.extremes())
        threshold = torch.minimum(threshold, largest)
        return torch.where(threshold > 0, threshold, largest)

    def ends(
        self,
        weight: Tensor,
        mask: Tensor | None,
        bits: int,
        *,
        per_channel: bool,
        group: int | None = None,
        axis: int = 0,
    ) -> tuple[Tensor, Tensor]:
        """Return the ends of levels that are not symmetric: low <= 0 and high >= 0, shaped as `threshold`.

        Never beyond the extremes, and the extremes where the range holds nothing but zero; widened to hold 0.

        Raises:
            ValueError: A weight is NaN or infinite.
        """
        samples = of_weight(weight, mask, per_channel=per_channel, group=group, axis=axis, symmetric=False)
        low, high = _tensors(self.over(samples, bits))
        lowest, highest = _tensors(samples.extremes())
        lowest, highest = lowest.clamp(max=0), highest.clamp(min=0)
        low, high = torch.maximum(low, lowest).clamp(max=0), torch.minimum(high, highest).clamp(min=0)
        empty = low == high
        return torch.where(empty, lowest, low), torch.where(empty, highest, high)


class Fitted(Span):
    """A range that depends on how many bits are rounded to: the quantization's, or 8, unless it says."""

    bits: Bits | None = None


class MinMax(Span):
    """From the least to the largest number: nothing is cut of what was seen.

    For inputs, unseen images are cut to the extremes of the training images. Does not help below 8 bits on
    long tails: one far number makes the step coarse for all others.

    References:
        Jacob et al., 2017, section 3.1. https://arxiv.org/abs/1712.05877
    """

    kind: Literal["min-max"] = "min-max"

    def bounds(self, sample: Sample, bits: int) -> tuple[float, float]:
        """Return the two extremes."""
        return sample.low, sample.high


Bound = Annotated[float, Field(ge=-1e6, le=1e6)]


class Bounds(Span):
    """Cut at a fixed minimum, a fixed maximum, or both.

    Does not help where layers differ in scale: one bound for all cuts one layer to pieces and leaves another
    whole. A percentile or a multiple of the deviation adapts.

    References:
        Sandler et al., MobileNetV2, 2018, which cuts activations at 6 for low precision.
        https://arxiv.org/abs/1801.04381
    """

    kind: Literal["bounds"] = "bounds"
    minimum: Bound | None = None
    maximum: Bound | None = None

    @model_validator(mode="after")
    def _ordered(self) -> Bounds:
        if self.minimum is None and self.maximum is None:
            raise ValueError("give minimum, maximum or both")
        if self.minimum is not None and self.maximum is not None and self.minimum >= self.maximum:
            raise ValueError(f"minimum {self.minimum} is not below maximum {self.maximum}")
        if self.per_channel:
            raise ValueError("fixed bounds are the same in every channel; leave per_channel out")
        return self

    def bounds(self, sample: Sample, bits: int) -> tuple[float, float]:
        """Return what was given; a bound that was not is infinite."""
        low = -math.inf if self.minimum is None else self.minimum
        return low, math.inf if self.maximum is None else self.maximum


class Percentile(Span):
    """Keep the middle `keep` of the numbers and cut the two tails, half of the rest on either side.

    Helps quantization after it: the step shrinks with the range. Does not help where the tails are what the
    layer works with, as in a small last layer.

    References:
        McKinstry et al., Discovering Low-Precision Networks Close to Full-Precision Networks for Efficient
        Embedded Inference, 2018. https://arxiv.org/abs/1809.04191
    """

    kind: Literal["percentile"] = "percentile"
    keep: Annotated[float, Field(gt=0, lt=1)] = 0.999

    def bounds(self, sample: Sample, bits: int) -> tuple[float, float]:
        """Return two quantiles, linearly interpolated."""
        values = sample.values.sort().values
        tail = (1 - self.keep) / 2
        return _quantile(values, tail), _quantile(values, 1 - tail)


class Deviation(Span):
    """Cut at `multiple` standard deviations on both sides of the mean.

    Does not help on heavy tails, where the deviation itself is made of the values that should be cut.

    References:
        Lin et al., Fixed Point Quantization of Deep Convolutional Networks, 2016, whose step follows from the
        deviation. https://arxiv.org/abs/1511.06393
    """

    kind: Literal["deviation"] = "deviation"
    multiple: Positive = 3.0

    def bounds(self, sample: Sample, bits: int) -> tuple[float, float]:
        """Return mean - k * sigma and mean + k * sigma over all numbers (not a draw)."""
        threshold = self.multiple * sample.sigma
        return sample.mean - threshold, sample.mean + threshold


class Mse(Fitted):
    """Cut where rounding to `bits` leaves the least squared error, cutting and rounding together.

    Tries the thresholds max|x| * k / 100 for k = 1 ... 100 around zero, rounds to the grid that a
    quantization would use (symmetric for weights, affine for inputs) and takes the best, the widest among
    equals. Does not help where a layer's few large numbers matter more than their share of the squared
    error, and not at 8 bits, where there is hardly anything to gain.

    References:
        Sung et al., Resiliency of Deep Neural Networks under Quantization, 2015.
        https://arxiv.org/abs/1511.06488
    """

    kind: Literal["mse"] = "mse"

    def bounds(self, sample: Sample, bits: int) -> tuple[float, float]:
        """Return [-threshold, threshold] within the extremes, with the threshold of the least error."""
        return sample.within(least_error(sample, self.bits or bits))

    def each_bounds(self, samples: Sequence[Sample], bits: int) -> list[tuple[float, float]]:
        """Return `bounds` of each sample, of many at once."""
        thresholds = least_errors(samples, self.bits or bits)
        return [sample.within(each) for sample, each in zip(samples, thresholds, strict=True)]


class Entropy(Fitted):
    """Cut where the histogram of what is left, merged to the levels, diverges least from that of all.

    Sizes fall into 2,048 bins. For every sixteenth bin as the end, P is the histogram up to it with the tail
    in its last bin, Q the same without the tail, merged to as many groups as there are levels on one side and
    spread over the filled bins again; the end with the least KL(P || Q) is taken, the widest among equals.
    Zeros, exact on any grid, are left out. Does not help weights or channels of a few hundred numbers, whose
    histogram is mostly holes, nor a last layer, whose largest inputs decide.

    References:
        Migacz, 8-bit Inference with TensorRT, 2017, GPU Technology Conference.
    """

    kind: Literal["entropy"] = "entropy"

    def bounds(self, sample: Sample, bits: int) -> tuple[float, float]:
        """Return [-threshold, threshold] within the extremes, with the threshold of the least divergence."""
        return sample.within(least_divergence(sample, self.bits or bits))


class Aciq(Fitted):
    """Cut where the expected squared error is least for numbers of a known distribution, by analysis alone.

    The error is that of the tails, cut, plus that of rounding, step^2 / 12; its minimum is at a multiple of
    the distribution's scale that depends on the bits. Numbers on both sides are cut around their mean. Those
    that are never negative are half of such a distribution around zero, on a grid that is finer by one bit.
    Does not help where the distribution is neither of the two: many zeros, several peaks, a few hundred
    weights.

    References:
        Banner et al., Post Training 4-bit Quantization of Convolutional Networks for Rapid-Deployment, 2018.
        https://arxiv.org/abs/1810.05723
    """

    kind: Literal["aciq"] = "aciq"
    distribution: Literal["laplace", "gauss"] = "laplace"

    def bounds(self, sample: Sample, bits: int) -> tuple[float, float]:
        """Return mean - alpha and mean + alpha, or 0 and alpha, within the extremes."""
        width, law = self.bits or bits, LAWS[self.distribution]
        if sample.one_sided:
            positive = sample.values[sample.values > 0]
            scale = law.scale(positive) if len(positive) else 0.0
            return sample.within(law.multiple(width + 1) * scale)
        threshold = law.multiple(width) * law.scale(sample.values - sample.mean)
        return max(sample.low, sample.mean - threshold), min(sample.high, sample.mean + threshold)


class Best(Span):
    """Try every other kind on each tensor and take the one that moves the network's answers least.

    Each kind, with its defaults, is applied to one tensor alone, which is then rounded to `bits`; what counts
    is how far the outputs are from the parent's over `images` training images that no range was taken from:
    of classes the KL divergence of the logits, else the squared error over the outputs' variance. The table
    is kept in `ledger.json`. Costs a pass over these images for each tensor and kind. Does not help where
    tensors err together: each is judged with all others whole.
    """

    kind: Literal["best"] = "best"
    bits: Bits | None = None
    images: TrainImages = 1000

    def bounds(self, sample: Sample, bits: int) -> tuple[float, float]:
        """Refuse: what is best depends on the network and on images, which a sample does not hold."""
        raise ValueError("`best` stands for another kind, which has to be chosen first")


class Threshold(Section):
    """Set to zero what is at most `threshold` in size, and hold it there.

    The sparsity is whatever comes out, other in every layer; `sparsity` and `prune` give an exact one.

    References:
        Han et al., 2015, section 3. https://arxiv.org/abs/1506.02626
    """

    kind: Literal["threshold"] = "threshold"
    threshold: Positive

    def constrain(self, weight: Tensor, mask: Tensor | None = None, axis: int = 0) -> Constraints:
        """Return a mask of the weights that are larger than the threshold."""
        return Constraints(mask=_sizes(weight) > self.threshold)


class Sparsity(Section):
    """Set the smallest weights of each tensor to zero, exactly as many as the share asks for.

    Weights that are held at zero already count first; among equals the later one goes first. Does not help
    where layers bear other sparsities, as a small last layer does: `prune` can share one among all layers.

    References:
        Han et al., Learning both Weights and Connections for Efficient Neural Networks, 2015.
        https://arxiv.org/abs/1506.02626
    """

    kind: Literal["sparsity"] = "sparsity"
    sparsity: Annotated[float, Field(gt=0, lt=1)]

    def constrain(self, weight: Tensor, mask: Tensor | None = None, axis: int = 0) -> Constraints:
        """Return a mask that is False for round(sparsity * N) of the N weights."""
        sizes = _sizes(weight).double()
        ranked = (sizes if mask is None else torch.where(mask, sizes, -math.inf)).flatten()
        lowest = ranked.flip(0).argsort(stable=True)[: round(self.sparsity * len(ranked))]
        survives = torch.ones(len(ranked), dtype=torch.bool)
        survives[len(ranked) - 1 - lowest] = False
        return Constraints(mask=survives.reshape(weight.shape))


Ranges = Annotated[
    MinMax | Bounds | Percentile | Deviation | Mse | Entropy | Aciq | Best, Field(discriminator="kind")
]
"""What has a low and a high end: for weights, for the inputs of layers, and for a quantization's step."""

Cut = Annotated[
    MinMax | Bounds | Percentile | Deviation | Mse | Entropy | Aciq | Threshold | Sparsity | Best,
    Field(discriminator="kind"),
]
"""All that `op: clip` can do."""

CANDIDATES: dict[str, Span] = {
    "min-max": MinMax(),
    "percentile": Percentile(),
    "deviation": Deviation(),
    "mse": Mse(),
    "entropy": Entropy(),
    "aciq, laplace": Aciq(distribution="laplace"),
    "aciq, gauss": Aciq(distribution="gauss"),
}
"""What `best` tries: every range that needs no number from a person. The first wins among equals."""


def _tensors(held: Range) -> tuple[Tensor, Tensor]:
    low, high = (torch.as_tensor(end, dtype=torch.float32) for end in (held.low, held.high))
    return low, high


def _largest(held: Range) -> Tensor:
    """Return the largest size that each part of a range holds."""
    low, high = _tensors(held)
    return torch.maximum(low.abs(), high.abs())


def _quantile(ordered: Tensor, share: float) -> float:
    """Return the quantile of sorted values [N]; torch.quantile refuses more than 16 million of them."""
    place = share * (len(ordered) - 1)
    below, above = ordered[int(place)].item(), ordered[min(int(place) + 1, len(ordered) - 1)].item()
    return below + (above - below) * (place - int(place))


def _sizes(weight: Tensor) -> Tensor:
    """Return |w|, of numbers alone: NaN is larger than nothing, and would be masked unnoticed."""
    if not torch.isfinite(weight).all():
        raise ValueError("The weight holds NaN or infinity; there is nothing to compare")
    return weight.detach().abs()
