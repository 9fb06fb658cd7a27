"""A model that is trained from fresh weights: a teacher on labels, a student on what its teacher says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from decant.checkpoints.checkpoint import Checkpoint
from decant.compression.finish import Result, begun
from decant.examples import Splits, pixels
from decant.networks.architectures import Architecture, build
from decant.networks.layers import fit_normalization_
from decant.training.fit import epochs_run, fit_
from decant.training.recipe import Loss, Training
from decant.training.run import Run


def train(
    architecture: Architecture,
    training: Training,
    splits: Splits,
    run: Run | None = None,
    *,
    loss: Loss | None = None,
    lineage: tuple[Mapping[str, Any], ...] = (),
) -> Result:
    """Build a network, train it, and return it.

    Args:
        architecture: What is built; its weights are drawn from the run's seed.
        training: Epochs, optimizer, schedule, augmentation and the rest.
        splits: What it learns from, and what its curve is measured on.
        run: Its name, its seed, and where an interrupted training is resumed from.
        loss: What is minimized; cross entropy against the labels where None.
        lineage: The steps before this one.

    Raises:
        DecantError: The network is too large for the images, or the loss became NaN or infinite.
    """
    run, images = run or Run(), splits.train
    module = build(architecture, images.shape, len(images.classes), run.seed)
    fit_normalization_(module, pixels(images.images))
    curve = fit_(
        module,
        training,
        loss or training.hard_loss(),
        images,
        splits.validation,
        scratch=run.scratch,
        seed=run.seed,
        constraints={},
        title=run.name,
    )
    model = Checkpoint(architecture, images.shape, images.classes, module, lineage=lineage)
    return begun(model, curve, epochs_run(training, curve))
