"""Constraints on compressed weights, and the projection onto them. Every operation's result is a constraint.

A weight is cut to a range, then rounded to levels, then masked, always in this order, so that the operations
may come in any order: zero stays zero under a mask even where the levels (binary ones) have no zero.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from decant.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class Range:
    """Weights, or a layer's inputs, lie in [low, high]; a bound that was not asked for is infinite.

    Attributes:
        low: One number for all, or a float32 tensor that broadcasts: [O, 1, ...] for a weight's output
            channels, [C, 1, ...] for a layer's input channels.
        high: The like; both are numbers or both tensors of one shape.
    """

    low: float | Tensor = -math.inf
    high: float | Tensor = math.inf

    def __post_init__(self) -> None:
        """Refuse a range with nothing in it, and two bounds that do not belong together."""
        low, high = _tensor(self.low), _tensor(self.high)
        if low.shape != high.shape or isinstance(self.low, torch.Tensor) != isinstance(
            self.high, torch.Tensor
        ):
            raise ValueError(f"Bounds of shapes {[*low.shape]} and {[*high.shape]} are no range")
        if bool((empty := ~(low <= high)).any()):
            at = int(empty.flatten().long().argmax())
            where = f" in channel {at}" if self.per_channel else ""
            first, last = low.flatten()[at].item(), high.flatten()[at].item()
            raise ValueError(f"A range from {first:g} to {last:g} holds no number{where}")

    def __eq__(self, other: object) -> bool:
        """Say whether both have the same bounds, to the bit."""
        return isinstance(other, Range) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    @property
    def _key(self) -> tuple[Any, ...]:
        low, high = _tensor(self.low), _tensor(self.high)
        return (
            self.per_channel,
            tuple(low.shape),
            tuple(low.flatten().tolist()),
            tuple(high.flatten().tolist()),
        )

    @property
    def per_channel(self) -> bool:
        """Whether each channel has bounds of its own."""
        return isinstance(self.low, torch.Tensor)

    def project(self, weight: Tensor) -> Tensor:
        """Return the weight cut to the range."""
        if isinstance(self.low, torch.Tensor) and isinstance(self.high, torch.Tensor):
            return torch.clamp(weight, self.low, self.high)
        return torch.clamp(weight, self.low, self.high)  # type: ignore[arg-type]  # both are numbers

    def within(self, other: Range) -> bool:
        """Say whether everything in this range lies in the other."""
        below, above = _tensor(other.low) <= _tensor(self.low), _tensor(self.high) <= _tensor(other.high)
        return bool(below.all() and above.all())

    def intersect(self, other: Range) -> Range:
        """Return what lies in both.

        Raises:
            ValueError: They do not meet.
        """
        if not (self.per_channel or other.per_channel):
            return Range(max(self.low, other.low), min(self.high, other.high))
        low = torch.maximum(_tensor(self.low), _tensor(other.low))
        return Range(low.float(), torch.minimum(_tensor(self.high), _tensor(other.high)).float())

    def ends(self) -> tuple[float, float]:
        """Return the least and the largest number that any channel's range holds."""
        return _tensor(self.low).min().item(), _tensor(self.high).max().item()

    def describe(self, form: str = ".3g") -> str:
        """Return the range as text, its numbers in a format such as `.3g`."""
        low, high = self.ends()
        scope = " per channel within" if self.per_channel else ""
        return f"range{scope} [{low:{form}}, {high:{form}}]"


def _tensor(bound: float | Tensor) -> Tensor:
    """Return the bound as a tensor in double precision, which holds any float32 and any number exactly."""
    return torch.as_tensor(bound, dtype=torch.double)


