"""A model that is trained from fresh weights: a teacher on labels, a student on what its teacher says."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from decant.checkpoints.checkpoint import Checkpoint
from decant.compression.finish import Result, begun
from decant.examples import Splits
from decant.networks.architectures import Architecture, build
from decant.networks.devices import CPU
from decant.networks.statistics import fit_statistics_
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
    teacher: Checkpoint | None = None,
    device: str = CPU,
    begin_: Callable[[nn.Module], None] | None = None,
) -> Result:
    """Build a network, train it, and return it.

    Args:
        architecture: What is built; its weights are drawn from the run's seed.
        training: Epochs, optimizer, schedule, augmentation and the rest.
        splits: What it learns from, and what its curve is measured on.
        run: Its name, its seed, and where an interrupted training is resumed from.
        loss: What is minimized; the target's loss against the labels where None.
        teacher: What the network learns from, where it is a student: it takes the same inputs, and has the
            same classes.
        device: Where it is trained.
        begin_: Changes the fresh weights, in place, before the first step.

    Raises:
        DecantError: The network is too large for the images, the loss became NaN or infinite, or there are
            neither labels nor a teacher.
    """
    run, images = run or Run(), splits.train
    shape = images.shape if teacher is None else teacher.shape
    classes = images.classes if teacher is None else teacher.classes
    module = build(architecture, shape, len(classes), run.seed)
    fit_statistics_(module, images)
    if begin_ is not None:
        begin_(module)
    curve = fit_(
        module,
        training,
        loss or training.hard_loss(images.target),
        images,
        splits.validation,
        scratch=run.scratch,
        seed=run.seed,
        constraints={},
        title=run.name,
        teacher=None if teacher is None else teacher.module,
        device=device,
    )
    lineage = () if teacher is None else tuple(teacher.lineage)
    model = Checkpoint(architecture, shape, classes, module, lineage=lineage)
    return begun(model, curve, epochs_run(training, curve))
