"""Which levels weights are rounded to: each scheme is one class, and the union names them for params.yaml."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from decant.calibration.grids import Bits, affine_levels, symmetric_levels
from decant.calibration.ranges import Best, Fitted, MinMax, Ranges
from decant.checkpoints.constraints import Levels
from decant.lazy import torch
from decant.quantize.kmeans import cluster
from decant.schema import Section

if TYPE_CHECKING:
    from torch import Tensor

GroupSize = Annotated[int, Field(ge=16, le=128)]

SILENT = 2.0**-40
"""The scale of a channel of zeros whose levels have no zero: next to nothing, and no scale may be 0."""


class Quantizer(Section):
    """What all schemes share: levels for one weight at a time, found in its numbers alone.

    Attributes:
        wide_ends: Whether the first and the last layer lose so much that they should keep eight bits.
    """

    kind: str
    wide_ends: ClassVar[bool] = False

    @property
    def whole(self) -> bool:
        """Whether kernels of convolutions multiply its levels: whole numbers, one code for zero in all."""
        return False

    @property
    def most(self) -> int:
        """The most levels that a weight gets."""
        raise NotImplementedError

    def levels(self, weight: Tensor, mask: Tensor | None = None, axis: int = 0) -> Levels:
        """Return the levels of a weight whose output channels are on `axis`.

        Args:
            weight: What `shifted` returned, float32; untouched.
            mask: True where a weight survives; what it holds at zero counts for nothing.
            axis: 0, or 1 for transposed convolutions, and for what stands on the right of a product.

        Raises:
            ValueError: A weight is NaN or infinite, or the scheme cannot be used on that axis.
        """
        raise NotImplementedError

    def shifted(self, weight: Tensor, mask: Tensor | None = None, axis: int = 0) -> Tensor:
        """Return what levels are to be found for, and what is rounded to them: here the weight itself."""
        return weight


class Stepped(Quantizer):
    """A scheme of so many bits, whose largest level is where a range ends."""

    bits: Bits = 8
    per_channel: bool = True
    range: Ranges = MinMax()

    @model_validator(mode="after")
    def _fitting(self) -> Stepped:
        check_width(self.range, self.bits)
        if self.range.per_channel and not self.per_channel:
            raise ValueError("range.per_channel: one step for the tensor needs one range for it")
        return self


class Integer(Stepped):
    """Integers: w_q = (round(w / step + z) - z) * step, with the step from the ends of `range`.

    Symmetric levels are -(2^(b-1) - 1) ... 2^(b-1) - 1 with z = 0, and end at the range's largest size.
    Affine ones (`symmetric: false`) are 0 ... 2^b - 1 over the range, widened to hold 0, and z is whole. Zero
    is exact in both, and pruned weights stay zero. Affine levels help where a channel lies on one side of
    zero, and give one level more; they cost integer kernels a correction for z, and hardly anything is gained
    on weights that spread evenly, as most do.

    Per channel each output channel has its own range and step; with `group` each so many neighbours in a row
    of `weight.flatten(1)` have, of which the last ones may be fewer. A step takes 32 bits, so that groups of
    32 cost a bit a weight: they do not help at 8 bits. Below 4 bits the largest weight, which is where
    `min-max` ends, makes the step too coarse for all others: take a narrower range, or fine-tune after.

    References:
        Jacob et al., Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
        Inference, 2017. https://arxiv.org/abs/1712.05877
        Shen et al., Q-BERT, 2019, section 3.3, for groups. https://arxiv.org/abs/1909.05840
    """

    kind: Literal["integer"] = "integer"
    symmetric: bool = True
    group: GroupSize | None = None

    @property
    def whole(self) -> bool:
        """Not where there is a step for each group, or a zero point for each channel."""
        return self.group is None and (self.symmetric or not self.per_channel)

    @property
    def most(self) -> int:
        """Levels of a weight: the symmetric ones leave out one code."""
        return 2**self.bits - self.symmetric

    @model_validator(mode="after")
    def _grouped(self) -> Integer:
        if self.group is not None and not self.per_channel:
            raise ValueError("group: groups lie within channels; leave per_channel out, or group")
        return self

    def levels(self, weight: Tensor, mask: Tensor | None = None, axis: int = 0) -> Levels:
        """Return 2^bits - 1 levels, or 2^bits affine ones, with a step [], per channel [O, 1, ...] or [O, G].

        What holds zeros alone gets the step 1: any step rounds it to zero.

        Raises:
            ValueError: A weight is NaN or infinite; the range is `best`, which has to be chosen first; or
                there are groups and the output channels are not the rows.
        """
        if self.group is not None and axis != 0:
            raise ValueError(
                f"A group of {self.group} is of neighbours in the row of one output channel, and this weight "
                f"has its output channels on axis {axis}, as transposed convolutions and tables on the right "
                f"of a product do: leave group out, or name it in skip"
            )
        group = self.group
        if self.symmetric:
            threshold = self.range.threshold(
                weight, mask, self.bits, per_channel=self.per_channel, group=group, axis=axis
            )
            return symmetric_levels(threshold, self.bits, group)
        ends = self.range.ends(weight, mask, self.bits, per_channel=self.per_channel, group=group, axis=axis)
        return affine_levels(*ends, self.bits, group)


class Ternary(Quantizer):
    """-1, 0 and 1 with a scale per output channel, or one: the mean of |w| above threshold * mean |w|.

    With the threshold 0.7 that scale leaves about the least squared error for weights that are normal or
    uniform. Each weight then goes to its nearest level, so that what becomes zero is what is below half the
    scale: the best threshold there is for this scale, where the paper goes on with the one that it took the
    scale from. The squared error is never larger for it. Loses most of the accuracy
    without training after it.

    References:
        Li et al., Ternary Weight Networks, 2016, section 2.2. https://arxiv.org/abs/1605.04711
    """

    kind: Literal["ternary"] = "ternary"
    threshold: Annotated[float, Field(gt=0, lt=1)] = 0.7
    per_channel: bool = True
    most: ClassVar[int] = 3
    whole: ClassVar[bool] = True

    def levels(self, weight: Tensor, mask: Tensor | None = None, axis: int = 0) -> Levels:
        """Return the levels -1, 0 and 1 with a scale [] or per output channel [O, 1, ...].

        A channel of zeros gets the scale 1, and stays zero.

        Raises:
            ValueError: A weight is NaN or infinite.
        """
        rows, kept = _rows(weight, mask, axis, self.per_channel)
        sizes = rows.abs()
        large = kept & (sizes > self.threshold * _means(sizes, kept))
        scale = _shaped(_means(sizes, large), weight, axis, self.per_channel)
        return Levels(torch.tensor([-1.0, 0.0, 1.0]).to(weight.device), torch.where(scale > 0, scale, 1.0))


class Binary(Quantizer):
    """Signs with a scale per output channel: w_q = alpha * sign(w), alpha = mean |w|, sign(0) = 1.

    The alpha is the one that leaves the least squared error. Weights that a mask holds at zero stay zero and
    do not count into alpha. Loses most of the accuracy without training after it, and is no good for the
    first and the last layer.

    `balanced` is IR-Net's Libra binarization: `shifted` takes each channel's mean off its weights, so that
    about as many are 1 as are -1 and a code carries nearly a bit. The paper also divides by the channel's
    deviation, which changes no sign, and takes alpha to a power of two, so that multiplying is shifting; here
    alpha is mean |w - mean|, which errs less. Does not help untrained rounding: what is rounded is then
    another weight than the one that the network had.

    References:
        Rastegari et al., XNOR-Net, 2016, section 3.1. https://arxiv.org/abs/1603.05279
        Qin et al., Forward and Backward Information Retention for Accurate Binary Neural Networks, 2020,
        section 3.2. https://arxiv.org/abs/1909.10788
    """

    kind: Literal["binary"] = "binary"
    balanced: bool = False
    wide_ends: ClassVar[bool] = True
    most: ClassVar[int] = 2
    whole: ClassVar[bool] = True

    def levels(self, weight: Tensor, mask: Tensor | None = None, axis: int = 0) -> Levels:
        """Return the levels -1 and 1 with a scale per output channel [O, 1, ...].

        There is no zero: a channel of zeros gets the scale 2^-40, and all of it becomes that.

        Raises:
            ValueError: A weight is NaN or infinite.
        """
        rows, kept = _rows(weight, mask, axis, per_channel=True)
        scale = _shaped(_means(rows.abs(), kept), weight, axis, per_channel=True)
        return Levels(torch.tensor([-1.0, 1.0]).to(weight.device), scale.clamp(min=SILENT))

    def shifted(self, weight: Tensor, mask: Tensor | None = None, axis: int = 0) -> Tensor:
        """Return, where `balanced`, the weight less the mean of its channel's surviving weights.

        What the mask holds stays zero. Gradients pass to the weight unchanged, none through the mean.

        Raises:
            ValueError: A weight is NaN or infinite.
        """
        if not self.balanced:
            return weight
        rows, kept = _rows(weight, mask, axis, per_channel=True)
        moved = weight - _shaped(_means(rows, kept), weight, axis, per_channel=True)
        return moved if mask is None else torch.where(mask, moved, 0.0)


class Codebook(Quantizer):
    """Up to `entries` numbers that weights share, found by k-means in one dimension: one list for a layer.

    The start is the best division of runs of neighbouring weights, so that a few that are far from all others
    neither waste entries nor lose theirs; weights that a mask holds do not count. There are fewer entries
    only where there are fewer distinct weights. Makes files small and computing no faster: a code has to be
    looked up. Does not help a small layer, where the entries take as much as they save.

    References:
        Han et al., Deep Compression, 2015, section 3. https://arxiv.org/abs/1510.00149
    """

    kind: Literal["codebook"] = "codebook"
    entries: Annotated[int, Field(ge=2, le=256)] = 16

    @property
    def most(self) -> int:
        """Levels of a weight, where it has as many different numbers."""
        return self.entries

    def levels(self, weight: Tensor, mask: Tensor | None = None, axis: int = 0) -> Levels:
        """Return 2 to `entries` levels, ascending, in the weights' own unit: the scale is 1.

        Where all weights are one number, the second level is 0, or 1 beside zeros.

        Raises:
            ValueError: A weight is NaN or infinite.
        """
        rows, kept = _rows(weight, mask, axis, per_channel=False)
        return Levels(cluster(rows[kept], self.entries), torch.tensor(1.0))


class PowerOfTwo(Stepped):
    """0 and +-2^-k for k = 0 ... 2^(b-1) - 2, times a scale that is a power of two: products are shifts.

    These are 2^b - 1 levels, as many as symmetric integers of b bits have. The largest is the power of two
    that is nearest to the range's end, 2^floor(log2(4 threshold / 3)). Levels are dense around zero and far
    apart at the ends, which suits weights of a bell's shape at 3 or 4 bits. Does not help from 5 bits up, as
    all further levels are next to zero: half of the range has the two levels 1/2 and 1 at any width.

    References:
        Zhou et al., Incremental Network Quantization, 2017, section 2.1. https://arxiv.org/abs/1702.03044
    """

    kind: Literal["power-of-two"] = "power-of-two"
    bits: Bits = 4

    @property
    def most(self) -> int:
        """Levels of a weight."""
        return 2**self.bits - 1

    def levels(self, weight: Tensor, mask: Tensor | None = None, axis: int = 0) -> Levels:
        """Return 2^bits - 1 levels with a scale [] or per output channel [O, 1, ...].

        A channel of zeros gets the scale 1, and stays zero.

        Raises:
            ValueError: A weight is NaN or infinite; or the range is `best`, which has to be chosen first.
        """
        threshold = self.range.threshold(weight, mask, self.bits, per_channel=self.per_channel, axis=axis)
        # threshold = mantissa * 2^exponent with a mantissa in [1/2, 1): exact, where a logarithm is rounded.
        mantissa, exponent = torch.frexp(threshold)
        scale = torch.ldexp(torch.ones_like(threshold), exponent - (mantissa < 0.75).int())
        powers = 2.0 ** -torch.arange(2 ** (self.bits - 1) - 1).float()
        values = torch.cat([-powers, torch.zeros(1), powers.flip(0)])
        return Levels(values, torch.where(threshold > 0, scale, 1.0))


Scheme = Annotated[Integer | Ternary | Binary | Codebook | PowerOfTwo, Field(discriminator="kind")]


def check_width(span: Ranges, bits: int) -> None:
    """Refuse a range that is made for another number of bits than those that are rounded to."""
    if isinstance(span, Fitted | Best) and span.bits not in (None, bits):
        raise ValueError(f"range.bits: {span.bits} is not the {bits} of the grid; leave it out")


def _rows(weight: Tensor, mask: Tensor | None, axis: int, per_channel: bool) -> tuple[Tensor, Tensor]:
    """Return the weights [O, d], or [1, N] where one scale serves all, float64, and which of them survive."""
    weight = weight.detach()
    if not torch.isfinite(weight).all():
        raise ValueError("The weight holds NaN or infinity; there are no levels to find for it")
    kept = torch.ones_like(weight, dtype=torch.bool) if mask is None else mask
    rows = weight.shape[axis] if per_channel else 1
    return weight.double().movedim(axis, 0).reshape(rows, -1), kept.movedim(axis, 0).reshape(rows, -1)


def _means(rows: Tensor, counted: Tensor) -> Tensor:
    """Return the mean [O, 1] over what counts in each row, 0 where nothing does."""
    return (rows * counted).sum(1, keepdim=True) / counted.sum(1, keepdim=True).clamp(min=1)


def _shaped(each: Tensor, weight: Tensor, axis: int, per_channel: bool) -> Tensor:
    """Return one number per row in float32, in the shape that multiplies the weight."""
    shape: Sequence[int] = [-1 if dim == axis else 1 for dim in range(weight.dim())] if per_channel else ()
    return each.float().reshape(shape)
