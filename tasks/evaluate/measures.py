"""The numbers of one model: the same keys for all, in the same order."""

from __future__ import annotations

import math

from torch import Tensor

from decant.checkpoints.checkpoint import Checkpoint
from decant.costs import counts
from decant.errors import DecantError
from tasks.evaluate import accuracy

HEADLINE = ("accuracy", "agreement", "nll", "ratio", "size_bytes")
"""The measures that `dvc metrics show` prints; all thirteen are too wide for a terminal."""

Metrics = dict[str, float]

RANGES: dict[str, tuple[float, float]] = {
    "accuracy": (0, 1),
    "accuracy_low": (0, 1),
    "accuracy_high": (0, 1),
    "nll": (0, math.inf),
    "calibration_error": (0, 1),
    "agreement": (0, 1),
    "size_bytes": (1, math.inf),
    "ratio": (0, math.inf),
    "parameters": (1, math.inf),
    "nonzeros": (0, math.inf),
    "macs": (0, math.inf),
    "sparsity": (0, 1),
    "bits_per_weight": (0, math.inf),
}
"""Each measure's least and largest value; all are finite."""


def measure(
    model: Checkpoint, teacher: Checkpoint, logits: Tensor, reference: Tensor, labels: Tensor, size: int
) -> Metrics:
    """Return every deterministic measure, rounded to six significant digits.

    Args:
        model: What is measured.
        teacher: What it descends from.
        logits: The model's answers [N, C] on the test split.
        reference: The classes [N] that the teacher predicts.
        labels: The truth [N].
        size: Bytes of the model on disk.

    Raises:
        DecantError: A measure is not in its range, as of a model whose logits are NaN or infinite.
    """
    share = accuracy.accuracy(logits, labels)
    low, high = accuracy.wilson_interval(share, len(labels))
    count = counts.parameters(model.module)
    row = {
        "accuracy": share,
        "accuracy_low": low,
        "accuracy_high": high,
        "nll": accuracy.nll(logits, labels),
        "calibration_error": accuracy.calibration_error(logits, labels),
        "agreement": accuracy.agreement(logits, reference),
        "size_bytes": size,
        # Four bytes for each of the teacher's parameters, whatever its file takes: no gain from a fat header.
        "ratio": 4 * counts.parameters(teacher.module) / size,
        "parameters": count,
        "nonzeros": counts.nonzeros(model.module),
        "macs": counts.macs(model.module, model.shape),
        "sparsity": counts.sparsity(model.module),
        "bits_per_weight": 8 * size / count,
    }
    return {key: _written(key, value) for key, value in row.items()}


def _written(key: str, value: float) -> float:
    """Return a measure as it is written."""
    number = value if isinstance(value, int) else float(f"{value:.6g}")
    low, high = RANGES[key]
    if not (low <= number <= high and math.isfinite(number)):
        raise DecantError(
            f"{key} came out as {number}, and is a number from {low:g} to {high:g}: the model's logits or "
            f"weights may be NaN or infinite; make it anew, with a lower learning rate where it was trained"
        )
    return number


def headline(row: Metrics) -> Metrics:
    """Return the few measures that fit beside each other."""
    return {key: row[key] for key in HEADLINE}
