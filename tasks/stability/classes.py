"""What is said of models that tell classes apart: the difference and chance, classes, flips, confidence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

from decant.evidence.behaviour import divergences, flips, predicted, reliability
from decant.evidence.significance import holm, mcnemar, smallest_difference, wilson_interval

EXAMPLES = 16
"""Of those that changed most, so many are listed."""

FLIPS = 100
"""Pairs of classes at most that are listed."""

SURE = 0.05
"""A p-value of at most this is a difference."""


@dataclass(frozen=True)
class Comparison:
    """A model beside its teacher on the same test examples.

    Attributes:
        model: Logits of the model [N, C].
        teacher: Logits of the teacher [N, C].
        labels: Classes [N].
        names: Of the classes.
    """

    model: Tensor
    teacher: Tensor
    labels: Tensor
    names: Sequence[str]

    @cached_property
    def said(self) -> Tensor:
        """The classes that the model says [N]."""
        return predicted(self.model)

    @cached_property
    def expected(self) -> Tensor:
        """The classes that the teacher says [N]."""
        return predicted(self.teacher)

    @cached_property
    def right(self) -> Tensor:
        """Where the model is right [N]."""
        return self.said == self.labels

    @cached_property
    def teacher_right(self) -> Tensor:
        """Where the teacher is right [N]."""
        return self.expected == self.labels

    @cached_property
    def drifts(self) -> Tensor:
        """KL divergence from the teacher's probabilities for each example [N], in nats."""
        return divergences(self.model, self.teacher)

    @cached_property
    def per_class(self) -> list[dict[str, Any]]:
        """Accuracy of each class that has test examples, its interval, the teacher's, and corrected p."""
        found = list[dict[str, Any]]()
        for place, name in enumerate(self.names):
            ours, theirs = self.right[mask := self.labels == place], self.teacher_right[mask]
            if count := len(ours):
                share = int(ours.sum()) / count
                low, high = wilson_interval(share, count)
                found.append(
                    {
                        "class": name,
                        "accuracy": share,
                        "low": low,
                        "high": high,
                        "teacher": int(theirs.sum()) / count,
                        "p": mcnemar(*_alone(ours, theirs)),
                        "count": count,
                    }
                )
        for row, p in zip(found, holm([row["p"] for row in found]), strict=True):
            row["p"] = p
        return found

    @property
    def worse(self) -> list[dict[str, Any]]:
        """The classes that lost more than chance explains."""
        return [row for row in self.per_class if row["accuracy"] < row["teacher"] and row["p"] <= SURE]

    def metrics(self) -> dict[str, float]:
        """Return the flat metrics."""
        ours, theirs = _alone(self.right, self.teacher_right)
        return {
            "negative_flips": theirs / len(self.labels),
            "logit_drift": self.drifts.mean().item(),
            "worst_class_drop": max(row["teacher"] - row["accuracy"] for row in self.per_class),
            "classes_worse": len(self.worse),
            "mcnemar_p": mcnemar(ours, theirs),
            "smallest_difference": smallest_difference(len(self.labels), ours + theirs),
        }

    def details(self) -> dict[str, Any]:
        """Return what the details say."""
        pairs = flips(self.said, self.expected)
        metrics = self.metrics()
        return {
            "difference": self._difference(metrics),
            "smallest_difference": metrics["smallest_difference"],
            "classes": self.per_class,
            "flips": [
                {"from": self.names[pair.teacher], "to": self.names[pair.model], "count": pair.count}
                for pair in pairs[:FLIPS]
            ],
            "flips_of_all": sum(pair.count for pair in pairs),
            "reliability": [vars(each) for each in reliability(self.model, self.labels)],
            "examples": list(map(self._example, self._most_changed())),
        }

    def _difference(self, metrics: dict[str, float]) -> dict[str, Any]:
        """Return the difference of the accuracies, and whether it is more than chance, as a sentence."""
        ours, theirs = _alone(self.right, self.teacher_right)
        gained, p = (ours - theirs) / len(self.labels), metrics["mcnemar_p"]
        points, least = f"{100 * abs(gained):.2f} points", f"{100 * metrics['smallest_difference']:.2f}"
        if p <= SURE:
            verdict = (
                f"{points} {'more' if gained > 0 else 'less'} than the teacher (exact McNemar, p {p:.2g})"
            )
        else:
            verdict = f"no difference from the teacher beyond chance (exact McNemar, p {p:.2g})"
        return {
            "accuracy": gained,
            "model_alone_right": ours,
            "teacher_alone_right": theirs,
            "p": p,
            "beyond_chance": p <= SURE,
            "verdict": f"{verdict}; with so many examples, {least} points could be shown",
        }

    def _most_changed(self) -> list[int]:
        """Return the examples whose probabilities moved most, the first of equal ones first."""
        order = self.drifts.argsort(descending=True, stable=True)[:EXAMPLES].tolist()
        return [index for index in order if self.drifts[index] > 0]

    def _example(self, index: int) -> dict[str, Any]:
        places = (self.expected[index], self.said[index], self.labels[index])
        teacher, model, label = (self.names[int(place)] for place in places)
        kl = self.drifts[index].item()
        return {"index": index, "teacher": teacher, "model": model, "label": label, "kl": kl}


def _alone(ours: Tensor, theirs: Tensor) -> tuple[int, int]:
    """Return on how many examples the model alone is right, and on how many the teacher alone."""
    return int((ours & ~theirs).sum()), int((theirs & ~ours).sum())
