"""What other seeds made of the same recipe: how much of a model is chance."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, stdev
from typing import Any

import torch
from torch import Tensor

from decant.evidence.resampling import permutation
from tasks.stability.classes import SURE
from tasks.stability.scales import Scale


def of_seeds(
    scale: Scale | None, every: Sequence[Tensor], teacher: Tensor, labels: Tensor | None
) -> dict[str, Any] | None:
    """Return the measure of each seed's model, their mean and deviation, and a paired test of their mean.

    Args:
        scale: What is measured, if anything; only what is a mean over examples can be tested.
        every: What the models answer to the test split [N, M] each, two or more.
        teacher: What the teacher answers [N, M].
        labels: The truth.

    Returns:
        None where the measure is no mean over examples.
    """
    if scale is None or scale.each is None or labels is None:
        return None
    key = scale.keys[0]
    values = [scale.measure(outputs, teacher, labels)[key] for outputs in every]
    errors = torch.stack([scale.each(outputs, labels) for outputs in every]).mean(0)
    p = permutation((errors - scale.each(teacher, labels)).numpy())
    beside = scale.measure(teacher, teacher, labels)[key]
    return {
        key: values,
        "mean": fmean(values),
        "deviation": stdev(values),
        "teacher": beside,
        "p": p,
        "beyond_chance": p <= SURE,
        "verdict": _verdict(key, fmean(values), stdev(values), beside, p),
    }


def _verdict(key: str, mean: float, deviation: float, teacher: float, p: float) -> str:
    """Return the outcome as a sentence."""
    found = f"{key} {mean:.4g} with a deviation of {deviation:.2g} over the seeds, the teacher {teacher:.4g}"
    if p > SURE:
        return f"{found}: no difference beyond chance (permutation of pairs, p {p:.2g})"
    return f"{found}: a difference (permutation of pairs, p {p:.2g})"
