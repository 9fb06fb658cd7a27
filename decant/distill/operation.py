"""Distill: train a smaller network on what a teacher answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from decant.adoption.texts import check_texts
from decant.checkpoints.checkpoint import Checkpoint
from decant.compression.finish import Result
from decant.distill.params import DistillParams
from decant.examples import Rows, Splits
from decant.networks.architectures import FOREIGN, build
from decant.recipes import recipe_of
from decant.training.fresh import train
from decant.training.losses import loss_of
from decant.training.run import Run


def distill(
    parent: Checkpoint,
    recipe: DistillParams | Mapping[str, Any],
    splits: Splits,
    *,
    teacher: Checkpoint | None = None,
    run: Run | None = None,
) -> Result:
    """Return a student that was trained from fresh weights on the soft targets, or the outputs, of `parent`.

    It does not help where the student is as large as its teacher, or where labels are plenty and right.

    Args:
        parent: The model that teaches; untouched.
        recipe: The student, the loss and the training, with the keys of params.yaml.
        splits: What it learns from, and what its curve is measured on.
        teacher: Not used, as the parent teaches; every operation takes one.
        run: Its name, its seed, and where an interrupted training is resumed from.

    Raises:
        DecantError: The recipe is not valid, the student is too large for the images or of another vocabulary
            than texts, or the loss became NaN or infinite.
    """
    block = recipe_of(DistillParams, recipe, splits.sizes)
    classes, device = len(parent.classes), block.device
    if isinstance(block.student, FOREIGN) and isinstance(images := splits.train.images, Rows):
        student = build(block.student, parent.shape, classes, 0)
        check_texts(student.eval(), images, block.student.origin)
    loss = loss_of(block.loss, block.training, parent.module, splits.train, classes, device)
    return train(block.student, block.training, splits, run, loss=loss, teacher=parent, device=device)
