"""Corruptions of rows of numbers, each in five strengths: noise, and values that are missing.

What is random is drawn for each example from its index alone, and is the same for all strengths: a larger
share of missing values contains the smaller one. Deviations and means are of a reference that the corruption
is made with, so a row is corrupted alike in any batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from decant.evidence.draws import normals, uniforms
from decant.examples import Rows
from decant.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

Strengths = tuple[float, float, float, float, float]


@dataclass(frozen=True)
class FeatureNoise:
    """x + s d z, with d the deviation of the feature over the reference and z of the normal distribution.

    Attributes:
        deviations: Of each feature, of the shape of a row, by the name of the tensor; others are left alone.
    """

    deviations: Mapping[str, Tensor]
    kind: ClassVar[str] = "noise"
    strengths: ClassVar[Strengths] = (0.05, 0.1, 0.2, 0.4, 0.8)

    def apply(self, rows: Rows, indices: Tensor, strength: float) -> Rows:
        """Return the corrupted rows; what is missing stays so."""

        def noisy(name: str, values: Tensor) -> Tensor:
            scale = strength * self.deviations[name].double()
            return _noisy(values, scale, indices, f"{self.kind} of {name}")

        return _changed(rows, self.deviations, noisy)


@dataclass(frozen=True)
class SignalNoise:
    """x + s d z, with d the deviation within the row itself: a noise of so much less than the signal.

    Attributes:
        names: Of the tensors; others are left alone.
    """

    names: tuple[str, ...]
    kind: ClassVar[str] = "signal-noise"
    strengths: ClassVar[Strengths] = (0.05, 0.1, 0.2, 0.4, 0.8)

    def apply(self, rows: Rows, indices: Tensor, strength: float) -> Rows:
        """Return the corrupted rows."""

        def noisy(name: str, values: Tensor) -> Tensor:
            within = values.double().flatten(1).std(1, correction=0)
            scale = strength * within.reshape(-1, *[1] * (values.dim() - 1))
            return _noisy(values, scale, indices, f"{self.kind} of {name}")

        return _changed(rows, self.names, noisy)


@dataclass(frozen=True)
class MissingValues:
    """A share s of the values is gone: NaN where the network knows missing ones, else the feature's mean.

    A code, as of a category, becomes 0, which stands for none.

    Attributes:
        instead: What stands in the place of each feature, of the shape of a row, by the name of the tensor.
    """

    instead: Mapping[str, Tensor]
    kind: ClassVar[str] = "missing-values"
    strengths: ClassVar[Strengths] = (0.05, 0.1, 0.2, 0.3, 0.5)

    def apply(self, rows: Rows, indices: Tensor, strength: float) -> Rows:
        """Return the corrupted rows."""

        def gone(name: str, values: Tensor) -> Tensor:
            drawn = uniforms(indices, values[0].numel(), f"{self.kind} of {name}").reshape(values.shape)
            return torch.where(drawn < strength, self.instead[name], values)

        return _changed(rows, self.instead, gone)


def _noisy(values: Tensor, scale: Tensor, indices: Tensor, purpose: str) -> Tensor:
    """Return values [N, ...] plus noise of this deviation, of their own type."""
    drawn = normals(indices, values[0].numel(), purpose).reshape(values.shape)
    return (values.double() + scale * drawn).to(values.dtype)


def _changed(rows: Rows, names: Iterable[str], change: Callable[[str, Tensor], Tensor]) -> Rows:
    """Return rows of which the named tensors are what `change` makes of each name and tensor."""
    found = {name: change(name, rows.tensors[name][:]) for name in names}
    return replace(rows, tensors={**rows.tensors, **found})
