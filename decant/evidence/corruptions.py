"""Which corruptions fit the inputs of a network: their type decides."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from decant.evidence.pictures import OF_PICTURES
from decant.evidence.tables import FeatureNoise, MissingValues, SignalNoise, Strengths
from decant.examples import Batch, Rows
from decant.inputs import IDS
from decant.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

LONGEST = 4096
"""Numbers of a row up to which each is a feature of its own; a longer row is one signal."""


class Corruption(Protocol):
    """What all of them have."""

    @property
    def kind(self) -> str:
        """Its name in reports."""

    @property
    def strengths(self) -> Strengths:
        """Five, from mild to severe, in the corruption's own unit."""

    def apply(self, batch: Any, indices: Tensor, strength: float) -> Any:
        """Return the corrupted batch, of the form of the given one."""


@dataclass(frozen=True)
class Fitting:
    """What fits.

    Attributes:
        corruptions: In the order in which they are reported.
        why: What is left out and why, a sentence; empty where all of the inputs can be corrupted.
    """

    corruptions: tuple[Corruption, ...]
    why: str = ""


def fitting(reference: Batch) -> Fitting:
    """Return the corruptions that fit inputs like these.

    Args:
        reference: Examples of a kind with those that will be corrupted; deviations, means, and whether a
            value may be missing are theirs.
    """
    if not isinstance(reference, Rows):
        return Fitting(OF_PICTURES)
    if IDS in reference.tensors:
        return Fitting((), "tokens: another word may be another truth, so none of the corruptions fits")
    features, signals, codes = _sorted({name: t[:] for name, t in reference.tensors.items()})
    found: list[Corruption] = []
    if features:
        found.append(FeatureNoise({name: _deviation(values) for name, values in features.items()}))
    if signals:
        found.append(SignalNoise(tuple(signals)))
    instead = {name: _instead(values) for name, values in features.items()}
    instead |= {name: torch.zeros((), dtype=values.dtype) for name, values in codes.items()}
    if instead:
        found.append(MissingValues(instead))
    others = [name for name in reference.tensors if name not in {*features, *signals, *codes}]
    return Fitting(tuple(found), f"{', '.join(others)}: none of the corruptions fits" if others else "")


def _sorted(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """Return features, signals and codes, each by name."""
    features, signals, codes = {}, {}, {}
    for name, values in tensors.items():
        if values.is_floating_point() and values.dim() <= 2 and values[0].numel() <= LONGEST:
            features[name] = values
        elif values.is_floating_point():
            signals[name] = values
        elif values.dim() == 1 and values.dtype == torch.int64 and int(values.min()) == 0:
            codes[name] = values  # only where 0 occurs is it known to be a code of this network
    return features, signals, codes


def _deviation(values: Tensor) -> Tensor:
    """Return the deviation of each feature over the rows [N, ...] in which it is there."""
    there = ~torch.isnan(values)
    count = there.sum(0).clamp(min=1)
    centred = torch.where(there, values.double() - _mean(values), 0.0)
    return (centred.square().sum(0) / count).sqrt()


def _mean(values: Tensor) -> Tensor:
    """Return the mean of each feature over the rows [N, ...] in which it is there; 0 where it never is."""
    return values.double().nanmean(0).nan_to_num(0.0)


def _instead(values: Tensor) -> Tensor:
    """Return what stands for a missing value: NaN where there are such, else the mean; of their type."""
    mean = _mean(values)
    gone = bool(torch.isnan(values).any())
    return (torch.full_like(mean, float("nan")) if gone else mean).to(values.dtype)
