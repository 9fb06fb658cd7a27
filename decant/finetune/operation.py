"""Finetune: train a model further while what earlier operations did to it holds."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from decant.calibration.batch_norms import with_statistics
from decant.checkpoints.checkpoint import Checkpoint
from decant.compression.finish import Result, finished
from decant.compression.given import check_given
from decant.examples import Splits
from decant.finetune.params import FinetuneParams
from decant.recipes import recipe_of
from decant.training.fit import epochs_run, fit_
from decant.training.losses import loss_of, warning
from decant.training.run import Run
from decant.training.teaching import check_examples


def finetune(
    parent: Checkpoint,
    recipe: FinetuneParams | Mapping[str, Any],
    splits: Splits,
    *,
    teacher: Checkpoint | None = None,
    run: Run | None = None,
) -> Result:
    """Return the parent, trained further with its masks, levels and ranges held.

    Without epochs, the statistics of its batch norms are estimated anew instead, and no weight is changed.

    It does not help a model that nothing was taken from: it has learned what these images can teach it.

    Args:
        parent: The model to train; untouched.
        recipe: The training and, where soft targets are wanted, the loss, with the keys of params.yaml.
        splits: What it learns from, and what its curve is measured on.
        teacher: Whose soft targets `loss` takes, and whose outputs are learned where there are no labels; the
            parent where None.
        run: Its name, its seed, and where an interrupted training is resumed from.

    Raises:
        DecantError: The recipe is not valid, the examples are not of the teacher's shape or classes, its
            weights are NaN, or the loss became NaN or infinite.
    """
    check_given(parent, splits, teacher)
    block, run = recipe_of(FinetuneParams, recipe, splits.sizes), run or Run()
    if block.statistics:
        estimated, images = with_statistics(parent, splits.train, block.device)
        return finished(parent, estimated, {}, facts=images, statistics=True)
    child = replace(parent, module=copy.deepcopy(parent.module))
    teacher = teacher or parent
    check_examples(teacher, splits.train)
    curve = fit_(
        child.module,
        block.training,
        loss_of(block.loss, block.training, teacher.module, splits.train, len(parent.classes), block.device),
        splits.train,
        splits.validation,
        scratch=run.scratch,
        seed=run.seed,
        constraints=parent.constraints,
        title=run.name,
        teacher=teacher.module,
        device=block.device,
    )
    message = warning(block.loss, parent.narrowest)
    facts = epochs_run(block.training, curve) | ({"warning": message} if message else {})
    return finished(parent, child, {}, curve=curve, facts=facts)
