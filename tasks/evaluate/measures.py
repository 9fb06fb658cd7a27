"""The numbers of one model: the same keys for all, in the same order."""

from __future__ import annotations

from torch import Tensor

from decant.checkpoints.checkpoint import Checkpoint
from decant.costs import counts
from tasks.evaluate import accuracy

HEADLINE = ("accuracy", "agreement", "nll", "ratio", "size_bytes")
"""The measures that `dvc metrics show` prints; all thirteen are too wide for a terminal."""

Metrics = dict[str, float]


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
    return {key: value if isinstance(value, int) else float(f"{value:.6g}") for key, value in row.items()}


def headline(row: Metrics) -> Metrics:
    """Return the few measures that fit beside each other."""
    return {key: row[key] for key in HEADLINE}
