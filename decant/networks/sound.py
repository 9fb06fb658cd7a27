"""Log-mel spectrograms as a part of a network: who runs a deployed file gives it samples."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from decant.errors import DecantError


class LogMel(nn.Module):
    """The logarithm of a sound's power in bands that are as wide as hearing tells apart.

    A frame of `window` samples begins every `hop` samples, and none is padded: T = 1 + (L - window) // hop.
    Each is weighted by a Hann window of that period, and the squares of its discrete Fourier transform are
    summed by triangles that reach from the middle of the band below to that of the band above, of height 1;
    middles lie evenly on the scale m(f) = 2595 log10(1 + f / 700) from `low` to `high`. Then the natural
    logarithm is taken, of `floor` where there is less.

    All of it is one convolution with fixed weights and one product, which any runtime has. Nothing is
    trained, and nothing is stored with the weights: the numbers follow from the arguments.

    It does not help where a phase or a pitch finer than a band is what tells sounds apart: let the network
    see the samples themselves there.

    Args:
        rate: Samples a second.
        bands: How many bands, F.
        window: Samples of a frame; 25 ms are usual for speech.
        hop: Samples from one frame to the next; 10 ms are usual.
        low: Where the lowest band begins, in Hz.
        high: Where the highest band ends, in Hz; half the rate where it is left out.
        floor: The least power, of samples from -1 to 1.

    Raises:
        DecantError: The bands do not lie within half the rate, or are so narrow that one has no frequency of
            the transform in it.

    References:
        Davis and Mermelstein, Comparison of Parametric Representations for Monosyllabic Word Recognition,
        1980. https://doi.org/10.1109/TASSP.1980.1163420 The scale's formula: O'Shaughnessy, Speech
        Communication, 1987.
    """

    basis: Tensor
    triangles: Tensor

    def __init__(
        self,
        rate: int,
        bands: int = 40,
        window: int = 400,
        hop: int = 160,
        *,
        low: float = 0.0,
        high: float | None = None,
        floor: float = 1e-6,
    ) -> None:
        super().__init__()
        high = rate / 2 if high is None else high
        if not (0 <= low < high <= rate / 2):
            raise DecantError(
                f"Bands from {low:g} to {high:g} Hz do not lie within 0 and half of {rate} samples a second; "
                f"take low and high there"
            )
        if min(bands, window, hop) < 1 or not floor > 0:
            raise DecantError(
                f"bands, window, hop and floor must be above 0, got {bands}, {window}, {hop} and {floor}"
            )
        self.hop, self.floor = hop, floor
        with torch.device("cpu"):  # a network may be built where tensors have no values
            basis, triangles = fourier(window)[:, None], mel_bands(rate, window, bands, low, high)
        self.register_buffer("basis", basis.float(), persistent=False)
        self.register_buffer("triangles", triangles.float(), persistent=False)

    def forward(self, sound: Tensor) -> Tensor:
        """Return [N, C, F, T], in natural logarithms of power, of sound [N, C, L], L at least `window`."""
        parts = F.conv1d(sound.flatten(0, 1)[:, None], self.basis, stride=self.hop)
        real, imaginary = parts.square().chunk(2, dim=1)
        power = self.triangles @ (real + imaginary)
        return power.clamp(min=self.floor).log().unflatten(0, (-1, sound.shape[1]))


def fourier(window: int) -> Tensor:
    """Return a transform under a Hann window, [2 (W // 2 + 1), W], float64: cosines, then sines."""
    time = torch.arange(window, dtype=torch.float64) * (2 * math.pi / window)
    angles = torch.arange(window // 2 + 1)[:, None] * time
    return torch.cat([angles.cos(), angles.sin()]) * (0.5 - 0.5 * time.cos())


def mel_bands(rate: int, window: int, bands: int, low: float, high: float) -> Tensor:
    """Return how much of each frequency of the transform goes into each band, [F, W // 2 + 1], float64.

    Raises:
        DecantError: A band has none.
    """
    steps = torch.linspace(_mel(low), _mel(high), bands + 2, dtype=torch.float64)
    edges = 700 * (10 ** (steps / 2595) - 1)
    frequencies = torch.arange(window // 2 + 1, dtype=torch.float64) * (rate / window)
    below, middle, above = (edges[at : at + bands, None] for at in range(3))
    rising, falling = (frequencies - below) / (middle - below), (above - frequencies) / (above - middle)
    found = torch.minimum(rising, falling).clamp(min=0)
    if len(empty := (found.sum(1) == 0).nonzero()):
        band = int(empty[0])
        raise DecantError(
            f"Band {band + 1} of {bands}, {edges[band]:.0f} to {edges[band + 2]:.0f} Hz, has none of the "
            f"transform's frequencies, which are {rate / window:.0f} Hz apart; take fewer bands or a longer "
            "window"
        )
    return found


def _mel(frequency: float) -> float:
    return 2595 * math.log10(1 + frequency / 700)
