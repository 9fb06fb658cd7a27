"""Corruptions of pictures, each in five strengths: what sensors, lenses, light and hands do to them.

All take pictures [N, C, H, W], uint8, the examples' indices [N] in their split, and a strength; 0 changes
nothing. What is random is drawn for each example from its index alone, and is the same for all strengths.
Lengths are shares of the shorter side, so that a strength means the same for pictures of any size.

References:
    Hendrycks and Dietterich, Benchmarking Neural Network Robustness to Common Corruptions and Perturbations,
    2019, section 4 and appendix B. https://arxiv.org/abs/1903.12261
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from decant.evidence.draws import normals, uniforms
from decant.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

Strengths = tuple[float, float, float, float, float]


@dataclass(frozen=True)
class GaussianNoise:
    """x + s z with z of the standard normal distribution: a sensor in the dark. s is of the range [0, 1]."""

    kind: ClassVar[str] = "gaussian-noise"
    strengths: ClassVar[Strengths] = (0.04, 0.08, 0.12, 0.18, 0.26)

    def apply(self, pictures: Tensor, indices: Tensor, strength: float) -> Tensor:
        """Return the corrupted pictures [N, C, H, W], uint8."""
        drawn = normals(indices, pictures[0].numel(), self.kind).reshape(pictures.shape)
        return _bytes(pictures.double() / 255 + strength * drawn)


@dataclass(frozen=True)
class ShotNoise:
    """s k with k of the Poisson distribution of mean x / s: light that comes in few quanta, 1 / s at white.

    Each k is the quantile of one uniform number, so it grows with the pixel, and is exact.
    """

    kind: ClassVar[str] = "shot-noise"
    strengths: ClassVar[Strengths] = (1 / 120, 1 / 60, 1 / 25, 1 / 12, 1 / 5)

    def apply(self, pictures: Tensor, indices: Tensor, strength: float) -> Tensor:
        """Return the corrupted pictures [N, C, H, W], uint8."""
        if strength == 0:
            return pictures.clone()
        drawn = uniforms(indices, pictures[0].numel(), self.kind).reshape(pictures.shape)
        return _bytes(strength * _poisson(pictures, drawn, 1 / strength))


@dataclass(frozen=True)
class Blur:
    """The convolution with a normal distribution of deviation s; the edge's pixels go on outside."""

    kind: ClassVar[str] = "blur"
    strengths: ClassVar[Strengths] = (0.015, 0.022, 0.03, 0.04, 0.055)

    def apply(self, pictures: Tensor, indices: Tensor, strength: float) -> Tensor:
        """Return the corrupted pictures [N, C, H, W], uint8."""
        sigma = strength * min(pictures.shape[2:])
        if sigma == 0:
            return pictures.clone()
        reach = math.ceil(3 * sigma)
        places = torch.arange(-reach, reach + 1, dtype=torch.float64)
        kernel = torch.exp(-places.square() / (2 * sigma**2))
        kernel = (kernel / kernel.sum()).float()
        planes = pictures.flatten(0, 1)[:, None].float() / 255
        padded = torch.nn.functional.pad(planes, (reach,) * 4, mode="replicate")
        rows = torch.nn.functional.conv2d(padded, kernel[None, None, :, None])
        return _bytes(torch.nn.functional.conv2d(rows, kernel[None, None, None]).reshape(pictures.shape))


@dataclass(frozen=True)
class Brightness:
    """x + s: too much light; what exceeds white is white."""

    kind: ClassVar[str] = "brightness"
    strengths: ClassVar[Strengths] = (0.05, 0.1, 0.15, 0.2, 0.3)

    def apply(self, pictures: Tensor, indices: Tensor, strength: float) -> Tensor:
        """Return the corrupted pictures [N, C, H, W], uint8."""
        return _bytes(pictures.double() / 255 + strength)


@dataclass(frozen=True)
class Contrast:
    """m + (1 - s)(x - m) with m the mean of the picture's channel: fog."""

    kind: ClassVar[str] = "contrast"
    strengths: ClassVar[Strengths] = (0.25, 0.5, 0.6, 0.7, 0.85)

    def apply(self, pictures: Tensor, indices: Tensor, strength: float) -> Tensor:
        """Return the corrupted pictures [N, C, H, W], uint8."""
        values = pictures.double() / 255
        means = values.mean((2, 3), keepdim=True)
        return _bytes(means + (1 - strength) * (values - means))


