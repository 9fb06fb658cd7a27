"""The numbers of one model: the same keys for all, in the same order."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from decant.checkpoints.checkpoint import Checkpoint
from decant.costs import counts
from decant.costs.likeness import cosines as cosines_of
from decant.costs.likeness import relative_errors
from decant.errors import DecantError
from decant.evidence.significance import wilson_interval
from decant.targets import CLASSES, Classes, Target, Tokens
from tasks.evaluate import accuracy
from tasks.evaluate.marks import balanced, by_class, several
from tasks.evaluate.numbers import Errors, apart
from tasks.evaluate.tokens import Scores
from tasks.pipeline.metrics import MANY, Metric, set_of

Metrics = dict[str, float]


def measure(
    model: Checkpoint,
    teacher: Checkpoint,
    outputs: Tensor,
    reference: Tensor,
    labels: Tensor | None,
    size: int,
    target: Target = CLASSES,
    sizes: Tensor | None = None,
) -> Metrics:
    """Return every deterministic measure, rounded to six significant digits.

    Args:
        model: What is measured.
        teacher: What it descends from.
        outputs: The model's answers [N, M] on the test split; with classes they are logits.
        reference: What the teacher answers: the classes [N] where labels are some, else its outputs [N, M].
        labels: The truth, [N] or [N, K]; None where what the teacher answers is what is right.
        size: Bytes of the model on disk.
        target: What the labels are.
        sizes: Of texts whose next tokens are predicted, the bytes of each [N]; outputs are then `scored`.

    Raises:
        DecantError: A measure is not in its range, as of a model whose outputs are NaN or infinite.
    """
    if labels is None:
        quality = _of_outputs(outputs.float(), reference)
    elif isinstance(target, Tokens):
        assert sizes is not None
        quality = Scores(outputs, reference, labels, sizes).measures()
    elif (width := target.width) is not None:
        if outputs.shape[1] != width:
            raise DecantError(
                f"The model answers {outputs.shape[1]:,} numbers for each row, and the target has {width:,}; "
                "have its forward return one for each"
            )
        if not bool(torch.isfinite(outputs).all()):
            raise DecantError("The model answers NaN or infinity on the test split; make it anew")
        quality = OF_LABELS[target.kind](outputs.float(), reference, labels)
    elif outputs.shape[1] != len(model.classes):
        raise DecantError(
            f"The model answers {outputs.shape[1]:,} numbers for each of {len(model.classes):,} classes' "
            "examples, expected a logit for each class; leave labels out, or have its forward return logits"
        )
    else:
        quality = _of_classes(outputs, reference, labels)
        if isinstance(target, Classes) and target.balanced:
            quality |= balanced(outputs, labels)
    count = counts.parameters(model.module)
    row = quality | {
        "size_bytes": size,
        # Four bytes for each of the teacher's parameters, whatever its file takes: no gain from a fat header.
        "ratio": 4 * counts.parameters(teacher.module) / size,
        "parameters": count,
        "nonzeros": counts.nonzeros(model.module),
        "macs": counts.macs(model.module),
        "sparsity": counts.sparsity(model.module),
        "bits_per_weight": 8 * size / count,
    }
    return {metric.key: _written(metric, row[metric.key]) for metric in set_of(row).of(row)}


def _of_classes(logits: Tensor, reference: Tensor, labels: Tensor) -> Metrics:
    share, many = accuracy.accuracy(logits, labels), logits.shape[1] >= MANY
    low, high = wilson_interval(share, len(labels))
    return {
        "accuracy": share,
        "accuracy_low": low,
        "accuracy_high": high,
        **({"top5_accuracy": accuracy.top(5, logits, labels)} if many else {}),
        **by_class(logits, labels),
        "nll": accuracy.nll(logits, labels),
        "calibration_error": accuracy.calibration_error(logits, labels),
        "agreement": accuracy.agreement(logits, reference),
    }


def _of_outputs(outputs: Tensor, reference: Tensor) -> Metrics:
    if not bool(reference.any()):
        raise DecantError(
            "The teacher answers nothing but zeros on the test split, to which nothing can be compared; look "
            "at its weights, and at the test rows"
        )
    cosines, errors = cosines_of(outputs, reference), relative_errors(outputs, reference)
    cosine, cosine_low, cosine_high = accuracy.mean_interval(cosines)
    error, error_low, error_high = accuracy.mean_interval(errors)
    return {
        "cosine": cosine,
        "cosine_low": max(cosine_low, -1.0),
        "cosine_high": min(cosine_high, 1.0),
        "cosine_p1": np.quantile(cosines.numpy(), 0.01).item(),
        "cosine_least": cosines.min().item(),
        "relative_error": error,
        "relative_error_low": max(error_low, 0.0),
        "relative_error_high": error_high,
    }


def _of_numbers(outputs: Tensor, reference: Tensor, labels: Tensor) -> Metrics:
    return Errors(outputs, labels).measures() | {"from_teacher": apart(outputs, reference)}


OF_LABELS = {"numbers": _of_numbers, "labels": several}
"""By the target's kind, what takes outputs, the teacher's and labels [N, K] each."""


def _written(metric: Metric, value: float) -> float:
    """Return a measure as it is written."""
    number = value if isinstance(value, int) else float(f"{value:.6g}")
    if not (metric.least <= number <= metric.most and math.isfinite(number)):
        raise DecantError(
            f"{metric.key} came out as {number}, and is a number from {metric.least:g} to {metric.most:g}: "
            "the model's outputs or weights may be NaN or infinite; make it anew, with a lower learning rate "
            "where it was trained"
        )
    return number


def headline(row: Metrics) -> Metrics:
    """Return the few measures that fit beside each other."""
    return {key: row[key] for key in set_of(row).headline}
