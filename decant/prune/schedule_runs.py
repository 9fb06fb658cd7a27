"""Schedules that train: pruning in rounds, inside a training, or followed by the teacher's own recipe."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

from decant.checkpoints.checkpoint import Checkpoint, state
from decant.checkpoints.constraints import project_
from decant.compression.surgery import composed
from decant.errors import DecantError
from decant.prune.mask_pruning import Once, Pruned
from decant.prune.masks import masked
from decant.prune.origins import fresh, origin
from decant.prune.schedules import Gradual, Iterative, Rewind, Rigl, Surgery, Trained
from decant.prune.sparsifiers import Growing, Swapping
from decant.training.fit import Row, Sparsifier, fit_
from decant.training.losses import against_teacher
from decant.training.recipe import Loss, Training
from decant.training.run import Run


def rewound(once: Once, run: Run, schedule: Rewind) -> Pruned:
    """Prune, then train as the teacher was from `epoch` on; with `weights` also from its weights then."""
    training, seed = origin(once.parent)
    if schedule.epoch >= training.epochs:
        raise DecantError(
            f"schedule.epoch: the teacher's recipe has {training.epochs} epochs, so the last that can be "
            f"gone back to is {training.epochs - 1}, got {schedule.epoch}"
        )
    result, run = once.pruned(), replace(run, seed=seed)
    child = result.model
    if schedule.weights:
        begun = replace(child, module=fresh(once.parent, once.train), constraints={})
        if schedule.epoch:
            plain = training.model_copy(update={"average": 0.0, "patience": None})
            _fit_(begun, once, run, "rewind", plain, plain.hard_loss(), epochs=(0, schedule.epoch))
        child.module.load_state_dict(state(begun.module), strict=False)
        project_(child.module, child.constraints)
    epochs = (schedule.epoch, training.epochs)
    curve = _fit_(child, once, run, "train", training, training.hard_loss(), epochs=epochs)
    return replace(result, curve=curve)


def iterated(once: Once, run: Run, schedule: Iterative) -> Pruned:
    """Prune a part and train, round after round; the last round meets the budget."""
    result, curve = Pruned(once.parent), list[Row]()
    for number, budget in enumerate(once.budgets(schedule), start=1):
        block = once.block.model_copy(update={"budget": budget})
        part = replace(once, parent=result.model, block=block).pruned()
        result = replace(part, kept=composed(result.kept, part.kept))
        part_name = f"round {number} of {schedule.rounds}"
        rows = _fit_(result.model, once, run, part_name, schedule.training, _loss(once, schedule))
        done = len(curve)
        curve += [row | {"epoch": row["epoch"] + done} for row in rows]
    return replace(result, curve=curve)


def grown(once: Once, run: Run, schedule: Trained, sparsifier: Sparsifier) -> Pruned:
    """Train with masks that change on the way."""
    child = replace(once.parent, module=copy.deepcopy(once.parent.module))
    loss = _loss(once, schedule)
    curve = _fit_(child, once, run, "train", schedule.training, loss, sparsifier=sparsifier)
    return Pruned(masked(child, sparsifier.masks), curve=curve)


def run_schedule(once: Once, run: Run) -> Pruned:
    """Return the pruned model; one shot has no training."""
    schedule = once.block.schedule
    if isinstance(schedule, Rewind):
        return rewound(once, run, schedule)
    if isinstance(schedule, Iterative):
        return iterated(once, run, schedule)
    if isinstance(schedule, Rigl):
        return grown(once, run, schedule, Swapping(once, schedule))
    if isinstance(schedule, Gradual | Surgery):
        return grown(once, run, schedule, Growing(once, schedule))
    return once.pruned()


def _loss(once: Once, schedule: Trained) -> Loss:
    if schedule.loss is None:
        return schedule.training.hard_loss()
    return against_teacher(schedule.loss, once.teacher.module, schedule.training.label_smoothing)


def _fit_(
    model: Checkpoint, once: Once, run: Run, part: str, training: Training, loss: Loss, **more: Any
) -> list[Row]:
    """Train, in place, one part of a schedule; each keeps its state apart and is resumed on its own."""
    return fit_(
        model.module,
        training,
        loss,
        once.train,
        once.validation,
        scratch=run.part(part),
        seed=run.seed,
        constraints=model.constraints,
        title=f"{run.name}, {part}",
        **more,
    )
