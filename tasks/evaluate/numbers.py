"""What models that predict numbers are measured by: errors in the numbers' own units, and R^2."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from decant.errors import DecantError
from tasks.evaluate.resampling import Weights, bootstrap


class Errors:
    """Predictions of K numbers for N rows beside the truth.

    Args:
        outputs: What a model predicts [N, K].
        truth: What is right [N, K].

    Raises:
        DecantError: There are fewer than two rows, or a number is the same in all of them, so that R^2 is not
            defined.
    """

    def __init__(self, outputs: Tensor, truth: Tensor) -> None:
        self._truth = truth.double().numpy()
        self._errors = outputs.double().numpy() - self._truth
        if len(truth) < 2 or bool((self._truth == self._truth[:1]).all(0).any()):
            raise DecantError(
                "The test split has a target that does not vary, of which R^2 is not defined; take more rows"
            )
        # Sums over rows are all that the measures need: drawing rows anew is then a product.
        shifted = self._truth - self._truth.mean(0)
        self._parts = np.stack([np.abs(self._errors), self._errors**2, shifted, shifted**2])

    def mae(self, weights: Weights | None = None) -> float:
        """Return the mean absolute error, mean over the numbers."""
        return float(self._means(weights)[0].mean())

    def rmse(self, weights: Weights | None = None) -> float:
        """Return the root of the mean squared error, mean over the numbers."""
        return float(np.sqrt(self._means(weights)[1]).mean())

    def r2(self, weights: Weights | None = None) -> float:
        """Return 1 - squared error / variance, mean over the numbers: 1 is right, 0 as good as the mean.

        Where no row but equal ones is drawn the variance is 0, and the value NaN.
        """
        _, squares, mean, square = self._means(weights)
        variance = square - mean**2
        with np.errstate(invalid="ignore", divide="ignore"):
            return float(np.where(variance > 0, 1 - squares / variance, np.nan).mean())

    def measures(self) -> dict[str, float]:
        """Return all of them, with the intervals of R^2 and of the mean absolute error."""
        count = len(self._errors)
        (low, high), (least, most) = bootstrap(self.r2, count), bootstrap(self.mae, count)
        found = {"mae": self.mae(), "mae_low": least, "mae_high": most, "rmse": self.rmse()}
        return {"r2": self.r2(), "r2_low": low, "r2_high": high, **found}

    def _means(self, weights: Weights | None) -> NDArray[np.float64]:
        """Return the weighted means over the rows [4, K]."""
        if weights is None:
            return self._parts.mean(1)
        return np.einsum("n,pnk->pk", weights, self._parts) / weights.sum()


def apart(outputs: Tensor, reference: Tensor) -> float:
    """Return the mean absolute difference of predictions [N, K] from another model's."""
    return (outputs.double() - reference.double()).abs().mean().item()