@dataclass(frozen=True)
class Levels:
    """Weights are `(values[code] - zero_point) * scale`: integers, signs and codebooks are all of this form.

    Attributes:
        values: The levels [L], float32, strictly ascending, at most 256.
        scale: Step, float32, not zero: one [], one for each channel (a shape that broadcasts, such as
            [O, 1, ...]), or with `group` one for each group of each row [O, G].
        zero_point: Whole numbers of the scale's shape, float32, for integers that are not symmetric; the
            level that stands for exactly 0. None where 0 itself does.
        group: How many neighbours in a row of `weight.flatten(1)` share a scale; the last of the
            G = ceil(d / group) groups of a row may be shorter.
    """

    values: Tensor
    scale: Tensor
    zero_point: Tensor | None = None
    group: int | None = None

    @property
    def bits(self) -> int:
        """Bits that hold one code, where each has bits of its own."""
        return max(1, (len(self.values) - 1).bit_length())

    @property
    def scope(self) -> str:
        """What shares a scale: `tensor`, `channel`, or `group of 32`."""
        if self.group is not None:
            return f"group of {self.group}"
        return "tensor" if self.scale.dim() == 0 else "channel"

    @cached_property
    def integers(self) -> tuple[int, int] | None:
        """The first and the last level where they are all whole numbers between; else None."""
        first = self.values[0].item()
        whole = torch.arange(len(self.values)) + first
        return (int(first), int(whole[-1])) if torch.equal(self.values, whole.to(self.values)) else None

    def spread(self, each: Tensor, shape: Sequence[int]) -> Tensor:
        """Return numbers of the scale's shape so that they broadcast against a weight of this shape."""
        if self.group is None:
            return each
        width = math.prod(shape[1:])
        return each.repeat_interleave(min(self.group, width), dim=1)[:, :width].reshape(*shape)

    def codes(self, weight: Tensor) -> Tensor:
        """Return the index [weight's shape], int64, of the nearest level; half-way goes to the upper one."""
        return torch.bucketize(self.in_steps(weight).contiguous(), self.middles, right=True)

    def decode(self, codes: Tensor) -> Tensor:
        """Return the weights that the codes stand for."""
        return self._weights(self.values[codes])

    def project(self, weight: Tensor) -> Tensor:
        """Return the weight with each element at its nearest level."""
        if self.integers is None:
            return self.decode(self.codes(weight))
        return self._weights(nearest_integers(self.in_steps(weight), *self.integers).to(self.values.dtype))

    @cached_property
    def middles(self) -> Tensor:
        """Where one level ends and the next begins [L - 1]."""
        return (self.values[1:] + self.values[:-1]) / 2

    def in_steps(self, weight: Tensor) -> Tensor:
        """Return the weight in the unit of the values."""
        found = weight / self.spread(self.scale, weight.shape)
        return found if self.zero_point is None else found + self.spread(self.zero_point, weight.shape)

    def _weights(self, values: Tensor) -> Tensor:
        """Return the weights that these of the values stand for."""
        if self.zero_point is not None:
            values = values - self.spread(self.zero_point, values.shape)
        return values * self.spread(self.scale, values.shape)

    def equals(self, other: Levels | None) -> bool:
        """Say whether both are the same grid, to the bit."""
        return (
            other is not None
            and self.group == other.group
            and torch.equal(self.values, other.values)
            and torch.equal(self.scale, other.scale)
            and _same(self.zero_point, other.zero_point)
        )


def nearest_integers(numbers: Tensor, first: int, last: int) -> Tensor:
    """Return the whole numbers in [first, last] that are nearest; half-way goes to the upper one.

    It is exact, as adding a half and cutting is not: the float before 0.5 would come to 1. And it is several
    times faster than a search among the levels.
    """
    below = numbers.floor()
    return below.add_((numbers - below).ge_(0.5)).clamp_(first, last)


def _same(first: Tensor | None, second: Tensor | None) -> bool:
    if first is None or second is None:
        return first is second
    return torch.equal(first, second)


@dataclass(frozen=True)
class Constraints:
    """All that one weight has to satisfy.

    Attributes:
        range: Bounds, held up to half a quantization step where there are levels too.
        levels: The quantization grid.
        mask: True where the weight survives; False is exactly zero.
    """

    range: Range | None = None
    levels: Levels | None = None
    mask: Tensor | None = None

    def project(self, weight: Tensor) -> Tensor:
        """Return the nearest weight that satisfies all; projecting twice changes nothing more, to the bit."""
        if self.range is not None:
            weight = self.range.project(weight)
        if self.levels is not None:
            weight = self.levels.project(weight)
        return weight if self.mask is None else torch.where(self.mask, weight, 0.0)

    def narrow(
        self, *, range: Range | None = None, levels: Levels | None = None, mask: Tensor | None = None
    ) -> Constraints:
        """Return these constraints with another one added: ranges and masks intersect.

        Raises:
            ValueError: There are levels already; rounding twice adds both errors. Or two ranges do not meet.
        """
        if levels is not None and self.levels is not None:
            raise ValueError("The weight has quantization levels already")
        if range is not None and self.range is not None:
            range = range.intersect(self.range)
        if mask is not None and self.mask is not None:
            mask = mask & self.mask
        return replace(
            self,
            range=range or self.range,
            levels=levels or self.levels,
            mask=self.mask if mask is None else mask,
        )

    def broken_by(self, weight: Tensor, later: Constraints) -> list[str]:
        """Return a sentence for each of these constraints that a descendant's weight no longer satisfies."""
        broken = []
        if self.mask is not None and (revived := int(torch.count_nonzero(weight[~self.mask]))):
            broken.append(f"{revived} of {int((~self.mask).sum())} masked weights are not zero")
        if self.mask is not None and (later.mask is None or bool((later.mask & ~self.mask).any())):
            broken.append("the mask was lost or widened")
        if self.levels is not None and not self.levels.equals(later.levels):
            broken.append("the quantization levels were lost or changed")
        if self.range is not None and (later.range is None or not later.range.within(self.range)):
            broken.append(f"the {self.range.describe('g')} was lost or widened")
        if not broken and (moved := int((later.project(weight) != weight).sum())):
            broken.append(f"{moved} of {weight.numel()} weights are off their range, levels or mask")
        return broken

    def describe(self) -> str:
        """Return the constraints as a short text, for ledgers."""
        parts = []
        if self.range is not None:
            parts.append(self.range.describe())
        if self.levels is not None:
            parts.append(f"{len(self.levels.values)} levels per {self.levels.scope}")
        if self.mask is not None:
            parts.append(f"mask {1 - self.mask.float().mean().item():.2%} zero")
        return ", ".join(parts)


FREE = Constraints()


def project_(module: nn.Module, constraints: Mapping[str, Constraints]) -> None:
    """Project the named weights onto their constraints, in place."""
    with torch.no_grad():
        for name, constraint in constraints.items():
            weight = module.get_parameter(name)
            weight.copy_(constraint.project(weight))
