"""How like two networks' outputs are, row by row, as vectors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from decant.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


def cosines(found: Tensor, expected: Tensor) -> Tensor:
    """Return the cosine of the angle between each row found and the row expected, [N] in [-1, 1], float64.

    Two rows of zeros are alike, 1; a row of zeros and another are not, 0. What is NaN or infinite gives NaN.

    Args:
        found: [N, M].
        expected: [N, M].
    """
    (one, size), (other, expected_size) = _directed(found), _directed(expected)
    both_zero = (size == 0) & (expected_size == 0)
    return torch.where(both_zero, 1.0, (one * other).sum(1).clamp(-1, 1))


def relative_errors(found: Tensor, expected: Tensor) -> Tensor:
    """Return ||found - expected|| / ||expected|| of each row, [N], at least 0, float64.

    Where a row expected is zero, the root of the mean squared norm of all rows takes its place; where all
    are zero, the error is 0 for a row of zeros and infinite for another.

    Args:
        found: [N, M].
        expected: [N, M].
    """
    found, expected = found.double(), expected.double()
    errors, sizes = (found - expected).norm(dim=1), expected.norm(dim=1)
    sizes = torch.where(sizes == 0, sizes.square().mean().sqrt(), sizes)
    return torch.where((errors == 0) & (sizes == 0), 0.0, errors / sizes)


def _directed(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return each row [N, M] in float64 with a norm of 1, or zero, and its largest size [N]."""
    largest = rows.double().abs().amax(1)
    scaled = rows.double() / torch.where(largest == 0, 1.0, largest)[:, None]  # no square leaves the range
    norms = scaled.norm(dim=1)
    return scaled / torch.where(largest == 0, 1.0, norms)[:, None], largest