@dataclass(frozen=True)
class Shift:
    """Moved by s, to the nearest pixel, in a direction that is drawn; the edge's pixels go on behind it."""

    kind: ClassVar[str] = "shift"
    strengths: ClassVar[Strengths] = (0.04, 0.07, 0.11, 0.14, 0.18)

    def apply(self, pictures: Tensor, indices: Tensor, strength: float) -> Tensor:
        """Return the corrupted pictures [N, C, H, W], uint8."""
        count, channels, height, width = pictures.shape
        angle = 2 * math.pi * uniforms(indices, 1, self.kind)
        reach = strength * min(height, width)
        rows = _sources(height, (reach * angle.sin()).round().long())
        columns = _sources(width, (reach * angle.cos()).round().long())
        examples, planes = torch.arange(count)[:, None, None, None], torch.arange(channels)[:, None, None]
        return pictures[examples, planes, rows[:, None, :, None], columns[:, None, None, :]]


@dataclass(frozen=True)
class Rotation:
    """Turned around its middle by s degrees, one way or the other, as is drawn; bilinear."""

    kind: ClassVar[str] = "rotation"
    strengths: ClassVar[Strengths] = (5.0, 10.0, 15.0, 22.0, 30.0)

    def apply(self, pictures: Tensor, indices: Tensor, strength: float) -> Tensor:
        """Return the corrupted pictures [N, C, H, W], uint8."""
        if strength == 0:
            return pictures.clone()
        height, width = pictures.shape[2:]
        sign = torch.where(uniforms(indices, 1, self.kind)[:, 0] < 0.5, -1.0, 1.0).double()
        angle = sign * math.radians(strength)
        zero = torch.zeros_like(angle)
        # Places are from -1 to 1 along each side, so that a turn also stretches what is not square.
        across = [angle.cos(), -angle.sin() * height / width, zero]
        down = [angle.sin() * width / height, angle.cos(), zero]
        turns = torch.stack([torch.stack(across, 1), torch.stack(down, 1)], 1)
        grid = torch.nn.functional.affine_grid(turns, [*pictures.shape], align_corners=False)
        return _bytes(
            torch.nn.functional.grid_sample(
                pictures.double() / 255, grid, padding_mode="border", align_corners=False
            )
        )


@dataclass(frozen=True)
class Occlusion:
    """A square of side s, at a place that is drawn, has the mean of the picture's channel."""

    kind: ClassVar[str] = "occlusion"
    strengths: ClassVar[Strengths] = (0.15, 0.22, 0.3, 0.38, 0.45)

    def apply(self, pictures: Tensor, indices: Tensor, strength: float) -> Tensor:
        """Return the corrupted pictures [N, C, H, W], uint8."""
        height, width = pictures.shape[2:]
        side = round(strength * min(height, width))
        drawn = uniforms(indices, 2, self.kind)
        rows = _within(height, side, drawn[:, 0])
        columns = _within(width, side, drawn[:, 1])
        hidden = (rows[:, :, None] & columns[:, None, :])[:, None]
        means = (pictures.double() / 255).mean((2, 3), keepdim=True)
        return torch.where(hidden, _bytes(means), pictures)


OF_PICTURES = (
    GaussianNoise(),
    ShotNoise(),
    Blur(),
    Brightness(),
    Contrast(),
    Shift(),
    Rotation(),
    Occlusion(),
)
"""In the order in which they are reported."""


def _bytes(values: Tensor) -> Tensor:
    """Return numbers in [0, 1] as bytes; what lies outside is cut off."""
    return (values.clamp(0, 1) * 255).round().to(torch.uint8)


def _poisson(pictures: Tensor, drawn: Tensor, white: float) -> Tensor:
    """Return the quantile at `drawn`, in (0, 1), of the Poisson distribution of each pixel's mean; float64.

    The distributions of the 256 values stand one behind the other in one rising list, each a 1 higher than
    the one before, so that one search finds all quantiles.
    """
    most = math.ceil(white + 12 * math.sqrt(white) + 20)
    counts = torch.arange(most, dtype=torch.float64)
    means = torch.arange(256, dtype=torch.float64)[:, None] / 255 * white
    shares = torch.exp(torch.xlogy(counts, means) - means - torch.lgamma(counts + 1)).cumsum(1).clamp(max=1)
    rising = (torch.arange(256)[:, None] + shares).flatten().numpy()
    pixels = pictures.numpy().astype(np.float64)
    places = np.searchsorted(rising, pixels + drawn.numpy()) - most * pictures.numpy().astype(np.int64)
    return torch.from_numpy(places.clip(0, most - 1).astype(np.float64))


def _sources(length: int, moved: Tensor) -> Tensor:
    """Return which pixel comes to each place along a side [N, length], moved by [N, 1]."""
    return (torch.arange(length)[None] - moved).clamp(0, length - 1)


def _within(length: int, side: int, drawn: Tensor) -> Tensor:
    """Return which places along a side [N, length] a square covers that begins at a place that is drawn."""
    first = (drawn * (length - side + 1)).floor()[:, None]
    places = torch.arange(length)[None]
    return (places >= first) & (places < first + side)
