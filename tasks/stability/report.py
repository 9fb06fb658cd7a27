"""All that is said of one model: its flat metrics, and its details."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from decant.checkpoints.checkpoint import Checkpoint
from decant.evidence.corruptions import Fitting
from decant.examples import Examples
from tasks.stability.classes import Comparison
from tasks.stability.corrupted import Cell
from tasks.stability.damage import Answers, compare
from tasks.stability.measures import (
    check,
    details_of_corruptions,
    left_out,
    of_corruptions,
    rounded,
    written,
)
from tasks.stability.norms import compared
from tasks.stability.scales import CLASSES, Row, kind_of, scale_of
from tasks.stability.seeds import of_seeds


def report(
    name: str,
    models: tuple[Checkpoint, Checkpoint],
    answers: tuple[Answers, Answers],
    test: Examples,
    fit: Fitting,
    every: list[Cell],
    seeds: Sequence[Tensor] = (),
) -> tuple[Row, dict[str, Any]]:
    """Return the flat metrics of a model and its details, of six significant digits.

    Args:
        name: The model's.
        models: The model and its teacher.
        answers: What each of them answers.
        test: The test split.
        fit: The corruptions that fit.
        every: The cells whose answers are given.
        seeds: What models of the same recipe and other seeds answer to the test split [N, M].

    Raises:
        DecantError: The two cannot be compared, or what was measured is NaN or infinite.
    """
    (model, teacher), (ours, theirs) = models, answers
    check(test, ours.clean, theirs.clean)
    kind, scale = (
        kind_of(test.target, test.labels is not None),
        scale_of(test.target, test.labels is not None),
    )
    metrics, details = dict[str, float](), dict[str, Any]()
    lacking = [*left_out(test), *([fit.why] if fit.why else [])]
    if scale is not None:
        found = compare(scale, every, ours, theirs, test.labels)
        metrics |= of_corruptions(scale, found)
        details |= details_of_corruptions(found, every)
        lacking += found.left_out
    if seeds:
        for each in seeds:
            check(test, each, theirs.clean)
        repeated = of_seeds(scale, [ours.clean, *seeds], theirs.clean, test.labels)
        details |= {"seeds": repeated} if repeated else {}
        lacking += [] if repeated else ["seeds: such models have no measure that is a mean over examples"]
    if scale is CLASSES:
        beside = Comparison(ours.clean, theirs.clean, test.known_labels, model.classes)
        metrics |= beside.metrics()
        details |= beside.details()
    row, weights = compared(model, teacher)
    content = {"model": name, "target": kind, "left_out": lacking, **details, "weights": weights}
    return written(kind, metrics | row), rounded(content)
