"""Schedules that train: pruning in rounds, inside a training, or followed by the teacher's own recipe."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

from decant.checkpoints.checkpoint import Checkpoint, state
from decant.checkpoints.constraints import project_
from decant.compression.surgery import composed
from decant.errors import DecantError
from decant.networks.devices import CPU, moved
from decant.networks.processes import started
from decant.prune.mask_pruning import MaskPruning, Pruned
from decant.prune.masks import masked
from decant.prune.origins import fresh, origin
from decant.prune.schedules import Gradual, Iterative, Rewind, Rigl, Surgery, Trained
from decant.prune.sparsifiers import GradualSparsifier, RiglSparsifier
from decant.training.fit import epochs_run, fit_
from decant.training.losses import loss_of
from decant.training.recipe import Loss, Training
from decant.training.run import Run
from decant.training.trainee import EpochMetrics, Sparsifier


def rewound(pruning: MaskPruning, run: Run, schedule: Rewind) -> Pruned:
    """Prune, then train as the teacher was from `epoch` on; with `weights` also from its weights then."""
    training, seed = origin(pruning.parent)
    training = training.model_copy(update={"processes": started()})
    if pruning.train.labels is None:
        raise DecantError(
            "schedule rewind: the teacher was trained on labels, and these examples have none to train on "
            "again; take one-shot, iterative or gradual, which learn the teacher's outputs"
        )
    if schedule.weights and pruning.parent.folded:
        raise DecantError(
            "schedule rewind: the model to prune has its batch norms folded in, and the weights to go back "
            "to have not; add weights: false, or prune before it is quantized"
        )
    if schedule.epoch >= training.epochs:
        raise DecantError(
            f"schedule.epoch: the teacher's recipe has {training.epochs} epochs, so the last that can be "
            f"gone back to is {training.epochs - 1}, got {schedule.epoch}"
        )
    result, run = pruning.pruned(), replace(run, seed=seed)
    child = result.model
    if schedule.weights:
        begun = replace(child, module=fresh(pruning.parent, pruning.train), constraints={})
        if schedule.epoch:
            plain = training.model_copy(update={"average": 0.0, "patience": None})
            _fit_(
                begun,
                pruning,
                run,
                "rewind",
                plain,
                plain.hard_loss(pruning.train.target),
                epochs=(0, schedule.epoch),
            )
        child.module.load_state_dict(state(begun.module), strict=False)
        project_(child.module, child.constraints)
    epochs = (schedule.epoch, training.epochs)
    curve = _fit_(
        child, pruning, run, "train", training, training.hard_loss(pruning.train.target), epochs=epochs
    )
    return _told(result, training, curve)


def iterated(pruning: MaskPruning, run: Run, schedule: Iterative) -> Pruned:
    """Prune a part and train, round after round; the last round meets the budget."""
    result, curve = Pruned(pruning.parent), list[EpochMetrics]()
    for number, budget in enumerate(pruning.budgets(schedule), start=1):
        block = pruning.block.model_copy(update={"budget": budget})
        part = replace(pruning, parent=result.model, block=block).pruned()
        result = replace(part, kept=composed(result.kept, part.kept))
        part_name = f"round {number} of {schedule.rounds}"
        rows = _fit_(result.model, pruning, run, part_name, schedule.training, _loss(pruning, schedule))
        done = len(curve)
        curve += [row | {"epoch": row["epoch"] + done} for row in rows]
    return _told(result, schedule.training, curve)


def grown(pruning: MaskPruning, run: Run, schedule: Trained, sparsifier: Sparsifier) -> Pruned:
    """Train with masks that change on the way."""
    child = replace(pruning.parent, module=copy.deepcopy(pruning.parent.module))
    loss = _loss(pruning, schedule)
    curve = _fit_(child, pruning, run, "train", schedule.training, loss, sparsifier=sparsifier)
    return _told(Pruned(masked(child, moved(sparsifier.masks, CPU))), schedule.training, curve)


def run_schedule(pruning: MaskPruning, run: Run) -> Pruned:
    """Return the pruned model; one shot has no training."""
    schedule = pruning.block.schedule
    if isinstance(schedule, Rewind):
        return rewound(pruning, run, schedule)
    if isinstance(schedule, Iterative):
        return iterated(pruning, run, schedule)
    if isinstance(schedule, Rigl):
        return grown(pruning, run, schedule, RiglSparsifier(pruning, schedule))
    if isinstance(schedule, Gradual | Surgery):
        return grown(pruning, run, schedule, GradualSparsifier(pruning, schedule))
    return pruning.pruned()


def _told(result: Pruned, training: Training, curve: list[EpochMetrics]) -> Pruned:
    """Return the result with its curve, and with what the lineage says of the training."""
    return replace(result, curve=curve, facts={**result.facts, **epochs_run(training, curve)})


def _loss(pruning: MaskPruning, schedule: Trained) -> Loss:
    classes, device = len(pruning.parent.classes), pruning.block.device
    return loss_of(schedule.loss, schedule.training, pruning.teacher.module, pruning.train, classes, device)


def _fit_(
    model: Checkpoint, pruning: MaskPruning, run: Run, part: str, training: Training, loss: Loss, **more: Any
) -> list[EpochMetrics]:
    """Train, in place, one part of a schedule; each keeps its state apart and is resumed on its own."""
    return fit_(
        model.module,
        training,
        loss,
        pruning.train,
        pruning.validation,
        scratch=run.part(part),
        seed=run.seed,
        constraints=model.constraints,
        title=f"{run.name}, {part}",
        teacher=pruning.teacher.module,
        device=pruning.block.device,
        **more,
    )
