"""A network as a function of which features of an example are kept: what perturbation methods look at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from decant.errors import DecantError
from decant.explanations.answers import Answer
from decant.explanations.features import Features
from decant.networks.execution import as_rows

TOGETHER = 256
"""Examples that are evaluated at once."""

EXACT = 1e-6
"""Attributions are rounded to this share of the scores: what is smaller is the rounding of float32."""


@dataclass(frozen=True)
class Masked:
    """A network's score for the answer to examples of which some features are removed.

    Attributes:
        features: Of the examples.
        function: The network: of as many tensors as it takes, in ONNX Runtime or in PyTorch.
        answer: Which answer to each example is explained.
    """

    features: Features
    function: Callable[..., Any]
    answer: Answer

    def __call__(self, rows: Tensor, kept: Tensor) -> Tensor:
        """Return the scores [P] of examples with features removed, float64.

        Args:
            rows: Which example each one is of [P], int64.
            kept: True where a feature stays [P, M].

        Raises:
            DecantError: A score is NaN or infinite, or the network answers another number of outputs than
                the teacher.
        """
        with torch.no_grad():
            parts = zip(rows.split(TOGETHER), kept.split(TOGETHER), strict=True)
            found = torch.cat([self._scores(*part) for part in parts])
        if not bool(torch.isfinite(found).all()):
            raise DecantError(
                "The network answers NaN or infinity to examples of which features are removed, so that "
                "nothing can be explained; make the model anew"
            )
        return found

    def _scores(self, rows: Tensor, kept: Tensor) -> Tensor:
        outputs = as_rows(self.function(*self.features.masked(rows, kept)), len(rows))
        return self.answer.scores(outputs.double(), rows)

    def ends(self) -> tuple[Tensor, Tensor]:
        """Return the scores [N] of whole examples, and of what is left without any feature."""
        rows = torch.arange(len(self.features.counts))
        whole = torch.ones(len(rows), self.features.most, dtype=torch.bool)
        return self(rows, whole), self(rows, ~whole)

    def rounded(self, attributions: Tensor) -> Tensor:
        """Return attributions [N, M] on a grid of `EXACT` of each example's scores, 0 behind its features."""
        whole, nothing = self.ends()
        return rounded(attributions, torch.maximum(whole.abs(), nothing.abs()))


def rounded(attributions: Tensor, scale: Tensor) -> Tensor:
    """Return attributions [N, M] in multiples of `EXACT` times the scale [N] of each example, float64."""
    step = EXACT * scale.double().clamp(min=1e-30)[:, None]
    return (attributions.double() / step).round() * step + 0.0
