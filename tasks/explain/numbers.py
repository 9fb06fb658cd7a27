"""What is written of a model's explanations: a few numbers that gates can judge, and the rest beside them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from decant.explanations.agreement import spearman, top_overlap
from decant.explanations.answers import OneClass
from tasks.explain.deployed import DeployedFunction
from tasks.explain.kept import Draws
from tasks.explain.methods import Explained, in_order
from tasks.explain.sample import Sample
from tasks.pipeline.lineages import TEACHER

SHOWN = 4
"""Examples whose attributions are kept to be drawn."""

LARGEST_PICTURE = 64 * 64 * 3
"""Numbers of a picture that is kept to be drawn."""


def flat(explained: Explained, teacher: Draws, sample: Sample) -> dict[str, float]:
    """Return the few numbers of a model, each the mean over methods that fit it and the teacher."""
    each = [_agreement(method, explained, teacher, sample) for method in _common(explained, teacher)]
    gained = [explained.curves[method] for method in _common(explained, teacher)]
    random = explained.random
    return {
        "explanations_kept": _mean(one["kept"] for one in each),
        "explanations_floor": _mean(one["floor"] for one in each),
        "explanations_top": _mean(one["top_k"] for one in each),
        "explanations_deletion": _mean(random.deletion_area - one.deletion_area for one in gained),
        "explanations_insertion": _mean(one.insertion_area - random.insertion_area for one in gained),
    }


def details(
    model: str, deployed: DeployedFunction, explained: Explained, teacher: Draws, sample: Sample
) -> dict[str, Any]:
    """Return all that is known of a model's explanations, by method, and the first examples to draw."""
    return {
        "model": model,
        "runtime": deployed.runtime,
        "examples_explained": len(sample.rows),
        "features": sample.features.most,
        "methods": {
            method: _agreement(method, explained, teacher, sample) | _curves(method, explained)
            for method in _common(explained, teacher)
        },
        "above_floor": _above_floor(explained, teacher, sample),
        "layout": list(sample.features.layout),
        "examples": [
            _example(at, explained, sample) | (_picture(at, sample) if model == TEACHER else {})
            for at in range(min(SHOWN, len(sample.rows)))
        ],
    }


def _above_floor(explained: Explained, teacher: Draws, sample: Sample) -> dict[str, float]:
    """Return by how much more the model's explanations are the teacher's than another draw of these are.

    With its 95 % interval over the examples, of which each is compared with itself; of one example there is
    none.
    """
    counts = sample.features.counts
    gains = [
        spearman(explained.attributions[method][0], teacher[method][0], counts)
        - spearman(*teacher[method], counts)
        for method in _common(explained, teacher)
    ]
    gain = torch.stack(gains).mean(0)
    value = gain.mean().item()
    if len(gain) < 2:
        return {"value": float(f"{value:.6g}")}
    reach = 1.959963984540054 * gain.std().item() / math.sqrt(len(gain))
    return {
        key: float(f"{at:.6g}")
        for key, at in (("value", value), ("low", value - reach), ("high", value + reach))
    }


def unexplained(model: str, why: str) -> dict[str, Any]:
    """Return the details of a model that no explanation fits."""
    return {"model": model, "unexplained": why, "methods": {}, "examples": []}


def _common(explained: Explained, teacher: Draws) -> list[str]:
    return in_order([method for method in explained.attributions if method in teacher])


def _agreement(method: str, explained: Explained, teacher: Draws, sample: Sample) -> dict[str, float]:
    """Return how far a method says the same of model and teacher, and of the teacher in another draw."""
    own, (first, second), counts = explained.attributions[method][0], teacher[method], sample.features.counts
    return {
        "kept": _mean(spearman(own, first, counts).tolist()),
        "floor": _mean(spearman(first, second, counts).tolist()),
        "top_k": _mean(top_overlap(own, first, counts).tolist()),
        "top_k_floor": _mean(top_overlap(first, second, counts).tolist()),
    }


def _curves(method: str, explained: Explained) -> dict[str, Any]:
    own, random = explained.curves[method], explained.random
    return {
        "deletion": _rounded(own.deletion),
        "insertion": _rounded(own.insertion),
        "random_deletion": _rounded(random.deletion),
        "random_insertion": _rounded(random.insertion),
    }


def _example(at: int, explained: Explained, sample: Sample) -> dict[str, Any]:
    found = {method: _rounded(each[0][at]) for method, each in explained.attributions.items()}
    return {
        "row": int(sample.rows[at]),
        **_answered(at, sample),
        "attributions": found,
    }


def _answered(at: int, sample: Sample) -> dict[str, Any]:
    """Return the name of the class that is explained, where it has one."""
    names = sample.examples.classes
    answer = sample.answer
    return {"class": names[int(answer.said[at])]} if isinstance(answer, OneClass) and names else {}


def _picture(at: int, sample: Sample) -> dict[str, Any]:
    """Return a small picture's pixels [H][W], the mean over channels in [0, 1]; nothing of other examples."""
    (example, *_) = sample.features.inputs()
    one = example[at]
    if one.dim() != 3 or not one.is_floating_point() or one.numel() > LARGEST_PICTURE:
        return {}
    return {"image": [[round(value, 2) for value in line] for line in one.mean(0).tolist()]}


def _rounded(values: Tensor) -> list[float]:
    return [float(f"{value:.4g}") for value in values.tolist()]


def _mean(values: Iterable[float]) -> float:
    return float(f"{fmean(values):.6g}")
