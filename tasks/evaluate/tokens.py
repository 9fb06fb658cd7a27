"""What models that predict the next token are measured by: perplexity, bits per byte, accuracy."""

from __future__ import annotations

import math

import numpy as np
from torch import Tensor

from decant.errors import DecantError
from decant.targets import NO_TOKEN
from tasks.evaluate.resampling import Weights, bootstrap


class Scores:
    """How likely a model found each next token of N texts, and which one it would have said.

    Args:
        scores: [N, 2 L], as `scored`.
        reference: The same of the teacher.
        labels: The next tokens [N, L].
        sizes: The bytes of each text's next tokens [N].

    Raises:
        DecantError: A likelihood is NaN or infinite, or the texts have no bytes.
    """

    def __init__(self, scores: Tensor, reference: Tensor, labels: Tensor, sizes: Tensor) -> None:
        places, there = labels.shape[1], labels != NO_TOKEN
        losses, said = scores[:, :places].double(), scores[:, places:]
        if not bool(losses.isfinite().all()):
            raise DecantError("The model answers NaN or infinity on the test split; make it anew")
        if not int(sizes.sum()):
            raise DecantError("The next tokens of the test texts have no bytes in all; take other texts")
        alike = (said == reference[:, places:]) & there
        parts = (losses.sum(1), (said == labels) & there, alike, there, sizes)
        sums = [part.double().reshape(len(labels), -1).sum(1).numpy() for part in parts]
        self._losses, self._right, self._alike, self._tokens, self._bytes = sums

    def accuracy(self, weights: Weights) -> float:
        """Return the share of tokens that are predicted rightly."""
        return float(weights @ self._right / (weights @ self._tokens))

    def perplexity(self, weights: Weights) -> float:
        """Return e to the mean negative log likelihood of a token in nats; at least 1."""
        mean = min(float(weights @ self._losses / (weights @ self._tokens)), MOST)
        return math.exp(mean)

    def bits_per_byte(self, weights: Weights) -> float:
        """Return the negative log likelihood in bits over the bytes."""
        return float(weights @ self._losses / (weights @ self._bytes) / math.log(2))

    def measures(self) -> dict[str, float]:
        """Return all of them, with the intervals of those over samples of whole texts."""
        found, every = dict[str, float](), np.ones(len(self._tokens))
        for name, measure in (
            ("token_accuracy", self.accuracy),
            ("perplexity", self.perplexity),
            ("bits_per_byte", self.bits_per_byte),
        ):
            low, high = bootstrap(measure, len(every))
            found |= {name: measure(every), f"{name}_low": low, f"{name}_high": high}
        return found | {"agreement": float(self._alike.sum() / self._tokens.sum())}


MOST = 700.0
"""Nats a token, whose exponential float64 still has."""
