"""Which test examples are explained, as which features, and which answers to them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from decant.checkpoints.checkpoint import Checkpoint
from decant.examples import Examples
from decant.explanations.answers import Answer, answer_of
from decant.explanations.features import Features, features_of
from decant.networks.execution import predict
from decant.seeds import derive_seed

EXAMPLES = 64
"""Test examples that are explained; all where there are fewer."""


@dataclass(frozen=True)
class Sample:
    """Test examples, the same for all models.

    Attributes:
        rows: Where they stand in the test split [N], int64, ascending.
        examples: They themselves.
        features: Of them.
        answer: What the teacher answers, which is explained of every model.
        seeds: Of two draws.
    """

    rows: Tensor
    examples: Examples
    features: Features
    answer: Answer
    seeds: tuple[int, int]


def take(teacher: Checkpoint, test: Examples, seed: int) -> Sample | str:
    """Return the examples to explain; a sentence where no explanation fits the inputs or the target.

    Args:
        teacher: Whose answers are explained.
        test: The test split.
        seed: That of params.yaml.

    Raises:
        DecantError: The teacher answers NaN or infinity.
    """
    generator = torch.Generator().manual_seed(derive_seed(seed, "explained examples"))
    rows = torch.randperm(len(test), generator=generator)[:EXAMPLES].sort().values
    features = features_of(test.images, rows)
    if features is None:
        return "no explanation fits inputs of this type"
    examples = Examples(test.images[rows], None, test.classes, test.target)
    answer = answer_of(predict(teacher.module, examples.images), test.target, test.labels is not None)
    if answer is None:
        return f"no explanation fits the target {test.target.kind!r}, which has no one answer to an example"
    seeds = derive_seed(seed, "explanations, first draw"), derive_seed(seed, "explanations, second draw")
    return Sample(rows, examples, features, answer, seeds)
