"""What models of rare classes, or of several labels at once, are measured by: recall, F1, precision."""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from decant.errors import DecantError
from decant.targets import micro_f1
from tasks.evaluate.resampling import Weights, bootstrap

DRAWS = 200
"""Samples for the interval of the mean average precision, which takes longer than any other measure."""


def by_class(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Return the mean over classes of recall (balanced accuracy) and of F1, each in [0, 1].

    Classes that the test split has no example of are left out of the mean of recalls, and of that of F1 where
    nothing is said to be of them either.

    Args:
        logits: [N, C].
        labels: Classes [N].
    """
    said, true = (marks(each, logits.shape[1]) for each in (logits.argmax(1), labels))
    recall = _recall(said & true, true, np.ones(len(labels)))
    return {"balanced_accuracy": recall, "macro_f1": macro_f1(said, true)}


def balanced(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Return the same with the interval of the mean of recalls, which is what rare classes are judged by."""
    said, true = (marks(each, logits.shape[1]) for each in (logits.argmax(1), labels))
    low, high = bootstrap(partial(_recall, said & true, true), len(labels))
    found = by_class(logits, labels)
    return found | {"balanced_accuracy_low": low, "balanced_accuracy_high": high}


def marks(classes: Tensor, count: int) -> NDArray[np.bool_]:
    """Return classes [N] as a mark for each of `count`, [N, C]."""
    found: NDArray[np.bool_] = classes.numpy()[:, None] == np.arange(count)
    return found


def _recall(hits: NDArray[np.bool_], true: NDArray[np.bool_], weights: Weights) -> float:
    there = weights @ true
    return float(((weights @ hits)[there > 0] / there[there > 0]).mean())


def macro_f1(said: NDArray[np.bool_], true: NDArray[np.bool_]) -> float:
    """Return F1, 2 hits over what is said and what is true, of each column of marks [N, L]; their mean."""
    sizes = said.sum(0) + true.sum(0)
    return float((2 * (said & true).sum(0)[sizes > 0] / sizes[sizes > 0]).mean()) if sizes.any() else 1.0


class AveragePrecision:
    """The area under precision over recall, mean over the labels (mAP); rows of equal scores come together.

    Args:
        scores: [N, L]; a larger one is a label that is more likely.
        true: Marks [N, L]; labels that no row has are left out.

    Raises:
        DecantError: No row has any label.
    """

    def __init__(self, scores: NDArray[np.float64], true: NDArray[np.bool_]) -> None:
        there = np.flatnonzero(true.any(0))
        if not len(there):
            raise DecantError("No test row has any label, so that none can be found; take other test rows")
        self._labels = [_ranked(scores[:, label], true[:, label]) for label in there]

    def mean(self, weights: Weights) -> float:
        """Return the mean over the labels that rows of these weights [N] have; NaN where there are none."""
        found = [_average_precision(*each, weights) for each in self._labels]
        return float(np.nanmean(found)) if not np.isnan(found).all() else float("nan")


Ranked = tuple[NDArray[np.intp], NDArray[np.bool_], NDArray[np.intp]]


def _ranked(scores: NDArray[np.float64], true: NDArray[np.bool_]) -> Ranked:
    """Return the rows from the highest score down, their marks, and where each run of equal scores ends."""
    order = np.argsort(-scores, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))
    return order, true[order], ends


def _average_precision(
    order: NDArray[np.intp], true: NDArray[np.bool_], ends: NDArray[np.intp], weights: Weights
) -> float:
    weighed = weights[order]
    seen, hits = weighed.cumsum()[ends], (weighed * true).cumsum()[ends]
    if hits[-1] == 0:
        return float("nan")
    gained = np.diff(hits, prepend=0.0)
    precision = np.divide(hits, seen, out=np.zeros_like(hits), where=seen > 0)
    return float((gained * precision).sum() / hits[-1])


def several(logits: Tensor, reference: Tensor, labels: Tensor) -> dict[str, float]:
    """Return all measures of labels [N, L], several at once; a label is said where its logit is above 0."""
    said, true = (logits > 0).numpy(), (labels > 0).numpy()
    precision = AveragePrecision(logits.double().numpy(), true)
    low, high = bootstrap(precision.mean, len(labels), DRAWS)
    return {
        "map": precision.mean(np.ones(len(labels))),
        "map_low": low,
        "map_high": high,
        "micro_f1": micro_f1(logits > 0, labels > 0),
        "macro_f1": macro_f1(said, true),
        "agreement": float((said == (reference > 0).numpy()).mean()),
    }
