"""What corruptions do to a model, beside what they do to its teacher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from torch import Tensor

from decant.evidence.resampling import Errors, ratio_interval
from tasks.stability.corrupted import Cell
from tasks.stability.scales import Row, Scale, finite


@dataclass(frozen=True)
class Answers:
    """What one model answers.

    Attributes:
        clean: To the test split [N, M].
        corrupted: To all cells, one behind the other [sum of n, M].
    """

    clean: Tensor
    corrupted: Tensor


@dataclass(frozen=True)
class Pair:
    """What a model and its teacher answer to the same examples [n, M], and the truth, if there is one."""

    model: Tensor
    teacher: Tensor
    truth: Tensor | None

    @property
    def finite(self) -> bool:
        """Whether none of it is NaN or infinite."""
        return finite(self.model) and finite(self.teacher)

    def rows(self, scale: Scale) -> tuple[Row, Row]:
        """Return what is measured of the model and of the teacher."""
        ours, theirs = (scale.measure(each, self.teacher, self.truth) for each in (self.model, self.teacher))
        return ours, theirs

    def errors(self, scale: Scale) -> Errors | None:
        """Return the errors of each example [2, n], the model's and the teacher's; None if unknown."""
        if scale.each is None or self.truth is None:
            return None
        return np.stack([scale.each(each, self.truth).numpy() for each in (self.model, self.teacher)])


@dataclass(frozen=True)
class Under:
    """What one corruption does to a model and to its teacher.

    Attributes:
        scale: What is measured.
        clean: What both answer to the same examples without the corruption.
        corrupted: What both answer with it, by strength.
    """

    scale: Scale
    clean: Pair
    corrupted: tuple[Pair, ...]

    @property
    def finite(self) -> bool:
        """Whether all that both answer can be measured."""
        return not self.scale.finite or all(each.finite for each in self.corrupted)

    @cached_property
    def rows(self) -> list[tuple[Row, Row]]:
        """What is measured of the model and of the teacher, by strength."""
        return [each.rows(self.scale) for each in self.corrupted]

    def ratio(self, added: bool) -> float | None:
        """Return the model's error over the teacher's, summed over strengths.

        None where the teacher makes no error, or nothing is an error.

        Args:
            added: Whether only what the corruption adds to the error on clean examples counts, at least 0.
        """
        if self.scale.error is None:
            return None
        bases = [self.scale.error(row) if added else 0.0 for row in self.clean.rows(self.scale)]
        found, expected = (
            sum(self.scale.error(row) - base for row in rows)
            for rows, base in zip(zip(*self.rows, strict=True), bases, strict=True)
        )
        return max(found, 0.0) / expected if expected > 0 else None

    @property
    def sums(self) -> Errors | None:
        """Each example's errors [2, n], summed over strengths; None where none are known."""
        every = [each.errors(self.scale) for each in self.corrupted]
        return (
            sum((each for each in every if each is not None), np.zeros(1)) if every[0] is not None else None
        )


@dataclass(frozen=True)
class Corrupted:
    """What corruptions do to a model and to its teacher.

    Attributes:
        kinds: By the corruption.
        left_out: What was not measured and why, sentences.
    """

    kinds: Mapping[str, Under]
    left_out: tuple[str, ...] = ()

    @property
    def rows(self) -> list[Row]:
        """What is measured of the model, over corruptions and strengths."""
        return [ours for each in self.kinds.values() for ours, _ in each.rows]

    def errors(self, added: bool = False) -> dict[str, float]:
        """Return `Under.ratio` by the corruption, where there is one.

        References:
            Hendrycks and Dietterich, 2019, section 4.2.
        """
        ratios = {kind: each.ratio(added) for kind, each in self.kinds.items()}
        return {kind: ratio for kind, ratio in ratios.items() if ratio is not None}

    def interval(self) -> tuple[float, float] | None:
        """Return the 95 % interval of the mean of `errors`; None where none is known."""
        every = [each.sums for each in self.kinds.values()]
        pairs = [(sums[0], sums[1]) for sums in every if sums is not None and sums[1].any()]
        return ratio_interval(pairs) if pairs else None


def compare(
    scale: Scale, every: Sequence[Cell], model: Answers, teacher: Answers, labels: Tensor | None
) -> Corrupted:
    """Return what corruptions do to a model and to its teacher.

    Those to which one of them answers NaN or infinity are left out, where that cannot be measured.
    """
    sizes = [len(cell.indices) for cell in every]
    pairs: dict[str, list[Pair]] = {}
    clean: dict[str, Pair] = {}
    parts = zip(every, model.corrupted.split(sizes), teacher.corrupted.split(sizes), strict=True)
    for cell, ours, theirs in parts:
        rows, kind = cell.indices, cell.corruption.kind
        truth = None if labels is None else labels[rows]
        pairs.setdefault(kind, []).append(Pair(ours, theirs, truth))
        clean[kind] = Pair(model.clean[rows], teacher.clean[rows], truth)
    found = {kind: Under(scale, clean[kind], tuple(each)) for kind, each in pairs.items()}
    broken = [kind for kind, each in found.items() if not each.finite]
    why = "the model or its teacher answers NaN or infinity to such inputs"
    kinds = {kind: each for kind, each in found.items() if kind not in broken}
    return Corrupted(kinds, tuple(f"{kind}: {why}" for kind in broken))
